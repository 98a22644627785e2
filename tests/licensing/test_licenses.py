"""Which license applies, where the run stops because nobody can say, and what follows for whom."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.core.files import file_sha256
from pipeline.core.workspace import Workspace
from pipeline.licensing.licenses import (
    data_rule,
    display_text,
    require_allowed,
    require_data_allowed,
    resolve,
)
from pipeline.licensing.reading import read_data_license
from pipeline.licensing.rule import LicenseRule, words_sha256
from pipeline.licensing.rules import license_rules
from pipeline.params.params import Audience, ReleaseParams
from pipeline.records.licenses import Grant, LicenseDecision, LicenseFacts, LicenseTerms
from pipeline.release.card_facts import release_license
from pipeline.release.notice import notice_text
from tests.registry_server import package_manifest
from tests.support import ROOT

RULES = license_rules()
TEXTS = ROOT / "tests" / "licenses"
SHA = "ab" * 32


TERMS = LicenseTerms(name="Mine", grants=Grant.RESEARCH, conditions=("Say so.",))


def rule_of(license_id: str) -> LicenseRule:
    rule = RULES.by_id(license_id)
    assert rule is not None
    return rule


def words_of(rule_id: str) -> str:
    return words_sha256((TEXTS / f"{rule_id}.txt").read_text())


def facts(
    license_id: str | None = None,
    *,
    name: str | None = None,
    text: str | None = "mit",
    base_model: tuple[str, ...] = (),
) -> LicenseFacts:
    """The facts of a card, and of a LICENSE with the text of the rule `text` (`?`: another one)."""
    rule = RULES.by_id(text) if text else None
    known = rule.texts[0].words_sha256 if rule and rule.texts else SHA
    return LicenseFacts(
        id=license_id,
        name=name,
        link=None,
        text_path="LICENSE" if text else None,
        text_sha256=SHA if text else None,
        text_words_sha256=known if text else None,
        base_model=base_model,
    )


def decision(license_id: str, **changes: object) -> LicenseDecision:
    values: dict[str, object] = {
        "license": license_id,
        "text": None,
        "text_sha256": SHA,
        "decided_by": "Jane Doe",
        "decided_on": date(2026, 11, 21),
        "reason": "the owner said so",
        **changes,
    }
    return LicenseDecision.model_validate(values)


def release(
    audience: Audience = Audience.PUBLIC, *, commercial: bool = True, name: str = "tiny"
) -> ReleaseParams:
    return ReleaseParams(
        name=name,
        version="1.0.0",
        quantized_by="somebody",
        audience=audience,
        commercial=commercial,
        signing_key=None,
    )


def applied(stated: LicenseFacts, decided: LicenseDecision | None = None) -> LicenseRule:
    return resolve(stated, RULES, decided, multimodal=False)


@pytest.mark.parametrize("license_id", ["apache-2.0", "llama3.1", "gemma", "qwen"])
def test_a_text_is_known_by_its_words(license_id: str) -> None:
    rule = RULES.by_text(words_of(license_id))
    assert rule is not None
    assert rule.id == license_id


def test_line_breaks_and_copyright_holders_are_no_words_of_a_license() -> None:
    text = "Copyright (c) 2026 Jane\n\nUse it *well*,\nand often."
    assert words_sha256(text) == words_sha256("© 1999 Joe\r\nuse it well and often")
    assert words_sha256(text) != words_sha256("use it well and seldom")
    assert words_sha256("Copyright owners may use it") != words_sha256("may use it")
    with_terms = "Copyright (c) 2026 Jane. No commercial use.\n\nUse it well and often."
    assert words_sha256(with_terms) != words_sha256(text)


@pytest.mark.parametrize(
    "stated",
    [
        facts("apache-2.0", text="apache-2.0"),
        facts("Apache-2.0", text="apache-2.0"),
        facts(None, text="apache-2.0"),
        facts("other", name="apache-2.0", text="apache-2.0"),
        facts("apache-2.0", text="apache-2.0", base_model=("Qwen/Qwen2.5-7B",)),
    ],
)
def test_the_text_decides_where_nothing_contradicts(stated: LicenseFacts) -> None:
    assert applied(stated).id == "apache-2.0"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (facts(text=None), "names no license, and there is no LICENSE, LICENCE or COPYING file"),
        (facts("mit", text=None), "says 'mit', and there is no LICENSE"),
        (facts("other", text="?"), "names no license, and the text in LICENSE is none that a rule"),
        (facts("openrail", text="?"), "says 'openrail', for which there is no rule"),
        (facts("openrail", text="mit"), "says 'openrail', for which there is no rule"),
        (facts("mit", text="?"), "says 'mit', and the text in LICENSE is none that a rule"),
        (facts("mrl", text="?"), "says 'mrl', and the text in LICENSE is none that a rule"),
        (facts("apache-2.0", text="llama3.1"), "is the Llama 3.1 Community License"),
        (facts("mit AND apache-2.0", text="mit"), "for which there is no rule"),
        (
            facts("mit", text="mit", base_model=("meta-llama/Llama-3.1-8B",)),
            "made from 'meta-llama/Llama-3.1-8B' under the Llama 3.1 Community License",
        ),
        (facts("mit", text="mit", base_model=("me/mine",)), "from 'me/mine', whose license is not"),
    ],
)
def test_what_is_open_stops_until_a_person_decides(stated: LicenseFacts, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        applied(stated)
    assert "sign the decision in license-decisions.yaml" in str(caught.value)
    if stated.text_sha256:
        assert applied(stated, decision("apache-2.0")).id == "apache-2.0"
    brought = decision("apache-2.0", text="licenses/tiny.txt")
    assert applied(stated, brought).id == "apache-2.0"


def test_one_of_two_texts_is_chosen_by_a_person() -> None:
    stated = facts("mit")
    with pytest.raises(InputError, match=r"LICENSE and COPYING are two licenses, and either may"):
        resolve(stated, RULES, None, multimodal=False, other_text="COPYING")
    decided = resolve(stated, RULES, decision("mit"), multimodal=False, other_text="COPYING")
    assert decided.id == "mit"


def test_multimodal_llamas_are_not_for_europe() -> None:
    stated = facts("llama3.2", text="llama3.2")
    assert applied(stated).id == "llama3.2"
    with pytest.raises(InputError, match="no rights in its multimodal models to persons"):
        resolve(stated, RULES, None, multimodal=True)
    assert resolve(stated, RULES, decision("llama3.2"), multimodal=True).id == "llama3.2"


@pytest.mark.parametrize(
    ("stated", "decided", "expected"),
    [
        (facts("mit"), decision("mit", text_sha256="cd" * 32), "read it and decide again"),
        (facts("mit", text=None), decision("mit"), "name the text that Jane Doe on 2026-11-21"),
        (facts("mit"), decision("my-own"), "license = 'my-own': no rule for it"),
        (facts("mit"), decision("mit", terms=TERMS), "has a rule; remove the terms"),
        (facts("mit"), decision("my own", terms=TERMS), "expected letters, digits, dots and dash"),
    ],
)
def test_a_decision_holds_for_one_text_and_one_rule(
    stated: LicenseFacts, decided: LicenseDecision, expected: str
) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        applied(stated, decided)


PLAIN = (Grant.ANY, "", None)
NOT_COMMERCIAL = (Grant.NON_COMMERCIAL, "", None)
# Every row of what a redistributor owes: purposes, beginning of the name, sentence to show.
ROWS = {
    "apache-2.0": (Grant.ANY, "", None),
    "mit": (Grant.ANY, "", None),
    "llama3": (Grant.ANY, "Llama 3", "Built with Meta Llama 3"),
    "llama3.1": (Grant.ANY, "Llama", "Built with Llama"),
    "llama3.2": (Grant.ANY, "Llama", "Built with Llama"),
    "llama3.3": (Grant.ANY, "Llama", "Built with Llama"),
    "llama4": (Grant.ANY, "Llama", "Built with Llama"),
    "gemma": (Grant.ANY, "", None),
    "qwen": (Grant.ANY, "", "Built with Qwen"),
    "qwen-research": (Grant.NON_COMMERCIAL, "", "Built with Qwen"),
    "mrl": (Grant.RESEARCH, "", None),
    "deepseek": (Grant.ANY, "", None),
    "falcon-180b": (Grant.ANY, "", "Llama-3-tiny is built using Falcon LLM technology"),
    "falcon-llm": (Grant.ANY, "", "Llama-3-tiny is built using artificial intelligence technology"),
    "falcon2": (Grant.ANY, "", "Llama-3-tiny is built using Falcon LLM technology"),
    **dict.fromkeys(("cc-by-nc-4.0", "cc-by-nc-3.0", "cc-by-nc-2.0"), NOT_COMMERCIAL),
    **dict.fromkeys(("cc-by-4.0", "cc-by-3.0", "cc-by-2.5", "cc-by-2.0"), PLAIN),
    **dict.fromkeys(("cc-by-sa-4.0", "cc-by-sa-3.0"), PLAIN),
    **dict.fromkeys(("cc-by-nc-sa-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-2.0"), NOT_COMMERCIAL),
    "cc-by-nd-4.0": PLAIN,
    **dict.fromkeys(("cc-by-nc-nd-4.0", "cc-by-nc-nd-3.0"), NOT_COMMERCIAL),
    **dict.fromkeys(("cc0-1.0", "odc-by", "odbl", "pddl", "gfdl"), PLAIN),
    **dict.fromkeys(("cdla-permissive-2.0", "cdla-sharing-1.0", "cdla-permissive-1.0"), PLAIN),
}
UNCHANGED_ONLY = {"cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-nd-3.0"}
CREDITED = {it for it in ROWS if it.startswith("cc-by")} | {"odc-by", "gfdl"}
SHARED_ALIKE = {it for it in ROWS if "-sa-" in it} | {"gfdl", "odbl", "cdla-sharing-1.0"}


META = "Copyright © Meta Platforms, Inc. All Rights Reserved."
ALIBABA = "Copyright (c) Alibaba Cloud. All Rights Reserved."
# The sentences that have to stand in a file named NOTICE, as the licenses write them.
NOTICES = {
    "llama3": f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, {META}",
    **{
        f"llama{it}": f"Llama {it} is licensed under the Llama {it} Community License, {META}"
        for it in ("3.1", "3.2", "3.3", "4")
    },
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms",
    "qwen": f"Qwen is licensed under the Qwen LICENSE AGREEMENT, {ALIBABA}",
    "qwen-research": f"Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, {ALIBABA}",
    "mrl": "Licensed by Mistral AI under the Mistral AI Research License",
}
# What else a recipient has to be told.
TOLD = {
    **dict.fromkeys(("llama3", "llama3.1", "llama3.2", "llama3.3", "llama4"), "700 million"),
    **dict.fromkeys(
        ("gemma", "falcon-180b", "falcon-llm", "falcon2"), "has to bind the recipients"
    ),
    "qwen": "100 million",
    "deepseek": "attachment A",
    **dict.fromkeys(CREDITED, "name its makers"),
    **dict.fromkeys(UNCHANGED_ONLY, "may not be passed on"),
    "odbl": "to say so and name its license",
    **dict.fromkeys(
        ("cdla-permissive-2.0", "cdla-sharing-1.0", "cdla-permissive-1.0"),
        "the text of its license",
    ),
}
POLICIES = {
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "falcon-180b", "falcon-llm",
    "falcon2",
}  # fmt: skip


def test_every_rule_is_a_row() -> None:
    assert [rule.id for rule in RULES.rules] == list(ROWS)


@pytest.mark.parametrize("commercial", [True, False])
@pytest.mark.parametrize("audience", Audience)
@pytest.mark.parametrize("license_id", ROWS)
def test_every_license_for_every_audience_and_purpose(
    tmp_path: Path, license_id: str, audience: Audience, commercial: bool
) -> None:
    grant, prefix, shown = ROWS[license_id]
    rule = rule_of(license_id)
    asked = release(audience, commercial=commercial, name="Llama-3-tiny")
    if commercial and grant is not Grant.ANY:
        with pytest.raises(InputError, match=f"allows {grant.value} purposes only"):
            require_allowed(rule, asked)
        return
    if license_id in UNCHANGED_ONLY and audience is not Audience.INTERNAL:
        with pytest.raises(InputError, match="forbids to pass on what was changed"):
            require_allowed(rule, asked)
        return
    require_allowed(rule, asked)
    sentence = display_text(rule, audience, name=asked.name)
    terms = release_license(rule, asked, text_sha256=SHA)
    package = package_manifest(tmp_path, "awq").model_copy(update={"license": terms})
    notice = notice_text(package, changed=("model.gguf",), unchanged=(), upstream_notices=())
    assert "is a modified copy of org/tiny" in notice
    assert "Changed files: model.gguf." in notice
    assert NOTICES.get(license_id, "") in notice
    assert TOLD.get(license_id, "") in notice
    assert ("only under the same license" in notice) == (license_id in SHARED_ALIKE)
    assert ("is subject to the policy at https://" in notice) == (license_id in POLICIES)
    assert (terms.display_text or "") in notice
    assert terms.display_text == sentence
    other_name = release(audience, commercial=commercial, name="tiny")
    if audience is Audience.INTERNAL:
        assert sentence is None
        require_allowed(rule, other_name)
        return
    assert (sentence or "").startswith(shown or "")
    assert (sentence is None) == (shown is None)
    if prefix:
        with pytest.raises(InputError, match=f"begins with {prefix!r}"):
            require_allowed(rule, other_name)
    else:
        require_allowed(rule, other_name)


def test_a_decision_may_state_the_terms_of_a_license_without_a_rule() -> None:
    decided = decision("my-own", terms=TERMS)
    rule = applied(facts("openrail", text="?"), decided)
    assert (rule.name, rule.expression, rule.grants) == (
        "Mine",
        "LicenseRef-my-own",
        Grant.RESEARCH,
    )
    assert RULES.applying(rule.applied(decided)) == rule
    with pytest.raises(InputError, match="the Mine allows research purposes only"):
        require_allowed(rule, release(commercial=True))
    terms = release_license(rule, release(commercial=False), text_sha256=SHA)
    assert (terms.link, terms.conditions) == ("LICENSE", ("Say so.",))


# As data sets of the Hugging Face hub state them; what names no license is decided by a person.
STATED = (
    "mit apache-2.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc0-1.0 odc-by odbl pddl gfdl cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 CC-BY-SA-3.0"
)


@pytest.mark.parametrize("stated", STATED.split())
def test_licenses_of_data_sets_have_rules(tmp_path: Path, stated: str) -> None:
    license = read_data_license(Workspace(tmp_path), stated, RULES)
    rule = data_rule(license, RULES)
    assert rule is not None
    assert str(license) == stated
    require_data_allowed(rule, release(commercial=False))
    if "-nc-" in stated:
        with pytest.raises(InputError, match=r"non-commercial purposes only.*other text"):
            require_data_allowed(rule, release(commercial=True))
    else:
        require_data_allowed(rule, release(commercial=True))


@pytest.mark.parametrize("stated", ["other", "unknown", "cc", "scraped", "openrail"])
def test_a_license_without_a_rule_is_for_a_person_to_decide(tmp_path: Path, stated: str) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(InputError, match=f"calibration.license = '{stated}': .* sign the decision"):
        read_data_license(workspace, stated, RULES)
    text = tmp_path / "text.txt"
    text.write_text("Do as you like.\n")
    signed = decision("mit", text_sha256=file_sha256(text)).model_dump(mode="json")
    workspace.decisions_path.write_text(json.dumps({stated: signed}))
    with pytest.raises(InputError, match=rf"{stated}.text = null: expected a file with the text"):
        read_data_license(workspace, stated, RULES)
    workspace.decisions_path.write_text(json.dumps({stated: {**signed, "text": text.name}}))
    license = read_data_license(workspace, stated, RULES)
    assert data_rule(license, RULES) == rule_of("mit")
    assert str(license) == "MIT License (decided by Jane Doe on 2026-11-21)"
    text.write_text("Do as you like, on weekdays.\n")
    with pytest.raises(InputError, match="is not the text that Jane Doe decided on"):
        read_data_license(workspace, stated, RULES)


def test_data_of_ones_own_need_no_license(tmp_path: Path) -> None:
    license = read_data_license(Workspace(tmp_path), "Own", RULES)
    assert data_rule(license, RULES) is None
    require_data_allowed(None, release(commercial=True))
