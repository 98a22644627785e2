"""Round the linears of a GGUF file again, inside the blocks that llama.cpp wrote.

llama.cpp chooses the types, and its grids are where the search starts. Size and layout of the file
stay as they are. The algorithm is in `pipeline.numerics.block_rounding`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.core.progress import track
from pipeline.gguf import files as gguf
from pipeline.gguf.bit_layouts import Bytes
from pipeline.gguf.block_types import (
    BLOCK_TYPES,
    Blocks,
    BlockType,
    read_blocks,
    write_blocks,
)
from pipeline.numerics.block_grid import BlockGrid, BlockLayout
from pipeline.numerics.block_rounding import round_in_blocks
from pipeline.numerics.gram import output_error
from pipeline.params.variants import GGUF_REFINE_SWEEPS

DAMPENING_FRAC = 0.01


@torch.inference_mode()
def round_file(
    full_path: Path,
    path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
) -> dict[str, float]:
    """Round tensors of the quantized file `path` again, in place, for the weights of `full_path`.

    `linears_of` has the linears that a tensor stacks; `gram_of` loads G of one. Returns, by tensor,
    tr(ΔW G ΔWᵀ) of llama.cpp's rounding. Tensors whose type has a codebook stay.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    chosen = [
        tensor
        for tensor in gguf.read_tensors(path, writable=True)
        if tensor.name in linears_of and tensor.type in BLOCK_TYPES
    ]
    errors_before = {}
    for tensor in track(chosen, "round", total=len(chosen)):
        kind, linears = BLOCK_TYPES[tensor.type], linears_of[tensor.name]
        weights = full[tensor.name].values().flatten(0, -2).chunk(len(linears))
        before = tensor.values().flatten(0, -2).chunk(len(linears))
        rows = tensor.rows()
        error, start = 0.0, 0
        for linear, weight, old in zip(linears, weights, before, strict=True):
            gram, weight = gram_of(linear).to(device), weight.to(device)
            stored = rows[start : start + len(weight)]
            start += len(weight)
            error += float(output_error(old.to(device) - weight, gram))
            _round_matrix(kind, stored, weight, gram)
        errors_before[tensor.name] = error
    return errors_before


def _round_matrix(kind: BlockType, stored: Bytes, weight: Tensor, gram: Tensor) -> None:
    """Round a matrix (float32, out × in) again; `stored`, out × bytes of a row, is changed."""
    grid = grid_of(kind, read_blocks(kind, stored), weight.device)
    levels = round_in_blocks(
        weight, gram, grid, sweeps=GGUF_REFINE_SWEEPS, dampening_frac=DAMPENING_FRAC
    )
    write_blocks(kind, blocks_of(kind, grid, levels), stored)


def grid_of(kind: BlockType, blocks: Blocks, device: torch.device) -> BlockGrid:
    """Make the grid of a matrix from the parts of its blocks."""
    table = None
    if kind.table:
        table = torch.tensor(kind.table, dtype=torch.float32, device=device)
    layout = BlockLayout(
        group_size=kind.group_weights,
        groups_per_block=kind.block_weights // kind.group_weights,
        lowest=kind.lowest_level,
        largest=kind.largest_level,
        centre=kind.centre,
        table=table,
        has_offsets=kind.m_at is not None,
        steps=(-kind.scale_centre, kind.largest_scale - kind.scale_centre) if kind.groups else None,
    )
    d, m, i, j = (
        None if part is None else torch.from_numpy(part).T.contiguous().to(device)
        for part in (blocks.d, blocks.m, blocks.scales, blocks.offsets)
    )
    assert d is not None
    return BlockGrid.of(layout, d, m, i, j)


def blocks_of(kind: BlockType, grid: BlockGrid, levels: Tensor) -> Blocks:
    """Make the parts of blocks from a grid and levels (inputs × rows)."""
    table = grid.layout.table
    if table is not None:
        levels = torch.searchsorted(table, levels.contiguous()).to(torch.float32)
    i, j = grid.steps()
    d, m, scales, offsets, stored_levels = (
        part.T.contiguous().cpu().numpy() for part in (grid.d, grid.m, i, j, levels)
    )
    has_m = kind.m_at is not None
    return Blocks(
        d=d,
        m=m if has_m else None,
        scales=scales if kind.groups else None,
        offsets=offsets if kind.groups and has_m else None,
        levels=stored_levels,
    )
