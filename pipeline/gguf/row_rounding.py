"""Round rows of weights by llama.cpp's library, without writing a file.

The function is `ggml_quantize_chunk` of `ggml.h`, which llama.cpp itself calls for every row.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llama_cpp
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor


def row_bytes(kind: str, width: int) -> int:
    """Return the bytes of a row of `width` weights in the GGML type `kind`."""
    block_weights, block_bytes = map(int, GGML_QUANT_SIZES[GGMLQuantizationType[kind]])
    return width // block_weights * block_bytes


def divides(kind: str, width: int) -> bool:
    """Tell whether rows of `width` weights are whole blocks of the GGML type `kind`."""
    return width % int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]) == 0


def rounded_rows(kind: str, rows: Tensor, importance: Tensor | None) -> Tensor:
    """Round `rows` (float32, rows × width) to the GGML type `kind` and back, float32.

    `importance` is the mean of x² for each input channel, float32.
    """
    values = np.ascontiguousarray(rows.numpy(), np.float32)
    num_rows, width = values.shape
    stored = np.empty((num_rows, row_bytes(kind, width)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance.numpy(), np.float32)
    number = GGMLQuantizationType[kind]
    _quantize_chunk()(
        int(number),
        values.ctypes.data,
        stored.ctypes.data,
        0,
        num_rows,
        width,
        None if weights is None else weights.ctypes.data,
    )
    return torch.from_numpy(np.array(dequantize(stored, number), np.float32))


@cache
def _quantize_chunk() -> Callable[..., int]:
    function: Any = llama_cpp.llama_cpp._lib.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    found: Callable[..., int] = function
    return found
