"""Plan how each linear is quantized, and which linears a packed format leaves as they are.

The plan follows from shapes alone; no tensor is read. A linear does not divide when its inputs are
no multiple of the group size, or when a row or column of its integers does not fill whole 32-bit
words.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import lcm
from types import MappingProxyType

from pipeline.core.errors import InputError
from pipeline.params.gguf_variants import GgufParams
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.other_quantizers import BackendParams
from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GptqParams,
    OnIndivisible,
    PackedVariant,
    Scheme,
)
from pipeline.records.base import TextPart

GROUP_SIZES = (256, 128, 64, 32, 16)
WORD_BITS = 32
# Engines load these linears as one matrix, so they are quantized together or not at all. In vLLM
# the table is `packed_modules_mapping` of each model class.
FUSED_NAMES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
EXPERTS = re.compile(r"^(.+\.experts)\.\d+\.[^.]+$")

Shape = tuple[int, ...]  # out_features, in_features


@dataclass(frozen=True)
class Grouping:
    """The plan for one file, by the names of linears.

    `recipes` has every linear that is quantized, `kept` the reason for each that is not.
    """

    recipes: Mapping[str, LinearRecipe]
    kept: Mapping[str, str]

    def of_layer(self, prefix: str) -> dict[str, LinearRecipe]:
        """Return the recipes of a decoder layer's linears, by their local names."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): recipe
            for name, recipe in self.recipes.items()
            if name.startswith(start)
        }


def plan_groups(recipe: PackedVariant, shapes: Mapping[str, Shape]) -> Grouping:
    """Plan the quantization of linears, given by name with (out_features, in_features).

    Raises InputError where the recipe's `on_indivisible` forbids what would be needed. Raises it
    also for two recipes that experts do not allow: rounded activations, because the evaluation here
    cannot round inside experts, and `quantized_inputs`, because experts get other tokens than in
    the base.
    """
    expert = next((name for name in shapes if EXPERTS.match(name)), None)
    if expert and isinstance(recipe, CompressedTensorsParams) and recipe.rounds_inputs:
        raise InputError(
            f"scheme = {recipe.scheme}: {expert} is an expert, whose activations cannot be rounded "
            "in the evaluation; use W8A16 or a 4-bit scheme for this model"
        )
    require_no_experts(recipe, shapes)
    problems = {
        name: problem
        for name, shape in shapes.items()
        if (problem := _problem(recipe, shape, recipe.group_size))
    }
    if not problems:
        return Grouping(_recipes(recipe, shapes), kept={})
    if recipe.on_indivisible is OnIndivisible.ERROR:
        raise _refusal(recipe, shapes, *next(iter(problems.items())))
    if recipe.on_indivisible is OnIndivisible.KEEP:
        return _keep(recipe, shapes, problems)
    if isinstance(recipe, CompressedTensorsParams):
        return _smaller_groups(recipe, shapes, problems)
    return _one_smaller_group(recipe, shapes, problems)


def require_divisible(recipe: BackendParams, in_features: Mapping[str, int]) -> None:
    """Raise InputError where the group size of another quantizer does not divide a linear.

    `in_features` has the number of inputs of each linear by name. The libraries differ in what they
    do with such a linear, so it is refused for all of them.
    """
    wrong = next((name for name, num in in_features.items() if num % recipe.group_size), None)
    if wrong is not None:
        fitting = [
            str(size)
            for size in GROUP_SIZES
            if all(num % size == 0 for num in in_features.values())
        ]
        raise InputError(
            f"group_size = {recipe.group_size}: does not divide the {in_features[wrong]} inputs of "
            f"{wrong}, which backend {recipe.backend} needs; "
            + (f"use one of {', '.join(fitting)}" if fitting else "use the native backend")
        )


def require_no_experts(recipe: PackedVariant | GgufParams, linears: Iterable[str]) -> None:
    """Raise InputError where a recipe meets experts that it cannot handle."""
    expert = next((name for name in linears if EXPERTS.match(name)), None)
    if expert is None:
        return
    if recipe.quantized_inputs:
        raise InputError(
            f"quantized_inputs = true: {expert} is an expert, which gets other tokens than in the "
            "base; set it to false"
        )
    if recipe.align_samples:
        raise InputError(
            f"align_samples = {recipe.align_samples}: the experts of a mixture cannot be aligned; "
            "set it to 0"
        )
    if isinstance(recipe, GgufParams | CompressedTensorsParams) and recipe.budget:
        instead = "type" if isinstance(recipe, GgufParams) else "scheme"
        raise InputError(
            f"budget: {expert} is an expert, whose sensitivity is not measured; state a {instead} "
            "instead of it"
        )


def require_text_alone(recipe: BackendParams, text_part: TextPart | None) -> None:
    """Raise InputError where another quantizer would get a model of several parts."""
    if text_part is not None:
        raise InputError(
            f"backend = {recipe.backend}: takes a model of text alone, and this one has "
            f"{', '.join(text_part.other_parts)} beside the text; use the native backend"
        )


