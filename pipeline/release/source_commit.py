"""Which commit of its repository this program runs from."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import PACKAGE_DIR
from pipeline.core.process import run_program

COMMIT = re.compile(r"[0-9a-f]{40}(-dirty)?")


def source_commit() -> str | None:
    """Return the full commit, followed by `-dirty` when tracked files were changed.

    None where the program is not in a git repository, or there is no git.
    """
    with TemporaryDirectory() as directory:
        log_path = Path(directory) / "git.log"
        try:
            run_program(
                ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                log_path=log_path,
                environment={},
                cwd=PACKAGE_DIR.parent,
            )
        except (FailureError, InputError):
            return None
        commit = log_path.read_text(encoding="utf-8").strip()
        return commit if COMMIT.fullmatch(commit) else None
