"""Rounding that knows which outputs matter: descent on integers in a metric of both sides.

The objective is that of refinement with a weight between outputs,

    E(Ŵ) = tr(S (W − Ŵ) G (W − Ŵ)ᵀ),   Ŵ = (q − zero) · scale,

S out × out and G in × in, positive definite: the change of a loss whose Hessian is S ⊗ G. Where S
is diagonal the rows are free of each other, as in the other algorithms here. With R = S (W − Ŵ) G a
step d of one weight gains 2 d Rᵢⱼ − d² Sᵢᵢ Gⱼⱼ. A round takes one step of the grid with the weight
that gains most in each of many parts of the matrix at once, or only with the best of those where
they would spoil each other's gain; E falls in every round.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.numerics.grid import Grid

LARGEST_ROUNDS = 24
# One weight moves in so many; no more at a time than can be held against each other.
PART = 1024
LARGEST_MOVES = 512
# A round that gains less than this share of the first is the last.
LEAST_GAIN = 0.1


def descend(
    residual: Tensor, integers: Tensor, grid: Grid, *, outputs: Tensor, inputs: Tensor
) -> None:
    """Better integers for matrices of one shape, in place, by their R = S (W − Ŵ) G: `residual`.

    All float32 and matrices × out × in, S is `outputs` (matrices × out × out), G `inputs`; `grid`
    has the rows of all matrices, one after the other. R follows what the integers do. Memory: six
    tensors of the size of `integers`.
    """
    num_columns = residual.shape[2]
    scale = grid.scale.repeat_interleave(grid.group_size, dim=1).view_as(residual)
    loss_of_step = outputs.diagonal(dim1=1, dim2=2)[:, :, None] * scale
    loss_of_step.mul_(inputs.diagonal(dim1=1, dim2=2)[:, None]).mul_(scale / 2)
    lowest, highest = _room(integers, grid.largest)
    slope, gains = torch.empty_like(residual), torch.empty_like(residual)
    flat = [it.view(len(it), -1) for it in (residual, scale, integers, lowest, highest, slope)]
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
        together, gain = _together(moved, flat_residual.gather(1, places), coupling)
        first_gain = first_gain or gain
        if gain <= LEAST_GAIN * first_gain:
            break
        flat_integers.scatter_add_(1, places, steps.mul_(together))
        lowest_now, highest_now = _room(flat_integers.gather(1, places), grid.largest)
        flat_lowest.scatter_(1, places, lowest_now)
        flat_highest.scatter_(1, places, highest_now)
        change = of_rows.mul_((moved * together)[:, :, None])
        residual.baddbmm_(change.transpose(1, 2), of_columns, alpha=-1)


def _room(integers: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """What a slope is cut off at, so that no step leads out of the grid."""
    endless = torch.full_like(integers, torch.inf)
    return (
        endless.neg().masked_fill_(integers <= 0, 0.0),
        endless.masked_fill_(integers >= largest, 0.0),
    )


def _best_of_parts(gains: Tensor) -> tuple[Tensor, Tensor]:
    """By matrix, the places of the largest gain in each part, the largest first, and the gains."""
    padding = -gains.shape[1] % PART
    padded = functional.pad(gains, (0, padding), value=-torch.inf) if padding else gains
    best, at = padded.view(len(padded), -1, PART).max(dim=2)
    places = at + torch.arange(0, padded.shape[1], PART, device=at.device)
    best, order = best.sort(dim=1, descending=True, stable=True)
    return places.gather(1, order[:, :LARGEST_MOVES]), best[:, :LARGEST_MOVES]


def _rows(matrices: Tensor, rows: Tensor) -> Tensor:
    return matrices.gather(1, rows[:, :, None].expand(-1, -1, matrices.shape[2]))


def _columns(matrices: Tensor, columns: Tensor) -> Tensor:
    return matrices.gather(2, columns[:, None].expand(-1, matrices.shape[1], -1))


def _together(moved: Tensor, residual: Tensor, coupling: Tensor) -> tuple[Tensor, float]:
    """Which moves are made, as 0 or 1, and half of what E falls by in all matrices.

    Of each matrix the first so many that gain most together.
    """
    effects = coupling * moved[:, :, None] * moved[:, None]
    of_each = effects.diagonal(dim1=1, dim2=2) / 2 + effects.tril(-1).sum(dim=2)
    gain, last = (moved * residual - of_each).cumsum(dim=1).max(dim=1, keepdim=True)
    made = torch.arange(moved.shape[1], device=moved.device) <= last
    return (made & (gain > 0)).to(moved.dtype), float(gain.clamp(min=0).sum())
