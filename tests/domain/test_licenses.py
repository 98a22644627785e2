"""Which license applies, and where the run stops because nobody can say."""

import pytest

from pipeline.domain.errors import InputError
from pipeline.domain.licenses import Redistribution, resolve, rule_for, stated_id
from pipeline.domain.manifest import LicenseFacts


def facts(
    license_id: str | None = None, *, name: str | None = None, text_path: str | None = None
) -> LicenseFacts:
    return LicenseFacts(
        id=license_id, name=name, link=None, text_path=text_path, text_sha256=None, base_model=()
    )


@pytest.mark.parametrize("license_id", ["mit", "MIT", "Apache-2.0", "llama3.1", "gemma"])
def test_a_stated_license_applies(license_id: str) -> None:
    assert resolve(facts(license_id), None).id == license_id.lower()
    assert resolve(facts(license_id), license_id.upper()).id == license_id.lower()


def test_other_means_its_name() -> None:
    assert stated_id(facts("other", name="qwen")) == "qwen"
    assert resolve(facts("other", name="qwen"), None).display_text == "Built with Qwen"


@pytest.mark.parametrize("stated", [facts(), facts("other"), facts("unknown")])
def test_a_person_decides_where_the_card_says_nothing(stated: LicenseFacts) -> None:
    assert resolve(stated, "apache-2.0").spdx == "Apache-2.0"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (
            facts(),
            "no license: the front matter of README.md has no `license` and there is no LICENSE, "
            "LICENCE or COPYING file; ask the owner, or set model.license to what a person decided",
        ),
        (
            facts(text_path="LICENSE"),
            "no license: the front matter of README.md has no `license`; the text in LICENSE needs "
            "a reader; ask the owner, or set model.license to what a person decided",
        ),
        (
            facts("other"),
            "no license: README.md says `license: other` without `license_name` and there is no "
            "LICENSE, LICENCE or COPYING file; ask the owner, or set model.license to what a "
            "person decided",
        ),
    ],
)
def test_no_license_stops_the_run(stated: LicenseFacts, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(stated, None)
    assert str(caught.value) == expected


@pytest.mark.parametrize("stated", [facts("gemma"), facts("other", name="gemma")])
def test_a_decision_cannot_contradict_the_card(stated: LicenseFacts) -> None:
    with pytest.raises(
        InputError, match=r"model.license = 'mit': the checkpoint's model card says"
    ):
        resolve(stated, "mit")


@pytest.mark.parametrize("stated", [facts("openrail"), facts("other", name="openrail")])
def test_an_unknown_license_wants_a_person(stated: LicenseFacts) -> None:
    with pytest.raises(
        InputError, match=r"license 'openrail': expected one of apache-2.0, mit, .*"
    ):
        resolve(stated, None)


def test_an_unknown_decision_wants_a_person() -> None:
    with pytest.raises(InputError, match="license 'my own': expected one of"):
        resolve(facts(), "my own")


@pytest.mark.parametrize(
    ("license_id", "prefix", "display"),
    [
        ("llama3", "Llama 3", "Built with Meta Llama 3"),
        ("llama3.1", "Llama", "Built with Llama"),
        ("llama4", "Llama", "Built with Llama"),
    ],
)
def test_a_llama_must_be_named_and_noticed(license_id: str, prefix: str, display: str) -> None:
    rule = rule_for(license_id)
    assert rule is not None
    assert (rule.name_prefix, rule.display_text) == (prefix, display)
    assert rule.notice_text is not None
    assert "Copyright © Meta Platforms, Inc. All Rights Reserved." in rule.notice_text


def test_the_notice_of_the_first_llama_3_names_meta_twice() -> None:
    rule = rule_for("llama3")
    assert rule is not None
    assert rule.notice_text == (
        "Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )


@pytest.mark.parametrize("license_id", ["mrl", "qwen-research", "cc-by-nc-4.0"])
def test_research_licenses_are_not_for_commerce(license_id: str) -> None:
    rule = rule_for(license_id)
    assert rule is not None
    assert rule.redistribute is Redistribution.NON_COMMERCIAL


def test_a_license_nobody_listed_has_no_rule() -> None:
    assert rule_for("other") is None
