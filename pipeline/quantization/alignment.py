"""Align a packed checkpoint that is already written: replace some of its integers.

Sizes, dtypes, grids and the tensors that are not quantized stay as they are. The new integers and
their errors are first written to one file beside the model. Every shard is then rewritten from that
file, so that a run that was killed ends in the same bytes. The algorithm is in
`pipeline.numerics.align`.
"""

import random
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architectures.folds import names_by_layer
from pipeline.checkpoint.reading import Checkpoint, read_tensors, save_tensors
from pipeline.checkpoint.unpacked_model import packed_integers, unpacked_model
from pipeline.core.errors import InputError
from pipeline.core.formatting import significant
from pipeline.core.progress import track
from pipeline.numerics.align import AlignedLinear, Aligner
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.grid import Grid
from pipeline.numerics.layer import with_errors
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.variants import ALIGN_STEP_TOKENS
from pipeline.quantization.grouping import Grouping
from pipeline.quantization.layer_quantizer import DELETE_AND_QUANTIZE, LayerQuantizer

SEED = 0
# A step whose KL is so many times that of the first one ends alignment. Other tokens have another
# KL; a rise of so little, in nats per token, is the noise of float32.
DIVERGED, SMALLEST_RISE = 4.0, 1e-5
ERRORS = ".errors"
ERROR_FIELDS = ("relative_error", "error_ratio")


def steps_of(windows: Sequence[Sequence[int]], num_samples: int) -> list[Tensor]:
    """Draw `num_samples` of `windows`, which are equally long, and group them into steps.

    Each step is an int64 matrix of token ids, samples × tokens. Windows are drawn in a seeded order
    and without repetition, until all of them are used; then they are drawn again.
    """
    random_order = random.Random(SEED)
    order: list[int] = []
    while len(order) < num_samples:
        order += random_order.sample(range(len(windows)), len(windows))
    token_ids = torch.tensor([list(windows[number]) for number in order[:num_samples]])
    return list(token_ids.tensor_split(ceil(token_ids.numel() / ALIGN_STEP_TOKENS)))


def make_steps(aligner: Aligner, steps: Sequence[Tensor], device: torch.device) -> None:
    """Let `aligner` make all `steps` of token ids, samples × tokens.

    Raises InputError where the KL to the base rises: in a step to many times the first one, or at
    the end on the tokens of the first step.
    """
    num_samples = sum(len(token_ids) for token_ids in steps)
    first = steps[0].to(device)
    before = None
    for token_ids in track(steps, "align", total=len(steps)):
        loss = aligner.step(token_ids.to(device))
        before = loss if before is None else before
        if not loss <= DIVERGED * before + SMALLEST_RISE:
            raise _no_gain(num_samples, before, loss)
    after = aligner.loss(first)
    if before is not None and not after <= before + SMALLEST_RISE:
        raise _no_gain(num_samples, before, after)


def _no_gain(num_samples: int, before: float, after: float) -> InputError:
    return InputError(
        f"align_samples = {num_samples}: alignment raised the KL to the base from "
        f"{significant(before)} to {significant(after)} nats per token, so this model cannot be "
        "aligned; set it to 0"
    )


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

    `learned_path` keeps the new tensors if the process is killed; the caller removes the file when
    the result is safe. Returns the errors of the aligned linears by their names: `relative_error`
    and `error_ratio` as in `TensorCoverage`.
    """
    if not learned_path.exists():
        save_tensors(learned_path, _learned(base, model_dir, grouping, steps, quantizer))
    learned = read_tensors(learned_path, remedy=DELETE_AND_QUANTIZE)
    for shard_path in sorted(model_dir.glob("*.safetensors")):
        tensors = read_tensors(shard_path, remedy=DELETE_AND_QUANTIZE)
        aligned = {name: learned.get(name, tensor) for name, tensor in tensors.items()}
        save_tensors(shard_path, aligned)
    return {
        name.removesuffix(ERRORS): dict(zip(ERROR_FIELDS, errors.tolist(), strict=True))
        for name, errors in learned.items()
        if name.endswith(ERRORS)
    }


def _learned(
    base: Checkpoint,
    model_dir: Path,
    grouping: Grouping,
    steps: Sequence[Tensor],
    quantizer: LayerQuantizer,
) -> dict[str, Tensor]:
    """Align, and return the stored tensors of all linears by name, and the errors of each."""
    # Imported where models are loaded: it brings the code of all models.
    from pipeline.checkpoint.model_parts import module_names

    packed = packed_integers(Checkpoint(model_dir))
    linears: dict[str, AlignedLinear] = {}
    grids: dict[str, Grid] = {}
    for name, target, gram in _targets(base, quantizer):
        integers, grid = packed.pop(name)
        grids[name] = grid.to(quantizer.device)
        linears[name] = AlignedLinear(target, gram, integers.to(quantizer.device), grids[name])
    student, teacher = (
        unpacked_model(directory).to(quantizer.device) for directory in (model_dir, base.directory)
    )
    names = module_names(student, tuple(linears))
    aligner = Aligner(student, teacher, {names[name]: linear for name, linear in linears.items()})
    make_steps(aligner, steps, quantizer.device)
    aligned = aligner.integers
    del aligner, student, teacher
    learned: dict[str, Tensor] = {}
    for name, target, gram in _targets(base, quantizer):
        recipe = grouping.recipes[name]
        linear = with_errors(target, aligned[names[name]], grids[name], gram, recipe)
        stored = stored_tensors(linear.integers, linear.grid, recipe)
        learned |= {f"{name}.{suffix}": tensor for suffix, tensor in stored.items()}
        learned[f"{name}{ERRORS}"] = torch.tensor(
            [getattr(linear, field) for field in ERROR_FIELDS], dtype=torch.float64
        )
    return learned


def _targets(base: Checkpoint, quantizer: LayerQuantizer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each linear's name, the weight that was rounded (float32, out × in) and G."""
    for prefix, names in names_by_layer(base.names).items():
        layer = quantizer.folded(DecoderLayer.of(prefix, base.tensors(names)))
        for shared in layer.inputs:
            for linear in shared.linears:
                yield layer.full_name(linear), layer.weight(linear), shared.gram
