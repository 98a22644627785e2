"""Find the license of a base model, and what it demands of a release of quantized copies.

The words of the license text decide which rule applies. The model card and the chain of base models
must not contradict them. A license that is missing, unknown or contradictory stops the run until a
person has read the text and signed a decision. The rules are data, in
`pipeline/licensing/rules.yaml`. This is no legal advice, and it does not say what a particular
company may do.
"""

import re

from pipeline.core.errors import InputError, short_repr
from pipeline.core.workspace import DECISIONS_FILE
from pipeline.licensing.rule import LicenseRule, LicenseRules
from pipeline.params.params import Audience, ReleaseParams
from pipeline.records.licenses import (
    LICENSE_FILE,
    AppliedLicense,
    DataLicense,
    Grant,
    LicenseDecision,
    LicenseFacts,
)

# Values of a model card's `license` that name no license.
UNSPECIFIC_IDS = frozenset({"other", "unknown"})
OWN_DATA = "own"
"""The value of `calibration.license` for the user's own data."""


def stated_id(facts: LicenseFacts) -> str | None:
    """Return the license that the card names: `license`, or `license_name` beside `other`."""
    if facts.id is None or facts.id.lower() in UNSPECIFIC_IDS:
        return facts.name
    return facts.id


def resolve(
    facts: LicenseFacts,
    rules: LicenseRules,
    decision: LicenseDecision | None,
    *,
    multimodal: bool,
    other_text: str | None = None,
) -> LicenseRule:
    """Return the rule that applies to a checkpoint.

    Without a `decision` it is the rule of the license text among its files, unless its card or its
    base models contradict. `multimodal` says that the model reads more than text, `other_text`
    names a file with another license text. Raises InputError that names what a person must decide,
    and when the text is not the one that was decided on.
    """
    if decision is not None:
        _require_same_text(facts, decision)
        return rules.decided(decision)
    rule = rules.by_text(facts.text_words_sha256) if facts.text_words_sha256 else None
    doubt = _doubt(facts, rules, rule)
    if doubt is None and other_text is not None:
        doubt = f"{facts.text_path} and {other_text} are two licenses, and either may apply"
    if doubt is None and rule and rule.multimodal_excludes_eu and multimodal:
        doubt = (
            f"the {rule.name} gives no rights in its multimodal models to persons and companies "
            "of the European Union"
        )
    if doubt is not None or rule is None:
        text = facts.text_sha256 or "that of a file you name under `text`"
        raise InputError(
            f"license: {doubt}; a person has to read it and sign the decision in {DECISIONS_FILE} "
            f"(text_sha256: {text}), and model.license has to name it"
        )
    return rule


def _doubt(facts: LicenseFacts, rules: LicenseRules, text_rule: LicenseRule | None) -> str | None:
    """Return the reason why the license is uncertain; None when it is certain."""
    stated = stated_id(facts)
    card = (
        f"the model card says {short_repr(stated)}" if stated else "the model card names no license"
    )
    if facts.text_path is None:
        return f"{card}, and there is no LICENSE, LICENCE or COPYING file, which every copy needs"
    if stated is not None and rules.by_id(stated) is None:
        return f"{card}, for which there is no rule"
    if text_rule is None:
        return f"{card}, and the text in {facts.text_path} is none that a rule was written from"
    if stated is not None and stated.lower() != text_rule.id:
        return f"{card}, but the text in {facts.text_path} is the {text_rule.name}"
    for name in facts.base_model:
        base_rule = rules.by_base_model(name)
        if base_rule is None:
            return f"it is made from {short_repr(name)}, whose license is not known here"
        if base_rule != text_rule:
            return (
                f"it is made from {short_repr(name)} under the {base_rule.name}, but the text in "
                f"{facts.text_path} is the {text_rule.name}"
            )
    return None


def _require_same_text(facts: LicenseFacts, decision: LicenseDecision) -> None:
    """Raise InputError when the checkpoint's license is not the one that was decided on."""
    decided = f"{decision.decided_by} on {decision.decided_on}"
    if decision.text is None and facts.text_sha256 is None:
        raise InputError(
            f"{DECISIONS_FILE}: the checkpoint has no LICENSE file; name the text that {decided} "
            "decided on, a file beside params.yaml, under `text`"
        )
    if facts.text_sha256 is not None and facts.text_sha256 != decision.text_sha256:
        raise InputError(
            f"{DECISIONS_FILE}: {decided} decided on the text {decision.text_sha256}, but "
            f"{facts.text_path} is {facts.text_sha256}; read it and decide again"
        )


def require_allowed(rule: LicenseRule, release: ReleaseParams) -> None:
    """Raise InputError where the license forbids the release that is asked for."""
    if rule.grants is not Grant.ANY and release.commercial:
        raise InputError(
            f"release.commercial = true: the {rule.name} allows {rule.grants.value} purposes only; "
            "use another model, or get a license from its owner and sign the decision on it"
        )
    if rule.forbids_changed_copies and release.audience is not Audience.INTERNAL:
        raise InputError(
            f"release.audience = {release.audience.value}: the {rule.name} forbids to pass on what "
            "was changed, and quantizing changes it; set it to internal, or use another model"
        )
    words = re.sub(r"[-_]", " ", release.name)
    if not words.startswith(name_prefix(rule, release.audience)):
        raise InputError(
            f"release.name = {release.name!r}: the {rule.name} wants a name that begins with "
            f"{rule.name_prefix!r} for what is passed on"
        )


def require_data_allowed(rule: LicenseRule | None, release: ReleaseParams) -> None:
    """Raise InputError where the license of the calibration data forbids the release."""
    if rule is not None and rule.grants is not Grant.ANY and release.commercial:
        raise InputError(
            f"calibration.license = {rule.id!r}: allows {rule.grants.value} purposes only, and "
            "release.commercial is true; calibrate on other text"
        )


def data_rule(license: DataLicense, rules: LicenseRules) -> LicenseRule | None:
    """Return the rule of the calibration data's license; None for data of one's own."""
    return rules.applying(license.applied) if license.applied else None


def name_prefix(rule: LicenseRule, audience: Audience) -> str:
    """Return the required beginning of a release's name; empty for an internal release."""
    return "" if audience is Audience.INTERNAL else rule.name_prefix or ""


def display_text(rule: LicenseRule, audience: Audience, *, name: str) -> str | None:
    """Return the sentence that the license wants shown; None for an internal release."""
    if rule.display_text is None or audience is Audience.INTERNAL:
        return None
    return rule.display_text.format(name=name)


def gguf_metadata(license: AppliedLicense, quantized_by: str) -> dict[str, str]:
    """Return the metadata of a GGUF file about its license and maker, for keys `general.…`.

    The conversion writes it, so that the released file equals the evaluated one byte for byte.
    `license` is an SPDX expression, as the format asks:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    return {
        "license": license.expression,
        "license_name": license.name,
        "license_link": LICENSE_FILE,
        "quantized_by": quantized_by,
    }
