"""`base.manifest.json`: the fetched checkpoint; and the manifest of a fetched data set."""

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.files import read_record
from pipeline.core.record import Record
from pipeline.core.workspace import Workspace
from pipeline.records.licenses import AppliedLicense, DataLicense, LicenseFacts


class BaseManifest(Record):
    """The base checkpoint: where it came from and exactly what it is.

    `source` is the parameter it was fetched by; `revision` the full commit for a hub model and
    None otherwise; `architecture` the first entry of config.json's `architectures`; `license` what
    its files state and `applied_license` what follows.
    """

    source: str
    revision: str | None
    architecture: str
    files: tuple[FileRecord, ...]
    digest: Sha256
    license: LicenseFacts
    applied_license: AppliedLicense

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.files if file.path.endswith(".safetensors"))


class DatasetManifest(Record):
    """Describe the calibration data: its license, and the data set of a hub that was fetched.

    `patterns` are the names and patterns of files that were asked for. `source` is None, and there
    are no patterns and files, where the text is a file of the user's.
    """

    source: str | None
    patterns: tuple[str, ...]
    files: tuple[FileRecord, ...]
    license: DataLicense


def read_base_manifest(workspace: Workspace) -> BaseManifest:
    """Raises InputError when there is none or it is damaged."""
    return read_record(BaseManifest, workspace.base_manifest_path, made_by="fetch")
