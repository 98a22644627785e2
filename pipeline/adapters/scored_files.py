"""Reading what evaluate left behind: the record and the rows that belong to it."""

from pathlib import Path

from pydantic import ValidationError

from pipeline.adapters.files import read_bytes, read_record
from pipeline.domain.comparison import Scored
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import DocumentRecord, EvaluationRecord
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.record import first_problem, sha256_hex


def read_scored(layout: Layout, name: str) -> Scored:
    """The evaluation of the base or of a variant. Raises InputError for missing or other rows."""
    record = read_evaluation(layout, name)
    rows = _read_rows(layout.documents_path(name), record.documents_sha256, name)
    return Scored(record, rows)


def read_base_in(layout: Layout, base: Scored, backend: str) -> Scored:
    """The base in the engine that scored a variant: itself, or the control in that engine.

    Differences between engines are then no part of what a variant lost.
    """
    control = base.record.controls.get(backend)
    if control is None:
        return base
    path = layout.control_documents_path(backend)
    record = base.record.model_copy(update={"tasks": control.tasks})
    return Scored(record, _read_rows(path, control.documents_sha256, BASE))


def read_evaluation(layout: Layout, name: str) -> EvaluationRecord:
    """The record alone."""
    return read_record(EvaluationRecord, layout.evaluation_path(name), made_by=f"evaluate {name}")


def _read_rows(path: Path, sha256: str, name: str) -> tuple[DocumentRecord, ...]:
    data = read_bytes(path, made_by=f"evaluate {name}")
    if sha256_hex(data) != sha256:
        raise InputError(
            f"{path}: not the rows that were scored; run `quantline evaluate {name}` again"
        )
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            rows.append(DocumentRecord.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {first_problem(error)}") from error
    return tuple(rows)
