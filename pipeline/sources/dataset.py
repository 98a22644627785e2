"""Download the data files of a calibration data set at a pinned commit, and verify them.

Only files that hold data are taken, never a loading script or any other file.
`pipeline.core.documents` reads the documents in them later.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import constants

from pipeline.core.data_files import EXPECTED_SUFFIXES, data_suffix
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import (
    directory_records,
    read_record,
    readable_disk_errors,
    remove_tree,
    replace_directory,
    require_free_space,
    write_record,
)
from pipeline.core.progress import ByteProgress, note
from pipeline.core.workspace import Workspace
from pipeline.params.hub_source import parse_dataset_source
from pipeline.params.params import DatasetParams
from pipeline.records.base import DatasetManifest
from pipeline.records.licenses import DataLicense
from pipeline.sources.hub import open_hub

WILDCARDS = "*?["
DOWNLOAD_SUFFIX = ".download"
KEY = "calibration.dataset.files"


def fetch_dataset(
    workspace: Workspace, dataset: DatasetParams | None, license: DataLicense
) -> None:
    """Write `artifacts/calibration`: the data set's files and their manifest.

    Without a data set there is a manifest only. Raises InputError for a source or files that cannot
    be used, FailureError when a transfer fails.
    """
    present = _intact_manifest(workspace, dataset)
    if present is not None:
        if present.license != license:
            manifest = present.model_copy(update={"license": license})
            write_record(workspace.dataset_manifest_path, manifest)
        return
    target = workspace.calibration_dir
    download_dir = target.with_name(target.name + DOWNLOAD_SUFFIX)
    data_dir = download_dir / workspace.dataset_dir.name
    with readable_disk_errors(target):
        data_dir.mkdir(parents=True, exist_ok=True)
        _download(dataset, data_dir)
        source, patterns = _wanted(dataset)
        files = directory_records(data_dir)
        manifest = DatasetManifest(source=source, patterns=patterns, files=files, license=license)
        write_record(download_dir / workspace.dataset_manifest_path.name, manifest)
        replace_directory(download_dir, target)


def _intact_manifest(workspace: Workspace, dataset: DatasetParams | None) -> DatasetManifest | None:
    """Return the manifest of an earlier run, if its files are whole and those asked for now."""
    path = workspace.dataset_manifest_path
    if not path.is_file() or not workspace.dataset_dir.is_dir():
        return None
    manifest = read_record(DatasetManifest, path, made_by="fetch")
    if (manifest.source, manifest.patterns) != _wanted(dataset):
        return None
    return manifest if directory_records(workspace.dataset_dir) == manifest.files else None


def _wanted(dataset: DatasetParams | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the source and the patterns of the parameters, as a manifest has them."""
    return (dataset.source, dataset.files) if dataset else (None, ())


def _download(dataset: DatasetParams | None, data_dir: Path) -> None:
    if dataset is None:
        _prune(data_dir, ())
        return
    source = parse_dataset_source(dataset.source)
    if constants.is_offline_mode():
        for pattern in dataset.files:
            if any(wildcard in pattern for wildcard in WILDCARDS):
                raise InputError(
                    f"{KEY}: {short_repr(pattern)}: HF_HUB_OFFLINE is set, and the cache does not "
                    "say whether it has every such file; name the files one by one"
                )
    hub = open_hub(source, known_file=dataset.files[0])
    sizes = hub.sizes()
    names = chosen_files(dataset.files, sizes)
    _prune(data_dir, names)
    missing = sum(sizes[name] for name in names if not (data_dir / name).exists())
    require_free_space(data_dir, missing)
    note(f"fetch: {len(names)} files of {source}")
    total = sum(sizes[name] for name in names)
    with ByteProgress("fetch: calibration data", total_bytes=total) as progress:
        for name in names:
            hub.take(name, data_dir, advance=progress.advance)
    _prune(data_dir, names)


def chosen_files(patterns: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    """Return the names that a pattern matches, sorted.

    Raises InputError for a pattern that matches none, and for a file that is no data file.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            there = sorted(name for name in names if data_suffix(name))[:5]
            raise InputError(
                f"{KEY}: {short_repr(pattern)}: no such file in the data set; data files there: "
                f"{', '.join(there) or 'none'}"
            )
        chosen |= matches
    for name in sorted(chosen):
        if data_suffix(name) is None:
            raise InputError(
                f"{KEY}: {short_repr(name)}: expected {EXPECTED_SUFFIXES}; choose other files"
            )
    return tuple(sorted(chosen))


def _prune(data_dir: Path, names: Collection[str]) -> None:
    """Remove every other file, temporary ones of downloads, and empty directories."""
    for path in data_dir.rglob("*"):
        if not path.is_dir() and path.relative_to(data_dir).as_posix() not in names:
            remove_tree(path)
    for path in sorted(data_dir.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
