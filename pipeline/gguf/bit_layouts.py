"""Read and write the small integers of GGUF blocks, whose bits are spread over their bytes.

Source: `ggml-common.h` and `ggml-quants.c` of llama.cpp. Blocks are uint8, their last axis has the
bytes of a block; numbers are uint8, their last axis has those of a block. Writing a plane changes
no bits of others.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BitPlane:
    """Some bits of all numbers of a kind, in the bytes from `start` to `end` of a block.

    The bytes are cut into runs of `width`. The lowest `bits` of a run's bytes belong to its first
    `width` numbers, the next higher ones to the next `width` numbers, and so on. In the numbers
    these bits are `shift` places higher. `flipped` is XORed with the numbers.
    """

    start: int
    end: int
    width: int
    bits: int
    shift: int = 0
    flipped: int = 0

    def read(self, blocks: Bytes) -> Bytes:
        """Read these bits of all numbers; the last axis has the bytes, then the numbers."""
        runs = blocks[..., self.start : self.end]
        runs = runs.reshape(*runs.shape[:-1], -1, 1, self.width)
        numbers = ((runs >> self._places) & self._mask) << np.uint8(self.shift)
        return numbers.reshape(*blocks.shape[:-1], -1) ^ np.uint8(self.flipped)

    def write(self, blocks: Bytes, numbers: Bytes) -> None:
        """Write these bits of all numbers."""
        parts = ((numbers ^ np.uint8(self.flipped)) >> np.uint8(self.shift)) & self._mask
        parts = parts.reshape(*numbers.shape[:-1], -1, len(self._places), self.width)
        runs = np.bitwise_or.reduce(parts << self._places, axis=-2)
        blocks[..., self.start : self.end] = runs.reshape(*numbers.shape[:-1], -1)

    @property
    def _places(self) -> Bytes:
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]

    @property
    def _mask(self) -> np.uint8:
        return np.uint8(2**self.bits - 1)


@dataclass(frozen=True)
class Planes:
    """Numbers whose bits are in several planes."""

    planes: tuple[BitPlane, ...]

    def read(self, blocks: Bytes) -> Bytes:
        numbers = self.planes[0].read(blocks)
        for plane in self.planes[1:]:
            numbers |= plane.read(blocks)
        return numbers

    def write(self, blocks: Bytes, numbers: Bytes) -> None:
        for plane in self.planes:
            plane.write(blocks, numbers)


@dataclass(frozen=True)
class SixBits:
    """Sixteen numbers of 6 bits in the 12 bytes from `start`, as in Q4_K and Q5_K.

    In the low 6 bits of the first 8 bytes are the first 4 scales and the first 4 offsets. In the
    last 4 bytes are the low halves of the other scales and offsets; their high bits are above the
    first ones. The numbers are in the order of 8 scales and 8 offsets.
    """

    start: int

    def read(self, blocks: Bytes) -> Bytes:
        first, halves = self._parts(blocks)
        high = first >> 6 << 4
        scales, offsets = first[..., :4] & 0x3F, first[..., 4:] & 0x3F
        later_scales, later_offsets = halves & 0x0F | high[..., :4], halves >> 4 | high[..., 4:]
        return np.concatenate([scales, later_scales, offsets, later_offsets], axis=-1)

    def write(self, blocks: Bytes, numbers: Bytes) -> None:
        first, halves = self._parts(blocks)
        scales, later_scales, offsets, later_offsets = np.split(numbers, 4, axis=-1)
        first[..., :4] = scales | later_scales >> 4 << 6
        first[..., 4:] = offsets | later_offsets >> 4 << 6
        halves[...] = later_scales & 0x0F | later_offsets << 4

    def _parts(self, blocks: Bytes) -> tuple[Bytes, Bytes]:
        return blocks[..., self.start : self.start + 8], blocks[
            ..., self.start + 8 : self.start + 12
        ]
