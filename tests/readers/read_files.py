"""Runs in the serving environment, once for many files: readers of others read checkpoints.

Arguments: an output directory, then pairs of a reader, which is a module beside this one, and the
model directory that it reads. What it finds there is written to the output directory under the name
of the variant, which is that of the model directory's parent.
"""

import sys
from importlib import import_module
from pathlib import Path

import torch

if __name__ == "__main__":
    torch.set_num_threads(1)
    output_dir = Path(sys.argv[1])
    for reader, argument in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        model_dir = Path(argument)
        output_path = output_dir / f"{model_dir.parent.name}.safetensors"
        import_module(f"tests.readers.{reader}").read(model_dir, output_path)
