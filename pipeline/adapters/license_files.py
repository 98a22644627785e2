"""What a checkpoint's own files say about its license: the model card and the license text.

The card's metadata is the YAML front matter of README.md
(https://huggingface.co/docs/hub/model-cards#model-card-metadata). It is read, never judged; what
follows from it is in `pipeline.domain.licenses`.
"""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.adapters.files import file_sha256
from pipeline.adapters.progress import note
from pipeline.domain.checkpoint import CARD_FILE, license_text
from pipeline.domain.manifest import LicenseFacts

FENCE = "---"


def read_license_facts(model_dir: Path) -> LicenseFacts:
    """The license facts of the files in `model_dir`.

    Several licenses in one card are joined with " AND ". A card whose front matter is not valid
    YAML counts as stating nothing, and a note says so.
    """
    card = _front_matter(model_dir / CARD_FILE)
    text = license_text([path.name for path in model_dir.iterdir() if path.is_file()])
    return LicenseFacts(
        id=" AND ".join(_strings(card.get("license"))) or None,
        name=" AND ".join(_strings(card.get("license_name"))) or None,
        link=" ".join(_strings(card.get("license_link"))) or None,
        text_path=text,
        text_sha256=file_sha256(model_dir / text) if text else None,
        base_model=_strings(card.get("base_model")),
    )


def _front_matter(card_path: Path) -> dict[object, object]:
    """The YAML between the first two fences of a model card; empty when there is none."""
    try:
        lines = card_path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    if not lines or lines[0].rstrip() != FENCE:
        return {}
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == FENCE]
    if not ends:
        return {}
    try:
        card = YAML(typ="safe", pure=True).load("\n".join(lines[1 : ends[0]]))
    except (YAMLError, ValueError, RecursionError):
        note(f"{CARD_FILE}: its front matter is not valid YAML, so it states no license")
        return {}
    return card if isinstance(card, dict) else {}


def _strings(value: object) -> tuple[str, ...]:
    """A string or a list of strings as a tuple; anything else is left out."""
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
