"""Choose the bits of each linear of a compressed-tensors file for a budget of bytes.

Linears that an engine fuses get the same: 4 bits with groups of some size, 8 bits, or none. The
loss of a choice is that of some rows (`pipeline.quantization.predicted_loss`), quantized as the
recipe says, without folded scales and refinement.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil, prod
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.sensitivity import measure_sensitivities
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import InputError
from pipeline.core.files import PARTIAL_SUFFIX, read_record, remove_tree, write_record
from pipeline.core.progress import track
from pipeline.core.record import Record
from pipeline.numerics.layer import quantize_together
from pipeline.params.gguf_variants import BUDGET_SAMPLES
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.variants import BUDGET_SCHEMES, CompressedTensorsParams, OnIndivisible
from pipeline.quantization.bit_allocation import (
    Choice,
    allocate,
    allocation_record,
    require_possible,
    weight_bytes,
)
from pipeline.quantization.grouping import Grouping, Shape, fused_name, plan_groups
from pipeline.quantization.predicted_loss import predicted_loss
from pipeline.records.variant import BitAllocation
from pipeline.serving.kv_cache import VLLM_BYTES

KEPT = "kept"
# Of the JSON about a tensor at the beginning of its file, with room for long names.
HEADER_BYTES = 256


class ChosenSchemes(Record):
    """The choice for each module, by its name in an engine; it is kept while layers are made."""

    names: dict[str, str]
    allocation: BitAllocation


def grouping_for_budget(
    recipe: CompressedTensorsParams,
    checkpoint: Checkpoint,
    stored: Mapping[str, Shape],
    statistics: Statistics,
    work_dir: Path,
) -> tuple[Grouping, BitAllocation]:
    """Plan the linears of a checkpoint for the recipe's budget, and describe the choice.

    `stored` has the shapes of all tensors of the files. The choice is kept in `work_dir`, and read
    there where an earlier run made it. Raises InputError for a budget that the smallest choices
    exceed, and as `plan_groups` does for linears that no choice divides.
    """
    shapes = {name: stored[f"{name}.weight"] for name in statistics.linears}
    usual = plan_groups(recipe, shapes)
    groupings = groupings_of(recipe, shapes)
    path = work_dir / "budget.json"
    if path.exists():
        found = read_record(ChosenSchemes, path, made_by="quantize")
    else:
        scratch = work_dir / f"sensitivities{PARTIAL_SUFFIX}"
        scratch.mkdir(parents=True, exist_ok=True)
        found = _chosen(recipe, checkpoint, stored, groupings, statistics, scratch)
        remove_tree(scratch)
        write_record(path, found)
    recipes, kept = {}, {}
    for linear in shapes:
        name = found.names[fused_name(linear)]
        if name == KEPT:
            kept[linear] = usual.kept.get(linear, "kept: the budget has room for 16 bits")
        else:
            recipes[linear] = groupings[name].recipes[linear]
    return Grouping(recipes, kept), found.allocation


def groupings_of(
    recipe: CompressedTensorsParams, shapes: Mapping[str, Shape]
) -> dict[str, Grouping]:
    """Plan the linears for each choice, by its name. A choice keeps what its groups do not divide.

    One that would keep every linear is left out.
    """
    found = {}
    for scheme, group_size in BUDGET_SCHEMES:
        changes = {"budget": None, "scheme": scheme, "group_size": group_size}
        own = recipe.model_copy(update=changes | {"on_indivisible": OnIndivisible.KEEP})
        with suppress(InputError):
            found[f"{scheme} {group_size or 'per channel'}"] = plan_groups(own, shapes)
    return found


def _chosen(
    recipe: CompressedTensorsParams,
    checkpoint: Checkpoint,
    stored: Mapping[str, Shape],
    groupings: Mapping[str, Grouping],
    statistics: Statistics,
    scratch: Path,
) -> ChosenSchemes:
    """Predict the losses of all choices, and take those with the least under the budget."""
    assert recipe.budget is not None, "a recipe with a scheme needs no choice"
    outside = set(stored) - {f"{name}.weight" for name in statistics.linears}
    kept_bytes = sum(checkpoint.num_bytes(name) for name in outside)
    num_bytes = weight_bytes(
        recipe.budget,
        num_weights=sum(map(prod, stored.values())),
        header_bytes=HEADER_BYTES * 3 * len(stored),
        engine_bytes=VLLM_BYTES,
        config=checkpoint.text_values,
    )
    what = f"budget = {recipe.budget.model_dump(mode='json')}"
    sizes = sizes_of(checkpoint, groupings, statistics.linears)
    of_linears = {linear: of_name.values() for linear, of_name in sizes.items()}
    require_possible(of_linears, num_bytes - kept_bytes, what=what)
    choices = choices_of(checkpoint, groupings, sizes, statistics, scratch)
    allocation = allocate(choices, num_bytes - kept_bytes, what=what)
    return ChosenSchemes(
        names={module: choice.type for module, choice in allocation.chosen.items()},
        allocation=allocation_record(allocation, choices, num_bytes - kept_bytes),
    )


def sizes_of(
    checkpoint: Checkpoint, groupings: Mapping[str, Grouping], linears: Iterable[str]
) -> dict[str, dict[str, int]]:
    """List the bytes of each linear in the choices that it can have, by their names."""
    sizes = {}
    for linear in linears:
        weight = f"{linear}.weight"
        sizes[linear] = {KEPT: checkpoint.num_bytes(weight)}
        for name, grouping in groupings.items():
            if own := grouping.recipes.get(linear):
                sizes[linear][name] = packed_bytes(checkpoint.shape(weight), own)
    return sizes


def choices_of(
    checkpoint: Checkpoint,
    groupings: Mapping[str, Grouping],
    sizes: Mapping[str, Mapping[str, int]],
    statistics: Statistics,
    scratch: Path,
) -> dict[str, list[Choice]]:
    """List what each module can have, with bytes and losses. Sensitivities are measured first.

    `groupings` has the plan of each choice by its name, and `sizes` the bytes of each linear in its
    choices. `scratch` gets files that the caller removes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    windows = statistics.token_ids()[:BUDGET_SAMPLES]
    sensitivities = measure_sensitivities(checkpoint.directory, windows, device, scratch)
    parts: dict[str, list[dict[str, Choice]]] = {}
    for linear, of_name in track(sizes.items(), "bits", total=len(sizes)):
        values = checkpoint.tensor(f"{linear}.weight").to(device, torch.float32)
        weights, gram = sensitivities.linears[linear].to(device), statistics.gram(linear).to(device)
        found = {}
        for name, num_bytes in of_name.items():
            loss = 0.0
            if name != KEPT:
                rounding = _rounding(groupings[name].recipes[linear], gram)
                loss = predicted_loss(values, weights, gram, rounding)
            found[name] = Choice(name, num_bytes, loss)
        parts.setdefault(fused_name(linear), []).append(found)
    return {module: _together(own) for module, own in parts.items()}


def _together(parts: Sequence[Mapping[str, Choice]]) -> list[Choice]:
    """Add up the choices of linears that an engine fuses; all of them have the same."""
    return [
        Choice(
            name,
            sum(part[name].num_bytes for part in parts),
            sum(part[name].loss for part in parts),
        )
        for name in parts[0]
    ]


def _rounding(recipe: LinearRecipe, gram: Tensor) -> Callable[[Tensor], Tensor]:
    """Quantize rows of a linear with the second moment of its input.

    They are not refined, which would take twice the time.
    """
    unrefined = replace(recipe, refine_sweeps=0)

    def rounded(rows: Tensor) -> Tensor:
        made = quantize_together({"": rows}, gram, unrefined)[""]
        return made.grid.values(made.integers)

    return rounded


def packed_bytes(shape: Shape, recipe: LinearRecipe) -> int:
    """Return the bytes of a packed linear: its words, its scales in 16 bits, and its shape."""
    out_features, in_features = shape
    words = ceil(in_features * recipe.num_bits / 32)
    return out_features * (4 * words + 2 * (in_features // recipe.group_size)) + 16
