"""Define a rule: the demands of one license on somebody who passes a copy on.

The rules are data, in `pipeline/licensing/rules.yaml`. `pipeline.licensing.licenses` finds the rule
that applies, and applies it.
"""

import re
from enum import StrEnum
from fnmatch import fnmatchcase

from pipeline.core.errors import InputError, short_repr
from pipeline.core.file_records import Sha256
from pipeline.core.record import Record, sha256_hex
from pipeline.records.licenses import AppliedLicense, LicenseDecision

# The name of a copyright holder is no part of a license's words:
# https://spdx.github.io/spdx-spec/v3.0.1/annexes/license-matching-guidelines-and-templates
# A line with one of these words also states terms, and stays.
TERMS = (
    r"use|used|using|commercial|commercially|licen[sc]ed?|permi\w+|prohibit\w*|forbid\w*|"
    r"restrict\w*|only|no|not|may|must|shall|except|unless|without|research|subject"
)
COPYRIGHT_LINE = re.compile(
    rf"^(?!.*\b({TERMS})\b)\W*(copyright|©)\s*(\(c\)|©|\d{{4}}|\[yyyy\]|\{{yyyy\}}).*$",
    re.IGNORECASE | re.MULTILINE,
)
WORD = re.compile(r"[^\W_]+")


class Grant(StrEnum):
    """Name the purposes for which a quantized copy may be made and passed on."""

    ANY = "any"
    NON_COMMERCIAL = "non-commercial"
    RESEARCH = "research"


class SeenText(Record):
    """Identify a license text that a rule was written from, by the sha256 of its words."""

    source: str
    words_sha256: Sha256


class LicenseRule(Record):
    """State the demands of one license.

    `id` is its name in model cards, `spdx` its SPDX identifier if there is one. `notice_text` goes
    into the NOTICE file. When a release is passed on, `display_text` must be shown where the model
    is offered, and the name of the release must begin with `name_prefix`; `{name}` in a text stands
    for that name. Every recipient gets the `conditions` and the address of the use policy.
    `base_models` are patterns of the names of models under this license on the Hugging Face hub.
    """

    id: str
    name: str
    texts: tuple[SeenText, ...]
    spdx: str | None = None
    grants: Grant = Grant.ANY
    notice_text: str | None = None
    display_text: str | None = None
    name_prefix: str | None = None
    use_policy_url: str | None = None
    conditions: tuple[str, ...] = ()
    multimodal_excludes_eu: bool = False
    base_models: tuple[str, ...] = ()

    @property
    def expression(self) -> str:
        """Return the SPDX expression; `LicenseRef-…` for a license that SPDX does not list."""
        return self.spdx or f"LicenseRef-{self.id}"

    def applied(self, decision: LicenseDecision | None) -> AppliedLicense:
        """Return the entry for the base's manifest."""
        return AppliedLicense(
            id=self.id, name=self.name, expression=self.expression, decision=decision
        )


class LicenseRules(Record):
    """Hold all rules. Identifiers are compared in lower case."""

    rules: tuple[LicenseRule, ...]

    def by_id(self, license_id: str) -> LicenseRule | None:
        """Return the rule of a license by its name in model cards, in any case."""
        wanted = license_id.lower()
        return next((rule for rule in self.rules if rule.id == wanted), None)

    def by_text(self, words: str) -> LicenseRule | None:
        """Return the rule that was written from the text with this sha256 of its words."""
        return next(
            (r for r in self.rules if any(text.words_sha256 == words for text in r.texts)), None
        )

    def by_base_model(self, name: str) -> LicenseRule | None:
        """Return the rule of the license that a model of the hub is under."""
        return next(
            (
                rule
                for rule in self.rules
                if any(fnmatchcase(name.lower(), model.lower()) for model in rule.base_models)
            ),
            None,
        )

    def named(self, license_id: str, *, key: str) -> LicenseRule:
        """Return the rule that a person named under `key`. Raises InputError when there is none."""
        rule = self.by_id(license_id)
        if rule is None:
            raise InputError(
                f"{key} = {short_repr(license_id)}: expected one of "
                f"{', '.join(rule.id for rule in self.rules)}; a person has to read its text and "
                "add a rule to pipeline/licensing/rules.yaml"
            )
        return rule


def words_sha256(text: str) -> str:
    """Return the sha256 of a license's words in lower case, without lines of copyright holders.

    Line breaks, punctuation and mark-up do not count; every word does.
    """
    words = WORD.findall(COPYRIGHT_LINE.sub("", text).lower())
    return sha256_hex(" ".join(words).encode())
