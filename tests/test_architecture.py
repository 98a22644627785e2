"""Stages, commands and modules are where one looks for them; `lint-imports` checks the floors."""

import ast
from pathlib import Path

import pytest

from pipeline.cli_app import STAGES
from tests.commands import COMMANDS
from tests.imports import PACKAGE, imports_of, modules
from tests.test_graph import graph

STAGE_NAMES = {name for name, command in COMMANDS.items() if command.rich_help_panel == STAGES}
VERB_NAMES = set(COMMANDS) - STAGE_NAMES


def test_stages_are_the_same_everywhere() -> None:
    stage_modules = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert STAGE_NAMES == stage_modules == {name.partition("_")[0] for name in graph()}


def test_verbs_are_beside_the_graph_and_have_a_module_each() -> None:
    stems = {path.stem for path in (PACKAGE / "verbs").glob("*.py")} - {"__init__"}
    verb_modules = {stem.removesuffix("_") for stem in stems}  # `import` is a keyword
    assert verb_modules == VERB_NAMES
    assert not verb_modules & {name.partition("_")[0] for name in graph()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_the_module_of_its_name_alone(name: str) -> None:
    package = "stages" if name in STAGE_NAMES else "verbs"
    function = COMMANDS[name].callback
    assert function
    cli = PACKAGE / "commands.py"
    own = imports_of(cli) - imports_of(cli, without=(function.__name__,))
    assert own == {PACKAGE / package / f"{function.__name__}.py"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_say_what_they_are_and_stay_short(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is"
    assert len(source.splitlines()) <= 300
