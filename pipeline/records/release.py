"""What package and publish leave behind: the records of a package, of all packages, of receipts."""

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
# Beside the directory of a package, after its name.
BOM_SUFFIX: Final = ".bom.json"
PROVENANCE_SUFFIX: Final = ".provenance.json"
SIGNATURE_SUFFIX: Final = ".signature.json"
GENERATED_FILES: Final = (MANIFEST_FILE, LICENSE_FILE, NOTICE_FILE, CARD_FILE, MODELFILE)


Version = Annotated[str, Field(pattern=SEMANTIC_VERSION)]
VariantName = Annotated[str, Field(pattern=rf"^{VARIANT_NAME.pattern}$")]


class ReleaseLicense(Record):
    """The license of a release.

    `id` is the model card's identifier; `expression` the SPDX one, with a `LicenseRef-…` for a
    license that SPDX does not list, whose `link` is then the file LICENSE. `text_sha256` is of that
    file. `display_text` has to be shown wherever the release is offered; `conditions` bind whoever
    receives it, and so does the policy at `use_policy_url`.
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
    """The text a release was calibrated on: its name, its license, and what that demands.

    `license` is an SPDX expression, or `own` for data of whoever made the release.
    """

    name: str
    license: str
    conditions: tuple[str, ...]
    text_sha256: Sha256


class BaseReference(Record):
    """The checkpoint a release was made from. `revision` is the commit of a hub model."""

    name: str
    revision: str | None
    digest: Sha256


class PackageManifest(Record):
    """`manifest.json` of a package: what it is, what it was made from, and every other file.

    `quantizer` is the program that found the integers, with its version; `quantized_by` who ran it.
    `variant_digest`, `statistics_digest` and the base's digest are those of the records that
    quantize, calibrate and fetch wrote; `evaluation_sha256` is of the bytes of evaluation.json.
    `signing_key_sha256` is of the public half of the key that signs it (DER), null where none does.
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

    `evidence` are the files beside the package's directory: bill of materials, provenance and, when
    it is signed, signature.
    """

    variant: VariantName
    manifest_sha256: Sha256
    evidence: tuple[FileRecord, ...]
    num_files: int
    size_bytes: int


class PackageIndex(Record):
    """`packages.json`: what was packaged, in the order of `params.yaml`."""

    packages: tuple[PackageEntry, ...]


class PushedLayer(Record):
    """One file of a release as the registry holds it. `digest` is `sha256:…`, `size` in bytes."""

    path: str
    media_type: str
    digest: str
    size: int


class PushedEvidence(Record):
    """One file that accompanies a release: its kind, such as `bom`, and digest."""

    kind: str
    digest: str


class Receipt(Record):
    """One published release: its reference by tag, the same by digest, and its blobs.

    `ollama_tag` is the tag of its second manifest, from which `ollama pull` takes a GGUF release.
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
    """`receipts.json`. `registry` is the server's URL, or null for the OCI image layout."""

    registry: str | None
    repository: str
    releases: dict[str, Receipt]


def release_tag(version: str, variant: str) -> str:
    return f"{version}-{variant}"
