"""The configuration of a model of several parts: its sections, and the text model among them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.architectures.folds import FOLDS
from pipeline.checkpoint.checks import USE_ANOTHER
from pipeline.checkpoint.model_config import text_architecture
from pipeline.checkpoint.names import CONFIG_FILE, TEXT_SECTION
from pipeline.core.errors import InputError, short_repr
from pipeline.records.intake import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The sizes of a text model that are read from config.json.
SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)

Json = dict[str, Any]


def sections_of(
    mended: Json, config_class: "type[PreTrainedConfig]"
) -> Iterator[tuple[str, Json, "type[PreTrainedConfig] | None"]]:
    """Yield the configuration and those of its parts: the place of each, its values, its class.

    The class is None where its `model_type` is not stated or not known. Raises InputError for a
    part that is no object.
    """
    from transformers import CONFIG_MAPPING

    yield "", mended, config_class
    for key in config_class.sub_configs:
        section = mended.get(key)
        if isinstance(section, dict):
            model_type = section.get("model_type")
            is_known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
            yield f"{key}.", section, CONFIG_MAPPING[model_type] if is_known else None
        elif section is not None:
            raise InputError(
                f"{CONFIG_FILE}: {key} = {short_repr(section)}, expected an object; {USE_ANOTHER}"
            )


def require_text_part(config: "PreTrainedConfig") -> None:
    """Raise InputError unless the text part is of an architecture that is quantized here."""
    architecture = text_architecture(config)
    if config.get_text_config() is not getattr(config, TEXT_SECTION, None):
        raise InputError(
            f"{CONFIG_FILE}: {type(config).__name__} has several parts, and no {TEXT_SECTION} is "
            "the text model; use a checkpoint of its text model"
        )
    if architecture not in FOLDS:
        raise InputError(
            f"{CONFIG_FILE}: the text part of {type(config).__name__} is {architecture}, expected "
            f"one of {', '.join(FOLDS)}; use another model"
        )


def with_stated_shape(section: Json, text: "PreTrainedConfig") -> Iterator[Finding]:
    """State the sizes that a text part leaves to the defaults of transformers' class."""
    left_out = {
        key: value
        for key in SHAPE_KEYS
        if section.get(key) is None and type(value := getattr(text, key, None)) is int
    }
    if left_out:
        section.update(left_out)
        yield Finding(
            file=CONFIG_FILE,
            found=f"{TEXT_SECTION} leaves out {', '.join(left_out)}",
            done="written as transformers' defaults, for tools that have others",
        )


def without_other_text(mended: Json, config_class: "type[PreTrainedConfig]") -> Iterator[Finding]:
    """Remove the section of a text part from the configuration of a model without parts."""
    if TEXT_SECTION not in config_class.sub_configs and mended.get(TEXT_SECTION) is not None:
        del mended[TEXT_SECTION]
        yield Finding(
            file=CONFIG_FILE,
            found=f"{TEXT_SECTION} is there, though {config_class.__name__} has no parts",
            done="removed: some tools would read it instead of the rest",
        )
