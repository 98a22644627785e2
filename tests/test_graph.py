"""The graph knows what every stage runs, and runs again what a change touches, nothing else."""

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli import main
from tests.evaluation_files import HELD_OUT, write_evaluation_files
from tests.forks import Libraries
from tests.imports import PACKAGE, closure, layer
from tests.models import tiny_llama
from tests.support import ROOT

if TYPE_CHECKING:
    from dvc.repo import Repo

# What a stage imports without depending on it: these raise or return nothing that it writes.
GUARDS = ("planning",)
# Only with `gate.sequential` do they decide what is scored: then inputs/stopping.json has a digest.
BY_DIGEST = {"evaluate": ("gate",), "evaluate_base": ("gate",)}
EXPENSIVE = ("fetch", "calibrate", "quantize", "evaluate_base", "evaluate", "benchmark")


def graph() -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())[
        "stages"
    ]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def own_deps(name: str) -> set[Path]:
    return {ROOT / dep for dep in graph()[name].get("deps", []) if dep.startswith("pipeline/")}


def modules_run_by(name: str) -> set[Path]:
    """The modules behind a stage's command, without the guards."""
    module = PACKAGE / "stages" / f"{name.partition('_')[0]}.py"
    skipped = (*GUARDS, *BY_DIGEST.get(name, ()))
    return closure(module, without=skipped)


@pytest.mark.parametrize("name", [name for name in graph() if name != "inputs"])
def test_a_stage_depends_on_every_module_that_it_runs(name: str) -> None:
    deps = own_deps(name)
    missing = {it for it in modules_run_by(name) if not deps & {it, *it.parents}}
    assert not missing


@pytest.mark.parametrize("name", [name for name in graph() if name != "inputs"])
def test_a_stage_depends_on_nothing_that_it_does_not_run(name: str) -> None:
    run = modules_run_by(name) | (
        {PACKAGE / "gate" / "sequential.py"} if name in BY_DIGEST else set()
    )
    for dep in own_deps(name):
        below = {it for it in run if dep in {it, *it.parents}}
        assert below, f"{dep} is not run by {name}"
        modules = (
            {it for it in dep.rglob("*.py") if it.name != "__init__.py"} if dep.is_dir() else below
        )
        if name in EXPENSIVE and dep.name != "core":  # everything stands on core
            assert len(below) >= len(modules) / 2, f"{dep}: list the modules that {name} runs"


