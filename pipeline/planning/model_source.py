"""The shapes of the base before it is fetched, from its configuration and headers alone.

Of a model on a hub the small files and the header of each weight file are downloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.checkpoint.checks import check_headers, read_shards
from pipeline.checkpoint.empty_model import require_layered
from pipeline.checkpoint.names import INDEX_FILE, sidecar_names, weight_names
from pipeline.core.workspace import Workspace
from pipeline.intake.examination import (
    examine_file_names,
    examine_other_files,
    examine_small_files,
)
from pipeline.intake.heads import announced_heads
from pipeline.intake.weights import (
    account_for_tensors,
    examine_index,
    require_full_precision,
)
from pipeline.params.params import ModelParams
from pipeline.planning.capacity import fetched_source
from pipeline.planning.checkpoint_source import source_of
from pipeline.planning.source import Source
from pipeline.records.base import read_base_manifest
from pipeline.records.intake import Finding, read_intake
from pipeline.sources.opening import open_source


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
        shards = read_shards(work_dir)
        names = weight_names(sizes, shards=shards)
        named += tuple(examine_other_files(sizes, names))
        headers = {name: checkpoint.header(name) for name in names}
        tensors = check_headers(headers)
        index = examine_index(headers, shards)
        shapes = {name: info.shape for name, info in tensors.items()}
        accounting = account_for_tensors(work_dir, shapes)
        require_full_precision(tensors, accounting.unused)
        for pair in accounting.tied:
            del shapes[pair.head]
        (work_dir / INDEX_FILE).unlink(missing_ok=True)  # its shards are not there
        yield ExaminedBase(
            source_of(
                work_dir,
                shapes,
                sizes,
                names,
                unused=accounting.unused,
                text_part=accounting.text_part,
            ),
            (
                *named,
                *index,
                *intake.findings,
                *accounting.findings,
                *announced_heads(accounting.tied),
            ),
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
