"""What a package says about itself: the rows of its model card, its front matter, its NOTICE.

Everything is derived from records; nothing is claimed that they do not hold. The names of the
front matter are those of https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pipeline.core.formatting import bytes_text, percent, significant
from pipeline.licensing.licenses import OWN_DATA, display_text
from pipeline.licensing.rule import LicenseRule
from pipeline.params.other_quantizers import AutoRoundParams, LlmCompressorParams
from pipeline.params.params import (
    HUB_PREFIX,
    CompressedTensorsParams,
    GgufParams,
    ReleaseParams,
    VariantParams,
)
from pipeline.params.variants import PackedParams
from pipeline.records.evaluation import EvaluationRecord
from pipeline.records.licenses import LICENSE_FILE
from pipeline.records.release import (
    CalibrationReference,
    PackageManifest,
    ReleaseLicense,
)
from pipeline.records.selection import VariantVerdict
from pipeline.records.statistics import StatisticsRecord, skipped_text
from pipeline.records.wording import perplexity_text, score_text
from pipeline.release.evidence import Evidence

TASK: Final = "text-generation"


@dataclass(frozen=True)
class ResultRow:
    """One line of the results: a measure, the base's value, the variant's, and how they compare."""

    measure: str
    base: str
    variant: str
    comparison: str


def quantization_name(recipe: VariantParams) -> str:
    """`awq`, `gptq`, or the scheme (`W4A16`) or llama.cpp type (`Q4_K_M`) of the other formats."""
    if isinstance(recipe, GgufParams):
        return recipe.type.value
    if isinstance(recipe, LlmCompressorParams):
        return f"W{recipe.num_bits}A16" + ("" if recipe.symmetric else "_ASYM")
    return recipe.scheme.value if isinstance(recipe, CompressedTensorsParams) else recipe.format


def what_was_trained(recipe: VariantParams) -> str:
    """Return what gradients changed, and how often the data of the modification was read for it."""
    if isinstance(recipe, AutoRoundParams):
        return f"the rounding was trained, {recipe.iterations} steps for each layer"
    if isinstance(recipe, PackedParams) and recipe.align_samples:
        return f"the rounding was trained, on {recipe.align_samples} samples of its data"
    return "nothing was trained"


def release_license(
    rule: LicenseRule, release: ReleaseParams, *, text_sha256: str
) -> ReleaseLicense:
    """Return what the license means for this release; `text_sha256` is of its LICENSE file."""
    return ReleaseLicense(
        id=rule.id,
        name=rule.name,
        expression=rule.expression,
        link=None if rule.spdx else LICENSE_FILE,
        text_sha256=text_sha256,
        display_text=display_text(rule, release.audience, name=release.name),
        notice_text=rule.notice_text,
        use_policy_url=rule.use_policy_url,
        conditions=rule.conditions,
    )


def calibration_reference(
    statistics: StatisticsRecord, rule: LicenseRule | None
) -> CalibrationReference:
    """The calibration text without what is private about where it was; no `rule` for own data."""
    calibration = statistics.calibration
    if calibration.dataset is not None:
        name = calibration.dataset.source.removeprefix(HUB_PREFIX)
    else:
        name = PurePosixPath(calibration.text).name
    return CalibrationReference(
        name=name,
        license=rule.expression if rule else OWN_DATA,
        conditions=rule.conditions if rule else (),
        text_sha256=statistics.text_sha256,
    )


def front_matter(package: PackageManifest) -> dict[str, object]:
    """The metadata of the model card; a license without an SPDX id is `other` with its name."""
    spdx_listed = package.license.link is None
    license_fields: dict[str, object] = (
        {"license": package.license.id}
        if spdx_listed
        else {
            "license": "other",
            "license_name": package.license.id,
            "license_link": package.license.link,
        }
    )
    return {
        "base_model": package.base.name,
        "base_model_relation": "quantized",
        "quantized_by": package.quantized_by,
        **license_fields,
        **({"language": list(package.languages)} if package.languages else {}),
        "pipeline_tag": TASK,
        "library_name": "gguf" if package.format == "gguf" else "transformers",
        "tags": [package.format, package.quantization.lower()],
    }


def result_rows(
    base: EvaluationRecord,
    variant: EvaluationRecord,
    verdict: VariantVerdict,
    *,
    base_weight_bytes: int,
) -> tuple[ResultRow, ...]:
    """Return the variant's results beside the base's."""
    rows = [
        ResultRow(
            "Size of the weights",
            bytes_text(base_weight_bytes),
            bytes_text(verdict.weight_bytes),
            f"{percent(verdict.size_ratio)} of the base",
        )
    ]
    for name, score in variant.tasks.items():
        rows.append(
            ResultRow(
                f"{name}, {score.metric} of {score.num_documents} documents",
                score_text(base.tasks.get(name)),
                score_text(score),
                _loss(verdict, name),
            )
        )
    if variant.distance is not None:
        distance = variant.distance
        rows += [
            ResultRow(
                "Perplexity on held-out text",
                perplexity_text(base),
                perplexity_text(variant),
                f"{significant(distance.perplexity_ratio, 4)} times the base",
            ),
            ResultRow(
                "KL divergence to the base, nats per token",
                "0",
                significant(distance.kl),
                f"95 % interval {significant(distance.kl_low)} to {significant(distance.kl_high)}",
            ),
            ResultRow("Same most likely token as the base", "100.0 %", percent(distance.top1), ""),
        ]
    return tuple(rows)


def _loss(verdict: VariantVerdict, task: str) -> str:
    """Return what was lost, at most, and what is left."""
    judged = verdict.tasks[task]
    return (
        f"loses at most {judged.high:.4f} ({percent(1 - judged.level)} confidence), "
        f"recovery {percent(verdict.task_recovery[task])}"
    )


def technical_facts(package: PackageManifest, evidence: Evidence) -> dict[str, str]:
    """Return what the EU AI Act asks to be documented of a model, as far as the records hold it.

    Article 53 (1) and annex XI of Regulation (EU) 2024/1689; for a modified model they cover the
    modification. It names what was not looked into, because silence would read like a result.
    """
    statistics, check = evidence.statistics, evidence.statistics.decontamination
    evaluation, base = evidence.evaluation, package.base
    revision = f", revision {base.revision}" if base.revision else ""
    tasks = ", ".join(evaluation.tasks)
    conditions = " ".join(package.license.conditions)
    return {
        "Model": f"{package.title}, by {package.quantized_by}",
        "Made from": f"{base.name}{revision}; its own documentation covers its training",
        "Modification": f"weights quantized with {package.quantizer} to "
        f"{package.bits_per_weight:.2f} bits per weight ({package.quantization}); "
        f"{what_was_trained(evidence.variant.recipe)}",
        "Task": "generating text after a text; not made for a particular purpose",
        "Input and output": f"text, at most {evidence.context_tokens} tokens together"
        + (f"; languages: {', '.join(package.languages)}" if package.languages else ""),
        "Architecture": f"{evidence.base.architecture}, {package.num_parameters:,} parameters",
        "Data of the modification": f"{package.calibration.name}, license "
        f"{package.calibration.license}: {statistics.num_tokens:,} tokens, used to calibrate "
        f"it; {check.num_contaminated_dropped} of {check.num_documents_drawn} documents "
        "were dropped because they overlap with evaluation data"
        + (f"; {skipped_text(statistics.skipped)}" if statistics.skipped else ""),
        "Evaluation": f"suite {evaluation.suite} ({tasks}), perplexity, and the divergence from "
        f"the base on {evaluation.num_tokens:,} tokens of held-out text, on the released files",
        "Known limits": "answers differ from the base's as measured above; safety, bias and "
        "robustness were not evaluated, and neither were tasks and languages not named here",
        "For whom": f"{package.audience.value}, commercial use: "
        f"{'yes' if package.commercial else 'no'}",
        "Terms of use": f"{package.license.name}. {conditions}".strip(),
    }
