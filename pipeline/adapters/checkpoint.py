"""Hugging Face checkpoints: tensors by name, sharded writing, and packed weights unpacked again.

Tensors are read one at a time through safetensors' memory mapping. No code from a model repository
is ever run: models come from the class that transformers itself ships for the architecture.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from pipeline.adapters.files import readable_disk_errors
from pipeline.domain.errors import FailureError, InputError
from pipeline.domain.manifest import relative_posix
from pipeline.numerics import packing

# Loading is quick beside everything else here; its progress bar would only fill logs.
logging.disable_progress_bar()
logging.set_verbosity_error()

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
UNPACKERS = {
    "awq": (packing.AWQ_SUFFIXES, packing.unpack_awq),
    "gptq": (packing.GPTQ_SUFFIXES, packing.unpack_gptq),
}


class Checkpoint:
    """A directory with `config.json` and safetensors weights, opened for reading."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_config(directory)
        self._file_of = _weight_map(directory)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored. Raises InputError when the file does not hold it."""
        path = self.directory / self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot read {name}: {error}; fetch it again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self.directory / self._file_of[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files."""
        files = set(self._file_of.values())
        return sum((self.directory / file).stat().st_size for file in files)

    def tensors(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self.tensor(name) for name in names}


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` as a dictionary."""
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; fetch the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object; fetch the model again")
    return config


def _weight_map(directory: Path) -> dict[str, str]:
    """The file of every tensor, sorted by name."""
    index_path = directory / INDEX_FILE
    if index_path.exists():
        weight_map = json.loads(index_path.read_bytes())["weight_map"]
        return {name: relative_posix(file) for name, file in sorted(weight_map.items())}
    try:
        with safe_open(directory / SINGLE_FILE, framework="pt") as file:
            return dict.fromkeys(sorted(file.keys()), SINGLE_FILE)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{directory / SINGLE_FILE}: cannot be read: {error}") from error


class ShardWriter:
    """Writes a checkpoint's weights shard by shard, then the index that finds them."""

    def __init__(self, directory: Path, num_shards: int) -> None:
        self._directory = directory
        self._num_shards = num_shards
        self._weight_map: dict[str, str] = {}
        self._total_bytes = 0

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write shard `number`, counted from 1."""
        name = f"model-{number:05d}-of-{self._num_shards:05d}.safetensors"
        save_tensors(self._directory / name, tensors)
        self._weight_map |= dict.fromkeys(tensors, name)
        self._total_bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self) -> None:
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(self._weight_map.items())),
        }
        (self._directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; a full disk is one line."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with readable_disk_errors(path):
        try:
            save_file(contiguous, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise FailureError(f"{path}: cannot be written: {error}; nothing was kept") from error


def unpacked_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a checkpoint by its name in the model, float32, packed ones unpacked."""
    checkpoint = Checkpoint(directory)
    method = checkpoint.config.get("quantization_config", {}).get("quant_method")
    if method is None:
        yield from ((name, checkpoint.tensor(name).float()) for name in checkpoint.names)
        return
    if method not in UNPACKERS:
        raise InputError(f"{directory}: quant_method {method!r}: expected awq or gptq")
    suffixes, unpack = UNPACKERS[method]
    for name in checkpoint.names:
        module, _, suffix = name.rpartition(".")
        if suffix == "qweight":
            packed = {suffix: checkpoint.tensor(f"{module}.{suffix}") for suffix in suffixes}
            integers, grid = unpack(packed)
            yield f"{module}.weight", grid.values(integers)
        elif suffix not in suffixes:
            yield name, checkpoint.tensor(name).float()


def unpacked_model(directory: Path) -> PreTrainedModel:
    """The model in float32 with exactly the weights that the checkpoint's files stand for."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=dict(unpacked_weights(directory)), dtype=torch.float32
    )
    return model.eval()


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer in a model directory. Raises InputError when there is none that loads."""
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{directory}: no tokenizer that loads: {reason}") from error
