"""Verify that a release is whole, consistent, licensed, and signed by the expected signer.

The license and the evidence must be there, and the parts of the release must agree. Where the
caller names the signer, by a public key or an identity, the signature must cover exactly the files
of the release; else it is reported and not checked. At last every byte is compared with its digest.
No file is kept. An image layout needs no network.
"""

import json
from pathlib import Path

from pipeline.core.errors import FailureError, InputError
from pipeline.core.workspace import Workspace
from pipeline.oci.blob import Advance
from pipeline.oci.records import Descriptor
from pipeline.oci.store import ReadableStore, transfer, verified_chunks
from pipeline.records.licenses import LICENSE_FILE
from pipeline.registry.evidence import Evidence, find_evidence, read_evidence
from pipeline.registry.evidence_kinds import EVALUATION, REQUIRED_EVIDENCE, SIGNATURE
from pipeline.registry.places import open_release
from pipeline.registry.stored_release import StoredRelease, read_release
from pipeline.release.signature_check import Identity, KeyOwner, Signer, check_signature


def run(
    workspace: Workspace,
    *,
    ref: str,
    key: Path | None,
    identity: str | None,
    issuer: str | None,
    trusted_root: Path | None,
) -> None:
    """Print what was verified.

    Raises FailureError that names the first fault of the release, InputError for a wrong `ref`, key
    or identity.
    """
    signer = _signer(key, identity, issuer, trusted_root)
    store, name = open_release(workspace, ref)
    release = read_release(store, name)
    evidence = find_evidence(store, release.digest)
    _require_evidence(store, release, evidence)
    if signer is not None:
        _check_signature(store, release, evidence, signer)
        signature = f"by {signer}"
    else:
        signed = any(piece.kind is SIGNATURE for piece in evidence)
        signature = "there, not checked (--key or --identity says whose)" if signed else "none"
    _read_every_byte(store, release)
    kinds = ", ".join(dict.fromkeys(piece.kind.name for piece in evidence))
    print(f"{release.reference}: {release.package.title}, {release.digest}")
    print(f"digests of {len(release.contents.files)} files: right")
    print(f"license: {release.package.license.expression}, with its text")
    print(f"evidence: {kinds}")
    print(f"signature: {signature}")


def _signer(
    key: Path | None, identity: str | None, issuer: str | None, trusted_root: Path | None
) -> Signer | None:
    """Return the expected signer; None where the caller names none. Raises InputError."""
    if (identity is None) != (issuer is None):
        raise InputError("--identity and --issuer: expected both; anybody can issue any name")
    if key is not None and identity is not None:
        raise InputError("--key and --identity: expected one of them")
    if trusted_root is not None and identity is None:
        raise InputError("--trusted-root: expected --identity and --issuer as well")
    if identity is not None and issuer is not None:
        return Identity(identity, issuer, trusted_root)
    return KeyOwner(key) if key is not None else None


def _require_evidence(
    store: ReadableStore, release: StoredRelease, evidence: tuple[Evidence, ...]
) -> None:
    if release.contents.files[LICENSE_FILE].size == 0:
        raise FailureError(f"{release.reference}: {LICENSE_FILE} is empty")
    found = {piece.kind for piece in evidence}
    required = [*REQUIRED_EVIDENCE]
    if release.package.signing_key_sha256 is not None:
        required.append(SIGNATURE)
    missing = [kind.name for kind in required if kind not in found]
    if missing:
        raise FailureError(
            f"{release.reference}: no {' and no '.join(missing)}; `quantline publish` attaches "
            "what is missing, and `quantline export` and `import` carry it along"
        )
    for piece in evidence:
        try:
            json.loads(read_evidence(store, piece))
        except (ValueError, RecursionError) as error:
            raise FailureError(f"{release.reference}: its {piece.kind.name} is no JSON") from error
    evaluations = {piece.content.digest.hex for piece in evidence if piece.kind is EVALUATION}
    if release.package.evaluation_sha256 not in evaluations:
        raise FailureError(f"{release.reference}: its evaluation is of another release")


def _read_every_byte(store: ReadableStore, release: StoredRelease) -> None:
    def read(blob: Descriptor, advance: Advance) -> None:
        for chunk in verified_chunks(store, blob):
            advance(len(chunk))

    total_bytes = sum(blob.size for blob in release.blobs)
    transfer(release.blobs, read, label=f"verify {release.package.title}", total_bytes=total_bytes)


def _check_signature(
    store: ReadableStore, release: StoredRelease, evidence: tuple[Evidence, ...], signer: Signer
) -> None:
    """Raise the error of the last signature unless one of them is right."""
    signatures = [piece for piece in evidence if piece.kind is SIGNATURE]
    if not signatures:
        raise FailureError(f"{release.reference}: no signature")
    files = release.contents.file_records()
    for number, signature in enumerate(signatures, start=1):
        source = store.reference(signature.manifest.digest)
        try:
            check_signature(read_evidence(store, signature), files, signer=signer, source=source)
        except FailureError:
            if number == len(signatures):
                raise
        else:
            return
