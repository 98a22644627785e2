"""Settings of every test run, and the workspace that tests of releases begin with."""

import os
from pathlib import Path

import pytest

from pipeline.core.workspace import Workspace
from tests.registry_server import use_registry, write_packages

# As in pipeline.cli: idle threads of torch sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login, upload journal or model of whoever runs the tests."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_settings: None) -> Workspace:
    """The current directory, with two packages; its params.yaml has no section but `registry`."""
    workspace = Workspace(tmp_path / "workspace")
    write_packages(workspace, "awq-w4-g128", "gguf-q4-k-m")
    use_registry(workspace, None)
    monkeypatch.chdir(workspace.root)
    return workspace
