"""`intake.json`: what was odd about a checkpoint, and what was done about it."""

from collections.abc import Sequence

from pipeline.core.file_records import FileRecord
from pipeline.core.files import read_record
from pipeline.core.record import Record
from pipeline.core.workspace import Workspace


class Finding(Record):
    """Something in a file of a checkpoint that tools read differently, or cannot read.

    `file` is its name; `found` what stands there, `done` what quantline did, each a clause.
    """

    file: str
    found: str
    done: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.file}: {self.found}: {self.done}"


class Intake(Record):
    """The findings, in the order in which the files were examined.

    `originals` are the records of files as the source has them, which stand mended in the base;
    `added` are files of the base that the source does not have.
    """

    findings: tuple[Finding, ...]
    originals: tuple[FileRecord, ...]
    added: tuple[str, ...]

    def files_of_source(self, files: Sequence[FileRecord]) -> tuple[FileRecord, ...]:
        """Return the records of a base's files as the source has them."""
        originals = {record.path: record for record in self.originals}
        return tuple(
            originals.get(record.path, record) for record in files if record.path not in self.added
        )


def read_intake(workspace: Workspace) -> Intake:
    """Raises InputError when there is none or it is damaged."""
    return read_record(Intake, workspace.intake_path, made_by="fetch")
