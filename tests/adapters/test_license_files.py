"""What a model card and a license text say is read as it is written."""

from pathlib import Path

import pytest

from pipeline.adapters.files import file_sha256
from pipeline.adapters.license_files import read_license_facts
from pipeline.domain.manifest import LicenseFacts

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
    ],
)
def test_front_matter_that_is_not_valid_states_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], yaml: str
) -> None:
    assert facts_of(tmp_path, f"---\n{yaml}\n---\n") == NOTHING
    assert "README.md: its front matter is not valid YAML" in capsys.readouterr().err


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


def test_without_any_file_nothing_is_stated(tmp_path: Path) -> None:
    assert read_license_facts(tmp_path) == NOTHING
