"""Rounding inside GGUF blocks lowers the error of llama.cpp's, and every reader sees the same."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from pipeline.gguf.bit_layouts import Bytes
from pipeline.gguf.block_types import BLOCK_TYPES, read_blocks, write_blocks
from pipeline.numerics.block_grid import BlockGrid
from pipeline.numerics.block_rounding import refine_in_blocks, round_in_blocks
from pipeline.numerics.gram import dampened, output_error
from pipeline.quantization.gguf_rounding import blocks_of, grid_of
from tests.numerics.test_quantization import gram_of, inputs, weight

CPU = torch.device("cpu")
NUM_ROWS, NUM_INPUTS = 24, 768
GGML = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
EVERY_TYPE = pytest.mark.parametrize("name", BLOCK_TYPES)


def by_llama_cpp(name: str, matrix: Tensor) -> Bytes:
    """Quantize a matrix with llama.cpp's own code, rows × bytes of a row."""
    kind, rows = BLOCK_TYPES[name], np.ascontiguousarray(matrix.numpy())
    num_blocks = rows.shape[1] // kind.block_weights
    stored = np.zeros((len(rows), num_blocks * kind.block_bytes), np.uint8)
    GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = GGML.ggml_quantize_chunk(
        ctypes.c_int(GGMLQuantizationType[name]),
        rows.ctypes.data_as(ctypes.c_void_p),
        stored.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(len(rows)),
        ctypes.c_int64(rows.shape[1]),
        None,
    )
    assert written == stored.size
    return stored


def read(name: str, stored: Bytes) -> Tensor:
    """Read a matrix with the gguf package."""
    return torch.from_numpy(dequantize(stored, GGMLQuantizationType[name]))


def levels_and_grid(name: str, stored: Bytes) -> tuple[Tensor, BlockGrid]:
    """The levels of stored blocks, inputs × rows, and their grid."""
    kind = BLOCK_TYPES[name]
    blocks = read_blocks(kind, stored)
    levels = torch.from_numpy(blocks.levels).T.contiguous()
    grid = grid_of(kind, blocks, CPU)
    return levels if kind.table is None else grid.layout.table[levels.long()], grid


def written(name: str, grid: BlockGrid, levels: Tensor) -> Bytes:
    kind = BLOCK_TYPES[name]
    num_blocks = NUM_INPUTS // kind.block_weights
    stored = np.full((levels.shape[1], num_blocks * kind.block_bytes), 0xAA, np.uint8)
    write_blocks(kind, blocks_of(kind, grid, levels), stored)
    return stored


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    return weight(NUM_ROWS, NUM_INPUTS, seed=31)


@pytest.fixture(scope="module")
def gram() -> Tensor:
    return gram_of(inputs(NUM_INPUTS, seed=32))


@pytest.mark.slow
@EVERY_TYPE
def test_the_file_holds_what_is_meant_with_less_error_than_before(
    name: str, matrix: Tensor, gram: Tensor
) -> None:
    before = by_llama_cpp(name, matrix)
    _, grid = levels_and_grid(name, before)
    levels = round_in_blocks(matrix, gram, grid, sweeps=2, dampening_frac=0.01)
    after = read(name, written(name, grid, levels))
    assert torch.equal(after, grid.values(levels).T)
    old, new = (output_error(values - matrix, gram) for values in (read(name, before), after))
    assert new < 0.6 * old


@pytest.mark.slow
@EVERY_TYPE
def test_the_error_falls_with_every_sweep(name: str, matrix: Tensor, gram: Tensor) -> None:
    levels, grid = levels_and_grid(name, by_llama_cpp(name, matrix))
    metric = dampened(gram, 0.01)
    errors = [float(output_error(grid.values(levels).T - matrix, metric))]
    for _ in range(3):
        refine_in_blocks(matrix, metric, levels, grid, sweeps=1)
        errors.append(float(output_error(grid.values(levels).T - matrix, metric)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.slow
@EVERY_TYPE
def test_a_matrix_that_the_blocks_hold_exactly_stays(
    name: str, matrix: Tensor, gram: Tensor
) -> None:
    stored = by_llama_cpp(name, matrix)
    levels, grid = levels_and_grid(name, stored)
    refine_in_blocks(read(name, stored), dampened(gram, 0.01), levels, grid, sweeps=2)
    assert np.array_equal(written(name, grid, levels), stored)


@pytest.mark.slow
@EVERY_TYPE
def test_a_row_of_zeros_stays_and_unused_inputs_do_no_harm(
    name: str, matrix: Tensor, gram: Tensor
) -> None:
    zeros, unused = matrix.clone(), gram.clone()
    zeros[0] = zeros[3, :256] = 0.0  # blocks of zeros have no scale
    unused[256:300], unused[:, 256:300] = 0.0, 0.0
    _, grid = levels_and_grid(name, by_llama_cpp(name, zeros))
    levels = round_in_blocks(zeros, unused, grid, sweeps=2, dampening_frac=0.01)
    after = read(name, written(name, grid, levels))
    assert after.isfinite().all()
    assert after[0].eq(0).all()
