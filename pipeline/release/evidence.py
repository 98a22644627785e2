"""Hold the records of all stages that a package is written from.

The card, the bill of materials and the provenance are written from the same records, so that they
agree. `pipeline.release.evidence_reading` reads them.
"""

from dataclasses import dataclass
from statistics import NormalDist

from pipeline.licensing.rule import LicenseRule
from pipeline.params.params import Params
from pipeline.records.base import BaseManifest
from pipeline.records.benchmarks import BenchmarkResult, Benchmarks
from pipeline.records.evaluation import EvaluationRecord, TaskScore
from pipeline.records.intake import Intake
from pipeline.records.selection import Selection, VariantVerdict
from pipeline.records.statistics import StatisticsRecord
from pipeline.records.variant import VariantRecord

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RecordFile:
    """Hold the path of a record below `artifacts/`, its stage, and the sha256 of its bytes."""

    stage: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Evidence:
    """Hold the records of one base, its statistics and one approved variant.

    `calibration_rule` is None for the user's own data. `base_perplexity` is that of the base in the
    engine that scored the variant. `languages`, `model_type` and `context_tokens` come from the
    base's files. `files` are the files of the records, in the order of the stages.
    """

    params: Params
    base: BaseManifest
    intake: Intake
    rule: LicenseRule
    calibration_rule: LicenseRule | None
    statistics: StatisticsRecord
    variant: VariantRecord
    base_perplexity: float | None
    evaluation: EvaluationRecord
    selection: Selection
    benchmarks: Benchmarks
    languages: tuple[str, ...]
    model_type: str
    context_tokens: int
    files: tuple[RecordFile, ...]

    @property
    def verdict(self) -> VariantVerdict:
        """Return the verdict on the variant."""
        return self.selection.variants[self.variant.name]

    @property
    def benchmark(self) -> BenchmarkResult:
        """Return the result of serving the variant, or the reason why it was not served."""
        return self.benchmarks.models[self.variant.name]

    def sha256_of(self, path: str) -> str:
        """Return the sha256 of one of `files`."""
        return next(file.sha256 for file in self.files if file.path == path)


@dataclass(frozen=True)
class Metric:
    """Hold a measured value, and the bounds of its 95 % interval; None where there is none.

    `dataset` is the task or the text that it was measured on.
    """

    dataset: str
    name: str
    value: float
    low: float | None
    high: float | None


def metrics(evaluation: EvaluationRecord) -> tuple[Metric, ...]:
    """Return the results of a variant: its tasks, its perplexity and its distance to the base."""
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
