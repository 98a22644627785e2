"""Import a file of `quantline export`: publish its releases in a registry or image layout.

Each release gets the tag of its own version and variant, whatever the file calls it. Such a tag
never moves.
"""

from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.oci.archive import Archive
from pipeline.oci.blob import Advance, Blob, bytes_blob
from pipeline.oci.records import Descriptor
from pipeline.oci.store import Store, is_published, push_once, read_blob, transfer
from pipeline.records.release import MODELFILE, release_tag
from pipeline.registry.evidence import NewEvidence, attach, find_evidence
from pipeline.registry.evidence_kinds import REFERRERS_TAG
from pipeline.registry.ollama_files import push_ollama_model
from pipeline.registry.ollama_manifest import ollama_model
from pipeline.registry.places import open_reference
from pipeline.registry.stored_release import StoredRelease, read_release


def run(workspace: Workspace, *, file: Path, place: str | None) -> None:
    """Publish the releases in the archive `file`.

    Raises InputError for a file without releases, a `place` that names a release, or a tag that
    names something else there; FailureError when the store fails.
    """
    archive = Archive(file)
    store, name = open_reference(workspace, place)
    if name is not None:
        raise InputError(f"{place}: expected HOST/REPOSITORY or oci:DIRECTORY without a tag")
    tags = [tag for tag in archive.tags() if not REFERRERS_TAG.fullmatch(tag)]
    if not tags:
        raise InputError(f"{file}: no release in it")
    for release in [read_release(archive, tag) for tag in tags]:
        _publish(archive, store, release)


def _publish(archive: Archive, store: Store, release: StoredRelease) -> None:
    package = release.package
    tag = release_tag(package.version, package.variant)
    evidence = find_evidence(archive, release.digest)
    is_published(store, release.digest, tag)  # raises before anything is sent for a taken tag

    def push(blob: Descriptor, advance: Advance) -> None:
        store.push_blob(archive.blob(blob), advance)

    total_bytes = sum(blob.size for blob in release.blobs)
    transfer(release.blobs, push, label=f"import {package.title}", total_bytes=total_bytes)
    push_once(store, bytes_blob(release.stored.data, release.stored.descriptor.media_type), tag)
    new_evidence = [
        NewEvidence(
            piece.kind,
            Blob(piece.manifest, piece.manifest_data),
            tuple(archive.blob(blob) for blob in piece.blobs),
        )
        for piece in evidence
    ]
    attach(store, release.digest, new_evidence)
    if package.format == "gguf" and MODELFILE in release.contents.files:
        modelfile = read_blob(archive, release.contents.files[MODELFILE])
        push_ollama_model(store, ollama_model(package, modelfile.decode(errors="replace")))
    print(f"{store.reference(tag)}: {package.title}, {release.digest}")
