"""The program knows the commit of its own repository."""

import subprocess

from pipeline.release.source_commit import source_commit
from tests.support import ROOT, missing, require_program


def test_the_commit_is_that_of_the_repository() -> None:
    git = require_program("git")
    if not (ROOT / ".git").exists():
        missing("the tests do not run in a git repository")
    done = subprocess.run(
        [git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commit = source_commit()
    assert commit is not None
    assert commit.removesuffix("-dirty") == done.stdout.strip()
