"""The grid of weights in GGUF blocks: scales and offsets of groups, which a block ties together.

A weight is `level · scale − offset`, or `(level − centre) · scale` in types without offsets. Where
a block is one group, scale and offset are float16 numbers. Where it has several groups, they are
`d · i` and `m · j`, with float16 numbers d and m of the block and small integers i and j of the
group. `pipeline.gguf.block_types` has the types.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT16_LARGEST = torch.finfo(torch.float16).max
TINY_SCALE = 1e-20  # stands for a scale of zero where something is divided by it


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """What the blocks of a type can hold.

    `group_size` and `groups_per_block` count weights and groups. Levels are whole numbers from
    `lowest` to `largest`, or the rising numbers of `table` (float32). With `has_offsets` a group
    has an offset; otherwise `centre` is the level that stands for zero. `steps` are the smallest
    and the largest i of a group, where blocks have several; j goes from 0 to the largest.
    """

    group_size: int
    groups_per_block: int
    lowest: int
    largest: int
    centre: int
    table: Tensor | None
    has_offsets: bool
    steps: tuple[int, int] | None


@dataclass
class BlockGrid:
    """Scales of a matrix, float32 and transposed, because rows are independent.

    `scales` and `offsets` are groups × rows; `d` and `m` are blocks × rows. Where a block is one
    group, d and m are its scale and offset, and the same tensors. Types without offsets have zeros.
    """

    layout: BlockLayout
    scales: Tensor
    offsets: Tensor
    d: Tensor
    m: Tensor

    @classmethod
    def of(
        cls, layout: BlockLayout, d: Tensor, m: Tensor | None, i: Tensor | None, j: Tensor | None
    ) -> "BlockGrid":
        """Make a grid of d and m (blocks × rows) and of i and j (groups × rows), if any."""
        m = torch.zeros_like(d) if m is None else m
        scales, offsets = (
            of_block if i is None else of_block.repeat_interleave(layout.groups_per_block, dim=0)
            for of_block in (d, m)
        )
        scales = scales if i is None else scales * i
        offsets = offsets if j is None else offsets * j
        return cls(layout, scales, offsets, d, m)

    @property
    def group_size(self) -> int:
        return self.layout.group_size

    @property
    def scale(self) -> Tensor:
        """The scales, rows × groups, none of them zero."""
        return self.scales.masked_fill(self.scales == 0, TINY_SCALE).T

    @property
    def zero(self) -> Tensor:
        """The levels that stand for zero, rows × groups; they need not be whole numbers."""
        if not self.layout.has_offsets:
            return torch.full_like(self.scales, self.layout.centre).T
        return self.offsets.T / self.scale

    def snap_(self, levels: Tensor) -> Tensor:
        """Round numbers to the nearest levels, in place."""
        if self.layout.table is None:
            return levels.round_().clamp_(self.layout.lowest, self.layout.largest)
        between = (self.layout.table[1:] + self.layout.table[:-1]) / 2
        return levels.copy_(self.layout.table[torch.bucketize(levels, between)])

    def values(self, levels: Tensor, groups: slice = slice(None)) -> Tensor:
        """Compute the weights that the levels of `groups` stand for, both inputs × rows."""
        scales, offsets = self.scales[groups, None], self.offsets[groups, None]
        by_group = (levels - self.layout.centre).view(len(scales), self.group_size, -1)
        return by_group.mul_(scales).sub_(offsets).flatten(0, 1)

    def groups_of(self, block: int) -> slice:
        """Return the groups of a block."""
        first = block * self.layout.groups_per_block
        return slice(first, first + self.layout.groups_per_block)

    def nearest_scales(self, wanted: Tensor, block: int) -> list[Tensor]:
        """List the scales near those `wanted` that a group of a block can hold; all are rows."""
        if self.layout.steps is None:
            return [as_float16(wanted)]
        unit = self.d[block]
        nearest = (wanted / _divisor(unit)).round_()
        return [(nearest + step).clamp_(*self.layout.steps) * unit for step in (-1, 0, 1)]

    def nearest_offset(self, wanted: Tensor, block: int) -> Tensor:
        """Round offsets, rows, to the nearest that a group of a block can hold."""
        if self.layout.steps is None:
            return as_float16(wanted)
        unit = self.m[block]
        return (wanted / _divisor(unit)).round_().clamp_(0, self.layout.steps[1]) * unit

    def steps(self, blocks: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return i and j of the groups of some blocks, groups × rows."""
        return _steps(self.scales, self.d, blocks), _steps(self.offsets, self.m, blocks)


def as_float16(values: Tensor) -> Tensor:
    """Round to numbers that float16 holds, float32."""
    return values.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST).to(torch.float16).to(torch.float32)


def _steps(numbers: Tensor, units: Tensor, blocks: slice) -> Tensor:
    """Divide the numbers of groups, groups × rows, by the units of their blocks."""
    by_block = numbers.view(len(units), -1, numbers.shape[1])[blocks]
    return (by_block / _divisor(units[blocks])[:, None]).round_().flatten(0, 1)


def _divisor(unit: Tensor) -> Tensor:
    return unit.masked_fill(unit == 0, 1.0)
