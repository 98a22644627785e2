"""A reader of `read_files`: transformers with compressed-tensors.

Writes the weights of the model after loading and its logits for fixed tokens.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CompressedTensorsConfig,
)

IDS = torch.arange(5, 37).view(1, -1)


def read(model_dir: Path, output_path: Path) -> None:
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    several_parts = config.get_text_config() is not config
    kind = AutoModelForImageTextToText if several_parts else AutoModelForCausalLM
    model = kind.from_pretrained(
        model_dir,
        dtype=torch.float32,
        local_files_only=True,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    ).float()  # of several parts, not all are loaded in the dtype
    with torch.inference_mode():
        logits = model(input_ids=IDS).logits
    weights = {name: it.float().contiguous() for name, it in model.named_parameters()}
    save_file(weights | {"logits": logits.contiguous()}, output_path)
