"""Read config.json as transformers will, and mend keys that would stop a tool.

A mended key changes nothing that the model computes: code that is never run here, an attention
kernel that the weights do not need, a number of the wrong JSON type, an id that no token has. What
cannot be mended is refused in one line.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from huggingface_hub.errors import StrictDataclassError

from pipeline.architectures.folds import FOLDS
from pipeline.checkpoint.checks import USE_ANOTHER
from pipeline.checkpoint.model_config import model_class, text_architecture
from pipeline.checkpoint.names import CODE_KEY, CONFIG_FILE, TEXT_SECTION
from pipeline.core.errors import InputError, printable, short_repr
from pipeline.records.intake import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
PADDING_KEY = "pad_token_id"
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", PADDING_KEY)
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


@dataclass(frozen=True)
class MendedConfiguration:
    """The JSON object of config.json as every tool here can read it, and what was changed in it.

    `vocab_size` is the number of rows of the embedding.
    """

    values: Json
    vocab_size: int
    findings: tuple[Finding, ...]


def mended_configuration(stated: Mapping[str, Any]) -> MendedConfiguration:
    """Mend the JSON object of config.json; what every tool can read stays as it is.

    Raises InputError for a model that transformers does not know or cannot configure, and for one
    of several parts whose text model cannot be quantized.
    """
    config_class = _config_class(stated)
    mended = deepcopy(dict(stated))
    findings = [*_without_code(mended), *_without_other_text(mended, config_class)]
    for section, section_class in _sections(mended, config_class):
        findings += _without_attention(section)
        findings += _with_right_numbers(section, section_class)
    config = _configured(mended, config_class)
    text, section = config.get_text_config(), mended
    if text is not config:
        _require_text_part(config)
        section = mended[TEXT_SECTION] = mended.get(TEXT_SECTION) or {}
        findings += _with_stated_shape(section, text)
        findings += with_known_tokens(mended, file=CONFIG_FILE, vocab_size=text.vocab_size)
    findings += with_known_tokens(
        section,
        file=CONFIG_FILE,
        vocab_size=text.vocab_size,
        default_padding=text.pad_token_id,
    )
    return MendedConfiguration(mended, text.vocab_size, tuple(findings))


def _sections(
    mended: Json, config_class: "type[PreTrainedConfig]"
) -> Iterator[tuple[Json, "type[PreTrainedConfig]"]]:
    """Yield the configuration and those of its parts whose class transformers knows."""
    from transformers import CONFIG_MAPPING

    yield mended, config_class
    for key in config_class.sub_configs:
        section = mended.get(key)
        if isinstance(section, dict):
            model_type = section.get("model_type")
            if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
                yield section, CONFIG_MAPPING[model_type]


def _require_text_part(config: "PreTrainedConfig") -> None:
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


def _with_stated_shape(section: Json, text: "PreTrainedConfig") -> Iterator[Finding]:
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


def _config_class(stated: Mapping[str, Any]) -> "type[PreTrainedConfig]":
    """Find transformers' class. Raises InputError unless it is of a causal language model."""
    # Imported only where a configuration is read: it takes seconds.
    from transformers import CONFIG_MAPPING

    model_type = stated.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if stated.get(CODE_KEY) is not None:
            raise InputError(
                f"{CONFIG_FILE}: has {CODE_KEY}, so it needs Python code from the checkpoint, "
                f"which is never run here: transformers {version('transformers')} does not know "
                f"model_type {short_repr(model_type)}; use a model that it supports by itself"
            )
        known = False
    else:
        known = model_class(CONFIG_MAPPING[model_type]) is not None
    if not known:
        raise InputError(
            f"{CONFIG_FILE}: model_type {short_repr(model_type)} is no causal language model that "
            f"transformers {version('transformers')} knows; use another model"
        )
    found: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return found


def _without_code(mended: Json) -> Iterator[Finding]:
    """Remove the reference to Python files of the repository: transformers has the class."""
    if mended.pop(CODE_KEY, None) is not None:
        yield Finding(
            file=CONFIG_FILE,
            found=f"{CODE_KEY} names Python code of the repository",
            done=f"removed: transformers {version('transformers')} has the class "
            f"of {mended['model_type']} itself",
        )


def _without_other_text(mended: Json, config_class: "type[PreTrainedConfig]") -> Iterator[Finding]:
    """Remove the section of a text part where the whole model is of text."""
    if TEXT_SECTION not in config_class.sub_configs and TEXT_SECTION in mended:
        del mended[TEXT_SECTION]
        yield Finding(
            file=CONFIG_FILE,
            found=f"{TEXT_SECTION} is there, though {config_class.__name__} has no parts",
            done="removed: some tools would read it instead of the rest",
        )


def _without_attention(mended: Json) -> Iterator[Finding]:
    """Remove the choice of an attention kernel: each engine has its own."""
    for key in ATTENTION_KEYS:
        if key in mended:
            yield Finding(
                file=CONFIG_FILE,
                found=f"{key} = {short_repr(mended.pop(key))} asks for one attention kernel",
                done="removed: each engine chooses its own",
            )


def _with_right_numbers(mended: Json, config_class: "type[PreTrainedConfig]") -> Iterator[Finding]:
    """Turn 30 into 30.0, and 4096.0 into 4096, where the class takes the other type alone."""
    for field in fields(config_class):
        value, types = mended.get(field.name), get_args(field.type) or (field.type,)
        right: object = value
        if type(value) is int and int not in types and float in types:
            right = float(value)
        elif type(value) is float and float not in types and int in types and value.is_integer():
            right = int(value)
        if type(right) is not type(value):
            mended[field.name] = right
            yield Finding(
                file=CONFIG_FILE,
                found=f"{field.name} = {value}, expected {' or '.join(map(_type_name, types))}",
                done=f"written as {right}",
            )


def _type_name(kind: Any) -> str:
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _configured(mended: Json, config_class: "type[PreTrainedConfig]") -> "PreTrainedConfig":
    """Make the object of the class. Raises InputError, naming the key where the class does."""
    try:
        return config_class.from_dict(deepcopy(mended))
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split("Errors:")[0].split())
    except Exception as error:  # a configuration is checked by code of each model
        reason = f"{type(error).__name__}: {error}"
    raise InputError(
        f"{CONFIG_FILE}: transformers {version('transformers')} cannot read it as "
        f"{config_class.__name__} ({printable(reason)}); correct the key or {USE_ANOTHER}"
    )


def with_known_tokens(
    mended: Json, *, file: str, vocab_size: int, default_padding: int | None = None
) -> Iterator[Finding]:
    """Set to null, or leave out of a list, ids of special tokens that no token has.

    `mended` is the JSON object of config.json or generation_config.json and is changed in place.
    The padding id matters even where it is the class's default: the embedding is made with it.
    """
    for key in TOKEN_ID_KEYS:
        value = mended.get(key, default_padding if key == PADDING_KEY else None)
        ids = value if isinstance(value, list) else [value]
        known = [number for number in ids if number is None or _is_token(number, vocab_size)]
        if len(known) < len(ids):
            mended[key] = known if known and isinstance(value, list) else None
            yield Finding(
                file=file,
                found=f"{key} = {short_repr(value)}, and the vocabulary has {vocab_size} entries",
                done=f"written as {json.dumps(mended[key])}: no token has that id",
            )


def _is_token(number: object, vocab_size: int) -> bool:
    return type(number) is int and 0 <= number < vocab_size
