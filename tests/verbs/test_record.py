"""`quantline record`: a published version as a git tag that GTO and DVC understand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.workspace import Workspace
from pipeline.stages import publish
from tests.registry_server import release_params, write_packages

DVC_YAML = """stages:
  package:
    cmd: "true"
    outs:
      - artifacts/packages
artifacts:
  tiny-model:
    path: artifacts/packages
    type: model
"""


def run(*command: str | Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A git repository with a published package that DVC tracks and nothing committed."""
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "somebody@example.org")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    workspace = Workspace(tmp_path / "repository")
    workspace.root.mkdir()
    monkeypatch.chdir(workspace.root)
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    write_packages(workspace, "awq-w4-g128")
    publish.run(workspace, release_params())
    (workspace.root / "dvc.yaml").write_text(DVC_YAML)
    (workspace.root / "params.yaml").write_text("{}\n")
    run("dvc", "commit", "-q", "-f")
    return workspace


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["record"]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_gto_shows_it_and_dvc_gets_it(
    repository: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no commit of a git repository to tag" in refused(capsys)
    run("git", "commit", "-q", "--allow-empty", "-m", "nothing of it")
    assert "not as committed" in refused(capsys)
    run("git", "add", "dvc.lock", "dvc.yaml", "params.yaml", ".dvc")
    run("git", "commit", "-q", "-m", "a release")
    assert main(["record"]) == 0
    assert capsys.readouterr().out.startswith("tiny-model@v1.2.3: ")
    assert main(["record"]) == 0

    assert "v1.2.3" in run("gto", "show", "tiny-model")
    target = tmp_path / "got"
    run("dvc", "artifacts", "get", repository.root, "tiny-model", "--rev", "v1.2.3", "-o", target)
    weights = "awq-w4-g128/model.safetensors"
    assert (target / weights).read_bytes() == (repository.packages_dir / weights).read_bytes()

    run("git", "commit", "-q", "--allow-empty", "-m", "later")
    assert "tags never move" in refused(capsys)


@pytest.mark.slow
def test_without_an_entry_or_a_release_there_is_nothing_to_record(
    repository: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository.root / "dvc.yaml").write_text("stages: {}\n")
    assert "no entry of `artifacts` has the path artifacts/packages" in refused(capsys)
    shutil.rmtree(repository.packages_dir)
    write_packages(repository)
    publish.run(repository, release_params())
    assert "0 published versions, expected one" in refused(capsys)
