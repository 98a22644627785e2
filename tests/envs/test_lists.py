"""The lists of set-up: whole, pinned to archives, and in step with what the code imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support import ROOT

ENVS_DIR = ROOT / "envs"
LISTS = sorted(ENVS_DIR.glob("**/*.txt"))
PIN = re.compile(r"([A-Za-z0-9._-]+)==\d[A-Za-z0-9.]*((?: --hash=sha256:[0-9a-f]{64})+)")


def requirements_in(path: Path) -> list[str]:
    """The requirements of a list, each on one line, its white space made single."""
    joined = re.sub(r"\s*\\\n\s*", " ", path.read_text())
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def names_in(path: Path) -> list[str]:
    return [canonical(it.partition("==")[0]) for it in requirements_in(path)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {canonical(it.partition("[")[0]) for it in wanted}


def test_the_lists_are_found() -> None:
    names = {path.name for path in LISTS}
    assert {"pipeline.txt", "serve-cpu.txt", "serve-cuda.txt"} < names
    assert {"torch-cpu.txt", "torch-cuda.txt", "gptqmodel.txt"} < names


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_pin_has_a_version_and_hashes(path: Path) -> None:
    requirements = requirements_in(path)
    assert [it for it in requirements if not PIN.fullmatch(it)] == []
    for requirement in requirements:
        hashes = requirement.split()[1:]
        assert len(set(hashes)) == len(hashes), requirement


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_list_names_a_package_once(path: Path) -> None:
    names = names_in(path)
    assert sorted(set(names)) == sorted(names)


def test_torch_has_one_version_in_lists_of_its_own() -> None:
    with_torch = {path.stem: path for path in LISTS if "torch" in names_in(path)}
    assert set(with_torch) == {"torch-cpu", "torch-cuda"}
    versions = {requirements_in(path)[0].split()[0] for path in with_torch.values()}
    assert len(versions) == 1


def test_no_build_is_in_both_lists_of_torch() -> None:
    cpu, cuda = (
        requirements_in(ENVS_DIR / "pipeline" / f"torch-{it}.txt")[0].split()
        for it in ("cpu", "cuda")
    )
    assert set(cpu[1:]) & set(cuda[1:]) == set()


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_list_names_no_place(path: Path) -> None:
    assert re.search(r"://|@|--(extra-)?index-url|--find-links", path.read_text()) is None


def test_what_pyproject_names_is_pinned() -> None:
    pinned = {*names_in(ENVS_DIR / "pipeline" / "pipeline.txt"), "torch"}
    assert declared_dependencies() - pinned == set()


@pytest.mark.slow
def test_what_the_pipeline_imports_is_named_in_pyproject() -> None:
    imported = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {it.name.partition(".")[0] for it in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                imported.add(node.module.partition(".")[0])
    # llama.cpp's converter brings its own package; it is unpacked, not installed.
    outside = imported - sys.stdlib_module_names - {"pipeline", "conversion"}
    distributions = packages_distributions()
    unnamed = {
        module
        for module in outside
        if {canonical(it) for it in distributions[module]}.isdisjoint(declared_dependencies())
    }
    assert unnamed == set()
