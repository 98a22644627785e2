"""Bringing the evaluations of the base and of a variant together, document by document.

It refuses what was not measured alike; it judges nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.domain.drops import History
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import Distance, DocumentRecord, EvaluationRecord, TaskScore
from pipeline.domain.paired import PairedTask, paired_task
from pipeline.domain.params import SequentialParams
from pipeline.domain.sequential import ordered, sizes_so_far

Rows = Sequence[DocumentRecord]
RowPairs = tuple[list[DocumentRecord], list[DocumentRecord]]


@dataclass(frozen=True)
class Scored:
    """An evaluation with its rows."""

    record: EvaluationRecord
    rows: Rows

    def of_task(self, task: str) -> list[DocumentRecord]:
        """A task's rows, in the order that a sequential evaluation takes."""
        return ordered([row for row in self.rows if row.task == task])


@dataclass(frozen=True)
class Comparison:
    """What the gate judges: of every task the pairs at each look, and the scores of base and
    variant; the distance, and how many tokens it is over."""

    history: History
    scores: Mapping[str, tuple[TaskScore, TaskScore]]
    distance: Distance
    num_tokens: int


def compare(base: Scored, own: Scored, sequential: SequentialParams | None) -> Comparison:
    """Raises InputError when the two were not scored alike."""
    distance = comparable_distance(base.record, own.record)
    return Comparison(
        history=history_of(base, own, sequential),
        scores={task: (it, own.record.tasks[task]) for task, it in base.record.tasks.items()},
        distance=distance,
        num_tokens=own.record.num_tokens,
    )


def history_of(base: Scored, own: Scored, sequential: SequentialParams | None) -> History:
    """The pairs of every task after each look. Raises InputError for other documents."""
    return {task: _looks(base, own, task, sequential) for task in base.record.tasks}


def _looks(
    base: Scored, own: Scored, task: str, sequential: SequentialParams | None
) -> tuple[PairedTask, ...]:
    """The pairs of a task after each look at it."""
    score = base.record.tasks[task]
    base_rows, own_rows = row_pairs(base, own, task)
    try:
        sizes = sizes_so_far(len(own_rows), score.num_documents, sequential)
    except InputError as error:
        name = own.record.name
        raise InputError(
            f"{name}: {task}: {error}; run `quantline evaluate {name}` again"
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


def comparable_distance(base: EvaluationRecord, own: EvaluationRecord) -> Distance:
    """The variant's distance to the base. Raises InputError when they were not scored alike."""
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


def row_pairs(base: Scored, own: Scored, task: str) -> RowPairs:
    """The documents of a task that the variant was scored on, in both evaluations.

    Raises InputError when they are not the first ones of the base's, prompt by prompt.
    """
    own_rows = own.of_task(task)
    base_rows = base.of_task(task)[: len(own_rows)]
    if not own_rows or list(map(_identity, own_rows)) != list(map(_identity, base_rows)):
        raise _not_alike(own.record.name, f"set of documents of {task}")
    return base_rows, own_rows


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
    """How much of the base's score the variant has: 1 is all, above 1 is better than the base.

    Variant ÷ base, or base ÷ variant where lower is better. A base that scores nothing has nothing
    to lose, and a variant without any error cannot be better: both count as 1.
    """
    if base.higher_is_better:
        return variant.value / base.value if base.value > 0 else 1.0
    return base.value / variant.value if variant.value > 0 else 1.0
