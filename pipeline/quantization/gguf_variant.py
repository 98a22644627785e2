"""Make a GGUF variant: fold, convert and quantize by llama.cpp, round again, align, and measure.

Scales and the importance matrix come from the statistics. The errors are measured on the file that
was written, against the F16 file it was made from. Reading and writing the format is in
`pipeline.gguf`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from pipeline.architectures.folds import expert_number
from pipeline.calibration.statistics import HEAD, Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import FailureError
from pipeline.core.files import require_free_space
from pipeline.core.progress import note
from pipeline.gguf import files as gguf
from pipeline.numerics.gram import output_error
from pipeline.params.gguf_variants import GgufParams, GgufRounding, GgufType
from pipeline.params.linear_recipe import GroupScheme
from pipeline.quantization.alignment import steps_of
from pipeline.quantization.coverage import gguf_coverage, require_covered
from pipeline.quantization.folded_checkpoint import FoldedCheckpoint, write_folded
from pipeline.quantization.gguf_alignment import align_file
from pipeline.quantization.gguf_rounding import (
    DAMPENING_FRAC,
    TensorErrors,
    round_file,
    round_file_by_layer,
)
from pipeline.quantization.grouping import require_no_experts
from pipeline.records.base import BaseManifest
from pipeline.records.variant import BitAllocation, TensorCoverage

# Bits and group size of most blocks where a budget decides.
MIXED = (4, 32)


def write_gguf(
    base_dir: Path,
    base: BaseManifest,
    recipe: GgufParams,
    statistics: Statistics,
    model_dir: Path,
    *,
    model_name: str,
    metadata: Mapping[str, str],
    pre_tokenizer: str | None,
) -> tuple[tuple[TensorCoverage, ...], BitAllocation | None]:
    """Write `model-LABEL.gguf` into `model_dir`, with diag G as the importance matrix.

    `model_name` becomes the file's `general.name`; `metadata` are its other `general.…` values.
    Returns one row for each tensor, and the choice of their types by a budget, if any. Raises
    InputError when the recipe asks for scales and the folding of the architecture is unknown, and
    for what experts do not allow; FailureError when llama.cpp leaves a linear unquantized.
    """
    require_no_experts(recipe, statistics.linears)
    num_copies = 4 if recipe.scale_search else 3
    require_free_space(model_dir, num_copies * Checkpoint(base_dir).weight_bytes)
    with TemporaryDirectory(dir=model_dir.parent) as work:
        source = FoldedCheckpoint(base_dir, {})
        if recipe.scale_search:
            source = write_folded(
                base_dir,
                base.text_architecture,
                statistics,
                _usual_scheme(recipe),
                Path(work) / "folded",
            )
        full_path = Path(work) / "full.gguf"
        note("quantize: converting to GGUF")
        names = gguf.convert(
            source.directory,
            full_path,
            model_name=model_name,
            metadata=metadata,
            pre_tokenizer=pre_tokenizer,
            unused=base.unused_tensors,
            copies=base.copied_tensors,
            weight_names=tuple(f"{name}.weight" for name in statistics.linears),
        )
        linears_of = linears_by_tensor(names)
        measured = linears_of | _head_of(full_path)
        importance = (
            {
                tensor: np.concatenate([source.diagonal(statistics, linear) for linear in linears])
                for tensor, linears in measured.items()
            }
            if recipe.imatrix
            else {}
        )
        output_path = model_dir / f"model-{recipe.label}.gguf"
        gram_of = partial(source.gram, statistics)
        types: dict[str, str] = {}
        allocation = None
        if recipe.budget:
            # Imported only where it is needed: it loads transformers, which takes seconds.
            from pipeline.quantization.gguf_budget import types_for_budget

            checkpoint = Checkpoint(source.directory)
            types, allocation = types_for_budget(
                recipe.budget, checkpoint, full_path, linears_of, gram_of, statistics
            )
        note(f"quantize: {recipe.label} by llama.cpp")
        gguf.quantize(full_path, output_path, recipe.type or GgufType.Q8_0, importance, types)
        _require_types(output_path, types)
        errors = _round_again(
            base_dir, source, full_path, output_path, linears_of, gram_of, statistics, recipe
        )
        coverage = _gguf_rows(full_path, output_path, measured, gram_of, recipe, errors)
        require_covered(coverage, implied=linears_of, kept=())
        return tuple(coverage), allocation


def _head_of(full_path: Path) -> dict[str, list[str]]:
    """Map the tensor that is the output head, which may be the embeddings, to HEAD."""
    names = {tensor.name for tensor in gguf.read_tensors(full_path)}
    return {gguf.HEAD if gguf.HEAD in names else gguf.EMBEDDINGS: [HEAD]}


def _usual_scheme(recipe: GgufParams) -> GroupScheme:
    """Make the grid that resembles most blocks of a recipe.

    The search of scales assumes plain rounding, whose errors resemble llama.cpp's.
    """
    num_bits, group_size = (recipe.type.num_bits, recipe.type.scale_group) if recipe.type else MIXED
    return GroupScheme(num_bits=num_bits, group_size=group_size, symmetric=False)


def _require_types(path: Path, types: Mapping[str, str]) -> None:
    """Check the types that a budget chose, and name the usual one in the file.

    Raises FailureError for a tensor that llama.cpp gave another type.
    """
    num_weights: Counter[str] = Counter()
    for tensor in gguf.read_tensors(path):
        wanted = types.get(tensor.name, tensor.type)
        if tensor.type != wanted:
            raise FailureError(f"{tensor.name}: llama.cpp wrote {tensor.type} instead of {wanted}")
        num_weights[tensor.type] += prod(tensor.shape)
    if types:
        gguf.state_file_type(path, max(num_weights, key=num_weights.__getitem__))


def _round_again(
    base_dir: Path,
    source: FoldedCheckpoint,
    full_path: Path,
    path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    statistics: Statistics,
    recipe: GgufParams,
) -> dict[str, TensorErrors]:
    """Round and align the tensors of the quantized file `path`, in place, as the recipe says.

    Returns the errors of the tensors that were rounded, by name.
    """
    if recipe.rounding is GgufRounding.LLAMA_CPP:
        return {}
    if recipe.quantized_inputs:
        # Imported only where it is needed: it loads transformers, which takes seconds.
        from pipeline.quantization.quantized_inputs import QuantizedInputs

        inputs = QuantizedInputs(
            source.directory,
            statistics.token_ids(),
            full_path.parent,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            dampening_frac=DAMPENING_FRAC,
        )
        checkpoint = Checkpoint(source.directory)
        errors = round_file_by_layer(full_path, path, linears_of, checkpoint, inputs)
        return errors | round_file(full_path, path, _head_of(full_path), gram_of)
    errors = round_file(full_path, path, {**linears_of, **_head_of(full_path)}, gram_of)
    if recipe.align_samples:
        steps = steps_of(statistics.token_ids(), recipe.align_samples)
        checkpoint = Checkpoint(source.directory)
        aligned = align_file(base_dir, checkpoint, full_path, path, linears_of, gram_of, steps)
        errors |= {name: replace(errors[name], error=error) for name, error in aligned.items()}
    return errors


def linears_by_tensor(names: Mapping[str, str]) -> dict[str, list[str]]:
    """List the linears that each tensor of the file holds: one, or all experts of a layer in order.

    `names` has the GGUF name of each weight.
    """
    linears_of: dict[str, list[str]] = {}
    for name, tensor in names.items():
        linears_of.setdefault(tensor, []).append(name.removesuffix(".weight"))
    return {
        tensor: sorted(linears, key=lambda linear: expert_number(linear) or 0)
        for tensor, linears in linears_of.items()
    }


def _gguf_rows(
    full_path: Path,
    output_path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    recipe: GgufParams,
    errors: Mapping[str, TensorErrors],
) -> list[TensorCoverage]:
    """Describe each tensor of the file that was written, with its error.

    `errors` has those of the tensors that were rounded again; the others are measured here.
    """
    full = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    rows = []
    for tensor in gguf.read_tensors(output_path):
        relative = ratio = None
        if linears := linears_of.get(tensor.name):
            found = errors.get(tensor.name)
            if found is None:
                original = full[tensor.name].values()
                change = tensor.values() - original
                error, power = _error_and_power(change, original, linears, gram_of)
            else:
                error, power, before = found.error, found.power, found.llama_cpp_error
                ratio = error / before if before > 0 else 1.0
            relative = error / power if power > 0 else 0.0
        rows.append(
            gguf_coverage(
                tensor.name,
                shape=tensor.shape,
                stored_type=tensor.type,
                tensor_bits=tensor.bits_per_weight,
                relative_error=relative,
                error_ratio=ratio,
                recipe=recipe,
            )
        )
    return rows


def _error_and_power(
    change: Tensor,
    original: Tensor,
    linears: Sequence[str],
    gram_of: Callable[[str], Tensor],
) -> tuple[float, float]:
    """Compute tr(ΔW G ΔWᵀ) and tr(W G Wᵀ), both summed over the linears that a tensor stacks."""
    error = power = 0.0
    parts = (stack.flatten(0, -2).chunk(len(linears)) for stack in (change, original))
    for linear, delta, weight in zip(linears, *parts, strict=True):
        gram = gram_of(linear)
        error += float(output_error(delta, gram))
        power += float(output_error(weight, gram))
    return error, power
