"""A killed calibration loses the layer in work, and its rerun ends in the same bytes."""

import json
import random
from pathlib import Path

import pytest

from pipeline.adapters.files import file_sha256
from pipeline.domain.layout import Layout
from pipeline.stages import fetch
from tests.killed import run_stage
from tests.models import tiny_llama, write_json
from tests.stages.test_quantize import packed, params_for

NUM_LAYERS, NUM_KILLS = 12, 5


@pytest.fixture
def workspace(tmp_path: Path) -> Layout:
    """A fetched model of many layers, with a params.yaml for the command line."""
    params = params_for({"awq": packed("awq")})
    calibration = params.calibration.model_copy(
        update={"num_calibration_samples": 48, "max_seq_length": 128}
    )
    params = params.model_copy(update={"calibration": calibration})
    tiny_llama(tmp_path / "model", hidden=128, layers=NUM_LAYERS)
    story = "the old baker counts seven loaves and sells them near the river"
    texts = [story[i % 5 :] + story[: i % 7] for i in range(600)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": it}) + "\n" for it in texts))
    evaluated = params.evaluate.model_copy(update={"text": "text.jsonl"})
    params = params.model_copy(update={"evaluate": evaluated})
    write_json(tmp_path / "params.yaml", params.model_dump(mode="json"))
    layout = Layout(tmp_path)
    fetch.run(layout, params)
    return layout


def unit_times(layout: Layout) -> dict[str, int]:
    """The finished layers of an unfinished calibration, by when each was written."""
    work_dirs = layout.artifacts_dir.glob("statistics.*.partial")
    units = [unit for work in work_dirs for unit in work.glob("*.safetensors")]
    return {unit.name: unit.stat().st_mtime_ns for unit in units}


@pytest.mark.slow
def test_a_killed_calibration_goes_on_and_ends_in_the_same_bytes(workspace: Layout) -> None:
    undisturbed = run_stage(workspace.root, "calibrate")
    assert undisturbed.finished
    expected = workspace.statistics_path.read_bytes()
    workspace.statistics_dir.rename(workspace.root / "undisturbed")
    moments = random.Random(0)
    finished: dict[str, int] = {}
    for _ in range(NUM_KILLS):
        share = moments.uniform(0, 2 / NUM_KILLS)
        run = run_stage(workspace.root, "calibrate", kill_after_s=share * undisturbed.work_s)
        if run.finished or workspace.statistics_path.exists():
            break
        now = unit_times(workspace)
        assert finished.items() <= now.items(), "a finished layer was lost or made again"
        finished = now
    if not workspace.statistics_path.exists():
        assert run_stage(workspace.root, "calibrate").finished
    assert workspace.statistics_path.read_bytes() == expected
    (recorded,) = {path.parent for path in workspace.artifacts_dir.rglob("statistics.json")}
    names = sorted(path.name for path in recorded.iterdir())
    assert names == sorted(path.name for path in (workspace.root / "undisturbed").iterdir())
    assert all(
        file_sha256(recorded / name) == file_sha256(workspace.root / "undisturbed" / name)
        for name in names
    )
    assert not list(workspace.artifacts_dir.glob("*.partial"))
