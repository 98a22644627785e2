"""Align a GGUF file that is already rounded: replace some of the levels inside its blocks.

Types, scales and layout stay as they are, and so does what no block of plain integers holds: the
types with a table or a codebook, and vectors. The model that is aligned has the file's values in
all of these too. The algorithm is in `pipeline.numerics.align`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.gguf import files as gguf
from pipeline.gguf.block_types import BLOCK_TYPES, read_blocks, write_blocks
from pipeline.numerics.align import AlignedLinear, Aligner
from pipeline.numerics.gram import output_error
from pipeline.numerics.grid import Grid
from pipeline.quantization.alignment import make_steps
from pipeline.quantization.gguf_rounding import grid_of, row_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _StoredLinear:
    """A tensor of the file for one linear, whose row `order[i]` is row i of the tensor."""

    tensor: gguf.GgufTensor
    order: Tensor

    def by_linear(self, rows: Tensor) -> Tensor:
        """Bring rows of the tensor into the order of the linear."""
        return torch.empty_like(rows).index_copy_(0, self.order, rows)

    @property
    def has_plain_levels(self) -> bool:
        """Whether the levels of its type are consecutive integers."""
        kind = BLOCK_TYPES.get(self.tensor.type)
        return kind is not None and kind.table is None

    def integers(self) -> tuple[Tensor, Grid]:
        """Read the levels (float32, out × in) and their grid, in the order of the linear."""
        kind = BLOCK_TYPES[self.tensor.type]
        blocks = read_blocks(kind, self.tensor.rows())
        grid = grid_of(kind, blocks, torch.device("cpu"))
        return self.by_linear(torch.from_numpy(blocks.levels)), Grid(
            scale=self.by_linear(grid.scale.contiguous()),
            zero=self.by_linear(grid.zero.contiguous()),
            num_bits=kind.largest_level.bit_length(),
            group_size=kind.group_weights,
            lowest=kind.lowest_level,
        )

    def write(self, integers: Tensor) -> None:
        """Replace the levels, float32, out × in, in the order of the linear."""
        kind, rows = BLOCK_TYPES[self.tensor.type], self.tensor.rows()
        blocks = read_blocks(kind, rows)
        blocks.levels = np.asarray(integers.cpu()[self.order])
        write_blocks(kind, blocks, rows)


def align_file(
    base_dir: Path,
    source: Checkpoint,
    full_path: Path,
    path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    steps: Sequence[Tensor],
) -> dict[str, float]:
    """Align the quantized file `path`, in place, by `steps` of token ids, samples × tokens.

    `full_path` is the F16 file of `source`, which computes the same as the base. `linears_of` has
    the one linear of each tensor, and `gram_of` loads its G. Returns tr(ΔW G ΔWᵀ) of each tensor
    that was aligned. Raises FailureError for a tensor whose rows are not those of its linear, and
    InputError where alignment raises the KL.
    """
    # Imported where models are loaded: it brings the code of all models.
    from pipeline.checkpoint.model_parts import module_names

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = {tensor.name: tensor.values() for tensor in gguf.read_tensors(full_path)}
    file = {tensor.name: tensor for tensor in gguf.read_tensors(path, writable=True)}
    student, teacher = (unpacked_model(place) for place in (source.directory, base_dir))
    _set_vocabulary(student, file)
    stored: dict[str, _StoredLinear] = {}
    for name, (linear,) in linears_of.items():
        order = row_order(full[name], source.tensor(f"{linear}.weight"), what=name)
        stored[linear] = _StoredLinear(file[name], order)
    names = module_names(student, tuple(stored))
    linears: dict[str, AlignedLinear] = {}
    targets = {}
    for linear, one in stored.items():
        with torch.no_grad():
            weight = student.get_parameter(f"{names[linear]}.weight")
            weight.copy_(one.by_linear(one.tensor.values()))
        if one.has_plain_levels:
            target = targets[linear] = one.by_linear(full[one.tensor.name]).to(device)
            integers, grid = one.integers()
            linears[names[linear]] = AlignedLinear(
                target, gram_of(linear).to(device), integers.to(device), grid.to(device)
            )
    del full
    aligner = Aligner(student.to(device), teacher.to(device), linears)
    make_steps(aligner, steps, device)
    integers_of = aligner.integers
    del aligner, student, teacher
    errors = {}
    for linear, target in targets.items():
        one = stored[linear]
        one.write(integers_of[names[linear]])
        change = one.by_linear(one.tensor.values()).to(device) - target
        errors[one.tensor.name] = float(output_error(change, gram_of(linear).to(device)))
    return errors


@torch.no_grad()
def _set_vocabulary(model: "PreTrainedModel", file: Mapping[str, gguf.GgufTensor]) -> None:
    """Give the model the file's embeddings and head, which may be one tensor."""
    modules = {
        gguf.EMBEDDINGS: model.get_input_embeddings(),
        gguf.HEAD: model.get_output_embeddings(),
    }
    for name, module in modules.items():
        if name in file and module is not None:
            values = file[name].values()
            module.weight[: len(values)].copy_(values)
