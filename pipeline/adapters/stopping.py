"""When the evaluation of a variant may stop: the gate's sequential rule on the base's answers.

The base is scored whole before; a variant is compared with it after each look. What the rule is,
`pipeline.domain.sequential` says.
"""

from pipeline.adapters.lm_eval_run import Rows, Stopping
from pipeline.adapters.scored_files import read_base_in, read_scored
from pipeline.domain.gate import next_step
from pipeline.domain.gate_params import GateParams
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.suites import Suite


def stopping_rule(
    layout: Layout, gate: GateParams, suite: Suite, name: str, *, backend: str, bits: float
) -> Stopping | None:
    """The rule for a variant of so many bits per weight; None where all documents are scored.

    Raises InputError when the base has not been evaluated, or on other documents.
    """
    if gate.sequential is None:
        return None
    base = read_base_in(layout, read_scored(layout, BASE), backend)
    margins, limits = suite.margins(gate.margin), gate.classes[gate.class_of(bits)]

    def open_tasks(rows: Rows) -> tuple[str, ...]:
        return next_step(base, rows, margins, limits, gate, name=name).open_tasks

    return Stopping(gate.sequential.looks, open_tasks)
