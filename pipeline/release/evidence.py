"""Everything that is known about one variant when it is packaged: the records of all stages.

The card, the bill of materials and the provenance are written from it, so that they cannot say
different things. Reading the files is `pipeline.release.evidence_reading`.
"""

from dataclasses import dataclass
from statistics import NormalDist

from pipeline.licensing.rule import LicenseRule
from pipeline.params.params import Params
from pipeline.records.base import BaseManifest
from pipeline.records.benchmarks import BenchmarkResult, Benchmarks
from pipeline.records.evaluation import EvaluationRecord, TaskScore
from pipeline.records.selection import Selection, VariantVerdict
from pipeline.records.statistics import StatisticsRecord
from pipeline.records.variant import VariantRecord

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RecordFile:
    """A record as a stage wrote it: its path below `artifacts/` and the sha256 of its bytes."""

    stage: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Evidence:
    """The records that belong together: one base, its statistics, and one approved variant.

    `calibration_rule` is None for data of one's own; `files` are the records' own files in the
    order of the stages; `languages`, `model_type`, `context_tokens` come from the base's files.
    """

    params: Params
    base: BaseManifest
    rule: LicenseRule
    calibration_rule: LicenseRule | None
    statistics: StatisticsRecord
    variant: VariantRecord
    base_evaluation: EvaluationRecord
    evaluation: EvaluationRecord
    selection: Selection
    benchmarks: Benchmarks
    languages: tuple[str, ...]
    model_type: str
    context_tokens: int
    files: tuple[RecordFile, ...]

    @property
    def verdict(self) -> VariantVerdict:
        return self.selection.variants[self.variant.name]

    @property
    def benchmark(self) -> BenchmarkResult:
        return self.benchmarks.models[self.variant.name]

    def sha256_of(self, path: str) -> str:
        """Return the sha256 of one of `files`."""
        return next(file.sha256 for file in self.files if file.path == path)


@dataclass(frozen=True)
class Metric:
    """A measured value; `low` and `high` bound it with 95 % confidence where that is known.

    `dataset` is the task or text it was measured on.
    """

    dataset: str
    name: str
    value: float
    low: float | None
    high: float | None


def metrics(evaluation: EvaluationRecord) -> tuple[Metric, ...]:
    """Return the results of a variant: every task, perplexity, and the distance to the base."""
    rows = [
        Metric(name, score.metric, score.value, *interval(score))
        for name, score in evaluation.tasks.items()
    ]
    if evaluation.perplexity is not None:
        rows.append(Metric("held-out text", "perplexity", evaluation.perplexity, None, None))
    if evaluation.distance is not None:
        distance = evaluation.distance
        rows += [
            Metric(
                "held-out text", "kl_divergence", distance.kl, distance.kl_low, distance.kl_high
            ),
            Metric("held-out text", "same_top_token", distance.top1, None, None),
            Metric(
                "held-out text",
                "perplexity_ratio",
                distance.perplexity_ratio,
                distance.perplexity_ratio_low,
                distance.perplexity_ratio_high,
            ),
        ]
    return tuple(rows)


def interval(score: TaskScore) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a score from its standard error, by the normal distribution."""
    if score.stderr is None:
        return None, None
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * score.stderr
    return score.value - half, score.value + half
