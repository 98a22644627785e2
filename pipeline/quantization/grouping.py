"""Which group size each linear gets, and which linears a packed format leaves alone.

Rules only: shapes in, a plan out. A linear does not divide when its inputs are no multiple of the
group size, or when a row or column of its integers does not fill whole 32-bit words.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm

from pipeline.core.errors import InputError
from pipeline.params.other_quantizers import BackendParams
from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GptqParams,
    OnIndivisible,
    PackedVariant,
    Scheme,
)

GROUP_SIZES = (256, 128, 64, 32, 16)
WORD_BITS = 32
# Engines load these as one matrix, so they are quantized together or not at all. vLLM has the
# table as `packed_modules_mapping` of each model class.
FUSED_NAMES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
EXPERTS = re.compile(r"^(.+\.experts)\.\d+\.[^.]+$")

Shape = tuple[int, int]


@dataclass(frozen=True)
class Grouping:
    """The plan for one file.

    `group_sizes` has the inputs per group of every linear that is quantized (all of its inputs,
    where a channel has one scale); `kept` the reason for each that is not; `reason` says why the
    groups of some are smaller than the recipe's, by linear.
    """

    group_sizes: Mapping[str, int]
    kept: Mapping[str, str]
    reasons: Mapping[str, str]


def plan_groups(recipe: PackedVariant, shapes: Mapping[str, Shape]) -> Grouping:
    """The plan for linears of these shapes (out_features, in_features), by name.

    Raises InputError where the recipe's `on_indivisible` does not allow what would be needed, for
    rounded activations inside experts, which no evaluation here can round, and for the quantized
    inputs of experts, which the router sends elsewhere than the base's.
    """
    expert = next((name for name in shapes if EXPERTS.match(name)), None)
    if expert and isinstance(recipe, CompressedTensorsParams) and recipe.rounds_inputs:
        raise InputError(
            f"scheme = {recipe.scheme}: {expert} is an expert, whose activations cannot be rounded "
            "in the evaluation; use W8A16 or a 4-bit scheme for this model"
        )
    if expert and recipe.quantized_inputs:
        raise InputError(
            f"quantized_inputs = true: {expert} is an expert, which gets other tokens than in the "
            "base; set it to false"
        )
    problems = {
        name: problem
        for name, shape in shapes.items()
        if (problem := _problem(recipe, shape, recipe.group_size))
    }
    if not problems:
        return Grouping(_sizes(shapes, recipe.group_size), kept={}, reasons={})
    if recipe.on_indivisible is OnIndivisible.ERROR:
        raise _refusal(recipe, shapes, *next(iter(problems.items())))
    if recipe.on_indivisible is OnIndivisible.KEEP:
        return _keep(recipe, shapes, problems)
    if isinstance(recipe, CompressedTensorsParams):
        return _smaller_groups(recipe, shapes, problems)
    return _one_smaller_group(recipe, shapes, problems)


def require_divisible(recipe: BackendParams, in_features: Mapping[str, int]) -> None:
    """Raise InputError where another quantizer's groups do not fit a linear, by name its inputs.

    None of them is told what to do then, and they differ in it.
    """
    wrong = next((name for name, it in in_features.items() if it % recipe.group_size), None)
    if wrong is not None:
        fitting = [
            str(size) for size in GROUP_SIZES if all(it % size == 0 for it in in_features.values())
        ]
        raise InputError(
            f"group_size = {recipe.group_size}: does not divide the {in_features[wrong]} inputs of "
            f"{wrong}, which backend {recipe.backend} needs; "
            + (f"use one of {', '.join(fitting)}" if fitting else "use the native backend")
        )


def fused_name(linear: str) -> str:
    """The module that an engine makes of this linear and its siblings; itself if of none.

    All experts of a layer are one module.
    """
    experts = EXPERTS.match(linear)
    if experts:
        return experts[1]
    parent, _, own = linear.rpartition(".")
    return f"{parent}.{FUSED_NAMES.get(own, own)}".removeprefix(".")


def _alignment(recipe: PackedVariant) -> Shape:
    """The multiples that outputs and inputs must be of, so that integers fill whole words."""
    per_block = lcm(WORD_BITS, recipe.num_bits) // recipe.num_bits
    match recipe:
        case AwqParams():
            return per_block, 1
        case GptqParams():
            return per_block, per_block
        case CompressedTensorsParams(scheme=Scheme.W4A16_ASYM):
            return per_block, per_block
        case CompressedTensorsParams(scheme=Scheme.W4A16 | Scheme.W8A16):
            return 1, per_block
        case CompressedTensorsParams():
            return 1, 1


def _problem(recipe: PackedVariant, shape: Shape, group_size: int | None) -> str | None:
    """Why a linear of this shape cannot be packed, None when it can."""
    out_features, in_features = shape
    out_multiple, in_multiple = _alignment(recipe)
    if group_size is not None and in_features % group_size:
        return f"its {in_features} inputs do not divide by {group_size}"
    if in_features % in_multiple:
        return f"its {in_features} inputs do not divide by {in_multiple}"
    if out_features % out_multiple:
        return f"its {out_features} outputs do not divide by {out_multiple}"
    return None


def _sizes(shapes: Mapping[str, Shape], group_size: int | None) -> dict[str, int]:
    return {name: group_size or in_features for name, (_, in_features) in shapes.items()}


def _fitting(
    recipe: PackedVariant, shapes: Mapping[str, Shape], *, at_most: int = GROUP_SIZES[0]
) -> list[int]:
    """The group sizes with which every one of these linears can be packed, the largest first."""
    return [
        size
        for size in GROUP_SIZES
        if size <= at_most and not any(_problem(recipe, shape, size) for shape in shapes.values())
    ]


def _refusal(
    recipe: PackedVariant, shapes: Mapping[str, Shape], name: str, problem: str
) -> InputError:
    fitting = _fitting(recipe, shapes)
    in_features = shapes[name][1]
    if recipe.group_size is not None and in_features % recipe.group_size and fitting:
        return InputError(
            f"group_size = {recipe.group_size}: does not divide the {in_features} inputs of "
            f"{name}; use {fitting[0]} (what divides every linear of this model: "
            f"{', '.join(map(str, fitting))}) or another on_indivisible than error"
        )
    return InputError(
        f"{name}: {problem}, which format {recipe.format} needs; set on_indivisible to keep, or "
        "use a gguf variant for this model"
    )


def _keep(
    recipe: PackedVariant, shapes: Mapping[str, Shape], problems: Mapping[str, str]
) -> Grouping:
    """Leave alone what does not divide, and what an engine fuses with it."""
    kept_modules = {fused_name(name) for name in problems}
    kept = {
        name: f"kept: {problems[name]}"
        if name in problems
        else "kept: engines fuse it with a linear that does not divide"
        for name in shapes
        if fused_name(name) in kept_modules
    }
    quantized = {name: shape for name, shape in shapes.items() if name not in kept}
    if not quantized:
        name, problem = next(iter(problems.items()))
        raise InputError(
            f"on_indivisible = keep: would leave every linear alone ({name}: {problem}); "
            "use another group_size or format"
        )
    return Grouping(_sizes(quantized, recipe.group_size), kept=kept, reasons={})


def _one_smaller_group(
    recipe: AwqParams | GptqParams, shapes: Mapping[str, Shape], problems: Mapping[str, str]
) -> Grouping:
    """The largest group size that divides every linear, for the whole file."""
    fitting = _fitting(recipe, shapes, at_most=recipe.group_size or 0)
    if not fitting:
        raise _nothing_smaller(*next(iter(problems.items())))
    reason = (
        f"group size {fitting[0]} instead of {recipe.group_size}: a file of this format has one "
        "size, and not every linear divides by a larger one"
    )
    return Grouping(_sizes(shapes, fitting[0]), kept={}, reasons=dict.fromkeys(shapes, reason))


def _smaller_groups(
    recipe: CompressedTensorsParams, shapes: Mapping[str, Shape], problems: Mapping[str, str]
) -> Grouping:
    """For each linear that does not divide the largest group size that does."""
    sizes = _sizes(shapes, recipe.group_size)
    reasons = {}
    for name, problem in problems.items():
        fitting = _fitting(recipe, {name: shapes[name]}, at_most=recipe.group_size or 0)
        if not fitting:
            raise _nothing_smaller(name, problem)
        sizes[name] = fitting[0]
        reasons[name] = f"group size {fitting[0]}: {problem}"
    return Grouping(sizes, kept={}, reasons=reasons)


def _nothing_smaller(name: str, problem: str) -> InputError:
    return InputError(
        f"on_indivisible = smaller_group: no size of {', '.join(map(str, GROUP_SIZES))} helps "
        f"{name}: {problem}; set it to keep"
    )
