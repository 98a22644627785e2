"""A folded checkpoint computes what the base computes, and its inputs are what it says they are."""

from pathlib import Path

import pytest
import torch

from pipeline.calibration.layers import calibrate_layers
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.numerics import awq
from pipeline.params.linear_recipe import GroupScheme
from pipeline.quantization.folded_checkpoint import FoldedCheckpoint, write_folded
from tests.architecture_models import CONFIGS, base_manifest, calibrated_model, token_windows

SCHEME = GroupScheme(num_bits=2, group_size=16, symmetric=False)


@pytest.fixture(autouse=True)
def every_gain_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights gain little: without this, no scale would be other than 1."""
    monkeypatch.setattr(awq, "LEAST_GAIN", 0.0)


def folded(workspace: Workspace) -> FoldedCheckpoint:
    return write_folded(
        workspace.base_dir,
        base_manifest(workspace).architecture,
        Statistics(workspace),
        SCHEME,
        workspace.root / "folded",
    )


def logits(model_dir: Path) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.tensor(token_windows(samples=4, seed=1))
        output: torch.Tensor = unpacked_model(model_dir)(input_ids=ids).logits
    return output - output.mean(-1, keepdim=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_computes_the_same_with_other_weights(tmp_path: Path, name: str) -> None:
    workspace = calibrated_model(tmp_path, name)
    made = folded(workspace)
    base = logits(workspace.base_dir)
    assert (logits(made.directory) - base).norm() < 3e-3 * base.norm()
    assert made.multipliers.keys() <= set(Statistics(workspace).linears)
    assert any((it - 1).abs().max() > 0.01 for it in made.multipliers.values())
    names = Checkpoint(workspace.base_dir).names
    assert Checkpoint(made.directory).names == names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_the_second_moments_are_those_of_the_folded_inputs(tmp_path: Path, name: str) -> None:
    workspace = calibrated_model(tmp_path, name)
    made = folded(workspace)
    again = Workspace(tmp_path / "again")
    again.statistics_dir.mkdir(parents=True)
    windows = token_windows(samples=24)
    layers = calibrate_layers(made.directory, windows, torch.device("cpu"), again.statistics_dir)
    statistics = Statistics(workspace)
    again.statistics_path.write_bytes(
        statistics.record.model_copy(
            update={"inputs": tuple(entry for layer in layers for entry in layer.inputs)}
        ).to_bytes()
    )
    measured = Statistics(again)
    for linear in statistics.linears:
        expected = measured.gram(linear)
        found = made.gram(statistics, linear)
        assert (found - expected).norm() < 0.01 * expected.norm(), linear
        assert torch.allclose(made.diagonal(statistics, linear), found.diagonal(), rtol=1e-4)


def test_an_architecture_without_folds_is_refused(tmp_path: Path) -> None:
    workspace = calibrated_model(tmp_path, "starcoder2")
    with pytest.raises(InputError, match="scale_search"):
        folded(workspace)
