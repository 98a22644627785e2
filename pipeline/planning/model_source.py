"""The shapes of the base before it is fetched, from its configuration and headers alone.

Of a model on a hub only config.json, the index and the first bytes of each weight file are read,
and the small files beside them where its tokenizer is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from pipeline.checkpoint.checks import read_shards
from pipeline.checkpoint.layered_model import require_layered
from pipeline.checkpoint.names import CONFIG_FILE, INDEX_FILE, sidecar_names, weight_names
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import InputError, short_repr
from pipeline.core.workspace import Workspace
from pipeline.params.hub_source import HubSource, parse_hub_source
from pipeline.params.params import DEMO_SOURCE, HUB_PREFIX, ModelParams
from pipeline.planning.checkpoint_source import directory_source, source_of
from pipeline.planning.source import Source
from pipeline.records.base import read_base_manifest
from pipeline.sources.hub import HubCheckpoint, current_endpoint, open_hub
from pipeline.sources.hub_errors import readable_hub_errors
from pipeline.sources.local import LocalCheckpoint
from pipeline.sources.source import CheckpointSource

MAX_DIMENSION = 1 << 40


def read_source(workspace: Workspace, model: ModelParams) -> Source:
    """Read the shapes of the base that `model.source` names; a fetched base is read from the disk.

    Raises the errors of fetching it, and InputError for an architecture that cannot be calibrated.
    """
    if (model_dir := _local_dir(workspace, model)) is not None:
        require_layered(model_dir)
        return directory_source(model_dir)
    source = parse_hub_source(model.source)
    hub = open_hub(source)
    with TemporaryDirectory() as work:
        return _listed_source(hub, source, Path(work))


@contextmanager
def tokenizer_dir(workspace: Workspace, model: ModelParams) -> Iterator[Path]:
    """A directory with the tokenizer of the base; of a model on a hub, for the block alone."""
    if (model_dir := _local_dir(workspace, model)) is not None:
        yield model_dir
        return
    hub = open_hub(parse_hub_source(model.source))
    with TemporaryDirectory() as work:
        for name in sidecar_names(hub.sizes()):
            hub.take(name, Path(work), advance=lambda _: None)
        yield Path(work)


def _local_dir(workspace: Workspace, model: ModelParams) -> Path | None:
    """Where the base is on this machine: fetched, or in the directory it is fetched from."""
    if is_fetched(workspace, model):
        return workspace.base_dir
    if model.source.startswith(HUB_PREFIX):
        return None
    is_demo = model.source == DEMO_SOURCE
    model_dir = workspace.demo_model_dir if is_demo else workspace.root / model.source
    LocalCheckpoint(model_dir, source=model.source)  # says so when there is none
    return model_dir


def is_fetched(workspace: Workspace, model: ModelParams) -> bool:
    """Tell whether fetch made `base/` from this source."""
    return (
        workspace.base_manifest_path.is_file()
        and workspace.base_dir.is_dir()
        and read_base_manifest(workspace).source == model.source
    )


def _listed_source(hub: CheckpointSource, source: HubSource, work_dir: Path) -> Source:
    """Read the shapes of a checkpoint of a hub, or of the hub's cache when working offline."""
    sizes = hub.sizes()
    for name in (CONFIG_FILE, INDEX_FILE):
        if name in sizes:
            hub.take(name, work_dir, advance=lambda _: None)
    require_layered(work_dir)
    names = weight_names(sizes, shards=read_shards(work_dir))
    tensors: dict[str, tuple[int, ...]] = {}
    for name in names:
        if isinstance(hub, HubCheckpoint):
            tensors |= _remote_shapes(source, name)
        else:
            hub.take(name, work_dir, advance=lambda _: None)
            tensors |= {key: entry.shape for key, entry in read_header(work_dir / name).items()}
            (work_dir / name).unlink()
    return source_of(work_dir, tensors, sizes, names)


def _remote_shapes(source: HubSource, name: str) -> dict[str, tuple[int, ...]]:
    """Download the header of a weight file. Raises InputError for an invalid header or shape."""
    endpoint = current_endpoint()
    with readable_hub_errors(source, endpoint=endpoint, name=name):
        try:
            header = HfApi(endpoint=endpoint).parse_safetensors_file_metadata(
                source.repo, name, revision=source.revision
            )
        except (NotASafetensorsRepoError, SafetensorsParsingError, KeyError, TypeError) as error:
            raise InputError(
                f"{source}: {name}: its header cannot be read; use another checkpoint"
            ) from error
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor, entry in header.tensors.items():
        shape: object = entry.shape  # of an untrusted file
        if not isinstance(shape, list) or not all(
            type(length) is int and 0 <= length < MAX_DIMENSION for length in shape
        ):
            raise InputError(
                f"{name}: a tensor has the shape {short_repr(shape)}; use another checkpoint"
            )
        shapes[tensor] = tuple(shape)
    return shapes
