"""Make the `quantization_config` of a packed checkpoint, as vLLM and transformers read it.

Keys of awq and gptq: https://huggingface.co/docs/transformers/main_classes/quantization (AwqConfig,
GPTQConfig; `dynamic` is GPTQModel's). Keys of compressed-tensors: its `QuantizationConfig`,
https://github.com/vllm-project/compressed-tensors. `pipeline.checkpoint.stored_scheme` reads the
value back.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GptqParams,
    PackedVariant,
    Scheme,
)
from pipeline.quantization.grouping import Grouping, fused_name
from pipeline.records.base import TextPart

LM_HEAD = "lm_head"
PER_CHANNEL = -1
# Engines round the activations with one scale for each token.
BY_TOKEN = {"strategy": "token", "dynamic": True, "observer": None}
Config = dict[str, object]


def quantization_config(
    recipe: PackedVariant,
    grouping: Grouping,
    *,
    unquantized: Collection[str],
    text_part: TextPart | None = None,
) -> Config:
    """Make the value for config.json.

    `unquantized` are the modules inside decoder layers whose matrices are not quantized.
    `text_part` is the part of several that is quantized. Its modules are named as in the files, and
    as in transformers' model where that differs. The other parts are named as a whole.
    """
    names = _Names(unquantized, text_part)
    match recipe:
        case AwqParams():
            return _awq(recipe, grouping, names)
        case GptqParams():
            return _gptq(recipe, grouping, names)
        case CompressedTensorsParams():
            return _compressed_tensors(recipe, grouping, names)


@dataclass(frozen=True)
class _Names:
    """The names of unquantized modules, for the matching of each format."""

    unquantized: Collection[str]
    text_part: TextPart | None

    def of(self, modules: Iterable[str]) -> list[str]:
        """Name each module as in the files and as in transformers' model, sorted."""
        part, names = self.text_part, set(modules)
        return sorted(names | {part.module_name(name) for name in names} if part else names)

    @property
    def other_parts(self) -> tuple[str, ...]:
        return self.text_part.other_parts if self.text_part else ()


def _awq(recipe: AwqParams, grouping: Grouping, names: _Names) -> Config:
    """Make the value of format awq: all linears have one group size.

    transformers compares the beginning of a name, vLLM any part of it.
    """
    parts = [name for part in names.other_parts for name in (part, f"model.{part}")]
    skipped = [*parts, *names.of(names.unquantized)]
    return {
        "quant_method": recipe.format,
        "bits": recipe.num_bits,
        "group_size": next(iter(grouping.recipes.values())).group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [LM_HEAD, *skipped] if skipped else None,
    }


def _gptq(recipe: GptqParams, grouping: Grouping, names: _Names) -> Config:
    """Make the value of format gptq.

    Unquantized modules are named twice, as they are stored and as an engine fuses them, so that
    every engine skips them.
    """
    skipped = names.of({*names.unquantized, *map(fused_name, names.unquantized)})
    rules: dict[str, Config] = {f"-:^{re.escape(name)}$": {} for name in skipped}
    rules |= {f"-:{_anywhere(part)}": {} for part in names.other_parts}
    group_size = next(iter(grouping.recipes.values())).group_size
    return {
        "quant_method": recipe.format,
        "bits": recipe.num_bits,
        "group_size": PER_CHANNEL if recipe.group_size is None else group_size,
        "sym": True,
        "desc_act": False,
        "static_groups": True,
        "true_sequential": False,
        "damp_percent": recipe.dampening_frac,
        "checkpoint_format": "gptq",
        "lm_head": False,
        **({"dynamic": rules} if rules else {}),
    }


def _anywhere(part: str) -> str:
    """Make the regular expression of all modules of a part, whatever is before its name."""
    return rf"^(.*\.)?{re.escape(part)}(\.|$)"


def _compressed_tensors(
    recipe: CompressedTensorsParams, grouping: Grouping, names: _Names
) -> Config:
    """Make the value of format compressed-tensors: one config group for each grid of weights.

    The group of the most frequent grid has the target `Linear`; the others name their linears.
    """
    by_grid: dict[tuple[int, int | None], list[str]] = {}
    for name, linear in grouping.recipes.items():
        grid = (linear.num_bits, None if linear.per_channel else linear.group_size)
        by_grid.setdefault(grid, []).append(name)
    by_frequency = sorted(by_grid.items(), key=lambda group: len(group[1]), reverse=True)
    groups: dict[str, object] = {}
    for number, ((num_bits, group_size), linears) in enumerate(by_frequency):
        weights = _arguments(recipe, num_bits, group_size)
        groups[f"group_{number}"] = {
            "targets": names.of(linears) if number else ["Linear"],
            "weights": weights,
            "input_activations": weights | BY_TOKEN if recipe.rounds_inputs else None,
            "output_activations": None,
            "format": recipe.layout.value,
        }
    return {
        "quant_method": recipe.format,
        "format": recipe.layout.value,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [
            LM_HEAD,
            *names.of(names.unquantized),
            *(f"re:{_anywhere(part)}" for part in names.other_parts),
        ],
        "config_groups": groups,
    }


def _arguments(recipe: CompressedTensorsParams, num_bits: int, group_size: int | None) -> Config:
    """Make the `QuantizationArgs` of weights; `group_size` None is one scale for each channel."""
    return {
        "num_bits": num_bits,
        "type": "float" if recipe.scheme is Scheme.FP8_DYNAMIC else "int",
        "symmetric": recipe.symmetric,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
