"""Activations rounded token by token, as engines do before they multiply 8-bit weights.

One scale for each token (the last dimension), symmetric, found while the model runs: the largest
magnitude becomes the largest number of the type. The results are the rounded numbers in the dtype
of the input, so that a float32 product with the weights is what an 8-bit product stands for.
"""

import torch
from torch import Tensor

from pipeline.numerics.fp8 import LARGEST, round_to_e4m3

INT8_LARGEST = 127
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def int8_by_token(inputs: Tensor) -> Tensor:
    """… × features to the nearest of 255 steps; vLLM's `dynamic_scaled_int8_quant`."""
    scale = _scale(inputs, INT8_LARGEST)
    return (inputs / scale).round() * scale


def e4m3_by_token(inputs: Tensor) -> Tensor:
    """… × features to the nearest e4m3 numbers; vLLM's `dynamic_per_token_scaled_fp8_quant`."""
    scale = _scale(inputs, LARGEST)
    return round_to_e4m3(inputs / scale).to(inputs.dtype) * scale


def _scale(inputs: Tensor, largest: float) -> Tensor:
    return (inputs.abs().amax(-1, keepdim=True) / largest).clamp(min=SMALLEST_SCALE)
