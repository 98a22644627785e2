"""The contents of the report, table by table: records in, rows of text out.

Numbers are rounded here for the eye; every decision was taken before, on the numbers themselves.
How the page looks is not decided here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.domain.evaluated import EvaluationRecord, Selection, VariantVerdict, Verdict
from pipeline.domain.figures import bytes_text, percent, significant
from pipeline.domain.licenses import LicenseRule
from pipeline.domain.manifest import BaseManifest
from pipeline.domain.model_card import kept_reasons, schemes, score_text
from pipeline.domain.params import GateParams, Params, ServeParams
from pipeline.domain.quantized import VariantRecord
from pipeline.domain.release import Receipt, Receipts


@dataclass(frozen=True)
class Facts:
    """All records of a run. `receipts` is None while nothing has been published."""

    params: Params
    base: BaseManifest
    rule: LicenseRule
    selection: Selection
    base_evaluation: EvaluationRecord
    evaluations: Mapping[str, EvaluationRecord]
    variants: Mapping[str, VariantRecord]
    receipts: Receipts | None


@dataclass(frozen=True)
class Percentiles:
    """p50, p95 and p99 of a latency, in milliseconds."""

    p50: float
    p95: float
    p99: float

    def __str__(self) -> str:
        return " / ".join(significant(value) for value in (self.p50, self.p95, self.p99))


@dataclass(frozen=True)
class Load:
    """What one number of concurrent users got from a served model."""

    users: int
    output_tokens_per_s: float
    first_token: Percentiles
    further_token: Percentiles


@dataclass(frozen=True)
class ServedModel:
    """A model of the benchmark: what it ran on, or why it did not run (`loads` is empty then)."""

    name: str
    remark: str
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class LatencyRow:
    name: str
    users: str
    throughput: str
    first_token: str
    further_token: str


@dataclass(frozen=True)
class VerdictRow:
    """One line of the verdict table; `verdict` is empty for the base."""

    name: str
    format: str
    verdict: str
    recovery: str
    kl: str
    kl_interval: str
    top1: str
    perplexity_ratio: str
    size: str
    size_ratio: str
    reasons: tuple[str, ...]
    reference: str | None


@dataclass(frozen=True)
class CoverageRow:
    """What became of a variant's tensors: counts by stored scheme, and by the reason to differ."""

    name: str
    bits_per_weight: str
    num_tensors: int
    schemes: Mapping[str, int]
    reasons: Mapping[str, int]


def verdict_rows(facts: Facts) -> tuple[VerdictRow, ...]:
    """The base, then every variant in the order of `params.yaml`."""
    rows = [_base_row(facts)]
    for name, verdict in facts.selection.variants.items():
        rows.append(_verdict_row(facts, name, verdict))
    return tuple(rows)


def _base_row(facts: Facts) -> VerdictRow:
    return VerdictRow(
        name="base",
        format="safetensors",
        verdict="",
        recovery=percent(1.0),
        kl="0",
        kl_interval="",
        top1=percent(1.0),
        perplexity_ratio=significant(1.0, 4),
        size=bytes_text(facts.selection.base_weight_bytes),
        size_ratio=percent(1.0),
        reasons=(),
        reference=None,
    )


def _verdict_row(facts: Facts, name: str, verdict: VariantVerdict) -> VerdictRow:
    distance = facts.evaluations[name].distance
    receipt = published(facts, name)
    return VerdictRow(
        name=name,
        format=verdict.format,
        verdict=verdict.verdict.value,
        recovery=percent(verdict.recovery),
        kl=significant(verdict.kl),
        kl_interval=(
            f"{significant(distance.kl_low)} to {significant(distance.kl_high)}" if distance else ""
        ),
        top1=percent(verdict.top1),
        perplexity_ratio=significant(verdict.perplexity_ratio, 4),
        size=bytes_text(verdict.weight_bytes),
        size_ratio=percent(verdict.size_ratio),
        reasons=verdict.reasons,
        reference=receipt.reference if receipt else None,
    )


def published(facts: Facts, name: str) -> Receipt | None:
    """The receipt of a variant that this run approved and published."""
    if facts.receipts is None or facts.selection.variants[name].verdict is not Verdict.APPROVED:
        return None
    return facts.receipts.releases.get(name)


def task_rows(facts: Facts) -> tuple[tuple[str, dict[str, str]], ...]:
    """For every task: its name with the metric, and the score of the base and of each variant."""
    rows = []
    for task, score in facts.base_evaluation.tasks.items():
        scores = {"base": score_text(score)}
        for name, evaluation in facts.evaluations.items():
            scores[name] = score_text(evaluation.tasks.get(task))
        rows.append((f"{task} ({score.metric}, {score.num_documents} documents)", scores))
    perplexities = {"base": significant(facts.base_evaluation.perplexity, 4)}
    for name, evaluation in facts.evaluations.items():
        perplexities[name] = significant(evaluation.perplexity, 4)
    rows.append(("perplexity on held-out text (lower is better)", perplexities))
    return tuple(rows)


def coverage_rows(facts: Facts) -> tuple[CoverageRow, ...]:
    return tuple(
        CoverageRow(
            name=name,
            bits_per_weight=f"{record.bits_per_weight:.2f}",
            num_tensors=len(record.coverage),
            schemes=schemes(record.coverage),
            reasons=kept_reasons(record.coverage),
        )
        for name, record in facts.variants.items()
    )


def latency_rows(served: tuple[ServedModel, ...]) -> tuple[LatencyRow, ...]:
    """One line for each served model and number of users."""
    return tuple(
        LatencyRow(
            name=model.name,
            users=str(load.users),
            throughput=significant(load.output_tokens_per_s),
            first_token=str(load.first_token),
            further_token=str(load.further_token),
        )
        for model in served
        for load in model.loads
    )


def load_sentence(serve: ServeParams) -> str:
    return (
        f"Every request has {serve.input_tokens} tokens in and {serve.output_tokens} out; each "
        f"user sends {serve.requests_per_user}, one after the other."
    )


def gate_sentence(gate: GateParams) -> str:
    return (
        f"A variant is approved when its mean recovery is at least {percent(gate.min_recovery)}, "
        f"that of its worst task at least {percent(gate.min_task_recovery)}, and its mean KL "
        f"divergence to the base at most {gate.max_kl:g} nats per token."
    )


def provenance_rows(facts: Facts) -> tuple[tuple[str, str], ...]:
    """What everything was made from: a name and a sha256 or commit for each."""
    rows = [("base checkpoint", facts.base.digest)]
    if facts.base.revision:
        rows.insert(0, ("base revision (commit)", facts.base.revision))
    statistics = {record.statistics_digest for record in facts.variants.values()}
    rows += [("calibration statistics", digest) for digest in sorted(statistics)]
    rows += [
        ("held-out text", facts.base_evaluation.text_sha256),
        ("evaluated token ids", facts.base_evaluation.token_ids_sha256),
    ]
    for name, record in facts.variants.items():
        rows.append((name, record.digest))
        receipt = published(facts, name)
        if receipt:
            rows.append((f"{name}, published manifest", receipt.manifest_digest))
    return tuple(rows)


def pull_commands(facts: Facts) -> tuple[tuple[str, str], ...]:
    """For every published variant: its name and the command that fetches its files."""
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
