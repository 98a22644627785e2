"""What all tests of the registry protocol start from."""

from pathlib import Path

import pytest

from pipeline.oci import retry


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login, unfinished upload or long pause that is not the test's own."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
