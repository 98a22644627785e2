"""Tiny random checkpoints in the packed 4-bit formats, each linear rounded to nearest."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.numerics.grid import range_grid
from pipeline.numerics.packing import pack_awq, pack_gptq
from tests.models import tiny_llama, write_json

QUANTIZATION = {
    "awq": {"zero_point": True, "version": "gemm", "modules_to_not_convert": None},
    "gptq": {"sym": True, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False},
}
PACKERS = {"awq": pack_awq, "gptq": pack_gptq}


def tiny_packed(path: Path, format_name: str, *, group_size: int, hidden: int = 256) -> Path:
    """Make the directory `path`: a tiny Llama whose decoder's linears have 4 bits."""
    tiny_llama(path, hidden=hidden)
    weights_path = path / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(weights_path).items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        weight = tensor.float()
        grid = range_grid(
            weight, num_bits=4, group_size=group_size, symmetric=format_name == "gptq"
        )
        packed = PACKERS[format_name](grid.round(weight), grid)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{suffix}": value for suffix, value in packed.items()}
    save_file(stored, weights_path, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": format_name,
        "bits": 4,
        "group_size": group_size,
        **QUANTIZATION[format_name],
    }
    write_json(path / "config.json", config)
    return path
