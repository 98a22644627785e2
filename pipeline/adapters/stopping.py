"""When the evaluation of a variant may stop: the gate's sequential rule on the base's answers.

The base is scored whole before; a variant is compared with it after each look. What the rule is,
`pipeline.domain.sequential` and `pipeline.domain.drops` say.
"""

from pipeline.adapters.lm_eval_run import Rows, Stopping
from pipeline.adapters.scored_files import read_base_in, read_scored
from pipeline.domain.comparison import Scored, history_of
from pipeline.domain.drops import after_look
from pipeline.domain.gate import class_margins
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.params import GateParams
from pipeline.domain.suites import Suite


def stopping_rule(
    layout: Layout, gate: GateParams, suite: Suite, name: str, *, backend: str, bits: float
) -> Stopping | None:
    """The rule for a variant of so many bits per weight; None where all documents are scored.

    Raises InputError when the base has not been evaluated, or on other documents.
    """
    sequential = gate.sequential
    if sequential is None:
        return None
    base = read_base_in(layout, read_scored(layout, BASE), backend)
    own_record = base.record.model_copy(update={"name": name})
    margins = class_margins(suite.margins(gate.margin), gate.classes[gate.class_of(bits)])

    def open_tasks(rows: Rows) -> tuple[str, ...]:
        history = history_of(base, Scored(own_record, rows), sequential)
        return after_look(history, margins, sequential, gate.error_rate).open_tasks

    return Stopping(sequential.looks, open_tasks)
