"""Make the report's tables of scores, tensors, digests and releases from the records.

Numbers are rounded here for reading. The verdicts were reached on the exact numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.workspace import BASE
from pipeline.licensing.rule import LicenseRule
from pipeline.params.params import Params
from pipeline.params.prices import PriceList
from pipeline.records.base import BaseManifest
from pipeline.records.benchmarks import Benchmarks
from pipeline.records.evaluation import Engine, EvaluationRecord, TaskScore
from pipeline.records.intake import Intake
from pipeline.records.licenses import DataLicense
from pipeline.records.release import Receipt, Receipts
from pipeline.records.selection import Selection, Verdict
from pipeline.records.statistics import StatisticsRecord, skipped_text
from pipeline.records.variant import VariantRecord
from pipeline.records.wording import kept_reasons, perplexity_text, schemes, standard_error
from pipeline.report.verdicts import VerdictRow, base_row, verdict_row


@dataclass(frozen=True)
class Facts:
    """Hold all records of a run. `benchmarks` and `receipts` are None where there are none yet."""

    params: Params
    base: BaseManifest
    intake: Intake
    license_rule: LicenseRule
    data_license: DataLicense
    statistics: StatisticsRecord
    selection: Selection
    base_evaluation: EvaluationRecord
    evaluations: Mapping[str, EvaluationRecord]
    variants: Mapping[str, VariantRecord]
    prices: PriceList
    benchmarks: Benchmarks | None
    receipts: Receipts | None


@dataclass(frozen=True)
class ScoreCell:
    """Hold a score and its standard error, which may be empty."""

    value: str
    error: str


@dataclass(frozen=True)
class CoverageRow:
    """Count a variant's tensors by stored scheme, and by the reason to differ from the recipe."""

    name: str
    quantizer: str
    bits_per_weight: str
    num_tensors: int
    schemes: Mapping[str, int]
    reasons: Mapping[str, int]


def verdict_rows(facts: Facts) -> tuple[VerdictRow, ...]:
    """Return a row for the base, then for every variant in the order of `params.yaml`."""
    rows = [base_row(facts.selection)]
    for name, verdict in facts.selection.variants.items():
        receipt = published(facts, name)
        rows.append(verdict_row(name, verdict, reference=receipt.reference if receipt else None))
    return tuple(rows)


def published(facts: Facts, name: str) -> Receipt | None:
    """Return the receipt of a variant, or None unless this run approved and published it."""
    if facts.receipts is None or facts.selection.variants[name].verdict is not Verdict.APPROVED:
        return None
    return facts.receipts.releases.get(name)


def task_rows(facts: Facts) -> tuple[tuple[str, dict[str, ScoreCell]], ...]:
    """Return the name of every task with its metric, and its scores by model."""
    evaluations = {BASE: facts.base_evaluation, **facts.evaluations}
    rows = []
    for task, score in facts.base_evaluation.tasks.items():
        label = f"{task} ({score.metric}, {score.num_documents} documents)"
        cells = {name: _cell(model.tasks.get(task)) for name, model in evaluations.items()}
        rows.append((label, cells))
    perplexities = {
        name: ScoreCell(perplexity_text(model.perplexity), "")
        for name, model in evaluations.items()
    }
    return (*rows, ("perplexity on held-out text (lower is better)", perplexities))


def engine_sentence(facts: Facts) -> str:
    """Return which engine computed the scores of each model."""
    models_of: dict[Engine, list[str]] = {}
    for name, evaluation in {BASE: facts.base_evaluation, **facts.evaluations}.items():
        models_of.setdefault(evaluation.engine, []).append(name)
    engines = "; ".join(f"{', '.join(names)} in {engine}" for engine, names in models_of.items())
    return (
        f"Scored: {engines}. Verdicts compare each variant with the base in the variant's engine."
    )


def _cell(score: TaskScore | None) -> ScoreCell:
    return ScoreCell(f"{score.value:.3f}", standard_error(score)) if score else ScoreCell("–", "")


def coverage_rows(facts: Facts) -> tuple[CoverageRow, ...]:
    """Return a row for each variant."""
    return tuple(
        CoverageRow(
            name=name,
            quantizer=record.quantizer,
            bits_per_weight=f"{record.bits_per_weight:.2f}",
            num_tensors=len(record.coverage),
            schemes=schemes(record.coverage),
            reasons=kept_reasons(record.coverage),
        )
        for name, record in facts.variants.items()
    )


def calibration_sentence(facts: Facts) -> str:
    """Return what the statistics come from, and how overlap with the evaluation was avoided."""
    record, check = facts.statistics, facts.statistics.decontamination
    calibration = record.calibration
    origin = calibration.dataset.source if calibration.dataset else calibration.text
    compared = ", ".join(texts.name for texts in check.compared)
    return (
        f"Calibrated on {record.num_tokens:,} tokens ({record.num_samples} samples of "
        f"{calibration.max_seq_length}) of {origin}, license {facts.data_license}. "
        f"{check.num_contaminated_dropped} of {check.num_documents_drawn} documents were dropped "
        f"because they share {check.ngram_words} words in a row with an evaluation document; "
        f"compared with {compared}."
        + (f" {skipped_text(record.skipped)}." if record.skipped else "")
        + (f" The chat template was told {record.template_date}." if record.template_date else "")
    )


def provenance_rows(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return a name with its sha256 or commit for everything that the run was made from."""
    rows = [("base checkpoint", facts.base.digest)]
    if facts.base.revision:
        rows.insert(0, ("base revision (commit)", facts.base.revision))
    statistics = {record.statistics_digest for record in facts.variants.values()}
    rows += [("calibration statistics", digest) for digest in sorted(statistics)]
    rows += [
        ("calibration text", facts.statistics.text_sha256),
        ("calibration token ids", facts.statistics.token_ids_sha256),
        *(
            (f"compared with calibration: {texts.name} ({texts.num_texts} texts)", texts.sha256)
            for texts in facts.statistics.decontamination.compared
        ),
        ("held-out text", facts.base_evaluation.text_sha256),
        ("evaluated token ids", facts.base_evaluation.token_ids_sha256),
    ]
    for name, record in facts.variants.items():
        rows.append((name, record.digest))
        receipt = published(facts, name)
        if receipt:
            rows.append((f"{name}, published manifest", receipt.manifest_digest))
    if facts.params.release.signing_key is None:
        rows.append(("signature of the releases", "none: release.signing_key is null"))
    return tuple(rows)


def pull_commands(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return the name of every published variant, and the command that downloads its files."""
    if facts.receipts is None:
        return ()
    commands = []
    for name in facts.selection.approved():
        receipt = published(facts, name)
        if receipt is None:
            continue
        source = receipt.reference.removeprefix("oci:")
        layout = "--oci-layout " if source != receipt.reference else ""
        commands.append((name, f"oras pull {layout}{source} \\\n  --output {name}"))
    return tuple(commands)
