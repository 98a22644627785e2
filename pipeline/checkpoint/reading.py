"""Read and write the tensors of Hugging Face checkpoints, by name and in shards.

Tensors are read one at a time through safetensors' memory mapping.
"""

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.checks import read_json_object, read_shards, text_values
from pipeline.checkpoint.names import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import FailureError, InputError, printable
from pipeline.core.files import replacement, write_bytes


class Checkpoint:
    """A directory with `config.json` and safetensors weights, opened for reading."""

    def __init__(self, directory: Path) -> None:
        """Read the configuration and the headers. Raises InputError when one is unusable."""
        self.directory = directory
        try:
            self.config: dict[str, Any] = read_json_object(directory / CONFIG_FILE)
            shards = read_shards(directory)
            if shards is None:
                shards = {WEIGHTS_FILE: set(read_header(directory / WEIGHTS_FILE))}
        except InputError as error:
            raise InputError(f"{directory}: {error}") from error
        by_name = sorted((name, file) for file, names in shards.items() for name in names)
        self._file_of = dict(by_name)
        self._header = cache(lambda file: read_header(directory / file))

    @property
    def text_values(self) -> Mapping[str, Any]:
        """What config.json says of the text model."""
        return text_values(self.config)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor as stored. Raises InputError when the file does not hold it."""
        return self.tensors([name])[name]

    def tensors(self, names: list[str]) -> dict[str, Tensor]:
        """Read tensors as stored, by name. Raises InputError when a file lacks one of them."""
        found: dict[str, Tensor] = {}
        for file in {self._file_of[name] for name in names}:
            inside = [name for name in names if self._file_of[name] == file]
            path = self.directory / file
            found |= read_tensors(path, inside, remedy="fetch it again")
        return {name: found[name] for name in names}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the stored shape of a tensor, from the header alone."""
        return self._header(self._file_of[name])[name].shape

    def num_bytes(self, name: str) -> int:
        """Return the stored size of a tensor, from the header alone."""
        return self._header(self._file_of[name])[name].size_bytes

    @property
    def weight_bytes(self) -> int:
        """The size of all weight files together."""
        files = set(self._file_of.values())
        return sum((self.directory / file).stat().st_size for file in files)


def read_tensors(
    path: Path, names: Collection[str] | None = None, *, remedy: str
) -> dict[str, Tensor]:
    """Read tensors of one safetensors file by their names, all of them when `names` is None.

    Tensors are memory-mapped: unused ones are not read. Raises InputError, which ends with
    `remedy`, when the file is missing or damaged, or does not hold one of the names.
    """
    try:
        with safe_open(path, framework="pt") as file:
            wanted = file.keys() if names is None else names
            return {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {printable(str(error))}; {remedy}") from error


def shard_name(number: int, num_shards: int) -> str:
    """Name the file of a shard, counted from 1, as transformers does."""
    return f"model-{number:05d}-of-{num_shards:05d}.safetensors"


def write_index(directory: Path) -> None:
    """Write the index that finds every tensor of the shards in `directory`."""
    headers = {path.name: read_header(path) for path in directory.glob("*.safetensors")}
    file_of = {name: file for file, header in headers.items() for name in header}
    total = sum(info.size_bytes for header in headers.values() for info in header.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
    write_bytes(directory / INDEX_FILE, json.dumps(index, indent=2).encode() + b"\n")


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, note: tuple[str, str] = ("format", "pt")
) -> None:
    """Write a safetensors file atomically.

    `note` is the only key and value of its metadata, because the order of several would be random.
    Raises FailureError when the file cannot be written, for instance when the disk is full.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacement(path) as file:
        try:
            save_file(contiguous, file.name, metadata=dict([note]))
        except SafetensorError as error:
            raise FailureError(f"{path}: cannot be written: {error}; nothing was kept") from error
