"""A reader of `read_files`: the compressed-tensors library unpacks linear after linear.

For models whose experts transformers fuses, which it cannot load from this format. Writes every
packed weight in float32, out × in.
"""

import json
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file

MARK = "weight_packed"


def read(model_dir: Path, output_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    stored: dict[str, torch.Tensor] = {}
    for file in model_dir.glob("*.safetensors"):
        stored |= load_file(file)
    weights = {}
    for name in stored:
        module, _, suffix = name.rpartition(".")
        if suffix == MARK:
            own = {
                it.removeprefix(f"{module}."): tensor
                for it, tensor in stored.items()
                if it.startswith(f"{module}.")
            }
            unpacked = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
            weights[f"{module}.weight"] = unpacked.float().contiguous()
    save_file(weights, output_path)
