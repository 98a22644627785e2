"""Improve integers by descent where both inputs and outputs have a metric.

The objective is that of refinement with a metric S of the outputs,

    E(Ŵ) = tr(S (W − Ŵ) G (W − Ŵ)ᵀ),   Ŵ = (q − zero) · scale,

S out × out and G in × in, both positive definite: the change of a loss whose Hessian is S ⊗ G.
Where S is diagonal the rows are independent, as in the other algorithms here. With R = S (W − Ŵ) G,
a change d of one weight lowers E by 2 d Rᵢⱼ − d² Sᵢᵢ Gⱼⱼ. A round finds the best single step of the
grid in each part of the matrix, and makes as many of the best steps as lower E most together. E
falls in every round. The scales do not change.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.numerics.grid import Grid

LARGEST_ROUNDS = 24
# One weight moves in each part of this many weights, and at most LARGEST_MOVES in a round: their
# pairwise couplings must fit into memory.
PART = 1024
LARGEST_MOVES = 512
# The descent ends at a round that gains less than this share of the first one.
LEAST_GAIN = 0.1


def descend(
    residual: Tensor, integers: Tensor, grid: Grid, *, outputs: Tensor, inputs: Tensor
) -> None:
    """Improve the integers of matrices of one shape, in place.

    `residual` is R = S (W − Ŵ) G and is updated with `integers`; both are float32, matrices × out ×
    in. `outputs` is S (matrices × out × out) and `inputs` is G (matrices × in × in). `grid` has the
    rows of all matrices, one matrix after the other. Memory: six tensors of the size of `integers`.
    """
    num_columns = residual.shape[2]
    scale = grid.scale.repeat_interleave(grid.group_size, dim=1).view_as(residual)
    loss_of_step = outputs.diagonal(dim1=1, dim2=2)[:, :, None] * scale
    loss_of_step.mul_(inputs.diagonal(dim1=1, dim2=2)[:, None]).mul_(scale / 2)
    lowest, highest = _slope_bounds(integers, grid)
    slope, gains = torch.empty_like(residual), torch.empty_like(residual)
    stacks = (residual, scale, integers, lowest, highest, slope)
    flat = [stack.view(len(stack), -1) for stack in stacks]
    flat_residual, flat_scale, flat_integers, flat_lowest, flat_highest, flat_slope = flat
    first_gain = 0.0
    for _ in range(LARGEST_ROUNDS):
        torch.mul(residual, scale, out=slope)
        torch.clamp(slope, lowest, highest, out=gains).abs_().sub_(loss_of_step)
        places, gain_alone = _best_of_parts(gains.view(len(gains), -1))
        rows, columns = places // num_columns, places % num_columns
        steps = flat_slope.gather(1, places).sign_().mul_(gain_alone > 0)
        moved = steps * flat_scale.gather(1, places)
        of_rows, of_columns = _rows(outputs, rows), _rows(inputs, columns)
        coupling = _columns(of_rows, rows).mul_(_columns(of_columns, columns))
        made, gain = _best_prefix(moved, flat_residual.gather(1, places), coupling)
        first_gain = first_gain or gain
        if gain <= LEAST_GAIN * first_gain:
            break
        flat_integers.scatter_add_(1, places, steps.mul_(made))
        lowest_now, highest_now = _slope_bounds(flat_integers.gather(1, places), grid)
        flat_lowest.scatter_(1, places, lowest_now)
        flat_highest.scatter_(1, places, highest_now)
        change = of_rows.mul_((moved * made)[:, :, None])
        residual.baddbmm_(change.transpose(1, 2), of_columns, alpha=-1)


def _slope_bounds(integers: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the bounds of a slope, lowest and highest, that keep every step inside the grid."""
    unbounded = torch.full_like(integers, torch.inf)
    return (
        unbounded.neg().masked_fill_(integers <= grid.lowest, 0.0),
        unbounded.masked_fill_(integers >= grid.largest, 0.0),
    )


def _best_of_parts(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Find the places of the largest gain in each part of each matrix, and these gains.

    Both are matrices × moves, the largest gain first.
    """
    padding = -gains.shape[1] % PART
    padded = functional.pad(gains, (0, padding), value=-torch.inf) if padding else gains
    best, at = padded.view(len(padded), -1, PART).max(dim=2)
    places = at + torch.arange(0, padded.shape[1], PART, device=at.device)
    best, order = best.sort(dim=1, descending=True, stable=True)
    return places.gather(1, order[:, :LARGEST_MOVES]), best[:, :LARGEST_MOVES]


def _rows(matrices: Tensor, rows: Tensor) -> Tensor:
    """Gather rows of each matrix by their numbers, matrices × moves."""
    return matrices.gather(1, rows[:, :, None].expand(-1, -1, matrices.shape[2]))


def _columns(matrices: Tensor, columns: Tensor) -> Tensor:
    """Gather columns of each matrix by their numbers, matrices × moves."""
    return matrices.gather(2, columns[:, None].expand(-1, matrices.shape[1], -1))


def _best_prefix(moved: Tensor, residual: Tensor, coupling: Tensor) -> tuple[Tensor, float]:
    """Choose, for each matrix, the prefix of the moves that lowers E most.

    Returns 1 for the moves to make and 0 for the others, and half of the fall of E in all matrices.
    """
    effects = coupling * moved[:, :, None] * moved[:, None]
    of_each = effects.diagonal(dim1=1, dim2=2) / 2 + effects.tril(-1).sum(dim=2)
    gain, last = (moved * residual - of_each).cumsum(dim=1).max(dim=1, keepdim=True)
    made = torch.arange(moved.shape[1], device=moved.device) <= last
    return (made & (gain > 0)).to(moved.dtype), float(gain.clamp(min=0).sum())
