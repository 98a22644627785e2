"""Evidence of a release in a store: attached to its manifest, and found again.

Stores with the referrers API list referrers themselves. For the others the list is kept under the
tag that the specification reserves for it, which, unlike a version's, moves with every addition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.errors import FailureError, InputError
from pipeline.oci.blob import Blob, bytes_blob, no_progress
from pipeline.oci.records import (
    EMPTY_CONTENT,
    EMPTY_INDEX,
    EMPTY_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    ImageIndex,
    ImageManifest,
    descriptor_of,
)
from pipeline.oci.store import (
    DamagedManifestError,
    ReadableStore,
    Store,
    StoredManifest,
    read_blob,
)
from pipeline.registry.evidence_kinds import (
    MAX_EVIDENCE_BYTES,
    MAX_REFERRERS,
    EvidenceKind,
    evidence_manifest,
    kind_of,
    referrers_tag,
    with_referrer,
)


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence that a store holds: its manifest, and the blobs that this names."""

    kind: EvidenceKind
    manifest: Descriptor
    manifest_data: bytes
    config: Descriptor
    content: Descriptor

    @property
    def blobs(self) -> tuple[Descriptor, Descriptor]:
        """Return the blobs that the manifest names."""
        return self.config, self.content


@dataclass(frozen=True)
class NewEvidence:
    """Evidence on its way into a store: its manifest, and the blobs that this names."""

    kind: EvidenceKind
    manifest: Blob
    blobs: tuple[Blob, ...]


def new_evidence(subject: Descriptor, kind: EvidenceKind, file: Blob, name: str) -> NewEvidence:
    """Return a file as evidence of the release whose manifest is `subject`."""
    record = evidence_manifest(kind, file.descriptor, file_name=name, subject=subject)
    manifest = bytes_blob(record.to_bytes(), MANIFEST_TYPE)
    return NewEvidence(kind, manifest, (bytes_blob(EMPTY_CONTENT, EMPTY_TYPE), file))


def attach(store: Store, subject: str, evidence: Sequence[NewEvidence]) -> None:
    """Store evidence of the release with the digest `subject`, each piece once."""
    for piece in evidence:
        for blob in piece.blobs:
            store.push_blob(blob, no_progress)
        if not _is_stored(store, piece.manifest.descriptor.digest):
            store.push_manifest(piece.manifest)
    if store.referrers(subject) is not None:
        return
    with store.exclusive():
        try:
            before = after = _list(store, subject)
        except DamagedManifestError:  # what it listed is lost, and it begins anew
            before = after = EMPTY_INDEX
        for piece in evidence:
            after = with_referrer(after, _listed(piece.kind, piece.manifest.descriptor))
        if after != before:
            store.push_manifest(bytes_blob(after.to_bytes(), INDEX_TYPE), referrers_tag(subject))


def _is_stored(store: Store, digest: str) -> bool:
    """Whether the store has the manifest with this digest, whole."""
    try:
        return store.manifest(digest) is not None
    except DamagedManifestError:
        return False


def referrers_index(evidence: Sequence[Evidence]) -> StoredManifest:
    """Return the list of a release's evidence, as stores without the referrers API keep it."""
    index = EMPTY_INDEX.model_copy(
        update={"manifests": tuple(_listed(piece.kind, piece.manifest) for piece in evidence)}
    )
    data = index.to_bytes()
    return StoredManifest(descriptor_of(data, INDEX_TYPE), data)


def _listed(kind: EvidenceKind, manifest: Descriptor) -> Descriptor:
    return manifest.model_copy(update={"artifact_type": kind.media_type})


def find_evidence(store: ReadableStore, digest: str) -> tuple[Evidence, ...]:
    """Return the evidence of the release with this digest, of the kinds we know, by kind.

    Raises InputError or FailureError when the list, or what it names, is damaged or contradictory.
    """
    listed = store.referrers(digest)
    if listed is None:
        listed = _list(store, digest).manifests
    if len(listed) > MAX_REFERRERS:
        raise InputError(f"{store.reference(digest)}: {len(listed)} referrers, too many to read")
    found = [_read(store, entry, kind, digest) for entry in listed if (kind := _kind(store, entry))]
    return tuple(sorted(found, key=lambda piece: (piece.kind.name, piece.manifest.digest)))


def _kind(store: ReadableStore, entry: Descriptor) -> EvidenceKind | None:
    """Return the kind of a referrer: as listed, or else as its manifest says.

    Some registries, such as go-containerregistry's, list the type of the config instead of the
    artifact's, and ours is empty.
    """
    if entry.artifact_type not in (None, EMPTY_TYPE):
        return kind_of(entry.artifact_type)
    stored = store.manifest(entry.digest)
    if stored is None:
        return None
    source = store.reference(entry.digest)
    return kind_of(ImageManifest.from_untrusted(stored.data, source=source).artifact_type)


def _read(store: ReadableStore, entry: Descriptor, kind: EvidenceKind, subject: str) -> Evidence:
    source = f"{store.reference(entry.digest)} ({kind.name})"
    stored = store.manifest(entry.digest)
    if stored is None or stored.descriptor.size != entry.size:
        raise FailureError(f"{source}: listed as evidence of {subject}, and not there")
    manifest = ImageManifest.from_untrusted(stored.data, source=source)
    if manifest.subject is None or manifest.subject.digest != subject:
        raise FailureError(f"{source}: evidence of another release than {subject}")
    if manifest.artifact_type != kind.media_type or len(manifest.layers) != 1:
        raise FailureError(f"{source}: expected one file that is a {kind.name}")
    if manifest.config.size > MAX_MANIFEST_BYTES or manifest.layers[0].size > MAX_EVIDENCE_BYTES:
        raise FailureError(f"{source}: larger than any {kind.name} is")
    return Evidence(kind, stored.descriptor, stored.data, manifest.config, manifest.layers[0])


def read_evidence(store: ReadableStore, evidence: Evidence) -> bytes:
    """Return the file, verified by its digest."""
    return read_blob(store, evidence.content, limit=MAX_EVIDENCE_BYTES)


def _list(store: ReadableStore, digest: str) -> ImageIndex:
    tag = referrers_tag(digest)
    stored = store.manifest(tag)
    if stored is None:
        return EMPTY_INDEX
    return ImageIndex.from_untrusted(stored.data, source=store.reference(tag))
