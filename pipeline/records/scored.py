"""Reading of evaluations: the record and the rows that belong to it."""

from pathlib import Path

from pydantic import ValidationError

from pipeline.core.errors import InputError
from pipeline.core.files import read_bytes, read_record
from pipeline.core.record import first_problem, sha256_hex
from pipeline.core.workspace import BASE, Workspace
from pipeline.records.evaluation import Control, DocumentRecord, Engine, EvaluationRecord, Scored


def read_scored(workspace: Workspace, name: str) -> Scored:
    """Read an evaluation with its rows. Raises InputError for missing or different rows."""
    record = read_evaluation(workspace, name)
    rows = _read_rows(workspace.documents_path(name), record.documents_sha256, name)
    return Scored(record, rows)


def read_base_in(workspace: Workspace, base: Scored, engine: Engine, *, name: str) -> Scored:
    """Read the base as the engine of variant `name` scored it: its evaluation or a control.

    Differences between engines are then no part of what a variant lost. Raises InputError when the
    base was not scored by the same version of this engine on the same kind of device.
    """
    control = control_in(workspace, base.record, engine, name=name)
    if control is None:
        return base
    path = workspace.control_documents_path(control.backend)
    record = base.record.model_copy(
        update={
            "backend": control.backend,
            "backend_version": control.backend_version,
            "device": control.device,
            "tasks": control.tasks,
            "perplexity": control.perplexity,
        }
    )
    return Scored(record, _read_rows(path, control.documents_sha256, BASE))


def control_in(
    workspace: Workspace, base: EvaluationRecord, engine: Engine, *, name: str
) -> Control | None:
    """Find the base's control in the engine of variant `name`; None for the base's own engine.

    Raises InputError where the base was not scored in that engine.
    """
    if base.engine == engine:
        return None
    controls = base.controls.values()
    for control in controls:
        if control.engine == engine:
            return control
    scored_by = ", ".join(map(str, (base.engine, *(control.engine for control in controls))))
    raise InputError(
        f"{workspace.evaluation_path(BASE)}: the base was scored by {scored_by}; expected {engine} "
        f"too, which scores {name}: run `quantline evaluate base` again on a machine like this one"
    )


def read_evaluation(workspace: Workspace, name: str) -> EvaluationRecord:
    """Read the record of an evaluation without its rows. Raises InputError when it is missing."""
    return read_record(
        EvaluationRecord, workspace.evaluation_path(name), made_by=f"evaluate {name}"
    )


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
