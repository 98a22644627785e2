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

from pipeline.adapters.safetensors_header import read_header
from pipeline.domain.errors import InputError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int64, torch.bool]


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F16", shape: object = (2, 2), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", DTYPES)
def test_says_where_the_bytes_of_each_tensor_are(tmp_path: Path, dtype: torch.dtype) -> None:
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
    data = path.read_bytes()
    assert set(header) == set(tensors)
    with safe_open(path, framework="pt") as file:
        for name, info in header.items():
            assert info.shape == tuple(tensors[name].shape)
            assert info.dtype == file.get_slice(name).get_dtype()
            stored = data[info.offset : info.offset + info.size_bytes]
            assert stored == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()


def test_accepts_padding_and_metadata(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": entry()}).encode() + b"   "
    path = write(tmp_path / "x.safetensors", header, b"\0" * 8)
    assert list(read_header(path)) == ["a"]


BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{", b"", "its header is not JSON in UTF-8"),
    "not UTF-8": (b'{"\xff": 1}', b"", "its header is not JSON in UTF-8"),
    "nested without end": (b"[" * 100_000, b"", "its header is not JSON in UTF-8"),
    "a list": ([], b"", "its header is not a JSON object"),
    "a key twice": (b'{"a": 1, "a": 2}', b"", "its header names a key twice"),
    "an entry that is no object": ({"a": 1}, b"", "tensor 'a' is not described by a JSON object"),
    "an unknown dtype": ({"a": entry("X9")}, b"\0" * 8, "tensor 'a' has dtype 'X9', expected a"),
    "no dtype": ({"a": {"shape": [1]}}, b"", "tensor 'a' has dtype None, expected a known one"),
    "a negative size": ({"a": entry(shape=[-2, -2])}, b"\0" * 8, r"has shape \[-2, -2\], expected"),
    "a shape of floats": ({"a": entry(shape=[2.0, 2])}, b"\0" * 8, r"has shape \[2.0, 2\]"),
    "a boolean size": ({"a": entry(shape=[True, 4])}, b"\0" * 8, r"has shape \[True, 4\]"),
    "a giant size": ({"a": entry(shape=[1 << 80])}, b"\0" * 8, r"has shape \[1208925"),
    "too many dimensions": ({"a": entry(shape=[1] * 5000)}, b"\0" * 8, r"has shape \[1, 1"),
    "one offset": ({"a": entry(offsets=[8])}, b"\0" * 8, r"data_offsets \[8\], expected"),
    "offsets reversed": ({"a": entry(offsets=[8, 0])}, b"\0" * 8, "has -8 bytes, expected 8"),
    "bytes unlike the shape": (
        {"a": entry(shape=[3, 2])},
        b"\0" * 8,
        r"tensor 'a' has 8 bytes, expected 12 for F16 of shape \[3, 2\]",
    ),
    "a gap before the first": ({"a": entry(offsets=[2, 10])}, b"\0" * 10, "'a' begins at byte"),
    "a gap between": (
        {"a": entry(), "b": entry(offsets=[10, 18])},
        b"\0" * 18,
        "tensor 'b' begins at byte",
    ),
    "an overlap": (
        {"a": entry(), "b": entry(offsets=[4, 12])},
        b"\0" * 12,
        "tensor 'b' begins at byte",
    ),
    "data that ends early": ({"a": entry()}, b"\0" * 7, "its tensors end at byte"),
    "bytes that belong to no tensor": ({"a": entry()}, b"\0" * 9, "its tensors end at byte"),
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
        (b"", "0 bytes long, expected a safetensors header of at least 8"),
        (b"\1\0\0", "3 bytes long"),
        (
            struct.pack("<Q", 1 << 60) + b"{}",
            "header length 1152921504606846976, expected at most 2",
        ),
        (struct.pack("<Q", 3) + b"{}", "header length 3, expected at most 2 in a file of 10 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "header length"),
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
    with pytest.raises(InputError, match="header length 100000001, expected at most 100000000"):
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
