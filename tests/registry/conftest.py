"""What the tests of hostile registries and archives start from."""

import json
from pathlib import Path

import pytest

from pipeline.core.workspace import Workspace
from pipeline.oci import retry
from pipeline.stages import publish
from tests.registry.hostile import TAG, Shell, Stored
from tests.registry_server import release_params, write_packages


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """A published release; the workspace around it is the current directory."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
    workspace = Workspace(tmp_path / "workspace")
    write_packages(workspace, "awq-w4-g128")
    publish.run(workspace, release_params())
    monkeypatch.chdir(workspace.root)
    blobs = {
        f"sha256:{path.name}": path.read_bytes()
        for path in (workspace.registry_dir / "blobs" / "sha256").iterdir()
    }
    index = json.loads((workspace.registry_dir / "index.json").read_bytes())
    (entry,) = [
        entry
        for entry in index["manifests"]
        if entry["annotations"]["org.opencontainers.image.ref.name"] == TAG
    ]
    return Stored(json.loads(blobs[entry["digest"]]), blobs)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, capsys)
