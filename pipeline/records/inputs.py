"""`inputs/`: what `params.yaml` names outside the graph, in one small file for each reader.

DVC compares the files that a stage depends on. A path that may be null, a value that matters to one
format alone and a rule that is switched off cannot be dependencies themselves. The `inputs` stage
writes each into a file of its own, which changes exactly when its reader has to run again.
"""

from pipeline.core.file_records import Sha256
from pipeline.core.record import Record
from pipeline.params.gate import GateClass, SequentialParams


class FileState(Record):
    """A file as it is now: its digest, or of a large one the time it was written (nanoseconds)."""

    name: str
    size: int
    sha256: Sha256 | None
    modified_ns: int | None


class NamedFiles(Record):
    """The files that a parameter names, sorted by name; empty where it names none.

    The stage that reads them checks every byte; this only says when it has to run again.
    """

    files: tuple[FileState, ...]


class ReleaseNaming(Record):
    """What the files of one format say about the release; null for a format that says nothing."""

    name: str | None
    quantized_by: str | None


class StoppingRules(Record):
    """The rules of the gate by which a sequential evaluation stops; null where none does.

    `code_sha256` is the digest of `pipeline/gate`, which decides it.
    """

    code_sha256: Sha256 | None
    error_rate: float | None
    margin: float | None
    classes: dict[str, GateClass] | None
    sequential: SequentialParams | None
