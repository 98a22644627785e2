"""The form of a rule: what one license, known by its words, demands of who passes a copy on.

The rules are data, in `pipeline/licensing/rules.yaml`. Which of them applies, and to
what it leads, is `pipeline.licensing.licenses`.
"""

import re
from enum import StrEnum
from fnmatch import fnmatchcase

from pipeline.core.errors import InputError, short_repr
from pipeline.core.file_records import Sha256
from pipeline.core.record import Record, sha256_hex
from pipeline.records.licenses import AppliedLicense, LicenseDecision

# Who holds the copyright is no part of a license's words:
# https://spdx.github.io/spdx-spec/v3.0.1/annexes/license-matching-guidelines-and-templates
# A line that also speaks of what may be done is one of terms, and stays.
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
    """For which purposes a quantized copy may be made and passed on."""

    ANY = "any"
    NON_COMMERCIAL = "non-commercial"
    RESEARCH = "research"


class SeenText(Record):
    """A text of the license that a rule was written from, by the sha256 of its words."""

    source: str
    words_sha256: Sha256


class LicenseRule(Record):
    """One license: `id` as model cards write it, `spdx` its SPDX identifier if there is one.

    `notice_text` goes into the NOTICE file. `display_text` must be shown where the model is offered
    and the release's name must begin with `name_prefix` as soon as it is passed on; `{name}` stands
    for that name. `conditions` are told to every recipient, with the address of the use policy.
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
        """The SPDX expression; `LicenseRef-…` for a license that SPDX does not list."""
        return self.spdx or f"LicenseRef-{self.id}"

    def applied(self, decision: LicenseDecision | None) -> AppliedLicense:
        """What the base's manifest says of this license."""
        return AppliedLicense(
            id=self.id, name=self.name, expression=self.expression, decision=decision
        )


class LicenseRules(Record):
    """All rules; an identifier is looked up in upper or lower case."""

    rules: tuple[LicenseRule, ...]

    def by_id(self, license_id: str) -> LicenseRule | None:
        wanted = license_id.lower()
        return next((rule for rule in self.rules if rule.id == wanted), None)

    def by_text(self, words: str) -> LicenseRule | None:
        """The rule that was written from the text with this sha256 of its words."""
        return next(
            (r for r in self.rules if any(text.words_sha256 == words for text in r.texts)), None
        )

    def by_base_model(self, name: str) -> LicenseRule | None:
        return next(
            (
                rule
                for rule in self.rules
                if any(fnmatchcase(name.lower(), it.lower()) for it in rule.base_models)
            ),
            None,
        )

    def named(self, license_id: str, *, key: str) -> LicenseRule:
        """The rule of what a person wrote under `key`. Raises InputError when there is none."""
        rule = self.by_id(license_id)
        if rule is None:
            raise InputError(
                f"{key} = {short_repr(license_id)}: expected one of "
                f"{', '.join(rule.id for rule in self.rules)}; a person has to read its text and "
                "add a rule to pipeline/licensing/rules.yaml"
            )
        return rule


def words_sha256(text: str) -> str:
    """sha256 of a license text's words in lower case, without lines that name the copyright holder.

    Line breaks, punctuation and mark-up do not count, every word does.
    """
    words = WORD.findall(COPYRIGHT_LINE.sub("", text).lower())
    return sha256_hex(" ".join(words).encode())
