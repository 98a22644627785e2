"""What a package says about itself: the rows of its model card, its front matter, its NOTICE.

Everything is derived from records; nothing is claimed that they do not hold. The names of the
front matter are those of https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.domain.checkpoint import parse_hub_source
from pipeline.domain.evaluated import EvaluationRecord, TaskScore
from pipeline.domain.figures import NBSP, bytes_text, percent, significant
from pipeline.domain.licenses import LicenseRule
from pipeline.domain.manifest import BaseManifest, FileRecord
from pipeline.domain.params import (
    DEMO_SOURCE,
    HUB_PREFIX,
    CompressedTensorsParams,
    GgufParams,
    VariantParams,
)
from pipeline.domain.quantized import TensorCoverage
from pipeline.domain.release import LICENSE_FILE, BaseReference, PackageManifest, ReleaseLicense
from pipeline.domain.selection import VariantVerdict


@dataclass(frozen=True)
class ResultRow:
    """One line of the results: a measure, the base's value, the variant's, and how they compare."""

    measure: str
    base: str
    variant: str
    comparison: str


def base_reference(base: BaseManifest) -> BaseReference:
    """The base without what is private about where it was: of a directory only its name."""
    if base.source.startswith(HUB_PREFIX):
        name = parse_hub_source(base.source).repo
    else:
        name = base.source if base.source == DEMO_SOURCE else PurePosixPath(base.source).name
    return BaseReference(name=name, revision=base.revision, digest=base.digest)


def quantization_name(recipe: VariantParams) -> str:
    """`awq`, `gptq`, or the scheme (`W4A16`) or llama.cpp type (`Q4_K_M`) of the other formats."""
    if isinstance(recipe, GgufParams):
        return recipe.type.value
    return recipe.scheme.value if isinstance(recipe, CompressedTensorsParams) else recipe.format


def release_license(rule: LicenseRule) -> ReleaseLicense:
    return ReleaseLicense(
        id=rule.id,
        name=rule.name,
        expression=rule.spdx or f"LicenseRef-{rule.id}",
        link=None if rule.spdx else LICENSE_FILE,
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
        "pipeline_tag": "text-generation",
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
    """The variant's results beside the base's."""
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
    """What was lost, at most, and what is left."""
    judged = verdict.tasks[task]
    return (
        f"loses at most {judged.high:.4f} ({percent(1 - judged.level)} confidence), "
        f"recovery {percent(verdict.task_recovery[task])}"
    )


def score_text(score: TaskScore | None) -> str:
    """A score with its standard error where there is one."""
    if score is None:
        return "not measured"
    return f"{score.value:.3f} {standard_error(score)}".rstrip()


def perplexity_text(evaluation: EvaluationRecord) -> str:
    value = evaluation.perplexity
    return "not measured" if value is None else significant(value, 4)


def standard_error(score: TaskScore) -> str:
    return "" if score.stderr is None else f"±{NBSP}{score.stderr:.3f}"


def schemes(coverage: tuple[TensorCoverage, ...]) -> dict[str, int]:
    """How many tensors are stored in which scheme, the most frequent first."""
    return dict(Counter(tensor.scheme for tensor in coverage).most_common())


def kept_reasons(coverage: tuple[TensorCoverage, ...]) -> dict[str, int]:
    """How many tensors differ from the recipe, by the reason."""
    reasons = (tensor.reason for tensor in coverage if tensor.reason is not None)
    return dict(Counter(reasons).most_common())


def unchanged_files(base: BaseManifest, files: tuple[FileRecord, ...]) -> tuple[str, ...]:
    """Names of the files that are the base's, byte for byte."""
    originals: Mapping[str, str] = {file.path: file.sha256 for file in base.files}
    return tuple(file.path for file in files if originals.get(file.path) == file.sha256)


def notice_text(
    package: PackageManifest,
    rule: LicenseRule,
    *,
    changed: tuple[str, ...],
    unchanged: tuple[str, ...],
    upstream_notices: tuple[str, ...],
) -> str:
    """The NOTICE file: the statement of changes, what the license demands, the base's notices.

    The Apache License 2.0, section 4 (b) and (d), asks for the first and the last.
    """
    base = package.base
    revision = f" at revision {base.revision}" if base.revision else ""
    parts = [
        f"{package.title} is a modified copy of {base.name}{revision} "
        f"(sha256 of its files: {base.digest}).",
        f"Changed by {package.quantized_by}: the weights were quantized with "
        f"{package.quantization} to {package.bits_per_weight:.2f} bits per weight.",
        f"Changed files: {', '.join(changed)}.",
    ]
    if unchanged:
        parts.append(f"Unchanged files: {', '.join(unchanged)}.")
    parts += [display_text(rule, package) or "", rule.notice_text or ""]
    parts += [f"The notice of {base.name}:\n\n{text.strip()}" for text in upstream_notices]
    return "\n\n".join(part for part in parts if part) + "\n"


def display_text(rule: LicenseRule, package: PackageManifest) -> str | None:
    """The sentence that the license wants shown."""
    return rule.display_text.format(name=package.name) if rule.display_text else None
