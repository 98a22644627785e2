"""Pair the evaluations of the base and of a variant, document by document.

Evaluations of different tasks, texts or bases are refused. `pipeline.gate.verdicts` decides.
"""

from math import isclose
from statistics import fmean

from pipeline.core.errors import InputError
from pipeline.gate.paired import RATES, PairedTask, paired_task
from pipeline.gate.sequential import ordered, require_documents, sizes_so_far
from pipeline.params.gate import SequentialParams
from pipeline.records.evaluation import (
    Distance,
    DocumentRecord,
    EvaluationRecord,
    Rows,
    Scored,
    TaskScore,
)


def history_of(
    base: Scored, own_rows: Rows, sequential: SequentialParams | None, *, name: str
) -> dict[str, tuple[PairedTask, ...]]:
    """Pair the rows that variant `name` has so far, for each task after each look.

    Raises InputError for documents or prompts that are not the base's, for a number of them at
    which no look is planned, for fewer documents than looks, and for a metric that is not computed
    from its documents in a known way.
    """
    for task, score in base.record.tasks.items():
        require_documents(task, score.num_documents, sequential)
        _require_known_score(score, rows_of(base.rows, task), task)
    return {
        task: _looks(*row_pairs(base.rows, own_rows, task, name=name), score, sequential, name)
        for task, score in base.record.tasks.items()
    }


def _looks(
    base_rows: Rows,
    own_rows: Rows,
    score: TaskScore,
    sequential: SequentialParams | None,
    name: str,
) -> tuple[PairedTask, ...]:
    try:
        sizes = sizes_so_far(len(own_rows), score.num_documents, sequential)
    except InputError as error:
        raise InputError(
            f"{name}: {own_rows[0].task}: {error}; run `quantline evaluate {name}` again"
        ) from error
    return tuple(
        paired_task(
            base_rows[:size],
            own_rows[:size],
            metric=score.metric,
            higher_is_better=score.higher_is_better,
        )
        for size in sizes
    )


def _require_known_score(score: TaskScore, rows: Rows, task: str) -> None:
    """Raise InputError unless the score is a mean over documents or one of RATES."""
    values = [row.metrics.get(score.metric) for row in rows]
    if score.metric in RATES and None not in values:
        return
    numbers = [value for value in values if isinstance(value, float)]
    known = numbers and len(numbers) == len(values)
    if not known or not isclose(fmean(numbers), score.value, abs_tol=1e-6):
        raise InputError(
            f"{task}: {score.metric} is no mean over documents, so the gate cannot compare it "
            "document by document; name another metric in eval/suites.yaml"
        )


def comparable_distance(base: EvaluationRecord, own: EvaluationRecord) -> Distance:
    """Return the variant's distance to the base.

    Raises InputError when the two were scored on different tasks, texts or bases.
    """
    comparisons = {
        "base": own.base_digest == base.artifact_digest and own.distance is not None,
        "suite": own.suite == base.suite,
        "set of tasks": _task_facts(own) == _task_facts(base),
        "text": own.token_ids_sha256 == base.token_ids_sha256,
    }
    for what, is_same in comparisons.items():
        if not is_same:
            raise _not_alike(own.name, what)
    assert own.distance is not None
    return own.distance


def rows_of(rows: Rows, task: str) -> list[DocumentRecord]:
    """Return the rows of a task, in the order of a sequential evaluation."""
    return ordered([row for row in rows if row.task == task])


def row_pairs(
    base_rows: Rows, own_rows: Rows, task: str, *, name: str
) -> tuple[list[DocumentRecord], list[DocumentRecord]]:
    """Return the base's and the variant's rows of the documents that variant `name` was scored on.

    Raises InputError when these are not the base's first documents, with the same prompts.
    """
    own = rows_of(own_rows, task)
    base = rows_of(base_rows, task)[: len(own)]
    if not own or list(map(_identity, own)) != list(map(_identity, base)):
        raise _not_alike(name, f"set of documents of {task}")
    return base, own


def _identity(row: DocumentRecord) -> tuple[int, str, str]:
    return row.doc_id, row.doc_hash, row.prompt_hash


def _task_facts(evaluation: EvaluationRecord) -> dict[str, tuple[str, str]]:
    return {name: (score.metric, score.version) for name, score in evaluation.tasks.items()}


def _not_alike(name: str, what: str) -> InputError:
    return InputError(
        f"{name}: evaluated with another {what} than the base; run "
        f"`quantline evaluate base` and `quantline evaluate {name}` again"
    )


def task_recovery(base: TaskScore, variant: TaskScore) -> float:
    """Compute variant ÷ base, or base ÷ variant where lower is better; above 1 is better.

    A base with a score of 0 cannot get worse, and a variant with an error of 0 cannot get better:
    both count as 1.
    """
    if base.higher_is_better:
        return variant.value / base.value if base.value > 0 else 1.0
    return base.value / variant.value if variant.value > 0 else 1.0
