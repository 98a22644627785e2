"""select: the verdict on every variant, from the evaluations and the thresholds of `gate:`.

Always ends in a `selection.json`, also when nothing passes: that is a result as well, and the
report shows it.
"""

from pipeline.adapters.files import read_bytes, write_record
from pipeline.adapters.manifest_file import read_base_manifest
from pipeline.adapters.progress import note
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import EvaluationRecord
from pipeline.domain.gate import Candidate, decide
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.params import Params
from pipeline.domain.quantized import VariantRecord


def run(layout: Layout, params: Params) -> None:
    """Write `artifacts/selection.json`. Raises InputError for missing or outdated evaluations."""
    base = read_base_manifest(layout)
    base_evaluation = _evaluation(layout, BASE)
    if base_evaluation.artifact_digest != base.digest:
        raise InputError(
            f"{layout.evaluation_path(BASE)}: of another base; run `quantline evaluate base` again"
        )
    candidates = {name: _candidate(layout, name) for name in params.variants}
    selection = decide(base_evaluation, base.weight_bytes, candidates, params.gate)
    write_record(layout.selection_path, selection)
    for name, it in selection.variants.items():
        note(f"select: {name}: {it.verdict}: {'; '.join(it.reasons)}")


def _evaluation(layout: Layout, name: str) -> EvaluationRecord:
    path = layout.evaluation_path(name)
    data = read_bytes(path, made_by=f"evaluate {name}")
    return EvaluationRecord.from_bytes(data, source=str(path))


def _candidate(layout: Layout, name: str) -> Candidate:
    path = layout.variant_path(name)
    data = read_bytes(path, made_by=f"quantize {name}")
    variant = VariantRecord.from_bytes(data, source=str(path))
    evaluation = _evaluation(layout, name)
    if evaluation.artifact_digest != variant.digest:
        raise InputError(
            f"{layout.evaluation_path(name)}: of another {name}; run "
            f"`quantline evaluate {name}` again"
        )
    return Candidate(
        evaluation=evaluation, format=variant.recipe.format, weight_bytes=variant.weight_bytes
    )
