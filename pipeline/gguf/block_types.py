"""Take the blocks of GGUF files apart into integers and scales, and put them together again.

A row of a quantized tensor is a sequence of blocks of 32 or 256 weights. A weight is

    level · d · scale − m · offset,

with d and m in float16 for each block, and small integers `scale` and `offset` for each group of 16
or 32 weights in a block of 256. A block of 32 is one group, and its scale and offset are 1. A level
is a stored integer minus the type's centre, or that number of a table. Source: `ggml-common.h` and
`ggml-quants.c` of llama.cpp. IQ1, IQ2 and IQ3, whose codebooks hold several weights at a time, are
not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.gguf.bit_layouts import BitPlane, Bytes, Planes, SixBits

Floats = npt.NDArray[np.float32]

SIGN = 0x80  # XORed with the byte of an int8, it makes an unsigned number that is 128 larger
IQ4_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """The layout of a type, and the numbers that it holds.

    `d_at` and `m_at` are the places of d and m in a block; `m_sign` is −1 where m is added. Stored
    levels go from `lowest_level` to `largest_level`; `centre` is subtracted from them, or with
    `table` they are indices. `groups` has the scales of all groups of a block, then, where there is
    an m, the offsets. Both go up to `largest_scale`; `scale_centre` is subtracted from scales.
    """

    block_weights: int
    block_bytes: int
    group_weights: int
    levels: Planes
    largest_level: int
    lowest_level: int = 0
    centre: int = 0
    table: tuple[int, ...] | None = None
    d_at: int
    m_at: int | None = None
    m_sign: int = 1
    groups: Planes | SixBits | None = None
    largest_scale: int = 1
    scale_centre: int = 0


@dataclass
class Blocks:
    """The parts of a matrix: rows × blocks, rows × groups or rows × weights, all float32.

    `d` and `m` are numbers that float16 holds. `scales` and `offsets` are whole numbers, without
    the centre. `levels` are as they are stored. What a type has not is None.
    """

    d: Floats
    m: Floats | None
    scales: Floats | None
    offsets: Floats | None
    levels: Floats


def read_blocks(kind: BlockType, stored: Bytes) -> Blocks:
    """Take apart the bytes of a matrix, rows × bytes of a row."""
    num_rows = len(stored)
    blocks = stored.reshape(num_rows, -1, kind.block_bytes)
    scales = offsets = None
    if kind.groups:
        numbers = kind.groups.read(blocks).astype(np.float32)
        scales, *rest = np.split(numbers, 1 if kind.m_at is None else 2, axis=-1)
        scales = (scales - np.float32(kind.scale_centre)).reshape(num_rows, -1)
        offsets = rest[0].reshape(num_rows, -1) if rest else None
    return Blocks(
        d=_read_halves(blocks, kind.d_at),
        m=None if kind.m_at is None else np.float32(kind.m_sign) * _read_halves(blocks, kind.m_at),
        scales=scales,
        offsets=offsets,
        levels=kind.levels.read(blocks).astype(np.float32).reshape(num_rows, -1),
    )


def write_blocks(kind: BlockType, parts: Blocks, stored: Bytes) -> None:
    """Write the parts into the bytes of a matrix, rows × bytes of a row."""
    num_rows = len(stored)
    blocks = stored.reshape(num_rows, -1, kind.block_bytes)
    shape = (num_rows, blocks.shape[1], -1)
    _write_halves(blocks, kind.d_at, parts.d)
    if kind.m_at is not None and parts.m is not None:
        _write_halves(blocks, kind.m_at, np.float32(kind.m_sign) * parts.m)
    if kind.groups and parts.scales is not None:
        numbers = [(parts.scales + np.float32(kind.scale_centre)).reshape(shape)]
        numbers += [] if parts.offsets is None else [parts.offsets.reshape(shape)]
        kind.groups.write(blocks, np.concatenate(numbers, axis=-1).astype(np.uint8))
    kind.levels.write(blocks, parts.levels.astype(np.uint8).reshape(shape))


def _read_halves(blocks: Bytes, start: int) -> Floats:
    halves = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")
    return halves[..., 0].astype(np.float32)


def _write_halves(blocks: Bytes, start: int, values: Floats) -> None:
    halves = np.ascontiguousarray(values.astype("<f2"))
    blocks[..., start : start + 2] = halves.view(np.uint8).reshape(*values.shape, 2)


def _simple(block_bytes: int, *planes: BitPlane, largest_level: int, **others: Any) -> BlockType:
    """Describe a type whose blocks of 32 weights are one group, and start with d."""
    return BlockType(
        block_weights=32,
        block_bytes=block_bytes,
        group_weights=32,
        levels=Planes(planes),
        largest_level=largest_level,
        d_at=0,
        **others,
    )


def _super(
    block_bytes: int, *planes: BitPlane, group_weights: int, largest_level: int, **others: Any
) -> BlockType:
    """Describe a type whose blocks of 256 weights are several groups."""
    return BlockType(
        block_weights=256,
        block_bytes=block_bytes,
        group_weights=group_weights,
        levels=Planes(planes),
        largest_level=largest_level,
        **others,
    )


BLOCK_TYPES: Mapping[str, BlockType] = MappingProxyType(
    {
        "Q4_0": _simple(18, BitPlane(2, 18, width=16, bits=4), largest_level=15, centre=8),
        "Q4_1": _simple(20, BitPlane(4, 20, width=16, bits=4), largest_level=15, m_at=2, m_sign=-1),
        "Q5_0": _simple(
            22,
            BitPlane(6, 22, width=16, bits=4),
            BitPlane(2, 6, width=1, bits=1, shift=4),
            largest_level=31,
            centre=16,
        ),
        "Q5_1": _simple(
            24,
            BitPlane(8, 24, width=16, bits=4),
            BitPlane(4, 8, width=1, bits=1, shift=4),
            largest_level=31,
            m_at=2,
            m_sign=-1,
        ),
        # llama.cpp never writes −128, which has no positive counterpart.
        "Q8_0": _simple(
            34,
            BitPlane(2, 34, width=32, bits=8, flipped=SIGN),
            lowest_level=1,
            largest_level=255,
            centre=128,
        ),
        "IQ4_NL": _simple(18, BitPlane(2, 18, width=16, bits=4), largest_level=15, table=IQ4_TABLE),
        "IQ4_XS": _super(
            136,
            BitPlane(8, 136, width=16, bits=4),
            group_weights=32,
            largest_level=15,
            table=IQ4_TABLE,
            d_at=0,
            groups=Planes(
                (BitPlane(4, 8, width=1, bits=4), BitPlane(2, 4, width=1, bits=2, shift=4))
            ),
            largest_scale=63,
            scale_centre=32,
        ),
        "Q2_K": _super(
            84,
            BitPlane(16, 80, width=32, bits=2),
            group_weights=16,
            largest_level=3,
            d_at=80,
            m_at=82,
            groups=Planes((BitPlane(0, 16, width=16, bits=4),)),
            largest_scale=15,
        ),
        "Q3_K": _super(
            110,
            BitPlane(32, 96, width=32, bits=2),
            BitPlane(0, 32, width=32, bits=1, shift=2),
            group_weights=16,
            largest_level=7,
            centre=4,
            d_at=108,
            groups=Planes(
                (BitPlane(96, 104, width=8, bits=4), BitPlane(104, 108, width=4, bits=2, shift=4))
            ),
            largest_scale=63,
            scale_centre=32,
        ),
        "Q4_K": _super(
            144,
            BitPlane(16, 144, width=32, bits=4),
            group_weights=32,
            largest_level=15,
            d_at=0,
            m_at=2,
            groups=SixBits(4),
            largest_scale=63,
        ),
        "Q5_K": _super(
            176,
            BitPlane(48, 176, width=32, bits=4),
            BitPlane(16, 48, width=32, bits=1, shift=4),
            group_weights=32,
            largest_level=31,
            d_at=0,
            m_at=2,
            groups=SixBits(4),
            largest_scale=63,
        ),
        "Q6_K": _super(
            210,
            BitPlane(0, 128, width=64, bits=4),
            BitPlane(128, 192, width=32, bits=2, shift=4),
            group_weights=16,
            largest_level=63,
            centre=32,
            d_at=208,
            groups=Planes((BitPlane(192, 208, width=16, bits=8, flipped=SIGN),)),
            largest_scale=255,
            scale_centre=128,
        ),
    }
)
