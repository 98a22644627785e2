"""Short texts about records, which the model card and the report share."""

from collections import Counter
from pathlib import PurePosixPath

from pipeline.core.formatting import NBSP, significant
from pipeline.params.hub_source import parse_hub_source
from pipeline.params.params import DEMO_SOURCE, HUB_PREFIX
from pipeline.records.base import BaseManifest
from pipeline.records.evaluation import TaskScore
from pipeline.records.release import BaseReference
from pipeline.records.variant import TensorCoverage


def base_reference(base: BaseManifest) -> BaseReference:
    """Describe the base without private paths: a local directory has only its name."""
    if base.source.startswith(HUB_PREFIX):
        name = parse_hub_source(base.source).repo
    else:
        name = base.source if base.source == DEMO_SOURCE else PurePosixPath(base.source).name
    return BaseReference(name=name, revision=base.revision, digest=base.digest)


def score_text(score: TaskScore | None) -> str:
    """Format a score with its standard error, where it has one."""
    if score is None:
        return "not measured"
    return f"{score.value:.3f} {standard_error(score)}".rstrip()


def perplexity_text(perplexity: float | None) -> str:
    """Format a perplexity; None was not measured."""
    return "not measured" if perplexity is None else significant(perplexity, 4)


def standard_error(score: TaskScore) -> str:
    """Format the standard error of a score; "" where it has none."""
    return "" if score.stderr is None else f"±{NBSP}{score.stderr:.3f}"


def schemes(coverage: tuple[TensorCoverage, ...]) -> dict[str, int]:
    """Count the tensors of each scheme, the most frequent first."""
    return dict(Counter(tensor.scheme for tensor in coverage).most_common())


def kept_reasons(coverage: tuple[TensorCoverage, ...]) -> dict[str, int]:
    """Count the tensors that differ from the recipe, by reason, the most frequent first."""
    reasons = (tensor.reason for tensor in coverage if tensor.reason is not None)
    return dict(Counter(reasons).most_common())
