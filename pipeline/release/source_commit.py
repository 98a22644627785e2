"""Find the commit of the repository that this program runs from."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import PACKAGE_DIR
from pipeline.core.process import run_program

COMMIT = re.compile(r"[0-9a-f]{40}")
# DVC rewrites its lock during the run whose provenance this is: it is a result, not code.
WRITTEN_BY_THE_RUN = ":(exclude)dvc.lock"


def source_commit(repository: Path = PACKAGE_DIR.parent) -> str | None:
    """Return the full commit, followed by `-dirty` when a tracked file but dvc.lock was changed.

    Return None where the program is not in a git repository, or git is not installed.
    """
    try:
        commit = _git(repository, "rev-parse", "HEAD")
        status = ("status", "--porcelain", "--untracked-files=no", "--", ".")
        changes = _git(repository, *status, WRITTEN_BY_THE_RUN)
    except (FailureError, InputError):
        return None
    if not COMMIT.fullmatch(commit):
        return None
    return f"{commit}-dirty" if changes else commit


def _git(repository: Path, *arguments: str) -> str:
    with TemporaryDirectory() as directory:
        log_path = Path(directory) / "git.log"
        run_program(["git", *arguments], log_path=log_path, environment={}, cwd=repository)
        return log_path.read_text(encoding="utf-8").strip()
