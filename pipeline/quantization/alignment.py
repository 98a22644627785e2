"""Aligning a packed checkpoint that is written already: some of its integers are replaced.

Sizes, types, grids and all that is not quantized stay as they are. The integers are written first,
with their errors, as one file beside the model; every shard is made from it, so that a killed run
ends in the same bytes.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.architectures.folds import names_by_layer
from pipeline.checkpoint.reading import (
    Checkpoint,
    packed_integers,
    read_tensors,
    save_tensors,
    unpacked_model,
)
from pipeline.core.errors import InputError
from pipeline.core.progress import track
from pipeline.numerics.align import AlignedLinear, Aligner
from pipeline.numerics.grid import Grid
from pipeline.numerics.layer import QuantizedLinear, measured
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.params import PackedVariant
from pipeline.params.variants import ALIGN_STEP_TOKENS
from pipeline.quantization.layer_quantizer import LayerQuantizer

SEED = 0
ERRORS = ".errors"
EXPERTS = ".experts."
DELETE_AND_QUANTIZE = "the file is damaged: delete its directory and quantize again"


# Integers and grid by the name of the linear.
Rounded = Mapping[str, tuple[Tensor, Grid]]


class Errors(NamedTuple):
    """Of one linear, as in `TensorCoverage`."""

    relative_error: float
    error_ratio: float


def require_alignable(linears: Sequence[str], *, num_samples: int) -> None:
    """Raise InputError for a model whose linears are not all modules of their own."""
    if num_samples and any(EXPERTS in name for name in linears):
        raise InputError(
            f"align_samples = {num_samples}: the experts of a mixture cannot be aligned; set it "
            "to 0"
        )


def align_checkpoint(
    base: Checkpoint,
    model_dir: Path,
    recipe: PackedVariant,
    windows: Sequence[Sequence[int]],
    quantizer: LayerQuantizer,
    *,
    learned_path: Path,
) -> dict[str, Errors]:
    """Align the packed checkpoint in `model_dir` on `windows` of token ids, equally long.

    `learned_path` outlives a kill; the caller removes it when the result is safe. Returns the
    errors of the linears as they are now, by their names.
    """
    if not learned_path.exists():
        aligned = _aligned(base, model_dir, quantizer, _steps(windows, recipe.align_samples))
        learned: dict[str, Tensor] = {}
        for name, it in _measured(base, quantizer, aligned, symmetric=recipe.symmetric):
            packed = stored_tensors(it.integers, it.grid, recipe)
            errors = torch.tensor([it.relative_error, it.error_ratio], dtype=torch.float64)
            learned |= {f"{name}.{suffix}": tensor for suffix, tensor in packed.items()}
            learned[f"{name}{ERRORS}"] = errors
        save_tensors(learned_path, learned)
    learned = read_tensors(learned_path, remedy=DELETE_AND_QUANTIZE)
    for shard_path in sorted(model_dir.glob("*.safetensors")):
        tensors = read_tensors(shard_path, remedy=DELETE_AND_QUANTIZE)
        save_tensors(shard_path, {name: learned.get(name, it) for name, it in tensors.items()})
    return {
        name.removesuffix(ERRORS): Errors(*it.tolist())
        for name, it in learned.items()
        if name.endswith(ERRORS)
    }


def _aligned(
    base: Checkpoint, model_dir: Path, quantizer: LayerQuantizer, steps: Sequence[Tensor]
) -> Rounded:
    """The packed linears by name, with better integers."""
    packed = packed_integers(Checkpoint(model_dir))
    linears: dict[str, AlignedLinear] = {}
    grids: dict[str, Grid] = {}
    for prefix, names in names_by_layer(base.names).items():
        folded = quantizer.folded(prefix, base.tensors(names))
        for inside, gram in folded.grams.items():
            name = f"{prefix}.{inside}"
            integers, grid = packed.pop(name)
            grids[name] = grid.to(quantizer.device)
            linears[name] = AlignedLinear(
                folded.tensors[f"{inside}.weight"],
                gram,
                integers.to(quantizer.device),
                grids[name],
            )
    student, teacher = (
        unpacked_model(it).to(quantizer.device) for it in (model_dir, base.directory)
    )
    aligner = Aligner(student, teacher, linears)
    for token_ids in track(steps, "align", total=len(steps)):
        aligner.step(token_ids.to(quantizer.device))
    return {name: (integers, grids[name]) for name, integers in aligner.integers.items()}


def _measured(
    base: Checkpoint,
    quantizer: LayerQuantizer,
    rounded: Rounded,
    *,
    symmetric: bool,
) -> Iterator[tuple[str, QuantizedLinear]]:
    """Every linear with what it costs, by what it was to stand for, which is made again."""
    for prefix, names in names_by_layer(base.names).items():
        folded = quantizer.folded(prefix, base.tensors(names))
        for inside, gram in folded.grams.items():
            name = f"{prefix}.{inside}"
            weight = folded.tensors[f"{inside}.weight"]
            yield name, measured(weight, *rounded[name], gram, symmetric=symmetric)


def _steps(windows: Sequence[Sequence[int]], num_samples: int) -> list[Tensor]:
    """So many windows in a seeded order, all of them before any comes again, cut evenly."""
    order = list(_shuffled(len(windows), num_samples))
    token_ids = torch.tensor([list(windows[at]) for at in order])
    return list(token_ids.tensor_split(ceil(token_ids.numel() / ALIGN_STEP_TOKENS)))


def _shuffled(num_windows: int, num_samples: int) -> Iterator[int]:
    """Numbers of windows."""
    order = random.Random(SEED)
    while num_samples > 0:
        yield from order.sample(range(num_windows), num_windows)[:num_samples]
        num_samples -= num_windows
