"""Read and write Hugging Face checkpoints: tensors by name, shards, models with unpacked weights.

Tensors are read one at a time through safetensors' memory mapping. No code from a model repository
is ever run: models come from the class that transformers itself ships for the architecture.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.checks import read_json_object, read_shards
from pipeline.checkpoint.names import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.checkpoint.stored_scheme import MARKS, StoredScheme, read_schemes
from pipeline.checkpoint.unpacking import unpacked_integers, unpacked_weight
from pipeline.core.errors import FailureError, InputError, printable, short_repr
from pipeline.core.files import replacement, write_bytes
from pipeline.numerics.grid import Grid
from pipeline.numerics.rounded_inputs import e4m3_by_token, int8_by_token
from pipeline.params.variants import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none, in tokens; lm-eval's default."""


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


def unpacked_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a checkpoint by its name in the model, float32 and unpacked.

    Raises InputError when the tensors are not what config.json says.
    """
    checkpoint = Checkpoint(directory)
    packed = packed_modules(checkpoint)
    for name in checkpoint.names:
        module, _, suffix = name.rpartition(".")
        scheme = packed.get(module)
        if scheme is None or suffix not in scheme.suffixes:
            yield name, checkpoint.tensor(name).float()
        elif suffix == scheme.suffixes[0]:
            tensors = {part: checkpoint.tensor(f"{module}.{part}") for part in scheme.suffixes}
            try:
                yield f"{module}.weight", unpacked_weight(module, tensors, scheme)
            except InputError as error:
                raise InputError(f"{directory}: {error}") from error


def packed_integers(checkpoint: Checkpoint) -> dict[str, tuple[Tensor, Grid]]:
    """Unpack the integers (float32, out × in) and the grid of every packed module, by its name.

    Raises InputError when the tensors are not what config.json says.
    """
    return {
        module: unpacked_integers(
            module,
            {suffix: checkpoint.tensor(f"{module}.{suffix}") for suffix in scheme.suffixes},
            scheme,
        )
        for module, scheme in packed_modules(checkpoint).items()
    }


def packed_modules(checkpoint: Checkpoint) -> dict[str, StoredScheme]:
    """Find the scheme of every module whose tensors are packed, by its name.

    Raises InputError for packed tensors without a scheme, and for a scheme without its tensors.
    """
    try:
        schemes = read_schemes(checkpoint.config)
    except InputError as error:
        raise InputError(f"{checkpoint.directory}: {error}") from error
    names = frozenset(checkpoint.names)
    packed = {}
    for name in names:
        module, _, suffix = name.rpartition(".")
        if suffix not in MARKS.values():
            continue
        scheme = schemes.of(module) if schemes else None
        missing = [
            part for part in (scheme.suffixes if scheme else ()) if f"{module}.{part}" not in names
        ]
        if scheme is None or missing:
            raise InputError(
                f"{checkpoint.directory}: {short_repr(name)}: "
                + (f"without {missing[0]}" if missing else "config.json names no scheme for it")
                + "; the checkpoint is damaged: get it again"
            )
        packed[module] = scheme
    return packed


def _transformers() -> Any:
    """Import transformers, when a model is loaded: the import of its models takes seconds."""
    import transformers

    # Loading is quick beside everything else here; its progress bar would only fill logs.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def model_config(directory: Path) -> "PreTrainedConfig":
    """Read the configuration as transformers' class for it.

    Raises InputError unless it is of a causal language model that this transformers knows.
    """
    model_type = read_json_object(directory / CONFIG_FILE).get("model_type")
    library = _transformers()
    classes = library.CONFIG_MAPPING
    if model_type not in classes or classes[model_type] not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{directory}: model_type {short_repr(model_type)} is no causal language model that "
            f"transformers {version('transformers')} knows; use another model"
        )
    config: PreTrainedConfig = library.AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    return config


def vocabulary_size(directory: Path) -> int:
    """Return for how many tokens the model of a directory has logits.

    What config.json states is taken as it is: transformers is loaded only for a default of its own.
    Raises InputError as `model_config` does.
    """
    config = read_json_object(directory / CONFIG_FILE)
    text_config = config.get("text_config", config)
    stated = text_config.get("vocab_size") if isinstance(text_config, dict) else None
    if type(stated) is int:
        return stated
    return int(model_config(directory).get_text_config().vocab_size)


def context_tokens(config: Any) -> int:
    """Return the context length of the model of a configuration, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_CONTEXT))


def unpacked_model(directory: Path) -> "PreTrainedModel":
    """Load the model in float32 with exactly the weights that the checkpoint's files stand for.

    The model rounds activations where an engine would. Raises InputError for an unknown
    architecture, and when a weight is missing.
    """
    config = model_config(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model_class = _transformers().MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: PreTrainedModel
    model, loading = model_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(unpacked_weights(directory)),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise InputError(
            f"{directory}: has no {min(loading['missing_keys'])}; the checkpoint is incomplete: "
            "get it again"
        )
    for name, scheme in packed_modules(Checkpoint(directory)).items():
        if scheme.rounds_inputs:
            rounded = e4m3_by_token if scheme.layout is PackedLayout.FLOAT else int8_by_token
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, rounded=rounded: (rounded(inputs[0]), *inputs[1:])
            )
    return model.eval()
