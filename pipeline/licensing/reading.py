"""Read the license facts of a checkpoint's files, and the decision that a person signed.

The card's metadata is the YAML front matter of README.md
(https://huggingface.co/docs/hub/model-cards#model-card-metadata). `pipeline.licensing.licenses`
draws the conclusions.
"""

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from pipeline.checkpoint.names import CARD_FILE, license_texts
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import file_sha256
from pipeline.core.progress import note
from pipeline.core.record import first_problem
from pipeline.core.workspace import DECISIONS_FILE, Workspace
from pipeline.core.yaml_files import read_yaml
from pipeline.licensing.licenses import OWN_DATA
from pipeline.licensing.rule import LicenseRules, words_sha256
from pipeline.records.licenses import DataLicense, LicenseDecision, LicenseFacts

FENCE = "---"


def read_license_facts(model_dir: Path) -> LicenseFacts:
    """Return the license facts of the files in `model_dir`.

    Several licenses in one card are joined with " AND ". A card whose front matter is not valid
    YAML counts as stating nothing, and a note says so.
    """
    card = read_front_matter(model_dir / CARD_FILE)
    text = next(iter(_license_texts(model_dir)), None)
    return LicenseFacts(
        id=" AND ".join(_strings(card.get("license"))) or None,
        name=" AND ".join(_strings(card.get("license_name"))) or None,
        link=" ".join(_strings(card.get("license_link"))) or None,
        text_path=text,
        text_sha256=file_sha256(model_dir / text) if text else None,
        text_words_sha256=words_sha256(read_text(model_dir / text)) if text else None,
        base_model=_strings(card.get("base_model")),
    )


def other_license_text(model_dir: Path) -> str | None:
    """Find a second license text of the weights with other words than the first; None without."""
    words = {name: words_sha256(read_text(model_dir / name)) for name in _license_texts(model_dir)}
    return next((name for name in words if words[name] != next(iter(words.values()))), None)


def _license_texts(model_dir: Path) -> tuple[str, ...]:
    return license_texts([path.name for path in model_dir.iterdir() if path.is_file()])


def read_text(path: Path) -> str:
    """Return a legal text with line feeds; bytes that are not UTF-8 are replaced."""
    return path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n")


def read_decision(workspace: Workspace, name: str | None) -> LicenseDecision | None:
    """Return the decision that `model.license` names; None when it names none.

    Raises InputError when there is no such decision, when a key is missing in it, and when its
    license text is not the one that was signed for.
    """
    if name is None:
        return None
    decisions = _read_decisions(workspace)
    decision = decisions.get(name)
    if decision is None:
        raise InputError(
            f"model.license = {short_repr(name)}: expected null or a decision of {DECISIONS_FILE} "
            f"({', '.join(decisions) or 'none'}); sign it there"
        )
    if decision.text is not None:
        _require_signed_text(workspace.root / decision.text, decision)
    return decision


def read_data_license(workspace: Workspace, stated: str, rules: LicenseRules) -> DataLicense:
    """Return the license of calibration data, from what `calibration.license` states.

    That is `own`, the identifier of a rule, or the name of a decision. Raises InputError for
    anything else, and for a decision that is not whole or brings no text.
    """
    if stated.lower() == OWN_DATA:
        return DataLicense(stated=stated, applied=None)
    if rule := rules.by_id(stated):
        return DataLicense(stated=stated, applied=rule.applied(None))
    decisions = _read_decisions(workspace)
    decision = decisions.get(stated)
    if decision is None:
        raise InputError(
            f"calibration.license = {short_repr(stated)}: expected {OWN_DATA} for your own data, a "
            f"license that has a rule (docs/license.md lists them), or a decision of "
            f"{DECISIONS_FILE} ({', '.join(decisions) or 'none'}): a person has to read the "
            "license of the data and sign the decision there"
        )
    if decision.text is None:
        raise InputError(
            f"{DECISIONS_FILE}: {stated}.text = null: expected a file with the text that "
            f"{decision.decided_by} decided on; put it beside params.yaml"
        )
    _require_signed_text(workspace.root / decision.text, decision)
    return DataLicense(stated=stated, applied=rules.decided(decision).applied(decision))


def _read_decisions(workspace: Workspace) -> dict[str, LicenseDecision]:
    """Read license-decisions.yaml; empty where there is none. Raises InputError."""
    path = workspace.decisions_path
    values = (read_yaml(path) if path.exists() else None) or {}
    try:
        data = json.dumps(values, default=str)
        return TypeAdapter(dict[str, LicenseDecision]).validate_json(data)
    except ValidationError as error:
        raise InputError(f"{DECISIONS_FILE}: {first_problem(error, values)}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{DECISIONS_FILE}: expected plain keys and values") from error


def _require_signed_text(path: Path, decision: LicenseDecision) -> None:
    if not path.is_file():
        raise InputError(f"{DECISIONS_FILE}: text = {decision.text}: no such file; put it there")
    if file_sha256(path) != decision.text_sha256:
        raise InputError(
            f"{DECISIONS_FILE}: {decision.text} is not the text that {decision.decided_by} decided "
            f"on ({decision.text_sha256}); read it and decide again"
        )


def read_front_matter(card_path: Path) -> dict[object, object]:
    """Read the YAML between the first two fences of a model card; empty when there is none.

    The card is read as YAML 1.2: the language `no` is a text, and a repeated key makes the card
    invalid, so that neither of two licenses is chosen silently. huggingface_hub's ModelCard reads
    YAML 1.1 and takes the last of repeated keys.
    """
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
    except Exception:  # an untrusted file: the library raises exceptions of many kinds
        note(f"{CARD_FILE}: its front matter is not valid YAML, so it states nothing")
        return {}
    return card if isinstance(card, dict) else {}


def _strings(value: object) -> tuple[str, ...]:
    """Return a string or a list of strings as a tuple; anything else is left out."""
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
