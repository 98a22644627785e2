"""Define a rule: the demands of one license on somebody who passes a copy on.

The rules are data, in `pipeline/licensing/rules.yaml`. `pipeline.licensing.licenses` finds the rule
that applies, and applies it.
"""

import re
from fnmatch import fnmatchcase
from typing import Final

from pipeline.core.errors import InputError, short_repr
from pipeline.core.file_records import Sha256
from pipeline.core.record import Record, sha256_hex
from pipeline.core.workspace import DECISIONS_FILE
from pipeline.records.licenses import AppliedLicense, Grant, LicenseDecision

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

LICENSE_REF: Final = re.compile(r"[A-Za-z0-9.-]+")
"""What may follow `LicenseRef-`: https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions"""


class SeenText(Record):
    """Name a text of the license that a rule was written from, by the sha256 of its words."""

    source: str
    words_sha256: Sha256


class LicenseRule(Record):
    """State the demands of one license.

    `id` is its name in model cards, `spdx` its SPDX identifier if there is one. `notice_text` goes
    into the NOTICE file. When a release is passed on, `display_text` must be shown where the model
    is offered, and the name of the release must begin with `name_prefix`; `{name}` in a text stands
    for that name. Every recipient gets the `conditions` and the address of the use policy.
    `base_models` are patterns of the names of models under this license on the Hugging Face hub.
    A copy of what `forbids_changed_copies` may be quantized and kept, and not be passed on.
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
    forbids_changed_copies: bool = False
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
    """Hold all rules; an identifier is looked up in upper or lower case."""

    rules: tuple[LicenseRule, ...]

    def by_id(self, license_id: str) -> LicenseRule | None:
        """Return the rule of a license by its name in model cards, in any case."""
        wanted = license_id.lower()
        return next((rule for rule in self.rules if rule.id == wanted), None)

    def by_text(self, words: str) -> LicenseRule | None:
        """Return the rule that was written from the text with this sha256 of its words."""
        return next(
            (rule for rule in self.rules if any(it.words_sha256 == words for it in rule.texts)),
            None,
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

    def decided(self, decision: LicenseDecision) -> LicenseRule:
        """Return the rule that a person decided on, or one with the terms that stand there.

        Raises InputError for a license with neither or both, and for an identifier of which no
        SPDX expression can be made.
        """
        rule, terms = self.by_id(decision.license), decision.terms
        where = f"{DECISIONS_FILE}: license = {short_repr(decision.license)}"
        if terms is None:
            if rule is None:
                raise InputError(
                    f"{where}: no rule for it (docs/license.md lists them); state its terms in the "
                    "decision"
                )
            return rule
        if rule is not None:
            raise InputError(f"{where}: has a rule; remove the terms from the decision")
        if not LICENSE_REF.fullmatch(decision.license):
            raise InputError(f"{where}: expected letters, digits, dots and dashes")
        return LicenseRule(
            id=decision.license,
            name=terms.name,
            texts=(),
            grants=terms.grants,
            notice_text=terms.notice_text,
            conditions=terms.conditions,
        )

    def applying(self, applied: AppliedLicense) -> LicenseRule:
        """Return the rule of a license that fetch found to apply. Raises InputError without one."""
        if applied.decision is not None:
            return self.decided(applied.decision)
        rule = self.by_id(applied.id)
        if rule is None:
            raise InputError(f"license {applied.id}: no rule for it; run `quantline fetch` again")
        return rule


def words_sha256(text: str) -> str:
    """Return the sha256 of a license's words in lower case, without lines of copyright holders.

    Line breaks, punctuation and mark-up do not count; every word does.
    """
    words = WORD.findall(COPYRIGHT_LINE.sub("", text).lower())
    return sha256_hex(" ".join(words).encode())
