"""A kill loses the layer in work, and the rerun ends in the same bytes."""

import json
import random
import shutil
from pathlib import Path

import pytest

from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.stages import fetch
from tests.evaluation_files import write_evaluation_files
from tests.killed import run_stage
from tests.models import tiny_llama, write_json
from tests.stages.test_quantize import packed, params_for

NUM_LAYERS, NUM_KILLS = 12, 5


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fetched model of many layers, with a params.yaml for the command line."""
    corrected = packed("awq", quantized_inputs=True)
    params = params_for({"awq": packed("awq"), "corrected": corrected})
    calibration = params.calibration.model_copy(
        update={"num_calibration_samples": 48, "max_seq_length": 128}
    )
    params = params.model_copy(update={"calibration": calibration})
    tiny_llama(tmp_path / "model", hidden=128, layers=NUM_LAYERS)
    story = "the old baker counts seven loaves and sells them near the river"
    texts = [story[i % 5 :] + story[: i % 7] for i in range(600)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": it}) + "\n" for it in texts))
    write_evaluation_files(tmp_path)
    write_json(tmp_path / "params.yaml", params.model_dump(mode="json"))
    workspace = Workspace(tmp_path)
    fetch.run(workspace, params)
    return workspace


def unit_times(target: Path) -> dict[str, int]:
    """The finished layers of an unfinished stage, by when each was written."""
    work_dirs = target.parent.glob(f"{target.name}.*.partial")
    units = [unit for work in work_dirs for unit in work.rglob("*.safetensors")]
    return {unit.name: unit.stat().st_mtime_ns for unit in units}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["calibrate", "quantize awq", "quantize corrected"])
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(
    workspace: Workspace, command: str
) -> None:
    target, arguments = workspace.statistics_dir, command.split()
    if arguments[0] == "quantize":
        target = workspace.variant_dir(arguments[1])
        assert run_stage(workspace.root, "calibrate").finished
    undisturbed = run_stage(workspace.root, *arguments)
    assert undisturbed.finished
    expected = directory_records(target)
    shutil.rmtree(target)
    moments = random.Random(0)
    finished: dict[str, int] = {}
    for _ in range(NUM_KILLS):
        share = moments.uniform(0, 2 / NUM_KILLS)
        run = run_stage(workspace.root, *arguments, kill_after_s=share * undisturbed.work_s)
        if run.finished or target.exists():
            break
        now = unit_times(target)
        assert set(finished.items()) <= set(now.items()), "a finished layer was lost or made again"
        finished = now
    if not target.exists():
        assert run_stage(workspace.root, *arguments).finished
    assert directory_records(target) == expected
    assert not list(workspace.artifacts_dir.rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_alignment_ends_in_the_same_bytes(workspace: Workspace) -> None:
    recipe = packed("awq", align_samples=64, group_size=128)
    params = params_for({"awq": recipe}).model_dump(mode="json")
    write_json(workspace.params_path, params)
    target = workspace.variant_dir("awq")
    assert run_stage(workspace.root, "calibrate").finished
    undisturbed = run_stage(workspace.root, "quantize", "awq")
    expected = directory_records(target)
    moments = random.Random(0)
    for _ in range(NUM_KILLS):
        shutil.rmtree(target, ignore_errors=True)
        after_s = moments.uniform(0, 1) * undisturbed.work_s
        run_stage(workspace.root, "quantize", "awq", kill_after_s=after_s)
        assert target.exists() or run_stage(workspace.root, "quantize", "awq").finished
        assert directory_records(target) == expected
    assert not list(workspace.artifacts_dir.rglob("*.partial"))
