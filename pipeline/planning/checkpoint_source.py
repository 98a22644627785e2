"""The shapes of a checkpoint in a directory, from its configuration and headers alone."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.architectures.shapes import model_shape
from pipeline.checkpoint.checks import read_config, read_json_object, read_shards
from pipeline.checkpoint.names import CONFIG_FILE, sidecar_names, weight_names
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.planning.source import Source

# How many experts of a mixture a token passes, by the names that architectures give it.
EXPERTS_KEYS = ("num_experts_per_tok", "num_experts_per_token")


def directory_source(model_dir: Path) -> Source:
    """Raises InputError for a configuration or a header that cannot be used."""
    sizes = {path.name: path.stat().st_size for path in model_dir.iterdir() if path.is_file()}
    names = weight_names(sizes, shards=read_shards(model_dir))
    tensors: dict[str, tuple[int, ...]] = {}
    for name in names:
        tensors |= {key: it.shape for key, it in read_header(model_dir / name).items()}
    return source_of(model_dir, tensors, sizes, names)


def source_of(
    config_dir: Path,
    tensors: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    weights: tuple[str, ...],
) -> Source:
    """The source with these tensors, file sizes and names of weight files."""
    config = read_config(config_dir)
    experts = (read_json_object(config_dir / CONFIG_FILE).get(key) for key in EXPERTS_KEYS)
    return Source(
        architecture=config.architecture,
        shape=model_shape(tensors),
        file_bytes=sum(sizes[name] for name in (*weights, *sidecar_names(sizes))),
        experts_per_token=next((it for it in experts if type(it) is int and it > 0), None),
    )
