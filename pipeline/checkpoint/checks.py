"""Check that a directory holds a checkpoint that the pipeline can work with.

The checks are cheap: they read the configuration, the tokenizer and the headers of weights, never
the weights. Each problem is one line that names the file, the value, what was expected and what to
do. Whether the architecture can be quantized is not checked here, but in the stages that need it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.checkpoint.library_errors import readable_library_errors
from pipeline.checkpoint.names import (
    CODE_KEY,
    CONFIG_FILE,
    INDEX_FILE,
    TEXT_SECTION,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILES,
)
from pipeline.checkpoint.safetensors_header import TensorInfo
from pipeline.core.errors import InputError, short_repr

SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
FULL_PRECISION = frozenset({"F16", "BF16", "F32", "F64"})
QUANTIZED_DTYPES = frozenset(
    {"F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
)
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
MAX_DEPTH = 64
USE_ANOTHER = "use another checkpoint or revision"


@dataclass(frozen=True)
class ModelConfig:
    """The part of config.json that the pipeline needs: its first architecture, its model type."""

    architecture: str
    model_type: str


def read_json_object(path: Path) -> dict[str, object]:
    """Read a JSON object from an untrusted file.

    Raises InputError when the file is missing, is not UTF-8 JSON, is nested more than MAX_DEPTH
    deep, or holds another value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # finds half of a surrogate pair
    except FileNotFoundError as error:
        raise InputError(f"{path.name}: missing; {USE_ANOTHER}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: not valid JSON in UTF-8; get the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name}: expected a JSON object; get the file again")
    _refuse_deep(value, path.name)
    return value


def _refuse_deep(value: dict[str, object], name: str) -> None:
    """Raise InputError for a value that code of libraries, which calls itself, cannot walk."""
    level: list[dict[str, object] | list[object]] = [value]
    for _ in range(MAX_DEPTH):
        inner = chain.from_iterable(
            item.values() if isinstance(item, dict) else item for item in level
        )
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise InputError(f"{name}: nested more than {MAX_DEPTH} deep; get the file again")


def read_tokenizer_file(model_dir: Path) -> Tokenizer:
    """Read tokenizer.json. Raises InputError where the tokenizers library does not take it."""
    name = TOKENIZER_FILES[0]
    with readable_library_errors(
        f"{name}: the tokenizers library cannot read it", "get the file again"
    ):
        return Tokenizer.from_file(str(model_dir / name))


def text_values(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of the text model: a section of config.json, or all of it."""
    section = config.get(TEXT_SECTION)
    return section if isinstance(section, dict) else config


def takes_more_than_text(model_dir: Path) -> bool:
    """Tell whether a model has parts for images or sound, by the sections of its config.json."""
    sections = read_json_object(model_dir / CONFIG_FILE)
    return any(isinstance(sections.get(key), dict) for key in ("vision_config", "audio_config"))


def read_config(model_dir: Path) -> ModelConfig:
    """Read config.json and refuse what cannot be quantized safely.

    Raises InputError when the file is missing or malformed, and for a model that is quantized.
    """
    config = read_json_object(model_dir / CONFIG_FILE)
    for key in QUANTIZATION_KEYS:
        if config.get(key) is not None or text_values(config).get(key) is not None:
            raise InputError(
                f"{CONFIG_FILE}: has {key}, so it is quantized already; use the full-precision "
                "model it was made from"
            )
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if (
        not isinstance(architectures, list)
        or not architectures
        or not isinstance(architectures[0], str)
    ):
        raise InputError(
            f"{CONFIG_FILE}: architectures = {short_repr(architectures)}, expected a list such as "
            f'["LlamaForCausalLM"]; {USE_ANOTHER}'
        )
    if not isinstance(model_type, str):
        raise InputError(
            f"{CONFIG_FILE}: model_type = {short_repr(model_type)}, expected a name such as "
            f'"llama"; {USE_ANOTHER}'
        )
    return ModelConfig(architecture=architectures[0], model_type=model_type)


def check_tokenizer(model_dir: Path) -> None:
    """Raise InputError unless there is a tokenizer that loads without code from the checkpoint."""
    names = [name for name in TOKENIZER_FILES if (model_dir / name).is_file()]
    if not names:
        raise InputError(
            f"no tokenizer: expected {' or '.join(TOKENIZER_FILES)} among the files; {USE_ANOTHER}"
        )
    if (model_dir / TOKENIZER_CONFIG_FILE).is_file():
        config = read_json_object(model_dir / TOKENIZER_CONFIG_FILE)
        _refuse_remote_code(config, TOKENIZER_CONFIG_FILE)
    if names[0] == TOKENIZER_FILES[0]:
        read_tokenizer_file(model_dir)


def _refuse_remote_code(config: Mapping[str, object], name: str) -> None:
    """Raise InputError when a configuration asks for Python code from the checkpoint."""
    if config.get(CODE_KEY) is not None:
        raise InputError(
            f"{name}: has {CODE_KEY}, so it needs Python code from the checkpoint, which is never "
            "run here; use a model that transformers supports by itself"
        )


def read_shards(model_dir: Path) -> dict[str, set[str]] | None:
    """Read the tensors of each shard from model.safetensors.index.json; None without an index.

    Raises InputError when the index is malformed or names anything but a plain safetensors file.
    """
    if not (model_dir / INDEX_FILE).is_file():
        return None
    weight_map = read_json_object(model_dir / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{INDEX_FILE}: weight_map = {short_repr(weight_map)}, expected an object from tensor "
            f"to file; {USE_ANOTHER}"
        )
    shards: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file):
            raise InputError(
                f"{INDEX_FILE}: tensor {short_repr(tensor)} is in {short_repr(file)}, expected a "
                f"file such as model-00001-of-00002.safetensors; {USE_ANOTHER}"
            )
        shards.setdefault(file, set()).add(tensor)
    return shards


def check_headers(headers: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """Check the headers of weight files, by the names of the files; return every tensor.

    Raises InputError when two files have the same tensor, when a tensor has a quantized dtype, and
    when no tensor is in floating point.
    """
    file_of: dict[str, str] = {}
    for file, header in headers.items():
        for name, info in header.items():
            if name in file_of:
                raise InputError(
                    f"{file}: tensor {short_repr(name)} is in {file_of[name]} too, so it is "
                    f"uncertain which one counts; {USE_ANOTHER}"
                )
            if info.dtype in QUANTIZED_DTYPES:
                raise InputError(
                    f"{file}: tensor {short_repr(name)} has dtype {info.dtype}, so the model is "
                    "quantized already; use the full-precision model it was made from"
                )
            file_of[name] = file
    tensors = {name: info for header in headers.values() for name, info in header.items()}
    if not any(info.dtype in FULL_PRECISION for info in tensors.values()):
        raise InputError(f"{', '.join(headers)}: no tensor in floating point; {USE_ANOTHER}")
    return tensors
