"""publish: the packages become releases in a registry, or in an OCI image layout on disk.

A tag names one content for ever: publishing the same packages again changes nothing, and a tag
that names something else stops the stage before anything is sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.adapters.files import file_sha256, read_bytes, write_record
from pipeline.adapters.oci_blob import Blob
from pipeline.adapters.oci_layout import ImageLayout
from pipeline.adapters.oci_registry import Registry
from pipeline.adapters.progress import note, track
from pipeline.domain.errors import InputError
from pipeline.domain.layout import Layout
from pipeline.domain.manifest import FileRecord
from pipeline.domain.oci import (
    FILE_PATH_ANNOTATION,
    MANIFEST_TYPE,
    Descriptor,
    blob_digest,
    layer,
    model_config,
    model_manifest,
)
from pipeline.domain.params import Params
from pipeline.domain.record import sha256_hex
from pipeline.domain.release import (
    MANIFEST_FILE,
    PackageEntry,
    PackageIndex,
    PackageManifest,
    PushedLayer,
    Receipt,
    Receipts,
    release_tag,
)


class Target(Protocol):
    """Where releases go."""

    def reference(self, tag: str) -> str: ...
    def tag_digest(self, tag: str) -> str | None: ...
    def push_blob(self, blob: Blob) -> None: ...
    def push_manifest(self, tag: str, manifest: Blob) -> None: ...


@dataclass(frozen=True)
class Release:
    """A package as a registry will hold it; nothing but its manifest.json is read for it."""

    variant: str
    tag: str
    directory: Path
    files: tuple[FileRecord, ...]
    layers: tuple[Blob, ...]
    config: Blob
    manifest: Blob


def run(layout: Layout, params: Params) -> None:
    """Publish every package of packages.json and write receipts.json.

    Raises InputError when a tag is taken or a package was changed, FailureError when the registry
    fails; the same command then continues with what is missing.
    """
    index = PackageIndex.from_bytes(
        read_bytes(layout.packages_path, made_by="package"), source=str(layout.packages_path)
    )
    target = _target(layout, params)
    releases = [_release(layout, entry) for entry in index.packages]
    waiting = [release for release in releases if not _is_published(target, release)]
    for release in waiting:
        _verify(release)
        _push(target, release)
    write_record(layout.receipts_path, _receipts(target, releases, params))


def _target(layout: Layout, params: Params) -> Target:
    if params.registry.url is None:
        shown_as = layout.registry_dir.relative_to(layout.root).as_posix()
        return ImageLayout(layout.registry_dir, shown_as=shown_as)
    return Registry(params.registry.url, params.registry.repository)


def _release(layout: Layout, entry: PackageEntry) -> Release:
    directory = layout.package_dir(entry.variant)
    path = directory / MANIFEST_FILE
    data = read_bytes(path, made_by="package")
    if sha256_hex(data) != entry.manifest_sha256:
        raise InputError(f"{path}: not the one that packages.json names; run `quantline package`")
    package = PackageManifest.from_bytes(data, source=str(path))
    manifest_file = FileRecord(path=MANIFEST_FILE, size=len(data), sha256=sha256_hex(data))
    files = tuple(sorted((*package.files, manifest_file), key=lambda file: file.path))
    layers = tuple(layer(file) for file in files)
    config_record = model_config(package, layers)
    config = config_record.to_bytes()
    manifest_record = model_manifest(package, config=config, layers=layers)
    manifest = manifest_record.to_bytes()
    return Release(
        variant=entry.variant,
        tag=release_tag(package.version, package.variant),
        directory=directory,
        files=files,
        layers=tuple(
            Blob(descriptor, directory / file.path)
            for descriptor, file in zip(layers, files, strict=True)
        ),
        config=Blob(manifest_record.config, config),
        manifest=Blob(
            Descriptor(media_type=MANIFEST_TYPE, digest=blob_digest(manifest), size=len(manifest)),
            manifest,
        ),
    )


def _is_published(target: Target, release: Release) -> bool:
    """Whether the tag names this very content. Raises InputError when it names another."""
    existing = target.tag_digest(release.tag)
    if existing is None:
        return False
    if existing != release.manifest.descriptor.digest:
        raise InputError(
            f"{target.reference(release.tag)}: already names another content ({existing}), and "
            "tags never move; raise release.version"
        )
    return True


def _verify(release: Release) -> None:
    """Raise InputError when a file is not the one that was packaged."""
    for file in release.files:
        path = release.directory / file.path
        if not path.is_file() or path.is_symlink() or file_sha256(path) != file.sha256:
            raise InputError(
                f"{path}: missing or changed since it was packaged; run `quantline package` again"
            )


def _push(target: Target, release: Release) -> None:
    note(f"publish {target.reference(release.tag)}")
    blobs = (*release.layers, release.config)
    for blob in track(blobs, f"publish {release.variant}", total=len(blobs)):
        target.push_blob(blob)
    if not _is_published(target, release):  # somebody else may have been faster
        target.push_manifest(release.tag, release.manifest)


def _receipts(target: Target, releases: Iterable[Release], params: Params) -> Receipts:
    return Receipts(
        registry=params.registry.url,
        repository=params.registry.repository,
        releases={
            release.variant: Receipt(
                reference=target.reference(release.tag),
                tag=release.tag,
                manifest_digest=release.manifest.descriptor.digest,
                config_digest=release.config.descriptor.digest,
                layers=tuple(_pushed(blob.descriptor) for blob in release.layers),
            )
            for release in releases
        },
    )


def _pushed(descriptor: Descriptor) -> PushedLayer:
    return PushedLayer(
        path=(descriptor.annotations or {})[FILE_PATH_ANNOTATION],
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
    )
