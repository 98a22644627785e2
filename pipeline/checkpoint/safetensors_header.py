"""Read the header of a safetensors file, and validate it without reading weights.

The safetensors library validates a header when it opens a file: length, JSON, dtypes, shapes, and
offsets that cover the data without gap or overlap. It accepts a tensor that is named twice, and any
number of dimensions of any size. Those are refused here.
Format: https://huggingface.co/docs/safetensors#format.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.core.errors import InputError, printable, short_repr

LENGTH = struct.Struct("<Q")
MAX_RANK = 16
MAX_COUNT = 1 << 63
METADATA_KEY = "__metadata__"
LIBRARY_PREFIX = "Error while deserializing header: "

REMEDY = "the file is damaged: get it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its dtype by the format's name, its shape, its size in the file."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the tensors of a safetensors file, in the order of their data.

    Raises InputError, naming the file, when it is missing or when its header is not valid for
    exactly this file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.offset_keys()
        with path.open("rb") as binary:
            (length,) = LENGTH.unpack(binary.read(LENGTH.size))
            entries = json.loads(binary.read(length), object_pairs_hook=_without_duplicates)
        return {name: _tensor(name, entries[name]) for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{path.name}: missing; get the file again") from error
    except (SafetensorError, OSError, _BadHeaderError) as error:
        reason = printable(str(error).removeprefix(LIBRARY_PREFIX))
        raise InputError(f"{path.name}: {reason}; {REMEDY}") from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a safetensors file. Raises InputError as read_header."""
    return {name: entry.shape for name, entry in read_header(path).items()}


class _BadHeaderError(Exception):
    """A header that the library accepts is wrong; `read_header` adds the file's name."""


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object of its pairs, and refuse one that has a key twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise _BadHeaderError("its header names a key twice")
    return entries


def _tensor(name: str, entry: dict[str, Any]) -> TensorInfo:
    """Read a tensor's entry, and refuse too many or too large dimensions."""
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(shape) > MAX_RANK or any(size >= MAX_COUNT for size in shape):
        raise _BadHeaderError(
            f"tensor {short_repr(name)} has shape {short_repr(shape)}, expected at most "
            f"{MAX_RANK} sizes"
        )
    return TensorInfo(dtype, tuple(shape), size_bytes=end - begin)
