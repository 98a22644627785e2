"""FP8: round weights to e4m3 floating-point numbers, with one scale for each output channel.

Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433. e4m3 reaches ±448, has 3
bits of mantissa and no infinity. The largest weight of a channel becomes 448; the rest is rounded
to nearest, ties to even.
"""

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
NUM_BITS = 8


def round_to_e4m3(values: Tensor) -> Tensor:
    """Round to the nearest e4m3 numbers, returned in float32; values beyond ±448 become ±448."""
    return values.clamp(-LARGEST, LARGEST).to(E4M3).to(torch.float32)


def round_channels(weight: Tensor) -> tuple[Tensor, Grid]:
    """Round a weight (float32, out × in) to e4m3 numbers in units of the scale of each row.

    Returns the numbers in float32 and their grid, which has one scale for each row and zero points
    of 0.
    """
    scale = (weight.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    zero = torch.zeros_like(scale)
    grid = Grid(scale=scale, zero=zero, num_bits=NUM_BITS, group_size=weight.shape[1])
    return round_to_e4m3(weight / scale), grid
