"""The command line as an operator uses it, on the releases of `tests.conftest.packaged`."""

from pathlib import Path

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from pipeline.cli import main
from pipeline.commands import app
from tests.registry_server import PASSWORD

GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = {name: it for name, it in GROUP.commands.items() if isinstance(it, TyperCommand)}
"""Every command by its name."""

AWQ, GGUF = "1.2.3-awq-w4-g128", "1.2.3-gguf-q4-k-m"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The standard output of a command that succeeds."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert PASSWORD not in captured.out + captured.err
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    problems = [line for line in lines if line.startswith(f"quantline {arguments[0]}: ")]
    assert len(problems) == 1, lines
    return problems[0]
