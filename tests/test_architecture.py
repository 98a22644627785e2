"""The architecture holds: imports run one way, and DVC knows every module a stage runs."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.cli import STAGES
from tests.support import ROOT

PACKAGE = ROOT / "pipeline"
# Who may import whom: a layer sees itself and the layers listed for it.
ALLOWED = {
    "domain": {"domain"},
    "numerics": {"numerics", "domain"},
    "adapters": {"adapters", "numerics", "domain"},
    "stages": {"adapters", "numerics", "domain"},
    "cli": {"adapters", "domain"},
}


def module_path(name: str) -> Path | None:
    """The file of `pipeline.a.b`, if it is a module of this package."""
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def imports_of(path: Path) -> set[Path]:
    """The files of this package that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("pipeline.") and (file := module_path(name)):
                found.add(file)
    return {file for file in found if file.name != "__init__.py"}


def closure(path: Path) -> set[Path]:
    """A module and everything of this package it imports, directly or not."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += imports_of(current)
            waiting += run_as_programs(current)
    return seen


def run_as_programs(path: Path) -> list[Path]:
    """Modules named in a string, `python -m pipeline.…`, are run as programs of their own."""
    strings = (
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return [
        file
        for text in strings
        if text.startswith("pipeline.") and " " not in text and (file := module_path(text))
    ]


def layer(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def graph() -> dict[str, dict]:
    stages: dict[str, dict] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    allowed = ALLOWED[layer(path)]
    assert {layer(it) for it in imports_of(path)} <= allowed


def test_stages_are_the_same_everywhere() -> None:
    stage_modules = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert set(STAGES) == stage_modules == {name.partition("_")[0] for name in graph()}


@pytest.mark.parametrize("name", list(graph()))
def test_dvc_knows_every_module_a_stage_runs(name: str) -> None:
    stage = name.partition("_")[0]
    needed = closure(PACKAGE / "stages" / f"{stage}.py") | closure(PACKAGE / "cli.py")
    listed = {ROOT / dep for dep in graph()[name]["deps"] if dep.startswith("pipeline/")}
    assert listed == needed


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_say_what_they_are_and_stay_short(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is"
    assert len(source.splitlines()) <= 300
