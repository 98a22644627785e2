"""Runs in the serving environment: transformers with compressed-tensors reads checkpoints.

Arguments: an output directory, then model directories. Writes for each, under its variant's name,
the weights of the model after loading and its logits for fixed tokens.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

IDS = torch.arange(5, 37).view(1, -1)


def read(model_dir: Path, output_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.float32,
        local_files_only=True,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    with torch.inference_mode():
        logits = model(input_ids=IDS).logits
    weights = {name: it.float().contiguous() for name, it in model.named_parameters()}
    save_file(weights | {"logits": logits.contiguous()}, output_path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    output_dir = Path(sys.argv[1])
    for argument in sys.argv[2:]:
        directory = Path(argument)
        read(directory, output_dir / f"{directory.parent.name}.safetensors")
