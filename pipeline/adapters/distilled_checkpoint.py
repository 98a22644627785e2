"""Distilling a packed checkpoint that is written already: its scales and vectors are replaced.

Sizes, types and integers of the files stay as they are. What was learned is written first, as one
file beside the model; every shard is made from it, so that a killed run ends in the same bytes.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.adapters.checkpoint import (
    Checkpoint,
    packed_modules,
    save_tensors,
    unpacked_model,
)
from pipeline.adapters.progress import track
from pipeline.domain.errors import InputError
from pipeline.domain.stored_scheme import Layout
from pipeline.domain.variants import TOKENS_PER_STEP
from pipeline.numerics.distill import Distiller, RescalableWeight

SEED = 0
# The tensor that holds the scales; in the older layouts they are groups × out.
SCALES = {Layout.AWQ: "scales", Layout.GPTQ: "scales", Layout.PACKED: "weight_scale"}
GROUPS_FIRST = (Layout.AWQ, Layout.GPTQ)
EXPERTS = ".experts."


def require_distillable(linears: Sequence[str], *, epochs: int) -> None:
    """Raise InputError for a model whose linears are not all modules of their own."""
    if epochs and any(EXPERTS in name for name in linears):
        raise InputError(
            f"distill_epochs = {epochs}: the experts of a mixture cannot be distilled; set it to 0"
        )


def distill_checkpoint(
    base_dir: Path,
    model_dir: Path,
    windows: Sequence[Sequence[int]],
    *,
    epochs: int,
    learned_path: Path,
) -> None:
    """Train the packed checkpoint in `model_dir` on `windows` of token ids, equally long.

    `learned_path` outlives a kill; the caller removes it when the result is safe.
    """
    if not learned_path.exists():
        save_tensors(learned_path, _learned(base_dir, model_dir, windows, epochs=epochs))
    learned = load_file(learned_path)
    for shard_path in sorted(model_dir.glob("*.safetensors")):
        tensors = load_file(shard_path)
        save_tensors(shard_path, {name: learned.get(name, it) for name, it in tensors.items()})


def _learned(
    base_dir: Path, model_dir: Path, windows: Sequence[Sequence[int]], *, epochs: int
) -> dict[str, Tensor]:
    """The tensors of the checkpoint that training changed, by name and as it stores them."""
    checkpoint = Checkpoint(model_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = unpacked_model(model_dir).to(device)
    scale_names = _scale_names(checkpoint)
    weights = {
        module: RescalableWeight.of(
            student.get_submodule(module).weight.detach(),
            _outputs_first(checkpoint.tensor(name).float(), groups_first=groups_first).to(device),
        )
        for module, (name, groups_first) in scale_names.items()
    }
    batches = list(_batches(windows, epochs=epochs))
    distiller = Distiller(
        student, unpacked_model(base_dir).to(device), weights, num_steps=len(batches)
    )
    for batch in track(batches, "distill", total=len(batches)):
        distiller.step(batch.to(device))
    scales = {
        scale_names[module][0]: _outputs_first(scale, groups_first=scale_names[module][1])
        for module, scale in distiller.scales().items()
    }
    return _as_stored(checkpoint, scales | distiller.vectors())


def _scale_names(checkpoint: Checkpoint) -> dict[str, tuple[str, bool]]:
    """By packed module the name of its scales, and whether they are groups × out."""
    return {
        module: (f"{module}.{SCALES[scheme.layout]}", scheme.layout in GROUPS_FIRST)
        for module, scheme in sorted(packed_modules(checkpoint).items())
    }


def _outputs_first(scale: Tensor, *, groups_first: bool) -> Tensor:
    """Scales as out × groups; applied to those, as the file has them."""
    return scale.T.contiguous() if groups_first else scale


def _batches(windows: Sequence[Sequence[int]], *, epochs: int) -> Iterator[Tensor]:
    """Every window once an epoch, in a seeded order, TOKENS_PER_STEP at a time or one window."""
    token_ids = torch.tensor([list(window) for window in windows])
    order = random.Random(SEED)
    for _ in range(epochs):
        shuffled = order.sample(range(len(windows)), len(windows))
        yield from torch.split(token_ids[shuffled], max(1, TOKENS_PER_STEP // token_ids.shape[1]))


def _as_stored(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that the checkpoint has under the same name, in its dtype."""
    return {
        name: it.cpu().to(checkpoint.tensor(name).dtype)
        for name, it in tensors.items()
        if name in checkpoint.names
    }
