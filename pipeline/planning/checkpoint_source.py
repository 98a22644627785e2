"""The shapes of a checkpoint in a directory, read from its configuration and headers alone."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from pipeline.architectures.shapes import model_shape
from pipeline.checkpoint.checks import read_config, read_json_object, read_shards, text_values
from pipeline.checkpoint.names import CONFIG_FILE, sidecar_names, weight_names
from pipeline.checkpoint.safetensors_header import read_shapes
from pipeline.planning.source import Source
from pipeline.records.base import TextPart

# The number of experts that process a token, by the names of different architectures.
EXPERTS_KEYS = ("num_experts_per_tok", "num_experts_per_token")


def directory_source(
    model_dir: Path,
    *,
    unused: Collection[str],
    copies: Collection[str],
    text_part: TextPart | None,
) -> Source:
    """Read the shapes of a checkpoint whose text model does not read the tensors `unused`.

    The tensors `copies` equal others and do not count.
    Raises InputError for an invalid configuration or header.
    """
    sizes = {path.name: path.stat().st_size for path in model_dir.iterdir() if path.is_file()}
    names = weight_names(sizes, shards=read_shards(model_dir))
    tensors: dict[str, tuple[int, ...]] = {}
    for name in names:
        tensors |= read_shapes(model_dir / name)
    for name in copies:
        del tensors[name]
    return source_of(model_dir, tensors, sizes, names, unused=unused, text_part=text_part)


def source_of(
    config_dir: Path,
    tensors: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    weights: tuple[str, ...],
    *,
    unused: Collection[str],
    text_part: TextPart | None,
) -> Source:
    """Describe the checkpoint with the configuration in `config_dir`.

    `tensors` are shapes by name, `sizes` the bytes of its files by name, `weights` the names of its
    weight files. The text model, `text_part` of several or all, does not read the tensors `unused`.
    """
    config = text_values(read_json_object(config_dir / CONFIG_FILE))
    experts = (config.get(key) for key in EXPERTS_KEYS)
    apart = frozenset(unused)
    used = {name: shape for name, shape in tensors.items() if name not in apart}
    kept = sum(prod(shape) for name, shape in tensors.items() if name in apart)
    return Source(
        architecture=text_part.architecture if text_part else read_config(config_dir).architecture,
        shape=replace(model_shape(used), num_kept_weights=kept),
        file_bytes=sum(sizes[name] for name in (*weights, *sidecar_names(sizes))),
        experts_per_token=next(
            (number for number in experts if type(number) is int and number > 0), None
        ),
        tensors=used,
        text_part=text_part,
    )
