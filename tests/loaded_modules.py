"""Run one command and write down which modules of this package it loaded.

`python -m tests.loaded_modules FILE COMMAND …` runs `quantline COMMAND …` in the current directory
and writes the paths of the loaded modules, relative to the repository, to FILE as a JSON list.
"""

import json
import sys
from pathlib import Path

from pipeline.cli import main

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    code = main(sys.argv[2:])
    files = [
        Path(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith("pipeline.") and getattr(module, "__file__", None)
    ]
    loaded = sorted(path.relative_to(ROOT).as_posix() for path in files)
    Path(sys.argv[1]).write_text(json.dumps(loaded))
    sys.exit(code)
