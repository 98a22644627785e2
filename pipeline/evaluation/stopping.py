"""Stop the evaluation of a variant early, by the gate's sequential rule.

The base was scored on all documents before, and a variant is compared with it after each look. The
rule is in `pipeline.gate.sequential`.
"""

from pipeline.evaluation.task_runs import Rows, Stopping
from pipeline.params.gate import GateParams
from pipeline.params.suites import Suite
from pipeline.records.evaluation import Scored


def stopping_rule(
    base: Scored, gate: GateParams, suite: Suite, name: str, *, bits: float
) -> Stopping | None:
    """Return the rule for a variant of `bits` per weight; None where all documents are scored.

    `base` is the base in the variant's engine. Raises InputError for a task with fewer documents
    than looks, and the rule does so when the variant was scored on other documents than the base.
    """
    if gate.sequential is None:
        return None
    # Imported where it is needed: without it the rules of the gate are no part of an evaluation.
    from pipeline.gate.sequential import require_documents
    from pipeline.gate.verdicts import next_step

    for task, score in base.record.tasks.items():
        require_documents(task, score.num_documents, gate.sequential)
    margins, limits = suite.margins(gate.margin), gate.classes[gate.class_of(bits)]

    def open_tasks(rows: Rows) -> tuple[str, ...]:
        return next_step(base, rows, margins, limits, gate, name=name).open_tasks

    return Stopping(gate.sequential.looks, open_tasks)
