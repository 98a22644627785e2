"""Read config.json as transformers will, and mend keys that would stop a tool.

A mended key changes nothing that the model computes: code that is never run here, an attention
kernel that the weights do not need, a number of the wrong JSON type, an id that no token has. What
cannot be mended is refused in one line.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from importlib.metadata import version
from math import isfinite
from typing import TYPE_CHECKING, Any, get_args

from huggingface_hub.errors import StrictDataclassError

from pipeline.checkpoint.checks import USE_ANOTHER
from pipeline.checkpoint.model_config import model_class
from pipeline.checkpoint.names import CODE_KEY, CONFIG_FILE, TEXT_SECTION
from pipeline.core.errors import InputError, printable, short_repr
from pipeline.core.limits import run_limited
from pipeline.intake.configuration_parts import (
    require_text_part,
    sections_of,
    with_stated_shape,
    without_other_text,
)
from pipeline.records.intake import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
PADDING_KEY = "pad_token_id"
SIZE_KEYS = {
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 24,
}
"""The largest size of each kind that is taken, far above those of any known model."""
MAX_SECONDS, MAX_BYTES = 20.0, 1 << 30
# What a model returns, as engines expect it; the second key cannot be set at all.
OUTPUTS: dict[str, object] = {
    "return_dict": True,
    "use_return_dict": None,
    "output_hidden_states": False,
    "output_attentions": False,
}
ARCHITECTURES_KEY = "architectures"
LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
DTYPE_KEYS = ("dtype", "torch_dtype")
DTYPES = ("float16", "bfloat16", "float32", "float64", "half", "float", "double")
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", PADDING_KEY)

Json = dict[str, Any]


@dataclass(frozen=True)
class MendedConfiguration:
    """A readable config.json and what was changed; `vocab_size` counts rows of the embedding."""

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
    sections = tuple(sections_of(mended, config_class))
    for place, section, _ in sections:
        _require_sizes(section, place)
    findings = [
        *_without_code(mended),
        *_with_own_architecture(mended, config_class),
        *without_other_text(mended, config_class),
    ]
    for place, section, section_class in sections:
        mending = (
            *_without_attention(section),
            *_without_outputs(section),
            *_with_known_dtypes(section),
            *(_with_right_numbers(section, section_class) if section_class else ()),
        )
        findings += [
            finding.model_copy(update={"found": f"{place}{finding.found}"}) for finding in mending
        ]
        _require_numbers(section, place)
    config = _configured(mended, config_class)
    text, section = config.get_text_config(), mended
    if text is not config:
        require_text_part(config)
        section = mended[TEXT_SECTION] = mended.get(TEXT_SECTION) or {}
        findings += with_stated_shape(section, text)
        findings += with_known_tokens(mended, file=CONFIG_FILE, vocab_size=text.vocab_size)
    findings += with_known_tokens(
        section,
        file=CONFIG_FILE,
        vocab_size=text.vocab_size,
        default_padding=text.pad_token_id,
    )
    return MendedConfiguration(mended, text.vocab_size, tuple(findings))


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


def _require_sizes(section: Mapping[str, Any], place: str) -> None:
    """Raise InputError for a size that no model has, which would make libraries work for hours."""
    for key, most in SIZE_KEYS.items():
        size = section.get(key)
        if isinstance(size, int | float) and not 0 < size <= most:
            raise InputError(
                f"{CONFIG_FILE}: {place}{key} = {short_repr(size)}, expected 1 to {most}; "
                f"{USE_ANOTHER}"
            )


def _without_code(mended: Json) -> Iterator[Finding]:
    """Remove the reference to Python files of the repository: transformers has the class."""
    if mended.pop(CODE_KEY, None) is not None:
        library = f"transformers {version('transformers')}"
        yield Finding(
            file=CONFIG_FILE,
            found=f"{CODE_KEY} names Python code of the repository",
            done=f"removed: {library} has the class of {mended['model_type']} itself",
        )


def _with_own_architecture(
    mended: Json, config_class: "type[PreTrainedConfig]"
) -> Iterator[Finding]:
    """Name the class that transformers uses for the model_type: other tools go by its name.

    Raises InputError for a model that gives no logits of tokens, such as a classifier.
    """
    own = model_class(config_class).__name__
    match mended.get(ARCHITECTURES_KEY):
        case [str(stated), *_] if stated != own:
            where = f"{ARCHITECTURES_KEY} = {short_repr([stated])}"
            expected = f"model_type {mended['model_type']} is {own} in transformers"
            if not stated.endswith(LANGUAGE_MODEL):
                raise InputError(
                    f"{CONFIG_FILE}: {where} is no language model ({expected}); use the model that "
                    "it was made from"
                )
            mended[ARCHITECTURES_KEY] = [own]
            yield Finding(file=CONFIG_FILE, found=where, done=f"written as {own}: {expected}")


def _without_attention(mended: Json) -> Iterator[Finding]:
    """Remove the choice of an attention kernel: each engine has its own."""
    for key in ATTENTION_KEYS:
        if key in mended:
            yield Finding(
                file=CONFIG_FILE,
                found=f"{key} = {short_repr(mended.pop(key))} asks for one attention kernel",
                done="removed: each engine chooses its own",
            )


def _without_outputs(mended: Json) -> Iterator[Finding]:
    """Remove what makes a model return other objects: the code that calls it chooses."""
    for key, expected in OUTPUTS.items():
        if key in mended and mended[key] != expected:
            yield Finding(
                file=CONFIG_FILE,
                found=f"{key} = {short_repr(mended.pop(key))} changes what the model returns",
                done="removed: each engine asks for what it needs",
            )


def _with_known_dtypes(mended: Json) -> Iterator[Finding]:
    """Remove a dtype that is no name of a floating-point type in torch."""
    for key in DTYPE_KEYS:
        stated = mended.get(key)
        if not isinstance(stated, str) or stated in DTYPES:
            continue
        name = stated.removeprefix("torch.")
        if name in DTYPES:
            mended[key] = name
        else:
            del mended[key]
        yield Finding(
            file=CONFIG_FILE,
            found=f"{key} = {short_repr(stated)}, expected one of {', '.join(DTYPES[:4])}",
            done=f"written as {name}" if name in DTYPES else "removed: the weights have their own",
        )


def _with_right_numbers(mended: Json, config_class: "type[PreTrainedConfig]") -> Iterator[Finding]:
    """Turn 30 into 30.0, and 4096.0 into 4096, where the class takes the other type alone."""
    for field in fields(config_class):
        value, types = mended.get(field.name), get_args(field.type) or (field.type,)
        right: object = value
        if type(value) is int and int not in types and float in types:
            right = float(value) if abs(value) <= sys.float_info.max else value
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


def _require_numbers(section: Json, place: str) -> None:
    """Raise InputError for NaN or Infinity in the place of a number: JSON has neither.

    Bounds inside of lists may be infinite, as in the configurations of Mamba.
    """
    for key, value in section.items():
        for name, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, float) and not isfinite(number):
                where = f"{place}{key}.{name}" if name else f"{place}{key}"
                raise InputError(
                    f"{CONFIG_FILE}: {where} = {number}, expected a finite number; {USE_ANOTHER}"
                )


def _configured(mended: Json, config_class: "type[PreTrainedConfig]") -> "PreTrainedConfig":
    """Make the object of the class. Raises InputError, naming the key where the class does."""
    try:
        return run_limited(
            lambda: config_class.from_dict(deepcopy(mended)),
            seconds=MAX_SECONDS,
            num_bytes=MAX_BYTES,
        )
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
