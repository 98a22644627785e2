"""`base.manifest.json`: the fetched checkpoint; and the manifest of a fetched data set."""

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.files import read_record
from pipeline.core.record import Record
from pipeline.core.workspace import Workspace
from pipeline.records.licenses import AppliedLicense, LicenseFacts


class BaseManifest(Record):
    """The base checkpoint: where it came from and exactly what it is.

    `source` is the parameter it was fetched by; `revision` the full commit for a hub model and
    None otherwise; `architecture` the first entry of config.json's `architectures`; `license` what
    its files state and `applied_license` what follows. `unused_tensors` are those that the model
    does not read, such as prediction heads, sorted by name.
    """

    source: str
    revision: str | None
    architecture: str
    files: tuple[FileRecord, ...]
    digest: Sha256
    unused_tensors: tuple[str, ...]
    license: LicenseFacts
    applied_license: AppliedLicense

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.files if file.path.endswith(".safetensors"))


class DatasetManifest(Record):
    """The calibration data set of a hub that was fetched, and the names and patterns asked for.

    `source` is None and the rest empty when there is none.
    """

    source: str | None
    patterns: tuple[str, ...]
    files: tuple[FileRecord, ...]


def read_base_manifest(workspace: Workspace) -> BaseManifest:
    """Raises InputError when there is none or it is damaged."""
    return read_record(BaseManifest, workspace.base_manifest_path, made_by="fetch")
