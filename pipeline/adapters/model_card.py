"""Model cards: reading the languages of the base's, writing the one of a package."""

import shlex
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from pipeline.adapters.templates import Verbatim, render_markdown
from pipeline.domain.model_card import ResultRow, front_matter, kept_reasons, schemes
from pipeline.domain.quantized import VariantRecord
from pipeline.domain.release import PackageManifest

TEMPLATE = "model_card.md.j2"
MAX_LANGUAGES = 200
MAX_CODE_CHARACTERS = 16


def read_languages(card_path: Path) -> tuple[str, ...]:
    """The language codes of a model card; none when it says nothing or cannot be read."""
    try:
        content = card_path.read_text(encoding="utf-8-sig", errors="replace")
        stated = ModelCard(content, ignore_metadata_errors=True).data.get("language")
    except (FileNotFoundError, ValueError, YAMLError, RecursionError):
        return ()
    codes = stated if isinstance(stated, list) else [stated]
    return tuple(
        code
        for code in codes[:MAX_LANGUAGES]
        if isinstance(code, str) and code.isprintable() and 0 < len(code) <= MAX_CODE_CHARACTERS
    )


def render_card(
    package: PackageManifest,
    variant: VariantRecord,
    results: tuple[ResultRow, ...],
    *,
    shown_sentence: str | None,
    weight_file: str,
    has_chat_template: bool,
    context_tokens: int,
) -> str:
    """The README.md of a package: its front matter for model hubs, and its text for people."""
    metadata = ModelCardData(**front_matter(package)).to_yaml()  # type: ignore[arg-type]
    return render_markdown(
        TEMPLATE,
        metadata=Verbatim(metadata),
        package=package,
        results=results,
        schemes=schemes(variant.coverage),
        reasons=kept_reasons(variant.coverage),
        shown_sentence=shown_sentence,
        weight_file=Verbatim(shlex.quote(weight_file)),
        served_name=Verbatim(f"{package.name}-{package.variant}".lower()),
        has_chat_template=has_chat_template,
        context_tokens=context_tokens,
        digests={
            "base checkpoint": package.base.digest,
            "calibration statistics": package.statistics_digest,
            "quantized files": package.variant_digest,
            "evaluation": package.evaluation_sha256,
        },
    )
