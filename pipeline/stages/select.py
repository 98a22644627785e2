"""Select: decide on every variant from the evaluations and the rules of `gate:`.

`selection.json` is also written when no variant passes, because the report shows that result.
"""

from pipeline.core.errors import InputError
from pipeline.core.files import read_record, write_record
from pipeline.core.progress import note
from pipeline.core.workspace import BASE, Workspace
from pipeline.gate.verdicts import ScoredVariant, decide
from pipeline.params.params import Params
from pipeline.params.suites import read_suite
from pipeline.records.base import read_base_manifest
from pipeline.records.evaluation import Scored
from pipeline.records.scored import read_base_in, read_scored
from pipeline.records.selection import Approved
from pipeline.records.variant import VariantRecord, quantized_bits


def run(workspace: Workspace, params: Params) -> None:
    """Write `selection.json` and `approved.json`.

    Raises InputError for missing or outdated evaluations.
    """
    manifest = read_base_manifest(workspace)
    base = read_scored(workspace, BASE)
    if base.record.artifact_digest != manifest.digest:
        raise InputError(
            f"{workspace.evaluation_path(BASE)}: scores another base; run "
            "`quantline evaluate base` again"
        )
    margins = _margins(workspace, base, params.gate.margin)
    variants = {name: _scored_variant(workspace, base, name) for name in params.variants}
    selection = decide(base.record, manifest.weight_bytes, variants, margins, params.gate)
    approved = {name: selection.variants[name].artifact_digest for name in selection.approved()}
    write_record(workspace.selection_path, selection)
    write_record(workspace.approved_path, Approved(base_digest=manifest.digest, variants=approved))
    for name, verdict in selection.variants.items():
        note(f"select: {name}: {verdict.verdict}: {'; '.join(verdict.reasons)}")
    for profile, choice in selection.choices.items():
        note(f"select: for {profile}: {choice.variant or 'none'}: {choice.reason}")


def _margins(workspace: Workspace, base: Scored, default: float) -> dict[str, float]:
    """Return the margin of each task. Raises InputError when the base was scored on others."""
    margins = read_suite(workspace.root, base.record.suite).margins(default)
    if margins.keys() != base.record.tasks.keys():
        raise InputError(
            f"{workspace.evaluation_path(BASE)}: scores other tasks than suite {base.record.suite} "
            "has now; run `dvc repro` again"
        )
    return margins


def _scored_variant(workspace: Workspace, base: Scored, name: str) -> ScoredVariant:
    variant = read_record(VariantRecord, workspace.variant_path(name), made_by=f"quantize {name}")
    own = read_scored(workspace, name)
    if own.record.artifact_digest != variant.digest:
        raise InputError(
            f"{workspace.evaluation_path(name)}: scores other files than the present {name}; run "
            f"`quantline evaluate {name}` again"
        )
    return ScoredVariant(
        base=read_base_in(workspace, base, own.record.engine, name=name),
        own=own,
        format=variant.recipe.format,
        bits_per_weight=quantized_bits(variant.coverage),
        weight_bytes=variant.weight_bytes,
    )