def test_the_graph_stays_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 250


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository in which DVC holds every stage to be up to date.

    The stages did not run: each output is a file of its own name, or has those that stages read.
    """
    root = tmp_path_factory.mktemp("recorded") / "repository"
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in ("pipeline", "envs", "eval", "demo"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", "prices.yaml", "license-decisions.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(root / "demo" / "model", root / "models" / "own")
    key = root / "key.pem"
    key.write_text("a key")
    edit(root / "params.yaml", "source: demo ", "source: models/own ")
    edit(root / "params.yaml", "signing_key: null", "signing_key: key.pem")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    with chdir(root):
        dvc().init().close()
    run_inputs(root)
    variants = YAML(typ="safe").load((root / "params.yaml").read_text())["variants"]
    stages = graph().values()
    read = {dep for stage in stages for dep in stage.get("deps", [])}
    for stage in stages:
        for out in stage["outs"]:
            text = out if isinstance(out, str) else next(iter(out))
            inside = {root / dep for dep in read if dep.startswith(f"{text}/")}
            for path in inside or {root / text.replace("${key}", name) for name in variants}:
                if root / "artifacts" / "inputs" not in (path, path.parent):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(path.name)
    with chdir(root), dvc()() as repo:
        repo.commit(force=True)
    return root


def dvc() -> "type[Repo]":
    from dvc.repo import Repo  # not above: its import takes a second, in every worker

    return Repo


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))


def run_inputs(root: Path) -> None:
    with chdir(ROOT):
        assert main(["-C", str(root), "inputs"]) == 0


def to_run_again(root: Path) -> set[str]:
    """The stages that DVC would run, without `inputs`, which it always runs."""
    run_inputs(root)
    return {name.partition("@")[0] for name in dvc_status(root)} - {"inputs"}


def dvc_status(root: Path) -> dict[str, Any]:
    """What `dvc status --json` prints."""
    with chdir(root), dvc()() as repo:
        status: dict[str, Any] = repo.status()
        return status


def docstring(module: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "pipeline" / module
        path.write_text(path.read_text().replace('"""', '"""Now: ', 1))

    return change


def parameter(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: edit(root / "params.yaml", old, new)


def appended(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write(" ")

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a help text": (docstring("cli.py"), set()),
    "a check of memory": (docstring("planning/plan.py"), set()),
    "a docstring in gate/": (docstring("gate/verdicts.py"), {"select", "report"}),
    "a profile": (
        parameter("best: quality, max_size_ratio: 0.6", "best: quality, max_size_ratio: 0.5"),
        {"select", "package", "report"},
    ),
    "a margin": (
        parameter("margin: 0.05 ", "margin: 0.06 "),
        {"select", "package", "report"},
    ),
    "a release name": (
        parameter("name: quantline-demo", "name: another"),
        {"fetch", "quantize", "package", "publish", "report"},
    ),
    "a module of registries": (docstring("registry/places.py"), {"publish"}),
    "the protocol of registries": (docstring("oci/http.py"), {"publish"}),
    "a file of the local model": (appended("models/own/README.md"), {"fetch"}),
    "the signing key": (appended("key.pem"), {"package"}),
    "a sentence of the report": (docstring("report/costs.py"), {"report"}),
    "a price": (appended("prices.yaml"), {"report"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_runs_again(recorded: Path, tmp_path: Path, change: str) -> None:
    make, expected = CHANGES[change]
    root = tmp_path / "repository"
    shutil.copytree(recorded, root, symlinks=True)
    make(root)
    assert to_run_again(root) == expected


@pytest.mark.slow
def test_a_release_name_quantizes_gguf_alone_again(recorded: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    shutil.copytree(recorded, root, symlinks=True)
    edit(root / "params.yaml", "name: quantline-demo", "name: another")
    run_inputs(root)
    again = {it for it in dvc_status(root) if it.startswith("quantize@")}
    assert again == {"quantize@gguf-q8-0", "quantize@gguf-q4-k-m", "quantize@gguf-q2-k"}


START = ("cli", "commands", "cli_app", "__init__")
COMMANDS = {
    "inputs": ["inputs"],
    "fetch": ["fetch"],
    "calibrate": ["calibrate"],
    "quantize": ["quantize", "gguf-q8-0"],
    "evaluate_base": ["evaluate", "base"],
    "evaluate": ["evaluate", "gguf-q8-0"],
    "select": ["select"],
    "benchmark": ["benchmark"],
    "package": ["package"],
    "publish": ["publish"],
    "report": ["report"],
}


@pytest.mark.slow
def test_a_run_loads_no_module_that_its_stage_does_not_depend_on(
    tmp_path: Path, libraries: Callable[[], Libraries], python_of_forks: Path
) -> None:
    """The context of the model is too short for the load, so that benchmark starts no server."""
    root = tmp_path / "workspace"
    root.mkdir()
    tiny_llama(root / "model", hidden=256, intermediate=512)
    write_evaluation_files(root)
    (root / "eval/data/demo_heldout.jsonl").write_text(json.dumps({"text": HELD_OUT * 20}) + "\n")
    for name in ("demo/data/calibration.jsonl", "prices.yaml", "license-decisions.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params["model"]["source"] = "model"
    params["calibration"]["num_calibration_samples"] = 4
    params["variants"] = {"gguf-q8-0": params["variants"]["gguf-q8-0"]}
    params["evaluate"] |= {"window_tokens": 8, "num_windows": 2}
    params["serve"]["scenarios"]["text"]["input_tokens"] = 100_000
    (root / "params.yaml").write_text(json.dumps(params))
    guards = {it for path in PACKAGE.glob("planning/*.py") for it in closure(path)}
    log_path, loaded_path = tmp_path / "log", tmp_path / "loaded.json"
    # Each runs in a fork of a process that has loaded nothing of this package.
    with libraries().fork_server(python=python_of_forks) as forks:
        for name, command in COMMANDS.items():
            arguments = (str(loaded_path), ["-C", str(root), *command])
            code = forks.run("tests.loaded_modules", "run", *arguments, log_path=log_path)
            assert code == (3 if name == "report" else 0), log_path.read_text()
            if name == "inputs":
                continue
            loaded = {ROOT / it for it in json.loads(loaded_path.read_text())}
            loaded -= {it for it in loaded if layer(it) in START}
            deps = own_deps(name)
            undeclared = {it for it in loaded - guards if not deps & {it, *it.parents}}
            assert not {it for it in undeclared if it.name != "__init__.py"}, name
