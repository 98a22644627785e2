"""AWQ: input channels that carry much signal are scaled up before rounding.

Lin et al., "AWQ: Activation-aware Weight Quantization", arXiv 2306.00978. Multiplying column j of
W by s_j and dividing the input by it changes nothing in exact arithmetic, and makes the rounding
error of that column smaller by s_j relative to its signal. The division is folded into the
operation before, so it costs nothing at run time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.numerics.gram import output_error
from pipeline.numerics.grid import range_grid

STEPS = 20
SMALLEST_SCALE = 1e-4


def search_scales(
    weights: Sequence[Tensor],
    gram: Tensor,
    *,
    num_bits: int,
    group_size: int,
    symmetric: bool,
    head_dim: int,
    shared_by: int,
) -> Tensor:
    """The channel scales, float32, in_features, for linears that read the same input.

    Searches s = m^r over r in [0, 1), m the root mean square of each channel (√ diag G), for the
    least Σ tr(ΔW G ΔWᵀ) with ΔW = round(W · s) / s − W. Where the input is the output of
    grouped-query attention, `shared_by` heads of `head_dim` channels in a row read the same value
    head: their channels get one scale, as the fold divides that value head. Elsewhere `shared_by`
    is 1.
    """
    power = gram.diagonal().clamp(min=0).view(-1, shared_by, head_dim)
    magnitude = power.mean(dim=1, keepdim=True).expand_as(power).reshape(-1).sqrt()
    best_scales = torch.ones_like(magnitude)
    best_error = torch.tensor(torch.inf, device=gram.device)
    for step in range(STEPS):
        scales = _normalised(magnitude.clamp(min=SMALLEST_SCALE) ** (step / STEPS))
        error = torch.zeros((), device=gram.device)
        for weight in weights:
            grid = range_grid(
                weight * scales, num_bits=num_bits, group_size=group_size, symmetric=symmetric
            )
            rounded = grid.values(grid.round(weight * scales)) / scales
            error += output_error(rounded - weight, gram)
        if error < best_error:
            best_error, best_scales = error, scales
    return best_scales


def _normalised(scales: Tensor) -> Tensor:
    """Centre the scales around 1 so that neither side of the fold leaves float16's range."""
    clamped = scales.clamp(min=SMALLEST_SCALE)
    return clamped / (clamped.max() * clamped.min()).sqrt()
