"""A kill loses the layer in work, and the rerun ends in the same bytes."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.stages import fetch
from tests.evaluation_files import write_evaluation_files
from tests.forks import ForkServer, Libraries
from tests.models import tiny_llama, write_json
from tests.stages.test_quantize import packed, params_for

NUM_LAYERS = 3
MOST_KILLS = 60


@pytest.fixture(scope="module")
def stages(libraries: Callable[[], Libraries]) -> Iterator[ForkServer]:
    own = ("tests.killed", "pipeline.commands", "pipeline.stages.calibrate")
    late = ("pipeline.stages.quantize", "pipeline.quantization.quantized_inputs")
    with libraries().fork_server(*own, *late) as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fetched model of many layers, with a params.yaml for the command line."""
    corrected = packed("awq", quantized_inputs=True)
    params = params_for({"awq": packed("awq"), "corrected": corrected})
    calibration = params.calibration.model_copy(
        update={"num_calibration_samples": 16, "max_seq_length": 64}
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


def finished_layers(target: Path) -> dict[str, int]:
    """The files that say that a layer of an unfinished stage is done, by when each was written."""
    paths = [
        path
        for work in target.parent.glob(f"{target.name}.*.partial")
        for pattern in ("*.safetensors", "finished/*.json")
        for path in work.glob(pattern)
    ]
    # The head is measured and done with the last layer.
    return {
        path.name: path.stat().st_mtime_ns for path in paths if path.stem not in ("learned", "head")
    }


def finishes(
    stages: ForkServer, workspace: Workspace, command: str, *, killed_before: int | None = None
) -> bool:
    """Whether a stage ends by itself: at the rename of that number it is killed."""
    arguments = (str(workspace.root), command.split(), killed_before)
    log_path = workspace.root / "stage.log"
    code = stages.run("tests.killed", "run_stage", *arguments, log_path=log_path)
    assert code in (0, -signal.SIGKILL), log_path.read_text()
    return code == 0


def killed_at_every_rename(
    stages: ForkServer, workspace: Workspace, command: str, target: Path
) -> int:
    """Run a stage until its directory is there, then once to its end. Return the number of kills.

    Each run gets one rename further than those before it, and none makes a finished layer again.
    """
    finished: dict[str, int] = {}
    kills, next_rename, most = 0, 1, 0
    while not target.exists():
        if finishes(stages, workspace, command, killed_before=next_rename):
            return kills
        kills += 1
        assert kills < MOST_KILLS
        now = finished_layers(target)
        # With the last layer, what says so goes away: a kill then begins all of them again.
        assert not now or finished.items() <= now.items(), "a finished layer was made again"
        next_rename = 2 if len(now) > most else next_rename + 1
        finished, most = now, max(most, len(now))
    assert finishes(stages, workspace, command)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("command", ["calibrate", "quantize awq", "quantize corrected"])
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(
    stages: ForkServer, workspace: Workspace, command: str
) -> None:
    target = workspace.statistics_dir
    if command != "calibrate":
        target = workspace.variant_dir(command.removeprefix("quantize "))
        assert finishes(stages, workspace, "calibrate")
    assert finishes(stages, workspace, command)
    expected = directory_records(target)
    shutil.rmtree(target)
    assert killed_at_every_rename(stages, workspace, command, target) > NUM_LAYERS
    assert directory_records(target) == expected
    assert not list(workspace.artifacts_dir.rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_alignment_ends_in_the_same_bytes(
    stages: ForkServer, workspace: Workspace
) -> None:
    recipe = packed("awq", align_samples=16, group_size=128)
    params = params_for({"awq": recipe}).model_dump(mode="json")
    write_json(workspace.params_path, params)
    target = workspace.variant_dir("awq")
    assert finishes(stages, workspace, "calibrate")
    assert finishes(stages, workspace, "quantize awq")
    expected = directory_records(target)
    shutil.rmtree(target)
    assert killed_at_every_rename(stages, workspace, "quantize awq", target) > 1
    assert directory_records(target) == expected
    assert not list(workspace.artifacts_dir.rglob("*.partial"))
