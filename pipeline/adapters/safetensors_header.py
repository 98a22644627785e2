"""The header of a safetensors file, read and proven against the file without reading weights.

Format: https://huggingface.co/docs/safetensors#format. Eight bytes (the header's length, little
endian), the header (a JSON object), then the data. Nothing here loads a tensor.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeGuard

from pipeline.domain.errors import InputError, shown

LENGTH = struct.Struct("<Q")
MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 16
MAX_COUNT = 1 << 63
METADATA_KEY = "__metadata__"

# Bits per element, by the dtype names of the format.
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

REMEDY = "the file is damaged: get it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its bytes are `file[offset : offset + size_bytes]`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file in the order of their data.

    Raises InputError, naming the file, when it is missing or when the header is not a valid one of
    exactly this file: its length, JSON, dtypes, shapes, and offsets that cover the data without gap
    or overlap.
    """
    try:
        header_bytes, data_bytes = _read_parts(path)
        entries = _parse(header_bytes)
        return _placed(entries, data_start=LENGTH.size + len(header_bytes), data_bytes=data_bytes)
    except FileNotFoundError as error:
        raise InputError(f"{path.name}: missing; get the file again") from error
    except _BadHeaderError as error:
        raise InputError(f"{path.name}: {error}; {REMEDY}") from error


class _BadHeaderError(Exception):
    """What is wrong with a header; the file's name is added on the way out."""


def _read_parts(path: Path) -> tuple[bytes, int]:
    """The header's bytes and the number of bytes that follow it."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length_field = file.read(LENGTH.size)
        if len(length_field) < LENGTH.size:
            raise _BadHeaderError(
                f"{file_bytes} bytes long, expected a safetensors header of at least 8"
            )
        (length,) = LENGTH.unpack(length_field)
        limit = min(MAX_HEADER_BYTES, file_bytes - LENGTH.size)
        if length > limit:
            raise _BadHeaderError(
                f"header length {length}, expected at most {limit} in a file of {file_bytes} bytes"
            )
        return file.read(length), file_bytes - LENGTH.size - length


def _parse(header: bytes) -> dict[str, object]:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _BadHeaderError("its header is not JSON in UTF-8") from error
    if not isinstance(entries, dict):
        raise _BadHeaderError("its header is not a JSON object")
    entries.pop(METADATA_KEY, None)
    return entries


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise _BadHeaderError("its header names a key twice")
    return entries


def _placed(
    entries: dict[str, object], *, data_start: int, data_bytes: int
) -> dict[str, TensorInfo]:
    """Check every entry and that together they cover the data."""
    tensors = {name: _tensor(name, entry, data_start=data_start) for name, entry in entries.items()}
    ordered = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size_bytes))
    end = data_start
    for name, tensor in ordered:
        if tensor.offset != end:
            raise _BadHeaderError(
                f"tensor {shown(name)} begins at byte {tensor.offset}, expected {end}"
            )
        end += tensor.size_bytes
    if end != data_start + data_bytes:
        raise _BadHeaderError(
            f"its tensors end at byte {end}, expected {data_start + data_bytes}, its length"
        )
    return dict(ordered)


def _tensor(name: str, entry: object, *, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _BadHeaderError(f"tensor {shown(name)} is not described by a JSON object")
    where = f"tensor {shown(name)}"
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _BadHeaderError(f"{where} has dtype {shown(dtype)}, expected a known one")
    if not _is_counts(shape):
        raise _BadHeaderError(f"{where} has shape {shown(shape)}, expected a list of sizes")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise _BadHeaderError(f"{where} has data_offsets {shown(offsets)}, expected [begin, end]")
    begin, end = offsets
    expected_bits = prod(shape) * DTYPE_BITS[dtype]
    if (end - begin) * 8 != expected_bits:
        raise _BadHeaderError(
            f"{where} has {end - begin} bytes, "
            f"expected {expected_bits // 8} for {dtype} of shape {shape}"
        )
    return TensorInfo(dtype, tuple(shape), offset=data_start + begin, size_bytes=end - begin)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= MAX_RANK
        and all(type(item) is int and 0 <= item < MAX_COUNT for item in value)
    )
