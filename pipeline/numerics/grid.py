"""Choose grids: the real numbers that the integers of each group of weights stand for.

The rows of a weight matrix W (out_features × in_features) are cut into groups of `group_size`
inputs. Each group has a scale and a zero point; an integer q stands for (q − zero) · scale. Scales
are rounded to the values that files hold, so that every later choice is made against the numbers
that engines compute with. Which integer a weight gets is decided by GPTQ or by rounding to nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.params.linear_recipe import GroupScheme

SMALLEST_SCALE = 2.0**-24  # the smallest positive float16
CLIP_STEPS = 20
CLIP_LARGEST_SHRINK = 0.5


@dataclass(frozen=True)
class Grid:
    """Scales and zero points, float32 and integer-valued float32, both out_features × groups.

    The integers go from `lowest` to 2^num_bits − 1. Alignment also uses zero points that are not
    integers: those of GGUF.
    """

    scale: Tensor
    zero: Tensor
    num_bits: int
    group_size: int
    lowest: int = 0

    def split(self, num_rows: list[int]) -> list["Grid"]:
        """Split the grid of a stacked matrix into those of its parts, by their numbers of rows."""
        parts = zip(
            torch.split(self.scale, num_rows), torch.split(self.zero, num_rows), strict=True
        )
        return [replace(self, scale=scale, zero=zero) for scale, zero in parts]

    def to(self, device: torch.device) -> "Grid":
        return replace(self, scale=self.scale.to(device), zero=self.zero.to(device))

    @property
    def largest(self) -> int:
        return int(2**self.num_bits) - 1

    def round(self, weight: Tensor) -> Tensor:
        """Round a weight (float32, out × in) to the nearest integers of the grid, float32."""
        groups = _by_group(weight, self.group_size) / self.scale.unsqueeze(-1)
        return self.snap_(groups.add_(self.zero.unsqueeze(-1))).flatten(1)

    def snap_(self, integers: Tensor) -> Tensor:
        """Round numbers to the integers of the grid, in place."""
        return integers.round_().clamp_(self.lowest, self.largest)

    def values(self, integers: Tensor) -> Tensor:
        """Compute the weights that integers (out × in) stand for, float32, out × in."""
        groups = _by_group(integers, self.group_size) - self.zero.unsqueeze(-1)
        return groups.mul_(self.scale.unsqueeze(-1)).flatten(1)


def range_grid(weight: Tensor, scheme: GroupScheme) -> Grid:
    """Make the grid that spans the range of each group of `weight` (float32, out × in).

    Symmetric grids have their zero point in the middle (2^(num_bits − 1)), with one step more below
    it than above. The sign of their scale puts the value of the largest magnitude on the longer
    side, as in llama.cpp's Q4_0, so that no step is wasted. Every reader multiplies by the stored
    scale, whatever its sign. Asymmetric grids span minimum to maximum, zero included.
    """
    return _spanning(_ends(weight, scheme), scheme)


def search_clip(weight: Tensor, gram: Tensor, scheme: GroupScheme) -> Grid:
    """Make the grid that spans a reduced range of each group, with the least output error.

    Minimises, for each row and group, δ Gₖ δᵀ, with Gₖ the group's diagonal block of G and δ the
    rounding error of the group. That is the exact output error if all other groups are exact. This
    is AWQ's clip search (arXiv 2306.00978, section 3.2) with second moments in place of samples.
    """
    ends = _ends(weight, scheme)
    blocks = diagonal_blocks(gram, scheme.group_size)
    best_shrink = torch.ones_like(ends[0])
    best_error = torch.full_like(best_shrink, torch.inf)
    for step in range(CLIP_STEPS):
        shrink = 1.0 - CLIP_LARGEST_SHRINK * step / CLIP_STEPS
        grid = _spanning([end * shrink for end in ends], scheme)
        delta = grid.values(grid.round(weight)).sub_(weight)
        by_group = _by_group(delta, scheme.group_size).transpose(0, 1)
        error = (by_group @ blocks).mul_(by_group).sum(-1).T
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_shrink.masked_fill_(better, shrink)
    return _spanning([end * best_shrink for end in ends], scheme)


def _by_group(matrix: Tensor, group_size: int) -> Tensor:
    """View a matrix as out_features × groups × group_size."""
    return matrix.view(matrix.shape[0], -1, group_size)


def _ends(weight: Tensor, scheme: GroupScheme) -> Sequence[Tensor]:
    """Find the ends of each group's range, one or two tensors of out_features × groups.

    Symmetric grids have one: the value of the largest magnitude. Asymmetric grids have the minimum
    and the maximum.
    """
    groups = _by_group(weight, scheme.group_size)
    if scheme.symmetric:
        return [groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)]
    return [groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)]


def _spanning(ends: Sequence[Tensor], scheme: GroupScheme) -> Grid:
    """Make the grid that spans the ranges that `_ends` found."""
    match ends:
        case [extreme]:
            middle = 2 ** (scheme.num_bits - 1)
            scale = storable(-extreme / middle)
            zero = torch.full_like(scale, middle)
        case [low, high]:
            largest = 2**scheme.num_bits - 1
            scale = storable((high - low) / largest)
            zero = (-low / scale).round_().clamp_(0, largest)
    return Grid(scale=scale, zero=zero, num_bits=scheme.num_bits, group_size=scheme.group_size)


def diagonal_blocks(gram: Tensor, group_size: int) -> Tensor:
    """View the diagonal blocks of G: groups × group_size × group_size."""
    num_groups = gram.shape[0] // group_size
    tiled = gram.view(num_groups, group_size, num_groups, group_size)
    return tiled.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def storable(scale: Tensor) -> Tensor:
    """Round scales to numbers that float16 and bfloat16 both hold, never zero; float32.

    Files hold float16. Engines convert it to the dtype they compute in, which is bfloat16 for most
    models. Eight significant bits make that conversion exact, so that engines serve the same
    weights that were evaluated.
    """
    stored = scale.to(torch.bfloat16).to(torch.float16).to(torch.float32)
    return stored.masked_fill_(stored == 0, SMALLEST_SCALE)
