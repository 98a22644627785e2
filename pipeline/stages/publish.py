"""Publish the packages as releases in a registry, or in an OCI image layout on disk.

A tag names the same content for ever. A tag that names something else stops the stage before
anything is sent. Publishing the same packages again changes nothing, but repairs damaged blobs of a
layout. The evidence of a release, such as its bill of materials, is attached to it. A GGUF release
gets a second manifest for Ollama, with the same weights.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.file_records import Digest, FileRecord
from pipeline.core.files import file_record, read_bytes, read_record, write_record
from pipeline.core.progress import note
from pipeline.core.record import sha256_hex
from pipeline.core.workspace import Workspace
from pipeline.oci.blob import Blob, bytes_blob
from pipeline.oci.records import MANIFEST_TYPE, Descriptor
from pipeline.oci.store import Store, is_published, push_once, transfer
from pipeline.params.params import Params
from pipeline.records.release import (
    MANIFEST_FILE,
    SIGNATURE_SUFFIX,
    PackageEntry,
    PackageIndex,
    PackageManifest,
    PushedEvidence,
    PushedLayer,
    Receipt,
    Receipts,
    release_tag,
)
from pipeline.registry.evidence import attach, new_evidence
from pipeline.registry.evidence_kinds import (
    EVALUATION,
    EVALUATION_SUFFIX,
    EvidenceKind,
    kind_of_file,
)
from pipeline.registry.modelpack import layer, model_config, model_manifest
from pipeline.registry.ollama_files import push_ollama_model, read_ollama_model
from pipeline.registry.ollama_manifest import OllamaModel
from pipeline.registry.places import open_place, place_of


@dataclass(frozen=True)
class EvidenceFile:
    """Hold a file of evidence, and its name in the release."""

    kind: EvidenceKind
    name: str
    path: Path
    record: FileRecord

    @property
    def blob(self) -> Blob:
        """Return the file as a blob with the media type of its kind."""
        descriptor = Descriptor(
            media_type=self.kind.media_type,
            digest=self.record.digest,
            size=self.record.size,
        )
        return Blob(descriptor, self.path)


@dataclass(frozen=True)
class Release:
    """Hold a package as blobs and manifests of a registry. Weights are not read for it."""

    variant: str
    tag: str
    directory: Path
    files: tuple[FileRecord, ...]
    layers: tuple[Blob, ...]
    config: Blob
    manifest: Blob
    evidence: tuple[EvidenceFile, ...]
    ollama: OllamaModel | None

    @property
    def digest(self) -> Digest:
        """Return the digest of the manifest."""
        return self.manifest.descriptor.digest


def run(workspace: Workspace, params: Params) -> None:
    """Publish every package of packages.json and write receipts.json.

    Raises InputError when a tag names something else or a package was changed, FailureError when
    the registry fails. The same command then continues with what is missing.
    """
    index = read_record(PackageIndex, workspace.packages_path, made_by="package")
    store = open_place(workspace, place_of(workspace, params.registry))
    releases = list(
        _one_for_each_ollama_tag(_release(workspace, entry) for entry in index.packages)
    )
    for release in releases:
        is_published(store, release.digest, release.tag)  # raises when the tag is taken
        _verify(release)
    for release in releases:
        _push(store, release)
        _attach_evidence(store, release)
    write_record(workspace.receipts_path, _receipts(store, releases, params))


def _release(workspace: Workspace, entry: PackageEntry) -> Release:
    directory = workspace.package_dir(entry.variant)
    path = directory / MANIFEST_FILE
    data = read_bytes(path, made_by="package")
    if sha256_hex(data) != entry.manifest_sha256:
        raise InputError(f"{path}: not the one that packages.json names; run `quantline package`")
    package = PackageManifest.from_bytes(data, source=str(path), made_by="package")
    manifest_file = FileRecord(path=MANIFEST_FILE, size=len(data), sha256=sha256_hex(data))
    files = tuple(sorted((*package.files, manifest_file), key=lambda file: file.path))
    layers = tuple(layer(file) for file in files)
    config = model_config(package, layers).to_bytes()
    manifest_record = model_manifest(package, config=config, layers=layers)
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
        manifest=bytes_blob(manifest_record.to_bytes(), MANIFEST_TYPE),
        evidence=tuple(_evidence(workspace, entry, package)),
        ollama=read_ollama_model(package, directory) if package.format == "gguf" else None,
    )


def _one_for_each_ollama_tag(releases: Iterable[Release]) -> Iterator[Release]:
    """Give each tag of Ollama to the first variant that wants it.

    These tags name the quantization alone, so that variants can share one.
    """
    taken: set[str] = set()
    for release in releases:
        tag = release.ollama.tag if release.ollama else None
        if tag is None or tag not in taken:
            yield release
        else:
            note(f"publish {release.variant}: an earlier variant has Ollama's tag {tag}")
            yield replace(release, ollama=None)
        taken |= {tag} if tag else set()


def _evidence(
    workspace: Workspace, entry: PackageEntry, package: PackageManifest
) -> Iterable[EvidenceFile]:
    """Return the evidence beside the package, and the evaluation that approved it.

    A signature may have been added later by a person, without a key of the pipeline. Raises
    InputError for a file that is missing or changed.
    """
    records = {record.path: record for record in entry.evidence}
    signature = workspace.packages_dir / (entry.variant + SIGNATURE_SUFFIX)
    if signature.is_file():
        records.setdefault(signature.name, file_record(signature, workspace.packages_dir))
    for record in records.values():
        if kind := kind_of_file(record.path):
            path = workspace.packages_dir / record.path
            if not path.is_file() or file_record(path, path.parent).sha256 != record.sha256:
                raise InputError(
                    f"{path}: missing or changed since it was made; run `quantline package`"
                )
            yield EvidenceFile(kind, record.path, path, record)
    path = workspace.evaluation_path(entry.variant)
    if not path.is_file():
        raise InputError(f"{path}: missing; run `dvc repro` again")
    record = file_record(path, path.parent)
    if record.sha256 != package.evaluation_sha256:
        raise InputError(f"{path}: not the one the package was made from; run `dvc repro` again")
    yield EvidenceFile(EVALUATION, entry.variant + EVALUATION_SUFFIX, path, record)


def _verify(release: Release) -> None:
    """Raise InputError when a file is missing or has another size than the packaged one.

    Digests are compared while the files are sent. The tag is set after all of them were right.
    """
    for file in release.files:
        path = release.directory / file.path
        if not path.is_file() or path.is_symlink() or path.stat().st_size != file.size:
            raise InputError(
                f"{path}: missing or changed since it was packaged; run `quantline package` again"
            )


def _push(store: Store, release: Release) -> None:
    note(f"publish {store.reference(release.tag)}")
    blobs = {blob.descriptor.digest: blob for blob in (*release.layers, release.config)}
    transfer(
        list(blobs.values()),
        store.push_blob,
        label=f"publish {release.variant}",
        total_bytes=sum(blob.descriptor.size for blob in blobs.values()),
    )
    push_once(store, release.manifest, release.tag)  # somebody else may have been faster


def _attach_evidence(store: Store, release: Release) -> None:
    """Attach the evidence, and push the second manifest of a GGUF release."""
    subject = release.manifest.descriptor
    evidence = [new_evidence(subject, file.kind, file.blob, file.name) for file in release.evidence]
    attach(store, release.digest, evidence)
    if release.ollama is not None:
        push_ollama_model(store, release.ollama)


def _receipts(store: Store, releases: Iterable[Release], params: Params) -> Receipts:
    return Receipts(
        registry=params.registry.url,
        repository=params.registry.repository,
        releases={
            release.variant: Receipt(
                reference=store.reference(release.tag),
                tag=release.tag,
                manifest_digest=release.digest,
                config_digest=release.config.descriptor.digest,
                layers=tuple(
                    PushedLayer(
                        path=file.path,
                        media_type=blob.descriptor.media_type,
                        digest=blob.descriptor.digest,
                        size=blob.descriptor.size,
                    )
                    for file, blob in zip(release.files, release.layers, strict=True)
                ),
                evidence=tuple(
                    PushedEvidence(kind=file.kind.name, digest=file.blob.descriptor.digest)
                    for file in release.evidence
                ),
                ollama_tag=release.ollama.tag if release.ollama else None,
            )
            for release in releases
        },
    )
