"""Read the languages from the base's model card, and write the model card of a package."""

import shlex
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from pipeline.core.rendering import Verbatim, render_markdown
from pipeline.licensing.reading import read_front_matter
from pipeline.records.benchmarks import ServedModel
from pipeline.records.release import SIGNATURE_SUFFIX, PackageManifest
from pipeline.records.wording import kept_reasons, schemes
from pipeline.release.card_facts import TASK, front_matter, result_rows, technical_facts
from pipeline.release.evidence import Evidence, Metric, metrics

TEMPLATE = "release/model_card.md.j2"
MAX_LANGUAGES = 200
MAX_CODE_CHARACTERS = 16


def read_languages(card_path: Path) -> tuple[str, ...]:
    """Return the language codes of a model card; none when it has none or cannot be read."""
    stated = read_front_matter(card_path).get("language")
    codes = stated if isinstance(stated, list) else [stated]
    return tuple(
        code
        for code in codes[:MAX_LANGUAGES]
        if isinstance(code, str) and code.isprintable() and 0 < len(code) <= MAX_CODE_CHARACTERS
    )


def render_card(
    package: PackageManifest, evidence: Evidence, *, weight_file: str, needs_embedded_template: bool
) -> str:
    """Return the README.md of a package: front matter for model hubs, and text for people.

    `weight_file` is the name of the first file of weights. `needs_embedded_template` says that only
    the chat template inside the GGUF file writes conversations as the model expects them.
    """
    metadata = ModelCardData(
        model_name=package.title,
        eval_results=[_eval_result(metric) for metric in metrics(evidence.evaluation)],
        **front_matter(package),  # type: ignore[arg-type]
    ).to_yaml()
    served = evidence.benchmark
    return render_markdown(
        TEMPLATE,
        metadata=Verbatim(metadata),
        package=package,
        results=result_rows(
            evidence.evaluation,
            evidence.verdict,
            base_perplexity=evidence.base_perplexity,
            base_weight_bytes=evidence.selection.base_weight_bytes,
        ),
        findings=evidence.intake.findings,
        schemes=schemes(evidence.variant.coverage),
        reasons=kept_reasons(evidence.variant.coverage),
        engine=evidence.evaluation.engine,
        served=served,
        command=Verbatim(shlex.join(served.command) if isinstance(served, ServedModel) else ""),
        weight_file=Verbatim(shlex.quote(weight_file)),
        served_name=Verbatim(f"{package.name}-{package.variant}".lower()),
        needs_embedded_template=needs_embedded_template,
        use_policy_url=Verbatim(package.license.use_policy_url or ""),
        facts=technical_facts(package, evidence),
        signature=Verbatim(package.variant + SIGNATURE_SUFFIX),
        digests={
            "base checkpoint": package.base.digest,
            "calibration statistics": package.statistics_digest,
            "quantized files": package.variant_digest,
            "evaluation": package.evaluation_sha256,
        },
    )


def _eval_result(metric: Metric) -> EvalResult:
    """Return a row of the hub's model index; the interval is in the name, for lack of a field."""
    name = metric.name
    if metric.low is not None and metric.high is not None:
        name += f", 95 % interval {metric.low:.4g} to {metric.high:.4g}"
    return EvalResult(
        task_type=TASK,
        dataset_type=metric.dataset,
        dataset_name=metric.dataset,
        metric_type=metric.name,
        metric_name=name,
        metric_value=round(metric.value, 6),
    )
