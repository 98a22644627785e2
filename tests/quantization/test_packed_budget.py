"""A compressed-tensors variant with a budget: its size, its schemes, and what they are good for."""

from pathlib import Path

import pytest
import torch

from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import packed_modules, unpacked_model
from pipeline.core.errors import InputError
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.params.variants import CompressedTensorsParams
from pipeline.quantization import packed_budget
from pipeline.quantization.grouping import fused_name
from pipeline.quantization.packed_checkpoint import write_packed
from pipeline.records.variant import BitAllocation, TensorCoverage
from tests.architecture_models import base_manifest, calibrated_model, token_windows
from tests.gguf_variants import mean_kl
from tests.packed_models import packed_recipe

SEARCHED = {"rounding": "gptq", "refine_sweeps": 2}
Rows = tuple[TensorCoverage, ...]


def made(
    workspace: Workspace, name: str, group_size: int | None, **changes: object
) -> tuple[Path, Rows, BitAllocation | None]:
    """The directory of a new W4A16 variant or one with a budget, its coverage and allocation."""
    model_dir = workspace.root / name / "model"
    model_dir.mkdir(parents=True)
    recipe = packed_recipe("W4A16", group_size=group_size, **SEARCHED | changes)
    base = base_manifest(workspace)
    return model_dir, *write_packed(
        workspace.base_dir, base, recipe, Statistics(workspace), model_dir
    )


def weight_bytes(model_dir: Path) -> int:
    return sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "scale_search"), [("llama", False), ("qwen3", True)])
def test_the_bits_of_a_budget_go_where_they_count(
    tmp_path: Path, model: str, scale_search: bool
) -> None:
    """At the size of a file whose linears all have one scheme, on tokens that it did not see."""
    workspace = calibrated_model(tmp_path, model, samples=96)
    plain, *_ = made(workspace, "plain", 32, scale_search=scale_search)
    budget = {"size": f"{weight_bytes(plain) / 1e6 + 0.03:.6f} MB"}
    mixed, rows, allocation = made(
        workspace, "mixed", None, scheme=None, budget=budget, scale_search=scale_search
    )
    again, *_ = made(
        workspace, "again", None, scheme=None, budget=budget, scale_search=scale_search
    )
    assert directory_records(mixed) == directory_records(again)
    assert weight_bytes(mixed) <= float(budget["size"].split()[0]) * 1e6
    assert allocation is not None
    assert allocation.least_kl <= allocation.chosen.predicted_kl
    packed = packed_modules(Checkpoint(mixed))
    linears = Statistics(workspace).linears
    assert len({packed.get(linear) for linear in linears}) > 1
    for linear in linears:
        fused = {packed.get(it) for it in linears if fused_name(it) == fused_name(linear)}
        assert len(fused) == 1, linear
    stored = sum(row.bits_per_weight * torch.Size(row.shape).numel() / 8 for row in rows
                 if row.name.removesuffix(".weight") in linears)  # fmt: skip
    assert round(stored) == allocation.chosen.num_bytes
    windows = torch.tensor(token_windows(samples=64, seed=1))
    with torch.inference_mode():
        base, of_plain, of_mixed = (
            unpacked_model(it)(input_ids=windows).logits.log_softmax(-1)
            for it in (workspace.base_dir, plain, mixed)
        )
    kl = [mean_kl(base, of_plain), mean_kl(base, of_mixed)]
    assert 0 < kl[1] < kl[0], kl


@pytest.mark.slow
def test_a_larger_budget_loses_less_until_all_stays(tmp_path: Path) -> None:
    workspace = calibrated_model(tmp_path, "qwen3")
    predicted = []
    for bits in (9.0, 11.0, 16.0):
        budget = {"bits_per_weight": bits}
        _, rows, allocation = made(workspace, f"at-{bits}", None, scheme=None, budget=budget)
        assert allocation is not None
        predicted.append(allocation.chosen.predicted_kl)
    assert predicted[0] > predicted[1] > predicted[2] == 0
    kept = {row.reason for row in rows if row.name.endswith("_proj.weight")}
    assert kept == {"kept: the budget has room for 16 bits"}


@pytest.mark.slow
def test_the_choice_of_an_interrupted_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = calibrated_model(tmp_path, "qwen3")
    checkpoint, statistics = Checkpoint(workspace.base_dir), Statistics(workspace)
    recipe = packed_recipe(
        "W4A16", group_size=None, scheme=None, budget={"bits_per_weight": 9.0}, **SEARCHED
    )
    assert isinstance(recipe, CompressedTensorsParams)
    stored = {name: checkpoint.shape(name) for name in checkpoint.names}
    work_dir = tmp_path / "work"
    found = [packed_budget.grouping_for_budget(recipe, checkpoint, stored, statistics, work_dir)]
    monkeypatch.setattr(packed_budget, "measure_sensitivities", None)
    found.append(
        packed_budget.grouping_for_budget(recipe, checkpoint, stored, statistics, work_dir)
    )
    assert found[0] == found[1]
    assert [path.name for path in work_dir.iterdir()] == ["budget.json"]


def test_a_budget_that_nothing_fits_is_one_line_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = calibrated_model(tmp_path, "qwen3")
    monkeypatch.setattr(packed_budget, "measure_sensitivities", None)
    expected = (
        r"^budget = {'bits_per_weight': 2\.0}: leaves .* for the weights, .* a larger budget$"
    )
    with pytest.raises(InputError, match=expected):
        made(workspace, "small", None, scheme=None, budget={"bits_per_weight": 2.0})


def test_experts_are_refused(tmp_path: Path) -> None:
    workspace = calibrated_model(tmp_path, "mixtral")
    expected = r"^budget: .*experts.* is an expert, .*; state a scheme instead of it$"
    with pytest.raises(InputError, match=expected):
        made(workspace, "experts", None, scheme=None, budget={"bits_per_weight": 5.0})
