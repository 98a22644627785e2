"""A whole release in every registry that people use: published, verified and pulled."""

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.oci import retry
from pipeline.stages import publish
from tests.oci.habits_server import log_in, serving
from tests.oci.registry_habits import ALL_HABITS, Habits
from tests.registry.hostile import TAG
from tests.registry_server import release_params, write_packages

VARIANT = "awq-w4-g128"


@pytest.mark.slow
@pytest.mark.parametrize("habits", ALL_HABITS, ids=lambda habits: habits.name)
def test_a_release_is_published_verified_and_pulled(
    habits: Habits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
    workspace = Workspace(tmp_path / "workspace")
    write_packages(workspace, VARIANT)
    with serving(habits) as registry:
        log_in(registry, tmp_path / "docker")
        publish.run(workspace, release_params(url=registry.url, repository="a/b"))
        ref, pulled = f"{registry.host}/a/b:{TAG}", tmp_path / "pulled"
        assert main(["verify", ref]) == 0
        assert main(["pull", ref, "--to", "dir", "--into", str(pulled)]) == 0
    assert directory_records(pulled) == directory_records(workspace.package_dir(VARIANT))
    assert set(registry.storage_logins) <= {None}
