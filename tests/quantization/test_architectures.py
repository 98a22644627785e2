"""Every architecture: folding changes nothing, and packed files stand for nearly the base."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.architectures.folds import (
    FOLDS,
    folds_of,
    head_dim_of,
    layer_folds,
    names_by_layer,
)
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.fold import fold_layer
from pipeline.params.linear_recipe import GroupScheme
from pipeline.params.params import AwqParams, GptqParams
from pipeline.quantization.packed_checkpoint import write_packed
from pipeline.records.variant import TensorCoverage
from tests.architecture_models import (
    CONFIGS,
    base_manifest,
    calibrated_model,
    token_windows,
)

SHARED = {
    "num_bits": 4,
    "group_size": 16,
    "clip_search": True,
    "rounding": "gptq",
    "refine_sweeps": 0,
    "dampening_frac": 0.01,
    "quantized_inputs": False,
    "align_samples": 0,
    "on_indivisible": "error",
}
DENSE = [name for name in CONFIGS if name not in ("mixtral", "qwen3-moe")]
RECIPES = {
    "awq": AwqParams.model_validate(SHARED | {"format": "awq", "scale_search": True}),
    "gptq": GptqParams.model_validate(SHARED | {"format": "gptq", "scale_search": False}),
}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        output: Tensor = model(input_ids=torch.tensor(token_windows(samples=4, seed=1))).logits
    return output


def relative(difference: Tensor, whole: Tensor) -> float:
    """The norm of a change of logits; a constant added to all logits of a token is no change."""
    centred, base = (it - it.mean(-1, keepdim=True) for it in (difference, whole))
    return float(centred.norm() / base.norm())


def folded_tensors(workspace: Workspace) -> dict[str, Tensor]:
    """All tensors of the base, float32, with strong scales in every fold of its architecture."""
    checkpoint, statistics = Checkpoint(workspace.base_dir), Statistics(workspace)
    folds = folds_of(base_manifest(workspace).architecture)
    generator = torch.Generator().manual_seed(3)
    scheme = GroupScheme(num_bits=4, group_size=16, symmetric=False)
    tensors: dict[str, Tensor] = {}
    for prefix, names in names_by_layer(checkpoint.names).items():
        layer = DecoderLayer.of(prefix, checkpoint.tensors(names))
        present = layer_folds(folds, layer.modules)
        schemes = {name: scheme for fold in present for name in fold.linears}
        inputs = statistics.inputs(prefix, layer.modules, folds=present)
        assert {name for it in inputs for name in it.linears} == set(schemes)
        layer, head_dim = replace(layer, inputs=inputs), head_dim_of(checkpoint.text_values)
        scales = fold_layer(layer, present, schemes, head_dim=head_dim).scales
        # Searched scales of random weights are mild: make them far from 1.
        strong = {
            name: it * torch.randn(it.shape, generator=generator).exp()
            for name, it in scales.items()
        }
        folded = fold_layer(
            layer,
            present,
            schemes,
            head_dim=head_dim,
            norm_dtype=torch.float32,
            known_scales=strong,
        )
        tensors |= {layer.full_name(name): it for name, it in folded.layer.tensors.items()}
    return tensors


def test_every_architecture_with_folds_is_tested() -> None:
    assert {config.architectures[0] for config in CONFIGS.values() if config.architectures} <= set(
        FOLDS
    )
    assert len(CONFIGS) == len(FOLDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_folding_changes_no_output(tmp_path: Path, name: str) -> None:
    workspace = calibrated_model(tmp_path, name, dtype=torch.float32)
    model = unpacked_model(workspace.base_dir)
    before = logits(model)
    tensors = folded_tensors(workspace)
    folded = type(model).from_pretrained(
        None, config=model.config, state_dict=tensors, dtype=torch.float32
    ).eval()  # fmt: skip
    assert relative(logits(folded) - before, before) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("format_name", RECIPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_files_of_every_architecture_stand_for_nearly_the_base(
    tmp_path: Path, name: str, format_name: str
) -> None:
    workspace = calibrated_model(tmp_path, name)
    model_dir = tmp_path / "variant"
    model_dir.mkdir()
    statistics = Statistics(workspace)
    coverage, _ = write_packed(
        workspace.base_dir, base_manifest(workspace), RECIPES[format_name], statistics, model_dir
    )
    assert {row.name for row in coverage} == set(Checkpoint(workspace.base_dir).names)
    quantized = {row.name.removesuffix(".weight"): row for row in coverage if row.reason is None}
    assert set(quantized) == set(statistics.linears)
    base, variant = (logits(unpacked_model(path)) for path in (workspace.base_dir, model_dir))
    error = relative(variant - base, base)
    assert 0 < error < 1.5 * explained(quantized.values())


def test_an_unknown_architecture_gets_gptq_and_refuses_scales_in_one_line(tmp_path: Path) -> None:
    workspace = calibrated_model(tmp_path, "starcoder2")
    base, statistics = base_manifest(workspace), Statistics(workspace)
    made, refused = tmp_path / "made", tmp_path / "refused"
    for model_dir in (made, refused):
        model_dir.mkdir()
    coverage, _ = write_packed(workspace.base_dir, base, RECIPES["gptq"], statistics, made)
    assert sum(row.reason is None for row in coverage) == 2 * 6
    error = logits(unpacked_model(made)) - logits(unpacked_model(workspace.base_dir))
    assert relative(error, logits(unpacked_model(workspace.base_dir))) < 0.3
    with pytest.raises(InputError, match="Starcoder2ForCausalLM: scale_search knows Llama"):
        write_packed(workspace.base_dir, base, RECIPES["awq"], statistics, refused)


def explained(rows: Iterable[TensorCoverage]) -> float:
    """The error of all linears, as if independent: √ of the sum of relative squared errors."""
    return sum(row.relative_error or 0.0 for row in rows) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_every_architecture_without_experts_can_be_aligned(tmp_path: Path, name: str) -> None:
    workspace = calibrated_model(tmp_path, name)
    token_ids = torch.tensor(token_windows())
    distances = []
    for samples in (0, 512):
        recipe = RECIPES["awq"].model_copy(update={"align_samples": samples})
        model_dir = tmp_path / f"aligned-{samples}"
        model_dir.mkdir()
        write_packed(
            workspace.base_dir, base_manifest(workspace), recipe, Statistics(workspace), model_dir
        )
        with torch.inference_mode():
            base, variant = (
                unpacked_model(it)(input_ids=token_ids).logits.log_softmax(-1)
                for it in (workspace.base_dir, model_dir)
            )
        distances.append(float((base.exp() * (base - variant)).sum(-1).mean()))
    assert distances[1] < 0.8 * distances[0]
