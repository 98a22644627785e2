"""The manifests of fetch: `base.manifest.json` of the base, and that of a calibration data set."""

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.files import read_record
from pipeline.core.record import Record
from pipeline.core.workspace import Workspace
from pipeline.records.licenses import AppliedLicense, DataLicense, LicenseFacts


class TextPart(Record):
    """The text model inside a checkpoint of several parts, which alone is quantized.

    `architecture` is the class that transformers has for it alone. `stored_prefix` starts the names
    of its tensors in the files, `module_prefix` their names in transformers' model of all parts:
    `language_model.model.` and `model.language_model.`. `other_parts` are the first names of the
    parts beside it, such as `vision_tower`, sorted.
    """

    architecture: str
    stored_prefix: str
    module_prefix: str
    other_parts: tuple[str, ...]

    def module_name(self, stored: str) -> str:
        """Return the name in transformers' model of a module of the text part in the files."""
        if not stored.startswith(self.stored_prefix):
            return stored
        return self.module_prefix + stored.removeprefix(self.stored_prefix)

    def is_of_other_part(self, stored: str) -> bool:
        """Tell whether a tensor of the files is of a part beside the text model."""
        return first_name(stored) in self.other_parts


def first_name(stored: str) -> str:
    """Return the name of the part that a tensor is of: `vision_tower`, with `model.` before it."""
    return stored.removeprefix("model.").partition(".")[0]


class BaseManifest(Record):
    """The source of the base checkpoint and all its files.

    `source` is the value of `model.source` that it was fetched by. `revision` is the full commit of
    a hub model, else None. `architecture` is the first of `architectures` in config.json. `license`
    is the license that its files state, `applied_license` the one that applies. `unused_tensors`
    are those that the text model does not read, such as prediction heads, sorted by name.
    `copied_tensors` are output heads that equal the embedding which config.json ties them to;
    variants leave them out. `text_part` is None where the whole model is of text.
    """

    source: str
    revision: str | None
    architecture: str
    files: tuple[FileRecord, ...]
    digest: Sha256
    unused_tensors: tuple[str, ...]
    copied_tensors: tuple[str, ...]
    text_part: TextPart | None = None
    license: LicenseFacts
    applied_license: AppliedLicense

    @property
    def text_architecture(self) -> str:
        """The architecture of the text model, by which its folds are known."""
        return self.text_part.architecture if self.text_part else self.architecture

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
