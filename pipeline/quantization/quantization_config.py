"""Make the `quantization_config` of a packed checkpoint, as vLLM and transformers read it.

Keys of awq and gptq: https://huggingface.co/docs/transformers/main_classes/quantization (AwqConfig,
GPTQConfig; `dynamic` is GPTQModel's). Keys of compressed-tensors: its `QuantizationConfig`,
https://github.com/vllm-project/compressed-tensors. `pipeline.checkpoint.stored_scheme` reads the
value back.
"""

import re
from collections.abc import Collection

from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GptqParams,
    PackedVariant,
    Scheme,
)
from pipeline.quantization.grouping import Grouping, fused_name

LM_HEAD = "lm_head"
PER_CHANNEL = -1
Config = dict[str, object]


def quantization_config(
    recipe: PackedVariant, grouping: Grouping, *, unquantized: Collection[str]
) -> Config:
    """Make the value for config.json.

    `unquantized` are the modules inside decoder layers whose matrices are not quantized.
    """
    match recipe:
        case AwqParams():
            return _awq(recipe, grouping, unquantized)
        case GptqParams():
            return _gptq(recipe, grouping, unquantized)
        case CompressedTensorsParams():
            return _compressed_tensors(recipe, grouping, unquantized)


def _awq(recipe: AwqParams, grouping: Grouping, unquantized: Collection[str]) -> Config:
    """Make the value of format awq: all linears have one group size."""
    return {
        "quant_method": recipe.format,
        "bits": recipe.num_bits,
        "group_size": next(iter(grouping.recipes.values())).group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [LM_HEAD, *sorted(unquantized)] if unquantized else None,
    }


def _gptq(recipe: GptqParams, grouping: Grouping, unquantized: Collection[str]) -> Config:
    """Make the value of format gptq.

    Unquantized modules are named twice, as they are stored and as an engine fuses them, so that
    every engine skips them.
    """
    skipped = sorted({*unquantized, *map(fused_name, unquantized)})
    rules: dict[str, Config] = {f"-:^{re.escape(name)}$": {} for name in skipped}
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


def _compressed_tensors(
    recipe: CompressedTensorsParams, grouping: Grouping, unquantized: Collection[str]
) -> Config:
    """Make the value of format compressed-tensors: one config group for each group size.

    The group of the most frequent size has the target `Linear`; the others name their linears.
    """
    by_channel = recipe.group_size is None
    by_size: dict[int | None, list[str]] = {}
    for name, linear in grouping.recipes.items():
        by_size.setdefault(None if by_channel else linear.group_size, []).append(name)
    by_frequency = sorted(by_size.items(), key=lambda group: len(group[1]), reverse=True)
    # Engines round the activations with one scale for each token.
    token = {"strategy": "token", "dynamic": True, "observer": None}
    inputs = _arguments(recipe, group_size=None) | token if recipe.rounds_inputs else None
    groups: dict[str, object] = {}
    for number, (group_size, names) in enumerate(by_frequency):
        groups[f"group_{number}"] = {
            "targets": sorted(names) if number else ["Linear"],
            "weights": _arguments(recipe, group_size=group_size),
            "input_activations": inputs,
            "output_activations": None,
            "format": recipe.layout.value,
        }
    return {
        "quant_method": recipe.format,
        "format": recipe.layout.value,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [LM_HEAD, *sorted(unquantized)],
        "config_groups": groups,
    }


def _arguments(recipe: CompressedTensorsParams, *, group_size: int | None) -> Config:
    """Make the `QuantizationArgs` of weights; `group_size` None is one scale for each channel."""
    return {
        "num_bits": recipe.num_bits,
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
