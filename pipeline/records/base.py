"""The manifests of fetch: `base.manifest.json` of the base, and that of a calibration data set."""

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.files import read_record
from pipeline.core.record import Record
from pipeline.core.workspace import Workspace
from pipeline.records.licenses import AppliedLicense, DataLicense, LicenseFacts


class BaseManifest(Record):
    """The source of the base checkpoint and all its files.

    `source` is the value of `model.source` that it was fetched by. `revision` is the full commit of
    a hub model, else None. `architecture` is the first of `architectures` in config.json. `license`
    is the license that its files state, `applied_license` the one that applies. `unused_tensors`
    are those that the model does not read, such as prediction heads, sorted by name.
    `copied_tensors` are output heads that equal the embedding which config.json ties them to;
    variants leave them out.
    """

    source: str
    revision: str | None
    architecture: str
    files: tuple[FileRecord, ...]
    digest: Sha256
    unused_tensors: tuple[str, ...]
    copied_tensors: tuple[str, ...]
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
    """Read the manifest of the base. Raises InputError when it is missing or damaged."""
    return read_record(BaseManifest, workspace.base_manifest_path, made_by="fetch")
