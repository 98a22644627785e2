"""The shapes of the base before it is fetched, from its configuration and headers alone.

Of a model on a hub the small files and the header of each weight file are downloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from pipeline.checkpoint.checks import read_shards
from pipeline.checkpoint.layered_model import require_layered
from pipeline.checkpoint.names import INDEX_FILE, sidecar_names, weight_names
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import InputError, short_repr
from pipeline.core.workspace import Workspace
from pipeline.intake.examination import examine_file_names, examine_small_files
from pipeline.intake.weights import account_for_tensors
from pipeline.params.hub_source import HubSource, parse_hub_source
from pipeline.params.params import ModelParams
from pipeline.planning.capacity import fetched_source
from pipeline.planning.checkpoint_source import source_of
from pipeline.planning.source import Source
from pipeline.records.base import read_base_manifest
from pipeline.records.intake import Finding, read_intake
from pipeline.sources.hub import HubCheckpoint, current_endpoint
from pipeline.sources.hub_errors import readable_hub_errors
from pipeline.sources.local import LocalCheckpoint
from pipeline.sources.opening import local_dir, open_source
from pipeline.sources.source import CheckpointSource

MAX_DIMENSION = 1 << 40


@dataclass(frozen=True)
class ExaminedBase:
    """The base: its shapes, what is odd about it, and a directory with its small files, mended."""

    source: Source
    findings: tuple[Finding, ...]
    directory: Path


@contextmanager
def examined_base(workspace: Workspace, model: ModelParams) -> Iterator[ExaminedBase]:
    """Examine the base that `model.source` names; its small files are there for a `with` block.

    A base that is fetched already is not examined again. Raises the errors of fetching it, and
    InputError for an architecture that cannot be calibrated.
    """
    if is_fetched(workspace, model):
        findings = read_intake(workspace).findings
        yield ExaminedBase(fetched_source(workspace), findings, workspace.base_dir)
        return
    checkpoint = open_source(workspace, model)
    sizes = checkpoint.sizes()
    with TemporaryDirectory() as work:
        work_dir = Path(work)
        for name in sidecar_names(sizes):
            checkpoint.take(name, work_dir, advance=lambda _: None)
        named = tuple(examine_file_names(sizes))
        intake = examine_small_files(work_dir)
        require_layered(work_dir)
        names = weight_names(sizes, shards=read_shards(work_dir))
        tensors: dict[str, tuple[int, ...]] = {}
        for name in names:
            tensors |= _shapes(workspace, model, checkpoint, name, work_dir)
        accounting = account_for_tensors(work_dir, tensors)
        used = {name: tensors[name] for name in tensors if name not in set(accounting.unused)}
        (work_dir / INDEX_FILE).unlink(missing_ok=True)  # its shards are not there
        yield ExaminedBase(
            source_of(work_dir, used, sizes, names),
            (*named, *intake.findings, *accounting.findings),
            work_dir,
        )


def is_fetched(workspace: Workspace, model: ModelParams) -> bool:
    """Tell whether fetch made `base/` from this source."""
    return (
        workspace.base_manifest_path.is_file()
        and workspace.intake_path.is_file()
        and workspace.base_dir.is_dir()
        and read_base_manifest(workspace).source == model.source
    )


def _shapes(
    workspace: Workspace,
    model: ModelParams,
    checkpoint: CheckpointSource,
    name: str,
    work_dir: Path,
) -> dict[str, tuple[int, ...]]:
    """Read the header of a weight file where it is: in a directory, on a hub, in a hub's cache."""
    if isinstance(checkpoint, HubCheckpoint):
        return _remote_shapes(parse_hub_source(model.source), name)
    if isinstance(checkpoint, LocalCheckpoint):
        header = read_header(local_dir(workspace, model) / name)
    else:
        checkpoint.take(name, work_dir, advance=lambda _: None)
        header = read_header(work_dir / name)
        (work_dir / name).unlink()
    return {tensor: entry.shape for tensor, entry in header.items()}


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
