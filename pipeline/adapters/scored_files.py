"""Reading what evaluate left behind: the record and the rows that belong to it."""

from pathlib import Path

from pydantic import ValidationError

from pipeline.adapters.files import read_bytes
from pipeline.domain.comparison import Scored
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import DocumentRecord, EvaluationRecord
from pipeline.domain.layout import Layout
from pipeline.domain.record import first_problem, sha256_hex


def read_scored(layout: Layout, name: str) -> Scored:
    """The evaluation of the base or of a variant. Raises InputError for missing or other rows."""
    record = read_evaluation(layout, name)
    path = layout.documents_path(name)
    data = read_bytes(path, made_by=f"evaluate {name}")
    if sha256_hex(data) != record.documents_sha256:
        raise InputError(
            f"{path}: not the rows that were scored; run `quantline evaluate {name}` again"
        )
    return Scored(record, _rows(data, path))


def read_evaluation(layout: Layout, name: str) -> EvaluationRecord:
    """The record alone."""
    path = layout.evaluation_path(name)
    data = read_bytes(path, made_by=f"evaluate {name}")
    return EvaluationRecord.from_bytes(data, source=str(path))


def _rows(data: bytes, path: Path) -> tuple[DocumentRecord, ...]:
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            rows.append(DocumentRecord.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {first_problem(error)}") from error
    return tuple(rows)
