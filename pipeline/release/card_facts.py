"""Derive what a package states about itself from the records: license, results, documentation.

Nothing is stated that the records do not hold. The names of the front matter are those of
https://huggingface.co/docs/hub/model-cards#model-card-metadata.
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
    """Hold one line of the results: a measure of the base and the variant, and a comparison."""

    measure: str
    base: str
    variant: str
    comparison: str


def quantization_name(recipe: VariantParams) -> str:
    """Return a scheme (`W4A16`), a type of llama.cpp (`Q4_K_M`, `mixed`), or `awq` or `gptq`."""
    if isinstance(recipe, GgufParams | CompressedTensorsParams):
        return recipe.label
    if isinstance(recipe, LlmCompressorParams):
        return f"W{recipe.num_bits}A16" + ("" if recipe.symmetric else "_ASYM")
    return recipe.format


def training_text(recipe: VariantParams) -> str:
    """Return what gradients changed, and for how many steps or on how many samples."""
    if isinstance(recipe, AutoRoundParams):
        return f"the rounding was trained, {recipe.iterations} steps for each layer"
    if isinstance(recipe, PackedParams | GgufParams) and recipe.align_samples:
        return f"the rounding was trained, on {recipe.align_samples} samples of its data"
    return "nothing was trained"


def release_license(
    rule: LicenseRule, release: ReleaseParams, *, text_sha256: str
) -> ReleaseLicense:
    """Return the terms of the license for this release; `text_sha256` is of its LICENSE file."""
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
    """Return the name of the calibration data without its directory, its license and its digest.

    `rule` is None for the user's own data.
    """
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
    """Return the card's metadata. A license without an SPDX identifier is `other` with a name."""
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
    variant: EvaluationRecord,
    verdict: VariantVerdict,
    *,
    base_perplexity: float | None,
    base_weight_bytes: int,
) -> tuple[ResultRow, ...]:
    """Return the variant's results beside the base's, both from the engine of the variant.

    The verdict has the base's scores in this engine, on the documents that the variant answered.
    """
    rows = [
        ResultRow(
            "Size of the weights",
            bytes_text(base_weight_bytes),
            bytes_text(verdict.weight_bytes),
            f"{percent(verdict.size_ratio)} of the base",
        )
    ]
    for name, score in variant.tasks.items():
        judged = verdict.tasks[name]
        rows.append(
            ResultRow(
                f"{name}, {score.metric} of {score.num_documents} documents",
                f"{judged.base:.3f}",
                score_text(score),
                f"loses at most {judged.high:.4f} ({percent(1 - judged.level)} confidence), "
                f"recovery {percent(verdict.task_recovery[name])}",
            )
        )
    if variant.distance is not None:
        distance = variant.distance
        rows += [
            ResultRow(
                "Perplexity on held-out text",
                perplexity_text(base_perplexity),
                perplexity_text(variant.perplexity),
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


def technical_facts(package: PackageManifest, evidence: Evidence) -> dict[str, str]:
    """Return what the EU AI Act asks to be documented of a model, as far as the records hold it.

    Source: article 53 (1) and annex XI of Regulation (EU) 2024/1689. For a modified model they
    cover the modification. The facts also name what was not evaluated.
    """
    statistics, check = evidence.statistics, evidence.statistics.decontamination
    evaluation, base = evidence.evaluation, package.base
    revision = f", revision {base.revision}" if base.revision else ""
    tasks = ", ".join(evaluation.tasks)
    conditions = " ".join(package.license.conditions)
    return {
        "Model": f"{package.title}, by {package.quantized_by}",
        "Base model": f"{base.name}{revision}; its own documentation covers its training",
        "Modification": f"weights quantized with {package.quantizer} to "
        f"{package.bits_per_weight:.2f} bits per weight ({package.quantization}); "
        f"{training_text(evidence.variant.recipe)}",
        "Task": "text generation; not made for a particular purpose",
        "Input and output": f"text, at most {evidence.context_tokens} tokens together"
        + (f"; languages: {', '.join(package.languages)}" if package.languages else ""),
        "Architecture": f"{evidence.base.architecture}, {package.num_parameters:,} parameters",
        "Data of the modification": f"{package.calibration.name}, license "
        f"{package.calibration.license}: {statistics.num_tokens:,} tokens, used to calibrate "
        f"it; {check.num_contaminated_dropped} of {check.num_documents_drawn} documents "
        "were dropped because they overlap with evaluation data"
        + (f"; {skipped_text(statistics.skipped)}" if statistics.skipped else ""),
        "Evaluation": f"suite {evaluation.suite} ({tasks}), perplexity, and the divergence from "
        f"the base on {evaluation.num_tokens:,} tokens of held-out text; the base and the released "
        f"files were scored in {evaluation.engine}",
        "Known limits": "answers differ from the base's as measured above; safety, bias and "
        "robustness were not evaluated, and neither were tasks and languages not named here",
        "Audience": f"{package.audience.value}, commercial use: "
        f"{'yes' if package.commercial else 'no'}",
        "Terms of use": f"{package.license.name}. {conditions}".strip(),
    }
