"""Run one command and write down which modules of this package it loaded."""

import json
import sys
from pathlib import Path

from pipeline.cli import main
from tests.support import ROOT


def run(loaded_path: str, arguments: list[str]) -> int:
    """Run `quantline ARGUMENTS`. Return its exit code.

    Writes the paths of the loaded modules, relative to the repository, to a file as a JSON list.
    """
    code = main(arguments)
    files = [
        Path(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith("pipeline.") and getattr(module, "__file__", None)
    ]
    loaded = sorted(path.relative_to(ROOT).as_posix() for path in files)
    Path(loaded_path).write_text(json.dumps(loaded))
    return code
