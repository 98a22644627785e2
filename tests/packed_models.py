"""Tiny random checkpoints in the packed formats, each linear rounded to nearest."""

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from pipeline.numerics.fp8 import fp8_layer
from pipeline.numerics.grid import range_grid
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.params import PackedVariant
from pipeline.params.variants import Scheme
from pipeline.quantization.grouping import plan_groups
from pipeline.quantization.quantization_config import quantization_config
from tests.models import tiny_llama, write_json


def packed_recipe(name: str, *, group_size: int | None, **changes: object) -> PackedVariant:
    """A recipe by its format (`awq`, `gptq`) or compressed-tensors scheme (`W4A16`)."""
    of_format = (
        {"format": "compressed-tensors", "scheme": name}
        if name in Scheme.__members__
        else {"format": name, "num_bits": 4}
    )
    values = {
        "group_size": group_size,
        "scale_search": False,
        "clip_search": False,
        "rounding": "nearest",
        "refine_sweeps": 0,
        "dampening_frac": 0.01,
        "quantized_inputs": False,
        "align_samples": 0,
        "on_indivisible": "error",
    }
    recipe: PackedVariant = TypeAdapter(PackedVariant).validate_python(values | of_format | changes)
    return recipe


def tiny_packed(
    path: Path, name: str, *, group_size: int | None, hidden: int = 256, **changes: object
) -> Path:
    """Make the directory `path`: a tiny Llama whose decoder's linears are packed."""
    tiny_llama(path, hidden=hidden)
    return pack_nearest(path, packed_recipe(name, group_size=group_size, **changes))


def pack_nearest(path: Path, recipe: PackedVariant) -> Path:
    """Round the decoder's linears of the checkpoint in `path` to nearest, in place."""
    weights_path = path / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for tensor_name, tensor in load_file(weights_path).items():
        if not tensor_name.endswith("_proj.weight"):
            stored[tensor_name] = tensor
            continue
        module = tensor_name.removesuffix(".weight")
        shapes[module] = (tensor.shape[0], tensor.shape[1])
        packed = packed_nearest(tensor.float(), recipe)
        stored |= {f"{module}.{suffix}": value for suffix, value in packed.items()}
    save_file(stored, weights_path, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = quantization_config(
        recipe, plan_groups(recipe, shapes), unquantized=()
    )
    write_json(path / "config.json", config)
    return path


def packed_nearest(weight: torch.Tensor, recipe: PackedVariant) -> dict[str, torch.Tensor]:
    """The stored tensors of a weight that was rounded to nearest."""
    in_features = weight.shape[1]
    if getattr(recipe, "scheme", None) is Scheme.FP8_DYNAMIC:
        layer = fp8_layer({"it.weight": weight}, {"it": torch.eye(in_features)})
        linear = layer.linears["it"]
        return stored_tensors(linear.integers, linear.grid, recipe)
    grid = range_grid(
        weight,
        num_bits=recipe.num_bits,
        group_size=recipe.group_size or in_features,
        symmetric=recipe.symmetric,
    )
    return stored_tensors(grid.round(weight), grid, recipe)
