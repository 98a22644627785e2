"""The program knows the commit of its own repository."""

import subprocess
from pathlib import Path

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


def test_a_lock_that_the_run_rewrites_is_no_change_of_code(tmp_path: Path) -> None:
    git = require_program("git")

    def run(*arguments: str) -> str:
        command = [git, "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    for name in ("dvc.lock", "code.py"):
        (tmp_path / name).write_text("first")
    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "--message=first")
    commit = run("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("second")
    (tmp_path / "untracked").write_text("")
    assert source_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("second")
    assert source_commit(tmp_path) == f"{commit}-dirty"


def test_a_directory_without_a_repository_has_no_commit(tmp_path: Path) -> None:
    assert source_commit(tmp_path) is None
