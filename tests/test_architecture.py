"""The architecture holds: imports run one way, and DVC knows every module a stage runs."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.cli_app import STAGES
from tests.commands import COMMANDS
from tests.imports import PACKAGE, closure, imports_of, layer, modules
from tests.support import ROOT

# Who may import whom: a layer sees itself and the layers listed for it.
ALLOWED = {
    "domain": {"domain"},
    "numerics": {"numerics", "domain"},
    "adapters": {"adapters", "numerics", "domain"},
    "stages": {"adapters", "numerics", "domain"},
    "verbs": {"adapters", "numerics", "domain"},
    "cli": {"cli_app", "stages", "verbs", "adapters", "domain"},
    "cli_app": {"domain"},
}


STAGE_NAMES = {name for name, command in COMMANDS.items() if command.rich_help_panel == STAGES}
VERB_NAMES = set(COMMANDS) - STAGE_NAMES
FUNCTIONS = {command.callback.__name__ for command in COMMANDS.values() if command.callback}


def guards() -> set[Path]:
    """What every command runs before its own module: what `pipeline.cli` imports beside those."""
    cli = PACKAGE / "cli.py"
    return {cli}.union(*(closure(path) for path in imports_of(cli, without=FUNCTIONS)))


def graph() -> dict[str, dict]:
    stages: dict[str, dict] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    allowed = ALLOWED[layer(path)]
    assert {layer(it) for it in imports_of(path)} <= allowed


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
    cli = PACKAGE / "cli.py"
    own = imports_of(cli) - imports_of(cli, without={function.__name__})
    assert own == {PACKAGE / package / f"{function.__name__}.py"}


@pytest.mark.parametrize("name", list(graph()))
def test_dvc_knows_every_module_a_stage_runs(name: str) -> None:
    stage = name.partition("_")[0]
    needed = closure(PACKAGE / "stages" / f"{stage}.py") | guards()
    listed = {ROOT / dep for dep in graph()[name]["deps"] if dep.startswith("pipeline/")}
    assert listed == needed


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_say_what_they_are_and_stay_short(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is"
    assert len(source.splitlines()) <= 300
