"""Read config.json as transformers' own class for the architecture; no other code is run."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.checks import read_json_object, text_values
from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.core.errors import InputError, short_repr
from pipeline.core.transformers_library import load_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none, in tokens; lm-eval's default."""


def model_config(directory: Path) -> "PreTrainedConfig":
    """Read the configuration as transformers' class for it.

    Raises InputError unless it is of a causal language model that this transformers knows.
    """
    model_type = read_json_object(directory / CONFIG_FILE).get("model_type")
    library = load_transformers()
    classes = library.CONFIG_MAPPING
    if model_type not in classes or model_class(classes[model_type]) is None:
        raise InputError(
            f"{directory}: model_type {short_repr(model_type)} is no causal language model that "
            f"transformers {version('transformers')} knows; use another model"
        )
    config: PreTrainedConfig = library.AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    return config


def model_class(config_class: type) -> Any:
    """Return transformers' class of a language model with all its parts; None without one.

    For some configurations of several parts transformers also has a class of the text part alone.
    """
    library = load_transformers()
    whole = library.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(config_class, None)
    return whole or library.MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)


def has_several_parts(config: Any) -> bool:
    """Tell whether the text model is a part of the model of a configuration."""
    return config.get_text_config() is not config


def text_architecture(config: Any) -> str:
    """Name transformers' class for the text part of a configuration of several parts."""
    library, kind = load_transformers(), type(config.get_text_config())
    alone = library.MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, library.MODEL_MAPPING.get(kind, kind))
    return str(alone.__name__)


def vocabulary_size(directory: Path) -> int:
    """Return for how many tokens the model of a directory has logits.

    What config.json states is taken as it is: transformers is loaded only for a default of its own.
    Raises InputError as `model_config` does.
    """
    stated = text_values(read_json_object(directory / CONFIG_FILE)).get("vocab_size")
    if type(stated) is int:
        return stated
    return int(model_config(directory).get_text_config().vocab_size)


def context_tokens(config: Any) -> int:
    """Return the context length of the model of a configuration, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_CONTEXT))
