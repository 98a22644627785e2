"""`int4.cpp` compiled for this machine, once, and called on tensors.

The library lies in the user's cache under the digest of its source and flags. Where there is no C++
compiler, or no AVX2, it is not there, and other kernels are used.
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
    """The compiled product, or None where it cannot be had."""
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
    """Compile, if nobody has; atomically, as several workers may begin at once."""
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
    """Values 0..15, [in, out], as bytes [blocks, in, half a block's outputs]."""
    num_inputs, num_outputs = values.shape
    blocks = values.view(num_inputs, num_outputs // BLOCK_OUTPUTS, 2, BLOCK_OUTPUTS // 2)
    low, high = blocks.to(torch.uint8).unbind(2)
    return (low | high << 4).transpose(0, 1).contiguous()


def product(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """`x` times the weights `value * scale + offset`; everything float32 but the packed bytes.

    x [rows, inputs], packed as `packed_blocks` makes it, scales and offsets [groups, outputs]; the
    product is [rows, outputs]. All contiguous.
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
