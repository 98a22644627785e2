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
    target: Tensor, integers: Tensor, grid: Grid, *, outputs: Tensor, inputs: Tensor
) -> Tensor:
    """Better integers for `target` (out × in) on the given grid; S is `outputs`, G `inputs`.

    All float32. Memory: eight matrices of the size of `target`.
    """
    num_columns = target.shape[1]
    scale = grid.scale.repeat_interleave(grid.group_size, dim=1)
    loss_of_step = torch.outer(outputs.diagonal(), inputs.diagonal()).mul_(scale).mul_(scale / 2)
    chosen = integers.clone(memory_format=torch.contiguous_format)
    residual = outputs @ (target - grid.values(chosen)) @ inputs
    lowest, highest = _room(chosen, grid.largest)
    slope, gains = torch.empty_like(residual), torch.empty_like(residual)
    first_gain = 0.0
    for _ in range(LARGEST_ROUNDS):
        torch.mul(residual, scale, out=slope)
        torch.clamp(slope, lowest, highest, out=gains).abs_().sub_(loss_of_step)
        places = _best_of_parts(gains)
        rows, columns = places // num_columns, places % num_columns
        of_rows, of_columns = outputs[rows], inputs[columns]
        steps = slope.view(-1)[places].sign_()
        moved = steps * scale.view(-1)[places]
        coupling = of_rows[:, rows] * of_columns[:, columns]
        count, gain = _compatible(moved, residual.view(-1)[places], coupling)
        first_gain = first_gain or gain
        if gain <= LEAST_GAIN * first_gain:
            break
        places = places[:count]
        chosen.view(-1)[places] += steps[:count]
        lowest.view(-1)[places], highest.view(-1)[places] = _room(
            chosen.view(-1)[places], grid.largest
        )
        residual.addmm_((of_rows * moved[:, None])[:count].T, of_columns[:count], alpha=-1)
    return chosen


def _room(integers: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """What a slope is cut off at, so that no step leads out of the grid."""
    endless = torch.full_like(integers, torch.inf)
    return (
        endless.neg().masked_fill_(integers <= 0, 0.0),
        endless.masked_fill_(integers >= largest, 0.0),
    )


def _best_of_parts(gains: Tensor) -> Tensor:
    """The flat places of the largest gain in each part, the largest first."""
    flat = gains.flatten()
    padded = functional.pad(flat, (0, -len(flat) % PART)).view(-1, PART)
    best, at = padded.max(dim=1)
    places = at + torch.arange(0, len(flat), PART, device=at.device)
    order = best.argsort(descending=True, stable=True)[:LARGEST_MOVES]
    return places[order][best[order] > 0]


def _compatible(moved: Tensor, residual: Tensor, coupling: Tensor) -> tuple[int, float]:
    """How many of the first moves are made together, and half of what E falls by.

    As many as gain at least half of what each would gain alone: all, or a half, a quarter, ….
    """
    alone = moved * (residual - 0.5 * moved * coupling.diagonal())
    count = len(moved)
    while count:
        part = moved[:count]
        gain = float(part @ residual[:count] - 0.5 * part @ coupling[:count, :count] @ part)
        if count == 1 or gain >= 0.5 * float(alone[:count].sum()):
            return count, gain
        count //= 2
    return 0, 0.0
