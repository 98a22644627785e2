"""A reader of `read_files`: vLLM's own functions unpack AWQ and GPTQ linears.

Writes every packed weight in float32, out × in. Scales and groups are applied as vLLM documents
them: `(q - zero) * scale`, with zero points in the middle for symmetric GPTQ.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor import parameter
from vllm.model_executor.layers.quantization.auto_awq import _convert_awq_to_standard_format
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    unpack_quantized_values_into_int32,
)
from vllm.scalar_type import scalar_types

# Parameters ask which part of a distributed model they are; here they are all of it.
parameter.get_tensor_model_parallel_rank = lambda: 0
parameter.get_tensor_model_parallel_world_size = lambda: 1


def awq_weight(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    layer = torch.nn.Module()
    for name in ("qweight", "qzeros"):
        setattr(layer, name, torch.nn.Parameter(tensors[name], requires_grad=False))
    _convert_awq_to_standard_format(layer, "qweight", "qzeros", 4)
    values = unpack_quantized_values_into_int32(layer.qweight.data, scalar_types.uint4, 0)
    zeros = unpack_quantized_values_into_int32(layer.qzeros.data, scalar_types.uint4, 0)
    return weight_of(values.T, zeros, tensors["scales"].T)


def gptq_weight(tensors: dict[str, torch.Tensor], config: AutoGPTQConfig) -> torch.Tensor:
    kind = config.quant_type
    values = unpack_quantized_values_into_int32(tensors["qweight"], kind, 0).T
    scales = tensors["scales"].T
    return weight_of(values, torch.full_like(scales, kind.bias), scales)


def weight_of(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """All out × in or out × groups."""
    repeats = values.shape[1] // scales.shape[1]
    zeros, scales = (it.float().repeat_interleave(repeats, 1) for it in (zeros, scales))
    return (values.float() - zeros) * scales


def read(model_dir: Path, output_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())["quantization_config"]
    stored: dict[str, torch.Tensor] = {}
    for file in model_dir.glob("*.safetensors"):
        stored |= load_file(file)
    weights = {}
    for name in stored:
        module, _, suffix = name.rpartition(".")
        if suffix == "qweight":
            own = {
                it.rpartition(".")[2]: stored[it] for it in stored if it.startswith(f"{module}.")
            }
            weights[f"{module}.weight"] = (
                awq_weight(own)
                if config["quant_method"] == "awq"
                else gptq_weight(own, AutoGPTQConfig.from_config(config))
            )
    save_file({name: it.contiguous() for name, it in weights.items()}, output_path)
