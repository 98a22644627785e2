"""Fetch the pinned base checkpoint, verify every file, and write its manifest.

Small files come first. Everything that they can rule out is refused before the weights are moved.
Verified files are kept in `base.download` beside the target, so that an interrupted run moves no
file twice. `base` itself appears only when it is complete and checked.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from pipeline.checkpoint.checks import (
    check_tokenizer,
    check_weights,
    read_config,
    read_shards,
    takes_more_than_text,
)
from pipeline.checkpoint.names import sidecar_names, weight_names
from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord, tree_digest
from pipeline.core.files import (
    directory_records,
    readable_disk_errors,
    remove_tree,
    replace_directory,
    require_free_space,
    write_record,
)
from pipeline.core.progress import ByteProgress, note
from pipeline.core.workspace import Workspace
from pipeline.licensing.licenses import data_rule, require_allowed, require_data_allowed, resolve
from pipeline.licensing.reading import read_data_license, read_decision, read_license_facts
from pipeline.licensing.rules import license_rules
from pipeline.params.hub_source import parse_hub_source
from pipeline.params.params import DEMO_SOURCE, HUB_PREFIX, ModelParams, Params
from pipeline.records.base import BaseManifest, read_base_manifest
from pipeline.records.licenses import AppliedLicense, LicenseFacts
from pipeline.sources.dataset import fetch_dataset
from pipeline.sources.hub import open_hub
from pipeline.sources.local import LocalCheckpoint
from pipeline.sources.source import CheckpointSource

DOWNLOAD_SUFFIX = ".download"
MAX_SIDECAR_BYTES = 1 << 28


def run(workspace: Workspace, params: Params) -> None:
    """Write the calibration data set, `base/` and, last, `base.manifest.json`.

    Raises InputError when the checkpoint cannot be quantized or released or the data set cannot be
    read, FailureError when a transfer fails.
    """
    rules = license_rules()
    data_license = read_data_license(workspace, params.calibration.license, rules)
    require_data_allowed(data_rule(data_license, rules), params.release)
    source = open_source(workspace, params.model)
    fetch_dataset(workspace, params.calibration.dataset, data_license)
    apply = partial(applied_license, workspace, params)
    present = intact_manifest(workspace, params.model, source)
    if present is not None:
        note(f"fetch: {workspace.base_dir} already has {params.model.source}")
        applied = apply(workspace.base_dir, present.license)
        if applied != present.applied_license:
            manifest = present.model_copy(update={"applied_license": applied})
            write_record(workspace.base_manifest_path, manifest)
        return
    download_dir = workspace.base_dir.with_name(workspace.base_dir.name + DOWNLOAD_SUFFIX)
    with readable_disk_errors(workspace.base_dir):
        download_dir.mkdir(parents=True, exist_ok=True)
        manifest = collect(source, params.model, download_dir, apply)
        prune(download_dir, {file.path for file in manifest.files})
        replace_directory(download_dir, workspace.base_dir)
    write_record(workspace.base_manifest_path, manifest)


def open_source(workspace: Workspace, model: ModelParams) -> CheckpointSource:
    """Return the source that `model.source` names: a hub, the demo or a directory."""
    if model.source.startswith(HUB_PREFIX):
        return open_hub(parse_hub_source(model.source))
    model_dir = (
        workspace.demo_model_dir if model.source == DEMO_SOURCE else workspace.root / model.source
    )
    return LocalCheckpoint(model_dir, source=model.source)


def applied_license(
    workspace: Workspace, params: Params, model_dir: Path, facts: LicenseFacts
) -> AppliedLicense:
    """Return the license that applies.

    Raises InputError where it is uncertain, and where it forbids the release.
    """
    decision = read_decision(workspace, params.model.license)
    multimodal = takes_more_than_text(model_dir)
    rules = license_rules()
    rule = resolve(facts, rules, decision, multimodal=multimodal)
    require_allowed(rule, params.release)
    note(f"fetch: {rule.name}")
    return rule.applied(decision)


def intact_manifest(
    workspace: Workspace, model: ModelParams, source: CheckpointSource
) -> BaseManifest | None:
    """Return the manifest of an earlier run, if its files are whole and the source has the same."""
    if not workspace.base_manifest_path.is_file() or not workspace.base_dir.is_dir():
        return None
    manifest = read_base_manifest(workspace)
    if manifest.source != model.source or directory_records(workspace.base_dir) != manifest.files:
        return None
    return manifest if source.is_unchanged(manifest.files) else None


def collect(
    source: CheckpointSource,
    model: ModelParams,
    download_dir: Path,
    apply: Callable[[Path, LicenseFacts], AppliedLicense],
) -> BaseManifest:
    """Bring the files of the checkpoint into `download_dir`, and return their manifest.

    `apply` returns the license that applies or refuses it, before the weights are moved.
    """
    sizes = source.sizes()
    sidecars = sidecar_names(sizes)
    for name in sidecars:
        if sizes[name] > MAX_SIDECAR_BYTES:
            raise InputError(
                f"{name}: {sizes[name]} bytes, expected at most {MAX_SIDECAR_BYTES}; use another "
                "checkpoint"
            )
    prune(download_dir, sizes)
    records = download_files(source, sidecars, sizes, download_dir, label="fetch: small files")

    config = read_config(download_dir)
    check_tokenizer(download_dir)
    note(f"fetch: {config.architecture}")
    facts = read_license_facts(download_dir)
    applied = apply(download_dir, facts)
    shards = read_shards(download_dir)
    weights = weight_names(sizes, shards=shards)
    missing = [name for name in weights if not (download_dir / name).exists()]
    require_free_space(download_dir, sum(sizes[name] for name in missing))

    records += download_files(source, weights, sizes, download_dir, label="fetch: weights")
    check_weights(download_dir, weights, shards=shards)
    files = tuple(sorted(records, key=lambda record: record.path))
    return BaseManifest(
        source=model.source,
        revision=source.revision,
        architecture=config.architecture,
        files=files,
        digest=tree_digest(files),
        license=facts,
        applied_license=applied,
    )


def download_files(
    source: CheckpointSource,
    names: Collection[str],
    sizes: dict[str, int],
    download_dir: Path,
    *,
    label: str,
) -> list[FileRecord]:
    """Bring files into `download_dir` with one progress bar; return their records."""
    with ByteProgress(label, total_bytes=sum(sizes[name] for name in names)) as progress:
        return [source.take(name, download_dir, advance=progress.advance) for name in names]


def prune(directory: Path, names: Collection[str]) -> None:
    """Remove all files but `names`: those of other revisions, and temporary ones of downloads."""
    for path in directory.iterdir():
        if path.name not in names:
            remove_tree(path)
