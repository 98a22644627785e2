"""What the license of a base model demands of somebody who releases a quantized copy of it.

A table of facts read from the license texts, and the rule that picks its row. The texts decide,
not the table: a license that is not in it stops the run until a person reads the text and adds a
row. This is no legal advice, and it does not say what a particular company may do.
"""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.domain.errors import InputError
from pipeline.domain.manifest import LicenseFacts

# Values of a model card's `license` that name no license.
UNSPECIFIC_IDS = frozenset({"other", "unknown"})


class Redistribution(StrEnum):
    """Whether a quantized copy may be passed on."""

    YES = "yes"
    NO = "no"
    NON_COMMERCIAL = "non-commercial"


@dataclass(frozen=True)
class LicenseRule:
    """One license: `id` as model cards write it, `spdx` its SPDX identifier if there is one.

    `notice_text` goes into the NOTICE file, `display_text` must be shown where the model is
    offered, and the release's name must begin with `name_prefix`; each is None where the license
    asks for nothing of the kind.
    """

    id: str
    spdx: str | None
    name: str
    redistribute: Redistribution
    notice_text: str | None = None
    display_text: str | None = None
    name_prefix: str | None = None


def _llama(version: str, *, display_text: str, name_prefix: str) -> LicenseRule:
    name = f"Llama {version} Community License"
    subject = f"Llama {version}"
    if version == "3":
        name, subject = f"Meta {name}", f"Meta {subject}"
    return LicenseRule(
        id=f"llama{version}",
        spdx=None,
        name=name,
        redistribute=Redistribution.YES,
        notice_text=(
            f"{subject} is licensed under the {name}, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved."
        ),
        display_text=display_text,
        name_prefix=name_prefix,
    )


_FALCON_DISPLAY = (
    "{name} is built using Falcon LLM technology from the Technology Innovation Institute"
)
_QWEN_COPYRIGHT = "Copyright (c) Alibaba Cloud. All Rights Reserved."

_RULES = (
    LicenseRule("apache-2.0", "Apache-2.0", "Apache License 2.0", Redistribution.YES),
    LicenseRule("mit", "MIT", "MIT License", Redistribution.YES),
    _llama("3", display_text="Built with Meta Llama 3", name_prefix="Llama 3"),
    *(
        _llama(version, display_text="Built with Llama", name_prefix="Llama")
        for version in ("3.1", "3.2", "3.3", "4")
    ),
    LicenseRule(
        "gemma",
        None,
        "Gemma Terms of Use",
        Redistribution.YES,
        notice_text=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms"
        ),
    ),
    LicenseRule(
        "qwen",
        None,
        "Qwen LICENSE AGREEMENT",
        Redistribution.YES,
        notice_text=f"Qwen is licensed under the Qwen LICENSE AGREEMENT, {_QWEN_COPYRIGHT}",
        display_text="Built with Qwen",
    ),
    LicenseRule(
        "qwen-research",
        None,
        "Qwen RESEARCH LICENSE AGREEMENT",
        Redistribution.NON_COMMERCIAL,
        notice_text=(
            f"Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, {_QWEN_COPYRIGHT}"
        ),
        display_text="Built with Qwen",
    ),
    LicenseRule(
        "mrl",
        None,
        "Mistral AI Research License",
        Redistribution.NON_COMMERCIAL,
        notice_text="Licensed by Mistral AI under the Mistral AI Research License",
    ),
    LicenseRule("deepseek", None, "DeepSeek License Agreement", Redistribution.YES),
    LicenseRule(
        "falcon-llm",
        None,
        "Falcon LLM TII License",
        Redistribution.YES,
        display_text=_FALCON_DISPLAY,
    ),
    LicenseRule(
        "falcon2",
        None,
        "Falcon 2 11B TII License",
        Redistribution.YES,
        display_text=_FALCON_DISPLAY,
    ),
    LicenseRule(
        "cc-by-nc-4.0",
        "CC-BY-NC-4.0",
        "Creative Commons Attribution Non Commercial 4.0 International",
        Redistribution.NON_COMMERCIAL,
    ),
)
_BY_ID = {rule.id: rule for rule in _RULES}


def rule_for(license_id: str) -> LicenseRule | None:
    """The row of a license identifier, in upper or lower case; None when there is none."""
    return _BY_ID.get(license_id.lower())


def stated_id(facts: LicenseFacts) -> str | None:
    """The license the model card names: `license`, or `license_name` where that says `other`."""
    if facts.id is None or facts.id.lower() in UNSPECIFIC_IDS:
        return facts.name
    return facts.id


def resolve(facts: LicenseFacts, decided: str | None) -> LicenseRule:
    """The rule that applies. `decided` is what a person set where the checkpoint says nothing.

    Raises InputError when no license is stated anywhere, when the stated and the decided one
    differ, and when the license is not in the table.
    """
    stated = stated_id(facts)
    if stated is None and decided is None:
        raise InputError(f"no license: {_what_was_found(facts)}; {_ASK}")
    if stated is not None and decided is not None and stated.lower() != decided.lower():
        raise InputError(
            f"model.license = {decided!r}: the checkpoint's model card says {stated!r}; set it to "
            "null, or to what the card says"
        )
    license_id = stated or decided or ""
    rule = rule_for(license_id)
    if rule is None:
        raise InputError(
            f"license {license_id!r}: expected one of {', '.join(_BY_ID)}; a person has to read "
            "its text and add a row to pipeline/domain/licenses.py"
        )
    return rule


_ASK = "ask the owner, or set model.license to what a person decided"


def _what_was_found(facts: LicenseFacts) -> str:
    card = (
        "the front matter of README.md has no `license`"
        if facts.id is None
        else f"README.md says `license: {facts.id}` without `license_name`"
    )
    text = f"; the text in {facts.text_path} needs a reader" if facts.text_path else ""
    return card + (text or " and there is no LICENSE, LICENCE or COPYING file")
