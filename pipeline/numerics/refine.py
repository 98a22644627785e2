"""Refinement: improve the integers and the scales of a rounded matrix in turn, by descent.

GPTQ chooses every integer once, before it knows the later ones, on scales that were chosen before
any integer. Both can be improved afterwards without new data, because the objective

    E(Ŵ) = tr((W − Ŵ) G (W − Ŵ)ᵀ),   Ŵ = (q − zero) · scale,

is quadratic: with R = (W − Ŵ) G the best value of one weight is ŵⱼ + Rⱼ / Gⱼⱼ, rounded to the grid
(cyclic coordinate descent, as in QuantEase, Behdin et al., arXiv 2309.01885), and the best change
of a group's scale is (q̃ᵀ R) / (q̃ᵀ G q̃) over the group's columns, q̃ = q − zero. E never rises.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid, storable


def refine(
    weight: Tensor, gram: Tensor, integers: Tensor, grid: Grid, *, sweeps: int
) -> tuple[Tensor, Grid]:
    """Find better integers and scales for `weight` (float32, out × in); zero points do not change.

    `gram` is G, positive definite; `integers` are float32, out × in. Each sweep passes over the
    groups once: first over the integers of a group, then over its scale. Memory: three matrices of
    the size of `weight`.
    """
    if sweeps == 0:
        return integers, grid
    # Transposed, so that the inner loop reads contiguous memory.
    scales, zeros = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    chosen = integers.T.contiguous()
    residual = gram @ (weight - grid.values(integers)).T
    for _ in range(sweeps):
        for group in range(grid.scale.shape[1]):
            columns = slice(group * grid.group_size, (group + 1) * grid.group_size)
            block = gram[columns, columns]
            before = (chosen[columns] - zeros[group]) * scales[group]
            inside = residual[columns].clone()
            descend_columns(chosen[columns], inside, block, scales[group], grid.snap_)
            centred = chosen[columns] - zeros[group]
            scales[group] = _refit(centred, inside, block, scales[group])
            moved = centred * scales[group] - before
            residual.addmm_(gram[:, columns], moved, alpha=-1)
    return chosen.T, replace(grid, scale=scales.T.contiguous())


def descend_columns(
    integers: Tensor,
    residual: Tensor,
    block: Tensor,
    scale: Tensor,
    snap_: Callable[[Tensor], Tensor],
) -> None:
    """Pass once over the columns of a group, in place.

    `integers` and `residual` are group_size × rows; `block` is the group's diagonal block of G,
    positive definite. `snap_` rounds numbers to those of the grid, in place.
    """
    steps = (block.diagonal().unsqueeze(-1) * scale).unbind()
    columns = zip(integers.unbind(), residual.unbind(), block.unbind(), steps, strict=True)
    for chosen, slope, influence, step in columns:
        best = snap_((slope / step).add_(chosen))
        moved = (best - chosen).mul_(scale)
        chosen.copy_(best)
        residual.addr_(influence, moved, alpha=-1)


def _refit(centred: Tensor, residual: Tensor, block: Tensor, scale: Tensor) -> Tensor:
    """Find the group's best scales as the file stores them; keep the old ones that are no worse.

    `residual` does not change: the caller updates it for the integers and the scales together.
    """
    slope = (centred * residual).sum(0)
    curvature = (centred * (block @ centred)).sum(0)
    wanted = scale + slope / curvature.clamp(min=torch.finfo(torch.float32).tiny)
    stored = storable(wanted)
    change = stored - scale
    gain = change * (2 * slope - change * curvature)
    return torch.where((wanted * scale > 0) & (gain > 0), stored, scale)
