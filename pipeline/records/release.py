"""The records of package and publish: manifests of packages, their index, and receipts."""

from typing import Annotated, Final

from pydantic import Field

from pipeline.core.file_records import FileRecord, Sha256, tree_digest
from pipeline.core.record import Record
from pipeline.params.params import SEMANTIC_VERSION, VARIANT_NAME, Audience
from pipeline.records.licenses import LICENSE_FILE

MANIFEST_FILE: Final = "manifest.json"
NOTICE_FILE: Final = "NOTICE"
CARD_FILE: Final = "README.md"
MODELFILE: Final = "Modelfile"
# Files beside the directory of a package have its name and one of these suffixes.
BOM_SUFFIX: Final = ".bom.json"
PROVENANCE_SUFFIX: Final = ".provenance.json"
SIGNATURE_SUFFIX: Final = ".signature.json"
GENERATED_FILES: Final = (MANIFEST_FILE, LICENSE_FILE, NOTICE_FILE, CARD_FILE, MODELFILE)


Version = Annotated[str, Field(pattern=SEMANTIC_VERSION)]
VariantName = Annotated[str, Field(pattern=rf"^{VARIANT_NAME.pattern}$")]


class ReleaseLicense(Record):
    """The license of a release.

    `id` is the model card's identifier. `expression` is that of SPDX, or `LicenseRef-…` for a
    license that SPDX does not list; `link` is then the file LICENSE. `text_sha256` is of that file.
    `display_text` must be shown wherever the release is offered. `conditions` and the policy at
    `use_policy_url` bind everyone who receives it.
    """

    id: str
    name: str
    expression: str
    link: str | None
    text_sha256: Sha256
    display_text: str | None
    notice_text: str | None
    use_policy_url: str | None
    conditions: tuple[str, ...]


class CalibrationReference(Record):
    """The calibration text of a release: its name, its license and the license's conditions.

    `license` is an SPDX expression, or `own` for data of the maker of the release.
    """

    name: str
    license: str
    conditions: tuple[str, ...]
    text_sha256: Sha256


class BaseReference(Record):
    """The checkpoint that a release was made from. `revision` is the commit of a hub model."""

    name: str
    revision: str | None
    digest: Sha256


class PackageManifest(Record):
    """The `manifest.json` of a package: its properties, its inputs and every other file.

    `quantizer` is the program that found the integers, with its version; `quantized_by` names who
    ran it. `variant_digest`, `statistics_digest` and the base's digest are those of the records
    that quantize, calibrate and fetch wrote. `evaluation_sha256` is of the bytes of
    evaluation.json. `signing_key_sha256` is of the public key (DER) that verifies its signature,
    null where it is not signed.
    """

    name: str
    version: Version
    variant: VariantName
    format: str
    quantization: str
    quantizer: str
    bits_per_weight: float
    num_parameters: int
    model_type: str
    languages: tuple[str, ...]
    quantized_by: str
    audience: Audience
    commercial: bool
    license: ReleaseLicense
    calibration: CalibrationReference
    base: BaseReference
    statistics_digest: Sha256
    variant_digest: Sha256
    evaluation_sha256: Sha256
    signing_key_sha256: Sha256 | None
    files: tuple[FileRecord, ...]

    @property
    def title(self) -> str:
        return f"{self.name} {self.version} {self.variant}"

    @property
    def digest(self) -> str:
        return tree_digest(self.files)


class PackageEntry(Record):
    """One package of the index; `manifest_sha256` is of the bytes of its manifest.json.

    `evidence` are the files beside the package's directory: bill of materials, provenance and, for
    a signed package, the signature.
    """

    variant: VariantName
    manifest_sha256: Sha256
    evidence: tuple[FileRecord, ...]
    num_files: int
    size_bytes: int


class PackageIndex(Record):
    """All of `packages.json`: the packages in the order of `params.yaml`."""

    packages: tuple[PackageEntry, ...]


class PushedLayer(Record):
    """One file of a release in the registry. `digest` is `sha256:…`, `size` is in bytes."""

    path: str
    media_type: str
    digest: str
    size: int


class PushedEvidence(Record):
    """One file of evidence of a release: its kind, such as `bom`, and its digest."""

    kind: str
    digest: str


class Receipt(Record):
    """One published release: its reference, its tag and the digests of its blobs.

    `ollama_tag` is the tag of the second manifest of a GGUF release, which `ollama pull` reads.
    """

    reference: str
    tag: str
    manifest_digest: str
    config_digest: str
    layers: tuple[PushedLayer, ...]
    evidence: tuple[PushedEvidence, ...]
    ollama_tag: str | None

    @property
    def size_bytes(self) -> int:
        return sum(layer.size for layer in self.layers)


class Receipts(Record):
    """All of `receipts.json`. `registry` is the server's URL, or null for the OCI image layout."""

    registry: str | None
    repository: str
    releases: dict[str, Receipt]


def release_tag(version: str, variant: str) -> str:
    """Return the tag of a release, such as `1.2.0-awq-w4-g128`."""
    return f"{version}-{variant}"
