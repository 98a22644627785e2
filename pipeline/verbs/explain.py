"""explain: why a variant got its verdict, from what select, evaluate and quantize left behind.

It runs no model and writes nothing.
"""

from pipeline.core.errors import InputError
from pipeline.core.files import read_record
from pipeline.core.workspace import BASE, Layout
from pipeline.params.params import Params
from pipeline.records.scored import read_base_in, read_scored
from pipeline.records.selection import Selection
from pipeline.records.statistics import VariantRecord
from pipeline.tasks.questions import read_questions
from pipeline.verbs.explain_facts import explanation, hardest_flips


def run(layout: Layout, params: Params, name: str) -> None:
    """Print the explanation. Raises InputError for a name without a verdict."""
    path = layout.selection_path
    selection = read_record(Selection, path, made_by="select")
    if name not in selection.variants:
        known = ", ".join(selection.variants)
        raise InputError(f"{name}: no verdict in {path}; variants there: {known}")
    verdict = selection.variants[name]
    own = read_scored(layout, name)
    if own.record.artifact_digest != verdict.artifact_digest:
        raise InputError(f"{path}: of another {name}; run `quantline select` again")
    variant = read_record(VariantRecord, layout.variant_path(name), made_by=f"quantize {name}")
    base = read_base_in(layout, read_scored(layout, BASE), own.record.engine, name=name)
    flips = hardest_flips(base, own)
    questions = read_questions(layout.root, own.record.suite, [it.key for it in flips])
    print("\n".join(explanation(name, verdict, flips, questions, variant.coverage)), flush=True)
