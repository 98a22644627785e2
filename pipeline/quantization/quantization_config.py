"""`quantization_config` in a packed checkpoint's config.json, as vLLM and transformers read it.

Keys of awq and gptq: https://huggingface.co/docs/transformers/main_classes/quantization (AwqConfig,
GPTQConfig; `dynamic` is GPTQModel's). Keys of compressed-tensors: its `QuantizationConfig`,
https://github.com/vllm-project/compressed-tensors. Reading one back is in
`pipeline.checkpoint.stored_scheme`.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping

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
LAYOUTS = {
    Scheme.W4A16: "pack-quantized",
    Scheme.W4A16_ASYM: "pack-quantized",
    Scheme.W8A16: "pack-quantized",
    Scheme.W8A8: "int-quantized",
    Scheme.FP8_DYNAMIC: "float-quantized",
}

Config = dict[str, object]


def quantization_config(
    recipe: PackedVariant, grouping: Grouping, *, unquantized: Collection[str]
) -> Config:
    """The whole value. `unquantized` are the linears inside decoder layers that were left alone."""
    match recipe:
        case AwqParams():
            return _awq(recipe, grouping, unquantized)
        case GptqParams():
            return _gptq(recipe, grouping, unquantized)
        case CompressedTensorsParams():
            return _compressed_tensors(recipe, grouping, unquantized)


def _awq(recipe: AwqParams, grouping: Grouping, unquantized: Collection[str]) -> Config:
    return {
        "quant_method": recipe.format,
        "bits": recipe.num_bits,
        "group_size": next(iter(grouping.group_sizes.values())),
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [LM_HEAD, *sorted(unquantized)] if unquantized else None,
    }


def _gptq(recipe: GptqParams, grouping: Grouping, unquantized: Collection[str]) -> Config:
    """A module that is named both as it is stored and as an engine fuses it is skipped by all."""
    skipped = sorted({*unquantized, *map(fused_name, unquantized)})
    rules: dict[str, Config] = {f"-:^{re.escape(name)}$": {} for name in skipped}
    group_size = next(iter(grouping.group_sizes.values()))
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
    """One config group for the most frequent group size, and one for each other one."""
    layout = LAYOUTS[recipe.scheme]
    groups: dict[str, object] = {}
    for number, (group_size, names) in enumerate(_names_by_size(recipe, grouping).items()):
        groups[f"group_{number}"] = {
            "targets": names if number else ["Linear"],
            "weights": _arguments(recipe, group_size=group_size),
            "input_activations": _token_arguments(recipe) if recipe.rounds_inputs else None,
            "output_activations": None,
            "format": layout,
        }
    return {
        "quant_method": recipe.format,
        "format": layout,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [LM_HEAD, *sorted(unquantized)],
        "config_groups": groups,
    }


def _names_by_size(
    recipe: CompressedTensorsParams, grouping: Grouping
) -> Mapping[int | None, list[str]]:
    """The linears of every group size, the most frequent first; None for one scale a channel."""
    if recipe.group_size is None:
        return {None: sorted(grouping.group_sizes)}
    frequent = Counter(grouping.group_sizes.values()).most_common()
    return {
        size: sorted(name for name, own in grouping.group_sizes.items() if own == size)
        for size, _ in frequent
    }


def _arguments(recipe: CompressedTensorsParams, *, group_size: int | None) -> Config:
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


def _token_arguments(recipe: CompressedTensorsParams) -> Config:
    """Activations are rounded in the engine, with one scale for each token."""
    return _arguments(recipe, group_size=None) | {
        "strategy": "token",
        "dynamic": True,
        "observer": None,
    }
