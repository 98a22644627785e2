"""Which modules of this package a module needs, read from its source without running it."""

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

from tests.support import ROOT

PACKAGE = ROOT / "pipeline"


def module_path(name: str) -> Path | None:
    """The file of the module `pipeline.a.b`; None where that is a package or a name in one."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.exists() else None


@cache
def imports_of(path: Path, *, without: Collection[str] = ()) -> set[Path]:
    """The files of this package that a module imports, at any depth of its code.

    `without` names functions of the module that are left out.
    """
    found = set()
    body = ast.parse(path.read_text()).body
    kept = [it for it in body if not (isinstance(it, ast.FunctionDef) and it.name in without)]
    for node in (node for statement in kept for node in ast.walk(statement)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("pipeline.") and (file := module_path(name)):
                found.add(file)
    return found


def closure(path: Path, *, without: Collection[str] = ()) -> set[Path]:
    """A module and everything it imports of this package, directly or not.

    Packages in `without` are left out, and what only they import.
    """
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in seen and layer(current) not in without:
            seen.add(current)
            waiting += imports_of(current)
            waiting += run_as_programs(current)
    return seen


@cache
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
        if text.startswith("pipeline.")
        and " " not in text
        and not text.endswith(".")  # the beginning of a name that is put together
        and (file := module_path(text))
    ]


def layer(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
