"""Fetch the pinned base checkpoint, verify every file, and write its manifest.

Small files come first. Everything that they can rule out is refused before the weights are moved.
Verified files are kept in `base.download` beside the target, so that an interrupted run moves no
file twice. `base` itself appears only when it is complete and checked.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from pipeline.checkpoint.checks import (
    check_headers,
    read_config,
    read_shards,
    takes_more_than_text,
)
from pipeline.checkpoint.names import INDEX_FILE, sidecar_names, weight_names
from pipeline.checkpoint.reading import write_index
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord, tree_digest
from pipeline.core.files import (
    directory_records,
    file_record,
    readable_disk_errors,
    remove_tree,
    replace_directory,
    require_free_space,
    write_record,
)
from pipeline.core.progress import ByteProgress, note
from pipeline.core.workspace import Workspace
from pipeline.intake.examination import (
    examine_file_names,
    examine_other_files,
    examine_small_files,
    examine_values,
)
from pipeline.intake.weights import (
    account_for_tensors,
    examine_index,
    require_full_precision,
)
from pipeline.licensing.licenses import data_rule, require_allowed, require_data_allowed, resolve
from pipeline.licensing.reading import (
    other_license_text,
    read_data_license,
    read_decision,
    read_license_facts,
)
from pipeline.licensing.rules import license_rules
from pipeline.params.params import ModelParams, Params
from pipeline.records.base import BaseManifest, read_base_manifest
from pipeline.records.intake import Intake, read_intake
from pipeline.records.licenses import AppliedLicense, LicenseFacts
from pipeline.sources.dataset import fetch_dataset
from pipeline.sources.opening import open_source
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
        manifest, intake = collect(source, params.model, download_dir, apply)
        prune(download_dir, {file.path for file in manifest.files})
        replace_directory(download_dir, workspace.base_dir)
    write_record(workspace.intake_path, intake)
    write_record(workspace.base_manifest_path, manifest)


def applied_license(
    workspace: Workspace, params: Params, model_dir: Path, facts: LicenseFacts
) -> AppliedLicense:
    """Return the license that applies.

    Raises InputError where it is uncertain, and where it forbids the release.
    """
    decision = read_decision(workspace, params.model.license)
    multimodal = takes_more_than_text(model_dir)
    rules = license_rules()
    other_text = other_license_text(model_dir)
    rule = resolve(facts, rules, decision, multimodal=multimodal, other_text=other_text)
    require_allowed(rule, params.release)
    note(f"fetch: {rule.name}")
    return rule.applied(decision)


def intact_manifest(
    workspace: Workspace, model: ModelParams, source: CheckpointSource
) -> BaseManifest | None:
    """Return the manifest of an earlier run, if its files are whole and the source has the same."""
    written = (workspace.base_manifest_path, workspace.intake_path)
    if not all(path.is_file() for path in written) or not workspace.base_dir.is_dir():
        return None
    manifest = read_base_manifest(workspace)
    if manifest.source != model.source or directory_records(workspace.base_dir) != manifest.files:
        return None
    files = read_intake(workspace).files_of_source(manifest.files)
    return manifest if source.is_unchanged(files) else None


def collect(
    source: CheckpointSource,
    model: ModelParams,
    download_dir: Path,
    apply: Callable[[Path, LicenseFacts], AppliedLicense],
) -> tuple[BaseManifest, Intake]:
    """Bring the files of the checkpoint into `download_dir`; return their manifest and findings.

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

    named = tuple(examine_file_names(sizes))
    intake = examine_small_files(download_dir)
    config = read_config(download_dir)
    note(f"fetch: {config.architecture}")
    facts = read_license_facts(download_dir)
    applied = apply(download_dir, facts)
    shards = read_shards(download_dir)
    weights = weight_names(sizes, shards=shards)
    named += tuple(examine_other_files(sizes, weights))
    missing = [name for name in weights if not (download_dir / name).exists()]
    require_free_space(download_dir, sum(sizes[name] for name in missing))

    records += download_files(source, weights, sizes, download_dir, label="fetch: weights")
    headers = {name: read_header(download_dir / name) for name in weights}
    tensors = check_headers(headers)
    index = examine_index(headers, shards)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    accounting = account_for_tensors(download_dir, shapes)
    require_full_precision(tensors, accounting.unused)
    if index:
        write_index(download_dir)
    intake, copies = examine_values(download_dir, weights, accounting, intake)
    originals, added = intake.originals, intake.added
    if index:
        originals += tuple(file for file in records if file.path == INDEX_FILE)
        added += () if INDEX_FILE in sidecars else (INDEX_FILE,)
    intake = Intake(findings=(*named, *index, *intake.findings), originals=originals, added=added)
    for finding in intake.findings:
        note(f"fetch: {finding}")
    changed = {file.path for file in intake.originals} | set(intake.added)
    records = [file for file in records if file.path not in changed]
    records += [file_record(download_dir / name, download_dir) for name in changed]
    files = tuple(sorted(records, key=lambda record: record.path))
    manifest = BaseManifest(
        source=model.source,
        revision=source.revision,
        architecture=config.architecture,
        files=files,
        digest=tree_digest(files),
        unused_tensors=accounting.unused,
        copied_tensors=copies,
        text_part=accounting.text_part,
        license=facts,
        applied_license=applied,
    )
    return manifest, intake


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
