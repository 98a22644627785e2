"""Aligning a packed checkpoint that is written already: some of its integers are replaced.

Sizes, types, grids and all that is not quantized stay as they are. The integers are written first,
with their errors, as one file beside the model; every shard is made from it, so that a killed run
ends in the same bytes.
"""

import random
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

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
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.grid import Grid
from pipeline.numerics.layer import measured
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.variants import ALIGN_STEP_TOKENS
from pipeline.quantization.grouping import Grouping
from pipeline.quantization.layer_quantizer import DELETE_AND_QUANTIZE, LayerQuantizer

SEED = 0
ERRORS = ".errors"
ERROR_FIELDS = ("relative_error", "error_ratio")
EXPERTS = ".experts."


def require_alignable(linears: Sequence[str], *, num_samples: int) -> None:
    """Raise InputError for a model whose linears are not all modules of their own."""
    if num_samples and any(EXPERTS in name for name in linears):
        raise InputError(
            f"align_samples = {num_samples}: the experts of a mixture cannot be aligned; set it "
            "to 0"
        )


def steps_of(windows: Sequence[Sequence[int]], num_samples: int) -> list[Tensor]:
    """Cut `num_samples` of equally long windows of token ids into steps, samples × tokens each.

    Windows come in a seeded order, all of them before any comes again.
    """
    random_order = random.Random(SEED)
    order: list[int] = []
    while len(order) < num_samples:
        order += random_order.sample(range(len(windows)), len(windows))
    token_ids = torch.tensor([list(windows[at]) for at in order[:num_samples]])
    return list(token_ids.tensor_split(ceil(token_ids.numel() / ALIGN_STEP_TOKENS)))


def align_checkpoint(
    base: Checkpoint,
    model_dir: Path,
    grouping: Grouping,
    steps: Sequence[Tensor],
    quantizer: LayerQuantizer,
    *,
    learned_path: Path,
) -> dict[str, dict[str, float]]:
    """Align the packed checkpoint in `model_dir` by `steps` of token ids, samples × tokens.

    `learned_path` outlives a kill; the caller removes it when the result is safe. Returns the
    errors of the linears as they are now, by their names: `relative_error` and `error_ratio` as in
    `TensorCoverage`.
    """
    if not learned_path.exists():
        save_tensors(learned_path, _learned(base, model_dir, grouping, steps, quantizer))
    learned = read_tensors(learned_path, remedy=DELETE_AND_QUANTIZE)
    for shard_path in sorted(model_dir.glob("*.safetensors")):
        tensors = read_tensors(shard_path, remedy=DELETE_AND_QUANTIZE)
        save_tensors(shard_path, {name: learned.get(name, it) for name, it in tensors.items()})
    return {
        name.removesuffix(ERRORS): dict(zip(ERROR_FIELDS, it.tolist(), strict=True))
        for name, it in learned.items()
        if name.endswith(ERRORS)
    }


def _learned(
    base: Checkpoint,
    model_dir: Path,
    grouping: Grouping,
    steps: Sequence[Tensor],
    quantizer: LayerQuantizer,
) -> dict[str, Tensor]:
    """Align, and return the tensors of all linears as files have them, and the errors of each."""
    packed = packed_integers(Checkpoint(model_dir))
    linears: dict[str, AlignedLinear] = {}
    grids: dict[str, Grid] = {}
    for name, target, gram in _targets(base, quantizer):
        integers, grid = packed.pop(name)
        grids[name] = grid.to(quantizer.device)
        linears[name] = AlignedLinear(target, gram, integers.to(quantizer.device), grids[name])
    student, teacher = (
        unpacked_model(it).to(quantizer.device) for it in (model_dir, base.directory)
    )
    aligner = Aligner(student, teacher, linears)
    for token_ids in track(steps, "align", total=len(steps)):
        aligner.step(token_ids.to(quantizer.device))
    aligned = aligner.integers
    del aligner, student, teacher
    learned: dict[str, Tensor] = {}
    for name, target, gram in _targets(base, quantizer):
        recipe = grouping.recipes[name]
        made = measured(target, aligned[name], grids[name], gram, recipe)
        stored = stored_tensors(made.integers, made.grid, recipe)
        learned |= {f"{name}.{suffix}": tensor for suffix, tensor in stored.items()}
        learned[f"{name}{ERRORS}"] = torch.tensor(
            [getattr(made, field) for field in ERROR_FIELDS], dtype=torch.float64
        )
    return learned


def _targets(base: Checkpoint, quantizer: LayerQuantizer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each linear's name, the weight that was rounded (float32, out × in), and G."""
    for prefix, names in names_by_layer(base.names).items():
        layer = quantizer.folded(DecoderLayer.of(prefix, base.tensors(names)))
        for shared in layer.inputs:
            for linear in shared.linears:
                yield layer.full_name(linear), layer.weight(linear), shared.gram
