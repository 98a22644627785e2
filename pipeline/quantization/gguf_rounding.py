"""Round the linears of a GGUF file again, inside the blocks that llama.cpp wrote.

llama.cpp chooses the types, and its grids are where the search starts. Size and layout of the file
stay as they are. The algorithm is in `pipeline.numerics.block_rounding`.

With quantized inputs one decoder layer is rounded after the other. Its weights are those that
compensate the errors of the layers before it (`quantized_inputs`). The file may have the rows of a
weight in another order, as llama.cpp's converter has those of Llama's q_proj and k_proj.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.architectures.folds import names_by_layer
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import FailureError
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
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.gram import output_error
from pipeline.params.gguf_variants import GGUF_REFINE_SWEEPS

if TYPE_CHECKING:
    from pipeline.quantization.quantized_inputs import QuantizedInputs

DAMPENING_FRAC = 0.01
# Weights that are rounded together.
PART_WEIGHTS = 2**25


@dataclass(frozen=True)
class TensorErrors:
    """The errors of a tensor, summed over the linears that it stacks.

    `error` is tr(ΔW G ΔWᵀ) in the file, `llama_cpp_error` that of llama.cpp's rounding, and `power`
    is tr(W G Wᵀ). W and G are those that the tensor was rounded for.
    """

    error: float
    power: float
    llama_cpp_error: float


@torch.inference_mode()
def round_file(
    full_path: Path,
    path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
) -> dict[str, TensorErrors]:
    """Round tensors of the quantized file `path` again, in place, for the weights of `full_path`.

    `linears_of` has the linears that a tensor stacks; `gram_of` loads G of one. Returns the errors
    by tensor. Tensors whose type has a codebook stay.
    """
    full = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    chosen = [tensor for tensor in _quantized(path, linears_of) if tensor.type in BLOCK_TYPES]
    errors = {}
    for tensor in track(chosen, "round", total=len(chosen)):
        linears = linears_of[tensor.name]
        weights = full[tensor.name].values().flatten(0, -2).chunk(len(linears))
        errors[tensor.name] = _round_tensor(tensor, weights, map(gram_of, linears))
    return errors


@torch.inference_mode()
def round_file_by_layer(
    full_path: Path,
    path: Path,
    linears_of: Mapping[str, Sequence[str]],
    checkpoint: Checkpoint,
    inputs: "QuantizedInputs",
) -> dict[str, TensorErrors]:
    """Round as `round_file`, each layer for the inputs that the layers before it give.

    `checkpoint` is the one that the files were made from, and `inputs` are its quantized inputs; no
    tensor stacks linears. Raises FailureError for a tensor whose rows are not those of its linear.
    """
    full = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    tensor_of = {linears_of[tensor.name][0]: tensor for tensor in _quantized(path, linears_of)}
    by_layer = names_by_layer(checkpoint.names)
    errors = {}
    for prefix, names in track(by_layer.items(), "round", total=len(by_layer)):
        layer = DecoderLayer.of(prefix, checkpoint.tensors(names))
        local = {name: layer.full_name(name) for name in layer.modules}
        tensors = {name: tensor_of[full] for name, full in local.items() if full in tensor_of}
        made = {}
        compensated = inputs.compensated(layer, tensors) if tensors else layer
        gram_of = {name: shared.gram for shared in compensated.inputs for name in shared.linears}
        for name, tensor in tensors.items():
            order = row_order(full[tensor.name].values(), layer.weight(name), what=tensor.name)
            if tensor.type in BLOCK_TYPES:
                target = compensated.weight(name)[order]
                errors[tensor.name] = _round_tensor(tensor, [target], [gram_of[name]])
            values = tensor.values()
            made[f"{name}.weight"] = torch.empty_like(values).index_copy_(0, order, values)
        inputs.advance(prefix, made)
    return errors


def _quantized(path: Path, linears_of: Mapping[str, Sequence[str]]) -> Iterator[gguf.GgufTensor]:
    """Yield the tensors of the quantized file that have linears, to be written."""
    for tensor in gguf.read_tensors(path, writable=True):
        if tensor.name in linears_of:
            yield tensor


def row_order(stored: Tensor, weight: Tensor, *, what: str) -> Tensor:
    """Find for each row of `stored`, as float16, which row of `weight` it is, int64.

    Raises FailureError, about the tensor `what`, where a row is not there.
    """
    places: dict[bytes, list[int]] = {}
    for number, row in enumerate(weight.to(torch.float16).cpu().numpy()):
        places.setdefault(row.tobytes(), []).append(number)
    rows = [row.tobytes() for row in stored.to(torch.float16).numpy()]
    try:
        return torch.tensor([places[row].pop() for row in rows])
    except (KeyError, IndexError) as error:
        raise FailureError(
            f"{what}: llama.cpp's converter changed its values, so it can only be rounded by "
            "itself; set quantized_inputs to false and align_samples to 0, and state a type"
        ) from error


def _round_tensor(
    tensor: gguf.GgufTensor, targets: Sequence[Tensor], grams: Iterable[Tensor]
) -> TensorErrors:
    """Round a tensor of the file again; it stacks matrices for `targets` (float32, out × in)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, rows, start = BLOCK_TYPES[tensor.type], tensor.rows(), 0
    error = power = error_before = 0.0
    for target, gram in zip(targets, grams, strict=True):
        gram = gram.to(device)
        # Rows are independent of each other, so memory holds a part of a vocabulary at a time.
        for part in torch.split(target, max(1, PART_WEIGHTS // target.shape[1])):
            wanted = part.to(device)
            stored = rows[start : start + len(wanted)]
            start += len(wanted)
            error_before += float(output_error(tensor.decoded(stored).to(device) - wanted, gram))
            power += float(output_error(wanted, gram))
            _round_matrix(kind, stored, wanted, gram)
            error += float(output_error(tensor.decoded(stored).to(device) - wanted, gram))
    return TensorErrors(error, power, error_before)


def _round_matrix(kind: BlockType, stored: Bytes, weight: Tensor, gram: Tensor) -> None:
    """Round a matrix (float32, out × in) again; `stored`, out × bytes of a row, is changed."""
    grid = grid_of(kind, read_blocks(kind, stored), weight.device)
    levels = round_in_blocks(
        weight, gram, grid, sweeps=GGUF_REFINE_SWEEPS, dampening_frac=DAMPENING_FRAC
    )
    write_blocks(kind, blocks_of(kind, grid, levels), stored)


def grid_of(kind: BlockType, blocks: Blocks, device: torch.device) -> BlockGrid:
    """Make the grid of a matrix from the parts of its blocks."""
    d, m, i, j = (
        None if part is None else torch.from_numpy(part).T.contiguous().to(device)
        for part in (blocks.d, blocks.m, blocks.scales, blocks.offsets)
    )
    assert d is not None
    return BlockGrid.of(layout_of(kind, device), d, m, i, j)


def layout_of(kind: BlockType, device: torch.device) -> BlockLayout:
    """Describe what the blocks of a type hold; the table, if any, is on the device."""
    table = None
    if kind.table:
        table = torch.tensor(kind.table, dtype=torch.float32, device=device)
    return BlockLayout(
        group_size=kind.group_weights,
        groups_per_block=kind.block_weights // kind.group_weights,
        lowest=kind.lowest_level,
        largest=kind.largest_level,
        centre=kind.centre,
        table=table,
        has_offsets=kind.m_at is not None,
        steps=(-kind.scale_centre, kind.largest_scale - kind.scale_centre) if kind.groups else None,
    )


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
