"""Tiny random checkpoints in the packed formats, each linear rounded to nearest."""

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from pipeline.numerics.fp8 import round_channels
from pipeline.numerics.grid import range_grid
from pipeline.numerics.packing.stored import stored_tensors
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.params import PackedVariant
from pipeline.params.variants import PackedLayout, Scheme
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
    tensors = load_file(weights_path)
    linears = [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]
    grouping = plan_groups(recipe, {it: tuple(tensors[f"{it}.weight"].shape) for it in linears})
    for name, linear_recipe in grouping.recipes.items():
        weight = tensors.pop(f"{name}.weight").float()
        packed = packed_nearest(weight, linear_recipe)
        tensors |= {f"{name}.{suffix}": value for suffix, value in packed.items()}
    save_file(tensors, weights_path, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = quantization_config(recipe, grouping, unquantized=())
    write_json(path / "config.json", config)
    return path


def packed_nearest(weight: torch.Tensor, recipe: LinearRecipe) -> dict[str, torch.Tensor]:
    """The stored tensors of a weight that was rounded to nearest."""
    if recipe.layout is PackedLayout.FLOAT:
        return stored_tensors(*round_channels(weight), recipe)
    grid = range_grid(weight, recipe)
    return stored_tensors(grid.round(weight), grid, recipe)
