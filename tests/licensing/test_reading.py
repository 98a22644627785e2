"""What a model card and a license text say is read as it is written."""

import json
from datetime import date
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.core.files import file_sha256
from pipeline.core.workspace import Workspace
from pipeline.licensing.reading import other_license_text, read_decision, read_license_facts
from pipeline.records.licenses import LicenseFacts
from pipeline.release.model_card import read_languages
from tests.support import ROOT

NOTHING = LicenseFacts(
    id=None,
    name=None,
    link=None,
    text_path=None,
    text_sha256=None,
    text_words_sha256=None,
    base_model=(),
)


def facts_of(path: Path, card: str) -> LicenseFacts:
    (path / "README.md").write_text(card, encoding="utf-8")
    return read_license_facts(path)


def test_reads_every_field_of_the_card(tmp_path: Path) -> None:
    facts = facts_of(
        tmp_path,
        "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://example.org/LICENSE\n"
        "base_model:\n- org/a\n- org/b\n---\n# A model\n",
    )
    assert (facts.id, facts.name, facts.link) == ("other", "qwen", "https://example.org/LICENSE")
    assert facts.base_model == ("org/a", "org/b")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\ntext", "mit"),
        ("---\nlicense:\n- mit\n---\n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit AND apache-2.0"),
        ("---\nlicense: ''\n---\n", None),
        ("---\nlicense: 5\n---\n", None),
        ("---\nlicense:\n---\n", None),
        ("# no front matter\n\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\n- license\n---\n", None),
        ("", None),
    ],
)
def test_reads_the_license_only_from_front_matter(
    tmp_path: Path, card: str, expected: str | None
) -> None:
    assert facts_of(tmp_path, card).id == expected


def test_a_single_base_model_is_one(tmp_path: Path) -> None:
    assert facts_of(tmp_path, "---\nbase_model: org/a\n---\n").base_model == ("org/a",)


@pytest.mark.parametrize(
    "yaml",
    [
        "license: [mit",
        "license: mit\nlicense: gemma",
        "license: !!python/object/apply:os.system [ls]",
        "\x00",
        "[" * 1000,
        "a: *nowhere",
        "license: !!timestamp mit",
        "license: !!binary mit",
        "? {a: b}\n: c",
        "date: 2001-99-99",
        "number: !!int many",
        "a: &a [*a]\nb: {<<: *a}",
    ],
)
def test_front_matter_that_is_not_valid_states_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], yaml: str
) -> None:
    assert facts_of(tmp_path, f"---\n{yaml}\n---\n") == NOTHING
    assert "README.md: its front matter is not valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("language: no", ("no",)),
        ("language: [en, es]", ("en", "es")),
        ("language: en\nlanguage: es", ()),
        ("language: {a: b}", ()),
        ('language: [[en], 5, "x\\ty", ""]', ()),
        ("license: mit", ()),
    ],
)
def test_the_languages_of_a_card_are_its_codes(
    tmp_path: Path, yaml: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{yaml}\n---\n", encoding="utf-8")
    assert read_languages(tmp_path / "README.md") == expected
    assert read_languages(tmp_path / "missing") == ()


@pytest.mark.parametrize(
    "name", ["LICENSE", "LICENSE.txt", "license.md", "LICENCE", "COPYING", "LICENSE-2.0"]
)
def test_finds_the_license_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("terms")
    (tmp_path / "NOTICE").write_text("notice")
    facts = read_license_facts(tmp_path)
    assert facts.text_path == name
    assert facts.text_sha256 == file_sha256(tmp_path / name)


def test_prefers_the_plain_name(tmp_path: Path) -> None:
    for name in ("LICENSE-third-party.txt", "LICENSE", "LICENSE.md"):
        (tmp_path / name).write_text(name)
    assert read_license_facts(tmp_path).text_path == "LICENSE"


def test_a_second_text_counts_by_its_words(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Use it well.")
    (tmp_path / "LICENSE.md").write_text("# Use it\n*well*")
    assert other_license_text(tmp_path) is None
    (tmp_path / "LICENSE.md").write_text("Use it badly.")
    assert other_license_text(tmp_path) == "LICENSE.md"
    (tmp_path / "LICENSE").rename(tmp_path / "LICENSE-MODEL")
    assert other_license_text(tmp_path) is None


def test_without_any_file_nothing_is_stated(tmp_path: Path) -> None:
    assert read_license_facts(tmp_path) == NOTHING


SIGNED = {
    "license": "mit",
    "text": None,
    "text_sha256": "ab" * 32,
    "decided_by": "Jane Doe",
    "decided_on": "2026-11-21",
    "reason": "the owner said so",
}


def decisions(root: Path, text: str) -> Workspace:
    workspace = Workspace(root)
    workspace.decisions_path.write_text(text)
    return workspace


def test_a_decision_is_read_by_its_name(tmp_path: Path) -> None:
    workspace = decisions(tmp_path, json.dumps({"tiny": SIGNED, "other": SIGNED}))
    assert read_decision(workspace, None) is None
    decision = read_decision(workspace, "tiny")
    assert decision is not None
    assert decision.decided_on == date(2026, 11, 21)


def test_the_decisions_of_the_repository_are_in_order() -> None:
    with pytest.raises(InputError, match=r"license-decisions.yaml \(none\); sign it there"):
        read_decision(Workspace(ROOT), "tiny")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "model.license = 'tiny': expected null or a decision of"),
        ("other: x", "license-decisions.yaml: other = 'x': "),
        ("- tiny", "license-decisions.yaml: "),
        ("tiny: [", "not valid YAML"),
        (json.dumps({"tiny": {**SIGNED, "reason": " "}}), "tiny.reason = ' ': "),
        (json.dumps({"tiny": {**SIGNED, "who": "me"}}), "tiny.who: unknown key"),
        (json.dumps({"tiny": {"license": "mit"}}), "tiny.text: missing"),
        (json.dumps({"tiny": {**SIGNED, "decided_on": "soon"}}), "tiny.decided_on = 'soon'"),
        (json.dumps({"tiny": {**SIGNED, "text": "../x"}}), "tiny.text = '../x'"),
        (json.dumps({"tiny": {**SIGNED, "text": "none.txt"}}), "none.txt: no such file"),
    ],
)
def test_a_decision_that_is_not_whole_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_decision(decisions(tmp_path, text), "tiny")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
