"""A header is believed only when it describes exactly the file it is in."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import InputError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int64, torch.bool]


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F16", shape: object = (2, 2), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", DTYPES)
def test_says_what_each_tensor_is(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randint(0, 2, (3, 5), generator=generator).to(dtype),
        "b.c": torch.randint(0, 2, (7,), generator=generator).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
        "scalar": torch.ones((), dtype=dtype),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert set(header) == set(tensors)
    with safe_open(path, framework="pt") as file:
        for name, info in header.items():
            assert info.shape == tuple(tensors[name].shape)
            assert info.dtype == file.get_slice(name).get_dtype()
            assert info.size_bytes == tensors[name].nbytes


def test_accepts_padding_and_metadata(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": entry()}).encode() + b"   "
    path = write(tmp_path / "x.safetensors", header, b"\0" * 8)
    assert list(read_header(path)) == ["a"]


TWICE = f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'.encode()

BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{", b"", "invalid JSON in header"),
    "not UTF-8": (b'{"\xff": 1}', b"", "invalid UTF-8 in header"),
    "nested without end": (b"[" * 100_000, b"", "invalid JSON in header"),
    "a list": ([], b"", "invalid JSON in header: invalid type: sequence"),
    "a key twice": (TWICE, b"\0" * 8, "its header names a key twice"),
    "two descriptions": (b'{"__metadata__": {}, "__metadata__": {}}', b"", "duplicate field"),
    "an entry that is no object": ({"a": 1}, b"", "invalid type: integer `1`"),
    "an unknown dtype": ({"a": entry("X9")}, b"\0" * 8, "unknown variant `X9`, expected one of"),
    "no dtype": ({"a": {"shape": [1]}}, b"", "missing field `dtype`"),
    "a negative size": ({"a": entry(shape=[-2, -2])}, b"\0" * 8, "invalid value: integer `-2`"),
    "a shape of floats": (
        {"a": entry(shape=[2.0, 2])},
        b"\0" * 8,
        "floating point `2.0`",
    ),
    "a boolean size": ({"a": entry(shape=[True, 4])}, b"\0" * 8, "invalid type: boolean `true`"),
    "a giant size": ({"a": entry(shape=[1 << 80])}, b"\0" * 8, "invalid type: floating point"),
    "too many dimensions": (
        {"a": entry(shape=[1] * 5000, offsets=[0, 2])},
        b"\0" * 2,
        r"tensor 'a' has shape \[1, 1, .*…, expected at most 16 sizes",
    ),
    "an empty tensor of giant size": (
        {"a": entry(shape=[0, 1 << 63], offsets=[0, 0])},
        b"",
        r"tensor 'a' has shape \[0, 9223372036854775808\]",
    ),
    "a size that overflows": ({"a": entry(shape=[1 << 62, 8])}, b"\0" * 8, "overflow computing"),
    "a name that breaks the line": (
        {"a\n\x1b[31m": entry(offsets=[8, 0])},
        b"\0" * 8,
        r"invalid offset for tensor `a\?\?\[31m`",
    ),
    "one offset": (
        {"a": entry(offsets=[8])},
        b"\0" * 8,
        "invalid length 1, expected a tuple",
    ),
    "offsets reversed": ({"a": entry(offsets=[8, 0])}, b"\0" * 8, "invalid offset for tensor `a`"),
    "bytes unlike the shape": (
        {"a": entry(shape=[3, 2])},
        b"\0" * 8,
        "invalid shape, data type, or offset for tensor",
    ),
    "a gap before the first": (
        {"a": entry(offsets=[2, 10])},
        b"\0" * 10,
        "invalid offset for tensor `a`",
    ),
    "a gap between": (
        {"a": entry(), "b": entry(offsets=[10, 18])},
        b"\0" * 18,
        "invalid offset for tensor `b`",
    ),
    "an overlap": (
        {"a": entry(), "b": entry(offsets=[4, 12])},
        b"\0" * 12,
        "invalid offset for tensor `b`",
    ),
    "data that ends early": ({"a": entry()}, b"\0" * 7, "file not fully covered"),
    "bytes that belong to no tensor": ({"a": entry()}, b"\0" * 9, "file not fully covered"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_refuses_a_header_with(tmp_path: Path, case: str) -> None:
    header, data, expected = BAD_HEADERS[case]
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(InputError, match=expected) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith("x.safetensors: ")
    assert message.endswith("the file is damaged: get it again")
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "header too small"),
        (b"\1\0\0", "header too small"),
        (
            struct.pack("<Q", 1 << 60) + b"{}",
            "header too large",
        ),
        (struct.pack("<Q", 3) + b"{}", "invalid header length"),
        (b"version https://git-lfs.github.com/spec/v1\n", "header too large"),
    ],
)
def test_refuses_a_length_that_the_file_cannot_have(
    tmp_path: Path, data: bytes, expected: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=expected):
        read_header(path)


def test_refuses_a_header_over_100_megabytes_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(InputError, match="header too large"):
        read_header(path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[: len(data) // 2]],
)
def test_refuses_a_real_file_of_another_length(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(64, 64)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"x.safetensors: "):
        read_header(path)
