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
from pipeline.params.linear_recipe import GroupScheme

STEPS = 10
SMALLEST_SCALE = 1e-4
# Of the rounding error. KL on babyllama differs by at most 3 %, which is noise, from 0.05 to 0.15.
LEAST_GAIN = 0.1


def search_scales(
    weights: Sequence[Tensor],
    gram: Tensor,
    scheme: GroupScheme,
    *,
    head_dim: int,
    shared_by: int,
) -> Tensor:
    """The channel scales, float32, in_features, for linears that read the same input.

    With m the root mean square of each input channel (√ diag G) and w that of each column of the
    weights, searches s = m^r and s = m^r / w^(1 − r) (AutoAWQ's duo scaling) over r in [0, 1) for
    the least Σ tr(ΔW G ΔWᵀ) with ΔW = round(W · s) / s − W, rounded as `scheme` says. Scales that
    save less than LEAST_GAIN of the error are left out: GPTQ's feedback, which comes afterwards,
    makes up for as much, and has it easier where the columns are alike.

    Where the input is the output of grouped-query attention, `shared_by` heads of `head_dim`
    channels in a row read the same value head: their channels get one scale, as the fold divides
    that value head. Elsewhere `shared_by` is 1.
    """

    def root_mean(squares: Tensor) -> Tensor:
        by_head = squares.clamp(min=SMALLEST_SCALE**2).view(-1, shared_by, head_dim)
        return by_head.mean(dim=1, keepdim=True).expand_as(by_head).reshape(-1).sqrt()

    def error_at(scales: Tensor) -> float:
        error = torch.zeros((), device=gram.device)
        for weight in weights:
            scaled = weight * scales
            grid = range_grid(scaled, scheme)
            delta = grid.values(grid.round(scaled)).div_(scales).sub_(weight)
            error += output_error(delta, gram)
        return float(error)

    inputs = root_mean(gram.diagonal())
    columns = root_mean(torch.stack([it.square().mean(0) for it in weights]).mean(0))
    best_scales = torch.ones_like(inputs)
    best_error = (1 - LEAST_GAIN) * error_at(best_scales)
    for ratio in (step / STEPS for step in range(STEPS)):
        for denominator in (1.0, columns ** (1 - ratio)):
            wanted = (inputs**ratio / denominator).clamp(min=SMALLEST_SCALE)
            # Centred around 1, so that neither side of the fold leaves float16's range.
            scales = wanted / (wanted.max() * wanted.min()).sqrt()
            error = error_at(scales)
            if error < best_error:
                best_error, best_scales = error, scales
    return best_scales
