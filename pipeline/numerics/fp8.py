"""FP8: weights as e4m3 floating-point numbers, one scale for each output channel.

Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433. e4m3 reaches ±448, has 3
bits of mantissa and no infinity. The largest weight of a channel becomes 448; the rest is rounded
to nearest, ties to even.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.gram import output_error
from pipeline.numerics.grid import Grid
from pipeline.numerics.layer import QuantizedLayer, QuantizedLinear

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
NUM_BITS = 8


def round_to_e4m3(values: Tensor) -> Tensor:
    """The nearest e4m3 numbers, in float32; what lies beyond ±448 becomes ±448."""
    return values.clamp(-LARGEST, LARGEST).to(E4M3).to(torch.float32)


def fp8_layer(tensors: Mapping[str, Tensor], grams: Mapping[str, Tensor]) -> QuantizedLayer:
    """Round every linear of a layer that has statistics; they only measure the error.

    Arguments as of `pipeline.numerics.layer.quantize_layer`. The `integers` of the result are e4m3
    numbers, and its grid has one scale for each row and zero points of 0.
    """
    linears = {
        name: _fp8_linear(tensors[f"{name}.weight"].to(torch.float32), gram)
        for name, gram in grams.items()
    }
    return QuantizedLayer(linears=linears, changed={})


def _fp8_linear(weight: Tensor, gram: Tensor) -> QuantizedLinear:
    scale = (weight.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    grid = Grid(
        scale=scale,
        zero=torch.zeros_like(scale),
        num_bits=NUM_BITS,
        group_size=weight.shape[1],
    )
    values = round_to_e4m3(weight / scale)
    error, power = (
        float(output_error(delta, gram)) for delta in (grid.values(values) - weight, weight)
    )
    return QuantizedLinear(
        integers=values,
        grid=grid,
        relative_error=error / power if power > 0 else 0.0,
        error_ratio=1.0,
    )
