"""The records in `inputs/`: small files that DVC compares in place of some parameters and files.

Some inputs cannot be dependencies of a stage themselves: a path that may be null, a value that
matters to one format alone, a rule that is switched off. The `inputs` stage writes each into a file
of its own, which changes exactly when the stage that reads it must run again.
"""

from pipeline.core.file_records import Sha256
from pipeline.core.record import Record
from pipeline.params.gate import GateClass, SequentialParams


class FileState(Record):
    """The state of a file: its digest, or the time of its last change (ns) where it is large."""

    name: str
    size: int
    sha256: Sha256 | None
    modified_ns: int | None


class NamedFiles(Record):
    """The files that a parameter names, sorted by name; empty where it names none.

    The stage that reads them checks every byte. This record only makes it run again.
    """

    files: tuple[FileState, ...]


class ReleaseNaming(Record):
    """The names that files of one format contain of the release; null for other formats."""

    name: str | None
    quantized_by: str | None


class StoppingRules(Record):
    """The parameters of the gate that stop a sequential evaluation; null where it is switched off.

    `code_sha256` is the digest of `pipeline/gate`, whose code decides it.
    """

    code_sha256: Sha256 | None
    error_rate: float | None
    margin: float | None
    classes: dict[str, GateClass] | None
    sequential: SequentialParams | None