def fused_name(linear: str) -> str:
    """Name the module into which an engine fuses this linear; the linear itself if it fuses none.

    All experts of a layer are one module.
    """
    experts = EXPERTS.match(linear)
    if experts:
        return experts[1]
    parent, _, own = linear.rpartition(".")
    return f"{parent}.{FUSED_NAMES.get(own, own)}".removeprefix(".")


def _recipes(
    recipe: PackedVariant,
    shapes: Mapping[str, Shape],
    *,
    sizes: Mapping[str, int] = MappingProxyType({}),
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, LinearRecipe]:
    """Make the recipe of every linear; `sizes` has the group sizes that differ from the recipe."""
    return {
        name: LinearRecipe(
            num_bits=recipe.num_bits,
            group_size=sizes.get(name, recipe.group_size or in_features),
            symmetric=recipe.symmetric,
            layout=recipe.layout,
            per_channel=recipe.group_size is None,
            clip_search=recipe.clip_search,
            rounding=recipe.rounding,
            refine_sweeps=recipe.refine_sweeps,
            dampening_frac=recipe.dampening_frac,
            reason=reasons.get(name),
        )
        for name, (_, in_features) in shapes.items()
    }


def _alignment(recipe: PackedVariant) -> tuple[int, int]:
    """Return what outputs and inputs must be multiples of, so that integers fill whole words."""
    per_block = lcm(WORD_BITS, recipe.num_bits) // recipe.num_bits
    match recipe:
        case AwqParams():
            return per_block, 1
        case GptqParams():
            return per_block, per_block
        case CompressedTensorsParams(scheme=Scheme.W4A16_ASYM):
            return per_block, per_block
        case CompressedTensorsParams(scheme=None | Scheme.W4A16 | Scheme.W8A16):
            return 1, per_block
        case CompressedTensorsParams():
            return 1, 1


def _problem(recipe: PackedVariant, shape: Shape, group_size: int | None) -> str | None:
    """Say why a linear of this shape cannot be packed; None when it can."""
    out_features, in_features = shape
    out_multiple, in_multiple = _alignment(recipe)
    if group_size is not None and in_features % group_size:
        return f"its {in_features} inputs do not divide by {group_size}"
    if in_features % in_multiple:
        return f"its {in_features} inputs do not divide by {in_multiple}"
    if out_features % out_multiple:
        return f"its {out_features} outputs do not divide by {out_multiple}"
    return None


def _fitting(
    recipe: PackedVariant, shapes: Mapping[str, Shape], *, at_most: int = GROUP_SIZES[0]
) -> list[int]:
    """List the group sizes with which all these linears can be packed, the largest first."""
    return [
        size
        for size in GROUP_SIZES
        if size <= at_most and not any(_problem(recipe, shape, size) for shape in shapes.values())
    ]


def _refusal(
    recipe: PackedVariant, shapes: Mapping[str, Shape], name: str, problem: str
) -> InputError:
    """Make the error for a linear that does not divide, with the group sizes that would do."""
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
    """Keep the linears that do not divide, and those that an engine fuses with them."""
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
    return Grouping(_recipes(recipe, quantized), kept=kept)


def _one_smaller_group(
    recipe: AwqParams | GptqParams, shapes: Mapping[str, Shape], problems: Mapping[str, str]
) -> Grouping:
    """Use the largest group size that divides every linear, for the whole file."""
    fitting = _fitting(recipe, shapes, at_most=recipe.group_size or 0)
    if not fitting:
        raise _no_smaller_size(*next(iter(problems.items())))
    reason = (
        f"group size {fitting[0]} instead of {recipe.group_size}: a file of this format has one "
        "size, and not every linear divides by a larger one"
    )
    sizes, reasons = dict.fromkeys(shapes, fitting[0]), dict.fromkeys(shapes, reason)
    return Grouping(_recipes(recipe, shapes, sizes=sizes, reasons=reasons), kept={})


def _smaller_groups(
    recipe: CompressedTensorsParams, shapes: Mapping[str, Shape], problems: Mapping[str, str]
) -> Grouping:
    """Use, for each linear that does not divide, the largest group size that divides it."""
    sizes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name, problem in problems.items():
        fitting = _fitting(recipe, {name: shapes[name]}, at_most=recipe.group_size or 0)
        if not fitting:
            raise _no_smaller_size(name, problem)
        sizes[name] = fitting[0]
        reasons[name] = f"group size {fitting[0]}: {problem}"
    return Grouping(_recipes(recipe, shapes, sizes=sizes, reasons=reasons), kept={})


def _no_smaller_size(name: str, problem: str) -> InputError:
    """Make the error for a linear that no smaller group size divides."""
    return InputError(
        f"on_indivisible = smaller_group: no size of {', '.join(map(str, GROUP_SIZES))} helps "
        f"{name}: {problem}; set it to keep"
    )
