"""What accompanies a release in a registry: its signature, bill of materials, provenance, results.

Each is an artifact of its own whose `subject` is the release's manifest. Registries without the
referrers API keep the list of them under the tag `sha256-<hex of the subject>`.

Formats: https://github.com/opencontainers/distribution-spec/blob/main/spec.md (Referrers Tag
Schema) and https://github.com/opencontainers/image-spec/blob/main/manifest.md (artifacts).
"""

import re
from dataclasses import dataclass
from typing import Final

from pipeline.oci.records import (
    EMPTY_CONTENT,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    TITLE_ANNOTATION,
    Descriptor,
    ImageIndex,
    ImageManifest,
    descriptor_of,
)
from pipeline.records.release import BOM_SUFFIX, PROVENANCE_SUFFIX, SIGNATURE_SUFFIX

EVALUATION_SUFFIX: Final = ".evaluation.json"
MAX_EVIDENCE_BYTES: Final = 16 << 20
MAX_REFERRERS: Final = 100
REFERRERS_TAG: Final = re.compile(r"sha256-[0-9a-f]{64}")


@dataclass(frozen=True)
class EvidenceKind:
    """`suffix` ends the name of the file beside a package: `NAME.bom.json`."""

    name: str
    suffix: str
    media_type: str


# https://docs.sigstore.dev/about/bundle/ (model-signing writes one),
# https://cyclonedx.org/specification/overview and https://github.com/in-toto/attestation
SIGNATURE: Final = EvidenceKind(
    "signature", SIGNATURE_SUFFIX, "application/vnd.dev.sigstore.bundle.v0.3+json"
)
BOM: Final = EvidenceKind("bom", BOM_SUFFIX, "application/vnd.cyclonedx+json")
PROVENANCE: Final = EvidenceKind("provenance", PROVENANCE_SUFFIX, "application/vnd.in-toto+json")
EVALUATION: Final = EvidenceKind(
    "evaluation", EVALUATION_SUFFIX, "application/vnd.quantline.evaluation.v1+json"
)
EVIDENCE_KINDS: Final = (SIGNATURE, BOM, PROVENANCE, EVALUATION)
# What a release must have to pass `quantline verify`; a signature too, where a key signs it.
REQUIRED_EVIDENCE: Final = (BOM, PROVENANCE, EVALUATION)


def kind_of_file(name: str) -> EvidenceKind | None:
    """Return the kind of evidence in a file beside a package, by its name."""
    return next((kind for kind in EVIDENCE_KINDS if name.endswith(kind.suffix)), None)


def kind_of(artifact_type: str | None) -> EvidenceKind | None:
    """Return the kind of evidence that an artifact's type means."""
    return next((kind for kind in EVIDENCE_KINDS if kind.media_type == artifact_type), None)


def referrers_tag(digest: str) -> str:
    """Return the tag under which a registry without the API keeps the referrers of `digest`."""
    return digest.replace(":", "-")


def evidence_manifest(
    kind: EvidenceKind, content: Descriptor, *, file_name: str, subject: Descriptor
) -> ImageManifest:
    """Return the manifest of one piece of evidence. Its bytes depend on the arguments alone."""
    return ImageManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=kind.media_type,
        config=descriptor_of(EMPTY_CONTENT, EMPTY_TYPE),
        layers=(content.model_copy(update={"annotations": {TITLE_ANNOTATION: file_name}}),),
        subject=subject,
    )


def with_referrer(index: ImageIndex, referrer: Descriptor) -> ImageIndex:
    """Return the index with one more referrer, once."""
    if any(entry.digest == referrer.digest for entry in index.manifests):
        return index
    return index.model_copy(update={"manifests": (*index.manifests, referrer)})
