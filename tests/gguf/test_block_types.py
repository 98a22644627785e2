"""Blocks of every type come apart and together again, and mean what the gguf package reads."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pipeline.gguf.bit_layouts import Bytes
from pipeline.gguf.block_types import BLOCK_TYPES, BlockType, Floats, read_blocks, write_blocks

NUM_ROWS, NUM_BLOCKS = 5, 3


def random_blocks(kind: BlockType, *, seed: int) -> Bytes:
    """Random bytes, rows × bytes of a row, whose d and m are ordinary numbers."""
    random = np.random.default_rng(seed)
    stored = random.integers(0, 256, (NUM_ROWS, NUM_BLOCKS * kind.block_bytes), dtype=np.uint8)
    blocks = stored.reshape(NUM_ROWS, NUM_BLOCKS, -1)
    for place in (kind.d_at, kind.m_at):
        if place is not None:
            halves = random.normal(size=(NUM_ROWS, NUM_BLOCKS, 1)).astype("<f2")
            blocks[..., place : place + 2] = halves.view(np.uint8)
    return stored


def values(kind: BlockType, stored: Bytes) -> Floats:
    """What the parts of blocks stand for, by the formula of `block_types`."""
    parts = read_blocks(kind, stored)
    levels = parts.levels - np.float32(kind.centre)
    if kind.table is not None:
        levels = np.array(kind.table, np.float32)[parts.levels.astype(int)]
    num_groups = kind.block_weights // kind.group_weights
    scale = np.repeat(parts.d, num_groups, axis=1)
    offset = np.zeros_like(scale) if parts.m is None else np.repeat(parts.m, num_groups, axis=1)
    scale = scale if parts.scales is None else scale * parts.scales
    offset = offset if parts.offsets is None else offset * parts.offsets
    by_group = levels.reshape(*scale.shape, -1) * scale[..., None] - offset[..., None]
    flat: Floats = by_group.reshape(NUM_ROWS, -1)
    return flat


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_sizes_are_those_of_the_format(name: str) -> None:
    kind = BLOCK_TYPES[name]
    assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (kind.block_weights, kind.block_bytes)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_blocks_are_written_as_they_were_read(name: str) -> None:
    kind = BLOCK_TYPES[name]
    stored = random_blocks(kind, seed=1)
    again = np.zeros_like(stored)
    write_blocks(kind, read_blocks(kind, stored), again)
    assert np.array_equal(again, stored)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_writing_leaves_nothing_of_what_was_there(name: str) -> None:
    kind = BLOCK_TYPES[name]
    stored, over = random_blocks(kind, seed=2), random_blocks(kind, seed=3)
    write_blocks(kind, read_blocks(kind, stored), over)
    assert np.array_equal(over, stored)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_parts_stand_for_what_gguf_reads_bit_for_bit(name: str) -> None:
    kind = BLOCK_TYPES[name]
    stored = random_blocks(kind, seed=4)
    assert np.array_equal(values(kind, stored), dequantize(stored, GGMLQuantizationType[name]))
