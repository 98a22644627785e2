"""Round activations token by token, as engines do before they multiply them by 8-bit weights.

Each token (the last dimension) has one symmetric scale, found while the model runs: it maps the
largest magnitude to the largest number of the type. The results are the rounded numbers times the
scale, in the dtype of the input, so that a float32 product with the weights equals the 8-bit one.
"""

import torch
from torch import Tensor

from pipeline.numerics.fp8 import LARGEST, round_to_e4m3

INT8_LARGEST = 127
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def int8_by_token(inputs: Tensor) -> Tensor:
    """Round … × features to the nearest of 255 steps, as vLLM's `dynamic_scaled_int8_quant`."""
    scale = _scale(inputs, INT8_LARGEST)
    return (inputs / scale).round() * scale


def e4m3_by_token(inputs: Tensor) -> Tensor:
    """Round … × features to e4m3 numbers, as vLLM's `dynamic_per_token_scaled_fp8_quant`."""
    scale = _scale(inputs, LARGEST)
    return round_to_e4m3(inputs / scale).to(inputs.dtype) * scale


def _scale(inputs: Tensor, largest: float) -> Tensor:
    return (inputs.abs().amax(-1, keepdim=True) / largest).clamp(min=SMALLEST_SCALE)
