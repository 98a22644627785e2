"""Export a release with its evidence into one file, for a site without a network."""

from pathlib import Path

from pipeline.core.progress import ByteProgress
from pipeline.core.workspace import Workspace
from pipeline.oci.archive import write_archive
from pipeline.oci.records import REF_NAME_ANNOTATION, Descriptor
from pipeline.oci.store import StoredManifest
from pipeline.records.release import release_tag
from pipeline.registry.evidence import find_evidence, referrers_index
from pipeline.registry.evidence_kinds import referrers_tag
from pipeline.registry.places import open_release
from pipeline.registry.stored_release import read_release


def run(workspace: Workspace, *, ref: str, file: Path) -> None:
    """Write the archive `file`; when it fails there is no file.

    Raises InputError when `ref` is no release, FailureError when the store fails or a blob is
    damaged.
    """
    store, name = open_release(workspace, ref)
    release = read_release(store, name)
    evidence = find_evidence(store, release.digest)
    index = referrers_index(evidence)
    manifests = (
        release.stored,
        index,
        *(StoredManifest(piece.manifest, piece.manifest_data) for piece in evidence),
    )
    all_blobs = [*release.blobs, *(blob for piece in evidence for blob in piece.blobs)]
    blobs = tuple({blob.digest: blob for blob in all_blobs}.values())
    tag = release_tag(release.package.version, release.package.variant)
    total_bytes = sum(blob.size for blob in blobs)
    with ByteProgress(f"export {release.package.title}", total_bytes=total_bytes) as progress:
        write_archive(
            file,
            store,
            blobs,
            manifests,
            (
                _tagged(release.stored.descriptor, tag),
                _tagged(index.descriptor, referrers_tag(release.digest)),
            ),
            progress.advance,
        )
    print(f"{file}: {release.package.title}, {release.digest}")


def _tagged(manifest: Descriptor, tag: str) -> Descriptor:
    return manifest.model_copy(update={"annotations": {REF_NAME_ANNOTATION: tag}})
