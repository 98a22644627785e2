"""Grids: which real numbers the integers of a group stand for.

A weight matrix W (out_features × in_features) is cut along its rows into groups of `group_size`
inputs. Each group has a scale and a zero point; an integer q stands for (q − zero) · scale. Scales
are rounded here to what files hold and engines read: every later choice is made against the numbers
that will be computed with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-24  # the smallest positive float16
CLIP_STEPS = 20
CLIP_LARGEST_SHRINK = 0.5


@dataclass(frozen=True)
class Grid:
    """Scales and zero points, float32 and integer-valued float32, both out_features × groups."""

    scale: Tensor
    zero: Tensor
    num_bits: int
    group_size: int

    def split(self, num_rows: list[int]) -> list["Grid"]:
        """The grids of matrices that lie one below the other, by their numbers of rows."""
        parts = zip(
            torch.split(self.scale, num_rows), torch.split(self.zero, num_rows), strict=True
        )
        return [
            Grid(scale=scale, zero=zero, num_bits=self.num_bits, group_size=self.group_size)
            for scale, zero in parts
        ]

    @property
    def largest(self) -> int:
        return int(2**self.num_bits) - 1

    def columns(self) -> tuple[Tensor, Tensor]:
        """Scale and zero of every single weight, both out_features × in_features."""
        return (
            self.scale.repeat_interleave(self.group_size, dim=1),
            self.zero.repeat_interleave(self.group_size, dim=1),
        )

    def round(self, weight: Tensor) -> Tensor:
        """The nearest integers, float32 in 0 … 2^num_bits − 1."""
        scale, zero = self.columns()
        return (weight / scale + zero).round().clamp(0, self.largest)

    def values(self, integers: Tensor) -> Tensor:
        """What the integers stand for, float32."""
        scale, zero = self.columns()
        return (integers - zero) * scale


def range_grid(
    weight: Tensor, *, num_bits: int, group_size: int, symmetric: bool, shrink: float = 1.0
) -> Grid:
    """The grid that spans each group's range times `shrink`.

    Symmetric grids have their zero in the middle (2^(num_bits − 1)), one step more below it than
    above. Their scale has the sign that puts the value of the largest magnitude on the longer side,
    as llama.cpp's Q4_0 does: no step is wasted, and every reader multiplies by what is stored.
    Asymmetric ones span minimum to maximum, zero included.
    """
    out_features, in_features = weight.shape
    groups = weight.reshape(out_features, in_features // group_size, group_size)
    largest = 2**num_bits - 1
    if symmetric:
        middle = 2 ** (num_bits - 1)
        extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scale = storable(-extreme * shrink / middle)
        zero = torch.full_like(scale, middle)
    else:
        low = groups.amin(-1).clamp(max=0) * shrink
        high = groups.amax(-1).clamp(min=0) * shrink
        scale = storable((high - low) / largest)
        zero = (-low / scale).round().clamp(0, largest)
    return Grid(scale=scale, zero=zero, num_bits=num_bits, group_size=group_size)


def search_clip(
    weight: Tensor, gram: Tensor, *, num_bits: int, group_size: int, symmetric: bool
) -> Grid:
    """The shrink of each group's range that hurts the output least.

    Minimises, per row and group, δ Gₖ δᵀ with Gₖ the group's diagonal block of G and δ the rounding
    error of the group: the exact output error as far as the group alone decides it. This is AWQ's
    clip search (arXiv 2306.00978, section 3.2) with the second moments in place of samples.
    """
    out_features, in_features = weight.shape
    num_groups = in_features // group_size
    blocks = diagonal_blocks(gram, group_size)
    best_error = torch.full((out_features, num_groups), torch.inf, device=weight.device)
    best: Grid | None = None
    for step in range(CLIP_STEPS):
        shrink = 1.0 - CLIP_LARGEST_SHRINK * step / CLIP_STEPS
        grid = range_grid(
            weight, num_bits=num_bits, group_size=group_size, symmetric=symmetric, shrink=shrink
        )
        delta = (grid.values(grid.round(weight)) - weight).view(out_features, num_groups, -1)
        by_group = delta.transpose(0, 1)
        error = ((by_group @ blocks) * by_group).sum(-1).T
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = grid if best is None else _choose(better, grid, best)
    assert best is not None
    return best


def diagonal_blocks(gram: Tensor, group_size: int) -> Tensor:
    """The diagonal blocks of G: groups × group_size × group_size."""
    num_groups = gram.shape[0] // group_size
    tiled = gram.view(num_groups, group_size, num_groups, group_size)
    return tiled.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _choose(mask: Tensor, chosen: Grid, otherwise: Grid) -> Grid:
    return Grid(
        scale=torch.where(mask, chosen.scale, otherwise.scale),
        zero=torch.where(mask, chosen.zero, otherwise.zero),
        num_bits=chosen.num_bits,
        group_size=chosen.group_size,
    )


def storable(scale: Tensor) -> Tensor:
    """The scale as both float16 and bfloat16 hold it, never zero; float32.

    Files hold float16, but engines convert to the type they compute in, which is bfloat16 for most
    models: eight significant bits make that exact, so that what was judged is what is served.
    """
    stored = scale.to(torch.bfloat16).to(torch.float16).to(torch.float32)
    return torch.where(stored == 0, SMALLEST_SCALE, stored)
