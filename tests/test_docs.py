"""README.md and docs/: their links, commands, keys, paths and messages are those of the product."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline.params.params import Params
from pipeline.params.serving import Scenario
from pipeline.params.suites import Suites
from pipeline.records.licenses import LicenseDecision
from tests.support import ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (README, *PAGES)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = ("pipeline", "envs", "eval", "deploy", "benchmarks", "tests", "demo", "docs")
SHORTENED = "…"


def fences(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def code(text: str) -> list[str]:
    """What stands between backticks, and the lines of shell blocks without their comments."""
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    lines = "".join(fences(text, "sh")).splitlines()
    return spans + [line.split("  #")[0].strip() for line in lines]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def helped(*arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@cache
def commands() -> frozenset[str]:
    return frozenset(re.findall(r"^ +([a-z]+) {2,}\S", helped(), re.MULTILINE))


def test_the_readme_is_short_and_every_page_is_one_screen_and_linked() -> None:
    assert len(README.read_text().splitlines()) <= 150
    for page in PAGES:
        assert len(page.read_text().splitlines()) <= 115, page.name
        assert f"](docs/{page.name})" in README.read_text(), page.name


def test_no_figure_is_left_to_be_measured() -> None:
    assert [name for name, text in TEXTS.items() if "MEASURE:" in text] == []


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in LINK.findall(FENCE.sub("", TEXTS[name])):
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_their_options_are_on_the_command_line(name: str) -> None:
    for line in code(TEXTS[name]):
        for word, rest in re.findall(r"\bquantline ([a-z]+)\b([^;|:]*)", line):
            assert word in commands(), line
            if options := re.findall(r"--[a-z-]+", rest):
                assert set(options) <= set(re.findall(r"--[a-z-]+", helped(word))), line


@pytest.mark.parametrize("name", TEXTS)
def test_targets_of_make_are_in_the_makefile(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for line in code(TEXTS[name]) for word in re.findall(r"^make (\S+)", line)} <= (
        targets
    )


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name: str) -> None:
    named = re.compile(rf"^(?:{'|'.join(FOLDERS)})/(?!.*NAME)[\w./-]*$")
    paths = [word for line in code(TEXTS[name]) for word in line.split() if named.match(word)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_tree_names_what_is_there() -> None:
    (tree,) = (body for body in fences(README.read_text(), "") if "pipeline/" in body)
    names = re.findall(r"[\w-]+(?:/|\.yaml|\.py)", tree)
    places = (ROOT, ROOT / "pipeline")
    assert [it for it in names if not any((place / it).exists() for place in places)] == []


def test_the_table_of_stages_has_every_stage_in_its_order() -> None:
    text = README.read_text()
    table = text[text.index("| stage | writes") :].partition("\n\n")[0]
    rows = re.findall(r"^\| ([a-z_, ]+) \|", table, re.MULTILINE)[1:]
    graph = YAML(typ="safe").load(ROOT / "dvc.yaml")
    assert [stage for row in rows for stage in row.split(", ")] == list(graph["stages"])


def alternatives(kind: Any) -> list[Any]:
    """The members of a union, which may be annotated; else the type itself."""
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [it for member in get_args(kind) for it in alternatives(member)]
    return [kind]


def wrong_keys(kinds: list[Any], value: object, place: str) -> Iterator[str]:
    """Keys in `value` that no record among `kinds`, or in a container among them, has."""
    if isinstance(value, list):
        items = [it for kind in kinds if (args := get_args(kind)) for it in alternatives(args[0])]
        for item in value:
            yield from wrong_keys(items, item, place)
    if not isinstance(value, dict):
        return
    values = [it for kind in kinds if get_origin(kind) is dict for it in get_args(kind)[1:]]
    fields = [it.model_fields for it in kinds if isinstance(it, type) and issubclass(it, BaseModel)]
    for key, item in value.items():
        known = [it[key].annotation for it in fields if key in it] + values
        if not known:
            yield f"{place}.{key}"
        inner = [it for kind in known for it in alternatives(kind)]
        yield from wrong_keys(inner, item, f"{place}.{key}")


@pytest.mark.parametrize("name", TEXTS)
def test_keys_in_yaml_are_those_of_the_records(name: str) -> None:
    known = {key: field.annotation for key, field in Params.model_fields.items()}
    known |= {"presets": known["variants"], "suites": Suites.model_fields["suites"].annotation}
    params = (ROOT / "params.yaml").read_text()
    presets = re.search(r"^presets:.*?(?=^\S)", params, re.MULTILINE | re.DOTALL)
    for block in fences(TEXTS[name], "yaml"):
        shared = presets[0] if presets and "presets:" not in block else ""
        for key, value in YAML(typ="safe").load(shared + block).items():
            kinds = alternatives(known.get(key, LicenseDecision))
            assert list(wrong_keys(kinds, value, key)) == []


def keys_of(kind: Any) -> Iterator[str]:
    """The keys of a record and of all records in it."""
    for it in alternatives(kind):
        if isinstance(it, type) and issubclass(it, BaseModel):
            for key, field in it.model_fields.items():
                yield key
                yield from keys_of(field.annotation)
        else:
            for inner in get_args(it):
                yield from keys_of(inner)


def test_every_parameter_is_explained() -> None:
    words = set(re.findall(r"\w+", " ".join(TEXTS.values())))
    assert sorted(set(keys_of(Params)) - words) == []


def test_a_wrong_key_would_be_found() -> None:
    snippet = {"text": {"users": [1]}, "chat": {"output_tokens": 1}}
    kinds = alternatives(dict[str, Scenario])
    assert list(wrong_keys(kinds, snippet, "scenarios")) == ["scenarios.text.users"]


@cache
def literals() -> str:
    """Every text in the product's code, one a line; values in it are shortened."""
    texts = []
    for folder in ("pipeline", "envs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (
                        it.value if isinstance(it, ast.Constant) else SHORTENED
                        for it in node.values
                    )
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_messages_in_troubleshooting_are_the_products() -> None:
    page = TEXTS["docs/troubleshooting.md"]
    tables = page.split("| message | cause and remedy |")[1:]
    cells = [row for table in tables for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)]
    parts = [
        part.strip()
        for cell in cells
        for span in SPAN.findall(cell)
        for part in span.split(SHORTENED)
    ]
    assert len(parts) > len(cells) > 20
    assert [part for part in parts if part not in literals()] == []
