"""Find levels and scales again inside the blocks of GGUF, on the grid that llama.cpp chose.

The objective is E = tr((W − Ŵ) G (W − Ŵ)ᵀ), as for the packed formats, and so are the searches:
GPTQ with feedback, then descent over levels and scales in turn. What differs is how scales are
held. A change of the scale and the offset of a group by a and b changes Ŵ by a u − b v, with u the
levels of the group and v all ones; so E falls by

    2 (a p − b r) − (a² A − 2 a b C + b² D),

p = uᵀR, r = vᵀR, A = uᵀGu, C = uᵀGv, D = vᵀGv and R = G (W − Ŵ)ᵀ. The scales that the file can hold
near the best a are tried, each with its best offset. The same holds for the d and the m of a block,
with the levels and the ones multiplied by the groups' integers. E never rises.
"""

import torch
from torch import Tensor

from pipeline.numerics.block_grid import TINY_SCALE, BlockGrid, as_float16
from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.gram import dampened
from pipeline.numerics.refine import descend_columns

PANEL = 256  # inputs whose changes are applied to all others by one product
SMALLEST = torch.finfo(torch.float32).tiny
SINGULAR = 1e-6  # share of A D below which u and v change Ŵ alike


def round_in_blocks(
    weight: Tensor, gram: Tensor, grid: BlockGrid, *, sweeps: int, dampening_frac: float
) -> Tensor:
    """Find levels for `weight` (float32, out × in) and change the scales of `grid` in place.

    Returns the levels, float32, in × out. E never is larger than on the grid as it was, with
    levels by feedback.
    """
    rounded = round_with_feedback(weight, gram, grid, dampening_frac=dampening_frac)
    levels = rounded.T.contiguous()
    refine_in_blocks(weight, dampened(gram, dampening_frac), levels, grid, sweeps=sweeps)
    return levels


def refine_in_blocks(
    weight: Tensor, gram: Tensor, levels: Tensor, grid: BlockGrid, *, sweeps: int
) -> None:
    """Improve `levels` (inputs × rows) and the scales of `grid` in place.

    `weight` is float32, rows × inputs; `gram` is G, positive definite. Memory: two matrices of the
    size of `weight`.
    """
    residual = gram @ (weight.T - grid.values(levels))
    size = grid.group_size
    groups_per_panel = PANEL // size
    for _ in range(sweeps):
        for first in range(0, len(grid.scales), groups_per_panel):
            groups = range(first, min(first + groups_per_panel, len(grid.scales)))
            inputs = slice(first * size, groups.stop * size)
            panel, inside = levels[inputs], residual[inputs].clone()
            within = slice(groups.start, groups.stop)
            before = grid.values(panel, within)
            _improve_panel(panel, inside, gram[inputs, inputs], grid, groups)
            moved = grid.values(panel, within) - before
            residual.addmm_(gram[:, inputs], moved, alpha=-1)


def _improve_panel(
    levels: Tensor, residual: Tensor, gram: Tensor, grid: BlockGrid, groups: range
) -> None:
    """Improve the levels and scales of consecutive groups; `residual` follows."""
    layout, size = grid.layout, grid.group_size
    for number, group in enumerate(groups):
        inputs = slice(number * size, (number + 1) * size)
        own, only, inside = levels[inputs], slice(group, group + 1), residual[inputs].clone()
        before = grid.values(own, only)
        scale = grid.scales[group].masked_fill(grid.scales[group] == 0, TINY_SCALE)
        descend_columns(own, inside, gram[inputs, inputs], scale, grid.snap_)
        _refit_group(own, inside, gram[inputs, inputs], grid, group)
        residual.addmm_(gram[:, inputs], grid.values(own, only) - before, alpha=-1)
        if layout.steps and (group + 1) % layout.groups_per_block == 0:
            block = group // layout.groups_per_block
            inputs = slice(inputs.stop - layout.groups_per_block * size, inputs.stop)
            own, only = levels[inputs], grid.groups_of(block)
            before = grid.values(own, only)
            _refit_block(own, residual[inputs], gram[inputs, inputs], grid, block)
            residual.addmm_(gram[:, inputs], grid.values(own, only) - before, alpha=-1)


def _refit_group(
    levels: Tensor, residual: Tensor, gram: Tensor, grid: BlockGrid, group: int
) -> None:
    """Find the best scale and offset of a group that the file can hold, in place."""
    layout, block = grid.layout, group // grid.layout.groups_per_block
    by_offset = torch.ones_like(levels) if layout.has_offsets else None
    fall = _Fall(levels - layout.centre, by_offset, residual, gram)
    scale, offset = grid.scales[group].clone(), grid.offsets[group].clone()
    best_fall = torch.zeros_like(scale)
    for new_scale in grid.nearest_scales(scale + fall.best_scale_change(), block):
        change = new_scale - scale
        new_offset = grid.nearest_offset(offset + fall.best_offset_change(change), block)
        falls_by = fall.of(change, new_offset - offset)
        better = falls_by > best_fall
        best_fall = torch.where(better, falls_by, best_fall)
        grid.scales[group] = torch.where(better, new_scale, grid.scales[group])
        grid.offsets[group] = torch.where(better, new_offset, grid.offsets[group])


def _refit_block(
    levels: Tensor, residual: Tensor, gram: Tensor, grid: BlockGrid, block: int
) -> None:
    """Find the best d and m of a block for the integers of its groups, in place."""
    layout, groups = grid.layout, grid.groups_of(block)
    i, j = grid.steps(slice(block, block + 1))
    by_d, by_m = (steps.repeat_interleave(layout.group_size, dim=0) for steps in (i, j))
    by_d.mul_(levels - layout.centre)
    fall = _Fall(by_d, by_m if layout.has_offsets else None, residual, gram)
    d, m = grid.d[block], grid.m[block]
    new_d = as_float16(d + fall.best_scale_change())
    new_m = as_float16(m + fall.best_offset_change(new_d - d))
    better = fall.of(new_d - d, new_m - m) > 0
    grid.d[block] = torch.where(better, new_d, d)
    grid.m[block] = torch.where(better, new_m, m)
    grid.scales[groups] = grid.d[block] * i
    grid.offsets[groups] = grid.m[block] * j


class _Fall:
    """By how much E falls if Ŵ changes by a u − b v, for each row.

    `u` and `v` are inputs × rows; without `v` the best b is 0. What goes in and out is one number
    for each row.
    """

    def __init__(self, u: Tensor, v: Tensor | None, residual: Tensor, gram: Tensor) -> None:
        moved = gram @ u
        self._p, self._a = (u * residual).sum(0), (u * moved).sum(0)
        self._r = self._c = self._d = torch.zeros_like(self._p)
        if v is not None:
            self._r, self._c = (v * residual).sum(0), (v * moved).sum(0)
            self._d = (v * (gram @ v)).sum(0)

    def best_scale_change(self) -> Tensor:
        """Return a of the best pair."""
        product = self._a * self._d
        determinant = product - self._c.square()
        both = (self._p * self._d - self._r * self._c) / determinant
        alone = self._p / self._a.clamp(min=SMALLEST)
        return torch.where(determinant > SINGULAR * product, both, alone)

    def best_offset_change(self, scale_change: Tensor) -> Tensor:
        """Return the best b for a given a."""
        return (self._c * scale_change - self._r) / self._d.clamp(min=SMALLEST)

    def of(self, a: Tensor, b: Tensor) -> Tensor:
        """Return by how much E falls."""
        linear = 2 * (a * self._p - b * self._r)
        return linear - (a.square() * self._a - 2 * a * b * self._c + b.square() * self._d)
