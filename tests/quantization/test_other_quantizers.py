"""Other quantizers: what they are given, what is read from their files, and who cannot run here.

The libraries themselves run where their environments are set up, which no test needs: those tests
skip elsewhere. What an own variant's files say stands in for a library's otherwise.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint, save_tensors
from pipeline.core.errors import FailureError, InputError
from pipeline.core.texts import token_ids_sha256
from pipeline.core.workspace import Workspace
from pipeline.numerics import awq
from pipeline.params.other_quantizers import AutoAwqParams, BackendWeights, GptqModelParams
from pipeline.params.params import Params
from pipeline.params.reading import require_runnable
from pipeline.quantization.other_coverage import measured_coverage
from pipeline.quantization.other_quantizers import calibration_samples, environment_dir
from pipeline.records.variant import VariantRecord
from pipeline.stages import quantize
from tests.stages.test_quantize import (
    GROUP_SIZE,
    NUM_SAMPLES,
    SAMPLE_TOKENS,
    calibrated,
    packed,
    params_for,
    record_of,
)

GPTQ = GptqModelParams(
    backend="gptqmodel", format="gptq", num_bits=4, group_size=GROUP_SIZE, symmetric=True
)
AWQ = AutoAwqParams(
    backend="autoawq", format="awq", num_bits=4, group_size=GROUP_SIZE, symmetric=False
)
SHARED: dict[str, Any] = {"num_bits": 4, "group_size": GROUP_SIZE}
LIBRARIES: dict[str, dict[str, Any]] = {
    "autoawq": SHARED | {"backend": "autoawq", "format": "awq", "symmetric": False},
    "gptqmodel": SHARED | {"backend": "gptqmodel", "format": "gptq", "symmetric": True},
    "llmcompressor-gptq": SHARED
    | {
        "backend": "llmcompressor",
        "format": "compressed-tensors",
        "algorithm": "gptq",
        "symmetric": True,
    },
    "llmcompressor-awq": SHARED
    | {
        "backend": "llmcompressor",
        "format": "compressed-tensors",
        "algorithm": "awq",
        "symmetric": False,
    },
    "auto-round": SHARED
    | {"backend": "auto-round", "format": "awq", "symmetric": False, "iterations": 2},
}


@pytest.fixture(scope="module")
def params() -> Params:
    return params_for({"awq": packed("awq"), "gptq": packed("gptq")} | LIBRARIES)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Workspace:
    made = calibrated(tmp_path_factory.mktemp("backends"), params, hidden=128)
    with pytest.MonkeyPatch.context() as patch:
        # Random weights gain little from scales: without this there would be none to find.
        patch.setattr(awq, "LEAST_GAIN", 0.0)
        for name in ("awq", "gptq"):
            quantize.run(made, params, name)
    return made


def changed_copy(source: Path, target: Path, changes: Mapping[str, torch.Tensor | None]) -> Path:
    """The checkpoint with some tensors changed, or (None) left out."""
    shutil.copytree(source, target)
    checkpoint = Checkpoint(source)
    tensors = checkpoint.tensors(list(checkpoint.names)) | changes
    for path in target.glob("model*"):
        path.unlink()
    save_tensors(
        target / "model.safetensors", {name: it for name, it in tensors.items() if it is not None}
    )
    return target


def rows_of(record: VariantRecord) -> dict[str, tuple[Any, ...]]:
    return {row.name: (row.shape, row.scheme, row.bits_per_weight) for row in record.coverage}


def test_a_backend_gets_the_tokens_that_were_measured(workspace: Workspace, params: Params) -> None:
    statistics = Statistics(workspace)
    samples = calibration_samples(workspace, params, statistics)
    assert token_ids_sha256(samples) == statistics.record.token_ids_sha256
    assert [len(sample) for sample in samples] == [SAMPLE_TOKENS] * NUM_SAMPLES


def test_text_that_was_changed_since_is_refused(workspace: Workspace, params: Params) -> None:
    path = workspace.root / "text.jsonl"
    kept = path.read_text()
    path.write_text(json.dumps({"text": "another " * 200}) + "\n")
    try:
        with pytest.raises(InputError, match="not the tokens that were measured; run `quantline c"):
            calibration_samples(workspace, params, Statistics(workspace))
    finally:
        path.write_text(kept)


def test_groups_that_do_not_divide_are_refused_before_the_library_starts(
    workspace: Workspace, params: Params
) -> None:
    wide = LIBRARIES["gptqmodel"] | {"group_size": 256}
    with pytest.raises(
        InputError,
        match=r"^group_size = 256: does not divide the 128 inputs of model\.layers\.0\.self_attn\."
        r"q_proj, which backend gptqmodel needs; use one of 128, 64, 32, 16$",
    ):
        quantize.run(workspace, params_for({"wide": wide}), "wide")


@pytest.mark.parametrize(("name", "recipe"), [("gptq", GPTQ), ("awq", AWQ)])
def test_the_account_of_a_file_is_the_one_its_maker_gives(
    workspace: Workspace, name: str, recipe: GptqModelParams | AutoAwqParams
) -> None:
    """Folded scales are found again, in matrices this small to within a fifth of the error."""
    record = record_of(workspace, name)
    rows = measured_coverage(
        workspace.base_dir, workspace.model_dir(name), recipe, Statistics(workspace)
    )
    found = record.model_copy(update={"coverage": rows})
    assert rows_of(found) == rows_of(record)
    tolerance = 0.2 if recipe.folds_scales else 1e-3
    for own, read in zip(record.coverage, rows, strict=True):
        assert own.reason == read.reason
        if own.relative_error is not None:
            assert read.relative_error == pytest.approx(own.relative_error, rel=tolerance)


def test_a_tensor_that_a_library_left_out_fails_the_variant(
    workspace: Workspace, tmp_path: Path
) -> None:
    broken = changed_copy(workspace.model_dir("gptq"), tmp_path / "x", {"model.norm.weight": None})
    with pytest.raises(FailureError, match=r"gptqmodel: its checkpoint lacks model\.norm\.weight"):
        measured_coverage(workspace.base_dir, broken, GPTQ, Statistics(workspace))


def test_a_tensor_of_another_shape_fails_the_variant(workspace: Workspace, tmp_path: Path) -> None:
    changes = {"model.norm.weight": torch.ones(3)}
    broken = changed_copy(workspace.model_dir("gptq"), tmp_path / "x", changes)
    with pytest.raises(FailureError, match=r"model\.norm\.weight is \[3\], in the base \[128\]"):
        measured_coverage(workspace.base_dir, broken, GPTQ, Statistics(workspace))


def test_a_linear_that_stayed_whole_fails_the_variant(workspace: Workspace, tmp_path: Path) -> None:
    linear = "model.layers.1.mlp.up_proj"
    base = Checkpoint(workspace.base_dir)
    suffixes = ("qweight", "qzeros", "scales", "g_idx")
    changes = {f"{linear}.{it}": None for it in suffixes} | {
        f"{linear}.weight": base.tensor(f"{linear}.weight")
    }
    broken = changed_copy(workspace.model_dir("gptq"), tmp_path / "x", changes)
    with pytest.raises(FailureError, match=r"layers\.1\.mlp\.up_proj\S* stayed float16"):
        measured_coverage(workspace.base_dir, broken, GPTQ, Statistics(workspace))


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto-gptq runs on this machine")
def test_auto_gptq_is_refused_before_anything_starts(tmp_path: Path) -> None:
    recipe = SHARED | {"backend": "auto-gptq", "format": "gptq", "symmetric": True}
    params = params_for({"old": recipe})
    expected = (
        "variants.old.backend = auto-gptq: runs on an NVIDIA GPU alone, and this machine has none; "
        "use gptqmodel, which writes the same format, or remove the variant"
    )
    with pytest.raises(InputError) as caught:
        require_runnable(params.variants)
    assert str(caught.value) == expected
    with pytest.raises(InputError) as caught:
        quantize.run(Workspace(tmp_path), params, "old")
    assert str(caught.value) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_makes_a_whole_variant(workspace: Workspace, params: Params, name: str) -> None:
    recipe = params.variants[name]
    assert isinstance(recipe, BackendWeights)
    backend = LIBRARIES[name]["backend"]
    if not environment_dir(backend).exists():
        pytest.skip(f"{environment_dir(backend).name} is not set up: python envs/peer.py {backend}")
    quantize.run(workspace, params, name)
    record = record_of(workspace, name)
    assert {row.name for row in record.coverage} == set(Checkpoint(workspace.base_dir).names)
    assert record.tools[backend]
    for row in record.coverage:
        if row.name.endswith("_proj.weight"):
            assert row.scheme.startswith("W4A16")
            # Well below the size of the output, so it is the same matrix; no library is ours to
            # judge beyond that.
            assert row.relative_error is not None
            assert row.relative_error < 0.05
        else:
            assert row.scheme == "float16"
    for sidecar in ("tokenizer.json", "LICENSE"):
        own, base = workspace.model_dir(name) / sidecar, workspace.base_dir / sidecar
        assert own.read_bytes() == base.read_bytes()
