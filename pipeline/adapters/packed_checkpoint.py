"""Writing an AWQ or GPTQ checkpoint from a base, its statistics and a recipe.

Decoder layers are independent: each is read, quantized and written before the next is touched.
The layout of the files is the one vLLM and transformers read.
"""

import json
import shutil
from pathlib import Path

import torch

from pipeline.adapters.checkpoint import Checkpoint, ShardWriter
from pipeline.adapters.files import readable_disk_errors
from pipeline.adapters.progress import track
from pipeline.adapters.statistics import Statistics
from pipeline.domain.architecture import folds_of, layer_folds, layer_index, split_layer_name
from pipeline.domain.checkpoint import CONFIG_FILE, INDEX_FILE
from pipeline.domain.coverage import kept_coverage, packed_coverage, require_divisible
from pipeline.domain.manifest import BaseManifest
from pipeline.domain.params import AwqParams, GptqParams
from pipeline.domain.quantized import TensorCoverage
from pipeline.numerics.layer import QuantizedLayer, quantize_layer
from pipeline.numerics.packing import pack_awq, pack_gptq

PACKERS = {"awq": pack_awq, "gptq": pack_gptq}
NOT_COPIED = (INDEX_FILE, CONFIG_FILE, "README.md")


def write_packed(
    base_dir: Path,
    base: BaseManifest,
    recipe: AwqParams | GptqParams,
    statistics: Statistics,
    model_dir: Path,
) -> tuple[TensorCoverage, ...]:
    """Fill `model_dir`: one shard for each decoder layer, one for the rest, and the sidecar files.

    Returns what became of every tensor. Raises InputError for a group size that does not divide,
    or an architecture whose folding is unknown.
    """
    checkpoint = Checkpoint(base_dir)
    shapes = {name: checkpoint.shape(f"{name}.weight") for name in statistics.linears}
    require_divisible(recipe, shapes)
    folds = folds_of(base.architecture) if recipe.scale_search else ()
    by_layer = _names_by_layer(checkpoint.names)
    writer = ShardWriter(model_dir, num_shards=len(by_layer))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    coverage: list[TensorCoverage] = []
    for number, (prefix, names) in enumerate(
        track(by_layer.items(), "quantize", total=len(by_layer)), start=1
    ):
        stored = checkpoint.tensors(names)
        linears = [name for name in statistics.linears if f"{name}.weight" in stored]
        grams = statistics.grams(linears, device=device)
        modules = {name.removeprefix(f"{prefix}.").removesuffix(".weight") for name in names}
        present = layer_folds(folds, modules) if linears else ()
        shared = {it.shared_input for it in present if it.shared_input}
        layer = quantize_layer(
            {name.removeprefix(f"{prefix}."): it.to(device) for name, it in stored.items()},
            {name.removeprefix(f"{prefix}."): it for name, it in grams.items()},
            present,
            recipe,
            symmetric=recipe.symmetric,
            head_dim=_head_dim(checkpoint.config),
            shared_grams={it: statistics.shared_gram(f"{prefix}.{it}").to(device) for it in shared},
        )
        tensors, rows = _packed_tensors(prefix, stored, layer, recipe)
        writer.write(number, tensors)
        coverage += rows
    writer.finish()
    _write_sidecars(base_dir, base, recipe, checkpoint.config, model_dir)
    return tuple(sorted(coverage, key=lambda row: row.name))


def _names_by_layer(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Tensor names by decoder layer, in order; what is outside the layers comes last, under ""."""
    by_layer: dict[str, list[str]] = {}
    for name in names:
        split = split_layer_name(name)
        by_layer.setdefault(split[0] if split else "", []).append(name)
    return dict(
        sorted(by_layer.items(), key=lambda it: (it[0] == "", layer_index(it[0]) if it[0] else 0))
    )


def _head_dim(config: dict[str, object]) -> int:
    explicit = config.get("head_dim")
    if isinstance(explicit, int):
        return explicit
    return int(str(config["hidden_size"])) // int(str(config["num_attention_heads"]))


def _packed_tensors(
    prefix: str,
    stored: dict[str, torch.Tensor],
    layer: QuantizedLayer,
    recipe: AwqParams | GptqParams,
) -> tuple[dict[str, torch.Tensor], list[TensorCoverage]]:
    """The tensors of one shard, and what became of each tensor of the base."""
    tensors: dict[str, torch.Tensor] = {}
    rows: list[TensorCoverage] = []
    for name, tensor in stored.items():
        relative = name.removeprefix(f"{prefix}.")
        module = relative.removesuffix(".weight")
        if relative.endswith(".weight") and module in layer.linears:
            linear = layer.linears[module]
            packed = PACKERS[recipe.format](linear.integers, linear.grid)
            full_name = name.removesuffix(".weight")
            tensors |= {f"{full_name}.{suffix}": it for suffix, it in packed.items()}
            num_bytes = sum(it.nbytes for it in packed.values())
            rows.append(
                packed_coverage(
                    name,
                    shape=tuple(tensor.shape),
                    recipe=recipe,
                    num_bytes=num_bytes,
                    relative_error=linear.relative_error,
                )
            )
        else:
            tensors[name] = layer.changed.get(relative, tensor)
            rows.append(
                kept_coverage(
                    name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    num_bytes=tensor.nbytes,
                    folded=relative in layer.changed,
                )
            )
    return tensors, rows


def _write_sidecars(
    base_dir: Path,
    base: BaseManifest,
    recipe: AwqParams | GptqParams,
    config: dict[str, object],
    model_dir: Path,
) -> None:
    """Everything beside the weights: the base's own files, and config.json with the scheme."""
    quantized = config | {"quantization_config": _quantization_config(recipe)}
    with readable_disk_errors(model_dir):
        (model_dir / CONFIG_FILE).write_text(json.dumps(quantized, indent=2) + "\n")
        for file in base.files:
            if not file.path.endswith(".safetensors") and file.path not in NOT_COPIED:
                target = model_dir / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base_dir / file.path, target)


def _quantization_config(recipe: AwqParams | GptqParams) -> dict[str, object]:
    """The key `quantization_config` as vLLM and transformers read it.

    The keys are those of https://huggingface.co/docs/transformers/main_classes/quantization
    (AwqConfig, GPTQConfig).
    """
    shared: dict[str, object] = {
        "quant_method": recipe.format,
        "bits": recipe.num_bits,
        "group_size": recipe.group_size,
    }
    if isinstance(recipe, AwqParams):
        return shared | {"zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    return shared | {
        "sym": True,
        "desc_act": False,
        "static_groups": True,
        "true_sequential": False,
        "damp_percent": recipe.dampening_frac,
        "checkpoint_format": "gptq",
        "lm_head": False,
    }
