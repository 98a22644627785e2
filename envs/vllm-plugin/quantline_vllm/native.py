"""Compile `int4.cpp` for this machine once, and call it on tensors.

The library is kept in the user's cache under the digest of its source and flags. Without a C++
compiler or AVX2 there is no library, and other kernels are used.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("int4.cpp")
COMPILER = "c++"
COMPILE = ("-O3", "-fPIC", "-std=c++17", "-fopenmp")
LINK = ("-shared",)  # without -fopenmp: PyTorch's own OpenMP library serves it
CAPABILITIES = ("AVX2", "AVX512")
BLOCK_OUTPUTS = 64


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library; None where it cannot be compiled or run."""
    if torch.backends.cpu.get_cpu_capability() not in CAPABILITIES:
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.CalledProcessError):
        return None
    loaded.quantline_int4_product.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 4
    loaded.quantline_int4_product.restype = None
    return loaded


def _compiled() -> Path:
    """Return the path of the library; compile it first if it is missing.

    It appears atomically, because several workers may compile it at the same time.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(SOURCE.read_bytes() + repr((COMPILE, LINK)).encode()).hexdigest()
    target = Path(home) / "quantline" / f"int4-{digest[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            parts = Path(work) / "int4.o", Path(work) / "int4.so"
            for command in (
                [COMPILER, *COMPILE, "-c", SOURCE, "-o", parts[0]],
                [COMPILER, *LINK, parts[0], "-o", parts[1]],
            ):
                subprocess.run(command, check=True, capture_output=True)
            parts[1].replace(target)
    return target


def packed_blocks(values: torch.Tensor) -> torch.Tensor:
    """Pack values 0..15 [in, out] into bytes [blocks, in, half a block's outputs]."""
    num_inputs, num_outputs = values.shape
    blocks = values.view(num_inputs, num_outputs // BLOCK_OUTPUTS, 2, BLOCK_OUTPUTS // 2)
    low, high = blocks.to(torch.uint8).unbind(2)
    return (low | high << 4).transpose(0, 1).contiguous()


def product(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Return the product [rows, outputs] of `x` and the weights `value * scale + offset`.

    `x` is [rows, inputs], `packed` the bytes of `packed_blocks`, `scales` and `offsets` are
    [groups, outputs]. All are contiguous, and float32 but the bytes.
    """
    loaded = library()
    assert loaded is not None
    num_groups, num_outputs = scales.shape
    num_rows, num_inputs = x.shape
    output = x.new_empty(num_rows, num_outputs)
    tensors = (x, packed, scales, offsets, output)
    loaded.quantline_int4_product(
        *(tensor.data_ptr() for tensor in tensors), num_rows, num_inputs, num_outputs, num_groups
    )
    return output
