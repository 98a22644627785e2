"""Quantized inputs: those that the quantized model really has, and what they are good for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.architectures.folds import names_by_layer
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.names import WEIGHTS_FILE
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import FailureError
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.drift import DriftAccumulator, compensate_drift
from pipeline.numerics.grid import range_grid
from pipeline.numerics.layer import QuantizedLayer, QuantizedLinear
from pipeline.params.linear_recipe import GroupScheme
from pipeline.quantization.gguf_rounding import round_file_by_layer
from pipeline.quantization.packed_checkpoint import write_packed
from pipeline.quantization.quantized_inputs import QuantizedInputs
from tests.architecture_models import CONFIGS, base_manifest, calibrated_model, token_windows
from tests.gguf_variants import gguf_of, llama_cpp_log_probabilities, mean_kl
from tests.packed_models import packed_recipe

CPU = torch.device("cpu")
DENSE = [name for name in CONFIGS if name not in ("mixtral", "qwen3-moe")]
FRACTION = 0.01


def rounded(layer: DecoderLayer) -> QuantizedLayer:
    """The base's linears, three bits, to nearest; and norms that are halved."""
    linears = {}
    for name in (linear for it in layer.inputs for linear in it.linears):
        weight = layer.weight(name).float()
        grid = range_grid(weight, GroupScheme(num_bits=3, group_size=16, symmetric=True))
        linears[name] = QuantizedLinear(grid.round(weight), grid, 0.0, 1.0)
    norm = "post_attention_layernorm.weight"
    return QuantizedLayer(linears, {norm: layer.tensors[norm] / 2}, {})


def grams(layer: DecoderLayer) -> dict[str, Tensor]:
    return {linear: it.gram for it in layer.inputs for linear in it.linears}


def inputs_of(model_dir: Path, module: str) -> Tensor:
    """What a linear of the model reads for the calibration tokens."""
    model, seen = unpacked_model(model_dir), []
    model.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=torch.tensor(token_windows()))
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_inputs_are_those_behind_quantized_layers(tmp_path: Path, name: str) -> None:
    """Nothing drifts in the first layer; the second reads what the first one became gives."""
    workspace = calibrated_model(tmp_path, name)
    statistics, checkpoint = Statistics(workspace), Checkpoint(workspace.base_dir)
    before = {}
    for prefix, names in names_by_layer(checkpoint.names).items():
        layer = DecoderLayer.of(prefix, checkpoint.tensors(names))
        inputs = statistics.inputs(prefix, layer.modules)
        if inputs:
            before[prefix] = replace(layer, inputs=inputs)
    served = QuantizedInputs(
        workspace.base_dir, token_windows(), tmp_path / "work", device=CPU, dampening_frac=FRACTION
    )
    first, second = before
    linears = grams(before[first]).keys()
    after = served.compensated(replace(before[first], inputs=()), linears)
    assert grams(after).keys() == linears
    for linear, gram in grams(before[first]).items():
        torch.testing.assert_close(grams(after)[linear], gram, rtol=1e-4, atol=1e-5)
        assert torch.equal(after.weight(linear), before[first].weight(linear).float())
    made = rounded(before[first])
    served.advance(first, made.values())
    after = served.compensated(before[second], grams(before[second]))

    stored = {f"{first}.{it}": value for it, value in made.values().items()}
    changed = tmp_path / "changed"
    shutil.copytree(workspace.base_dir, changed)
    save_file(load_file(workspace.base_dir / WEIGHTS_FILE) | stored, changed / WEIGHTS_FILE)
    linear = next(iter(grams(before[second])))
    pair = [inputs_of(it, f"{second}.{linear}") for it in (workspace.base_dir, changed)]
    expected = DriftAccumulator(pair[0].shape[-1], CPU)
    expected.add(torch.cat(pair))
    torch.testing.assert_close(grams(after)[linear], expected.gram(), rtol=1e-3, atol=1e-4)
    weight = before[second].weight(linear)
    (own,) = compensate_drift(
        {"": weight}, expected.drift(), expected.gram(), dampening_frac=FRACTION
    ).values()
    change = after.weight(linear) - weight
    assert (after.weight(linear) - own).norm() < 1e-3 * change.norm()


def variant_of(workspace: Workspace, name: str, format_name: str, **changes: object) -> Path:
    """A packed variant of the tiny model, beside its base."""
    recipe = packed_recipe(format_name, group_size=16, rounding="gptq", clip_search=True, **changes)
    model_dir = workspace.root / name / "model"
    model_dir.mkdir(parents=True)
    statistics = Statistics(workspace)
    write_packed(workspace.base_dir, base_manifest(workspace), recipe, statistics, model_dir)
    assert [it.name for it in model_dir.parent.iterdir()] == ["model"]
    return model_dir


def log_probabilities(model_dir: Path, windows: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = unpacked_model(model_dir)(input_ids=torch.tensor(windows)).logits
    return logits.log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_name", "changes"), [("awq", {"scale_search": True}), ("gptq", {"num_bits": 3})]
)
def test_a_variant_of_quantized_inputs_is_nearer_to_the_base(
    tmp_path: Path, format_name: str, changes: dict[str, object]
) -> None:
    """On tokens that it did not see, and the same bytes again."""
    workspace = calibrated_model(tmp_path, "llama", samples=96)
    plain, better, again = (
        variant_of(workspace, name, format_name, quantized_inputs=name != "plain", **changes)
        for name in ("plain", "better", "again")
    )
    windows = token_windows(samples=64, seed=1)
    base = log_probabilities(workspace.base_dir, windows)
    kl = [mean_kl(base, log_probabilities(it, windows)) for it in (plain, better)]
    assert 0 < kl[1] < 0.97 * kl[0], kl
    assert directory_records(better) == directory_records(again)
    assert Checkpoint(better).names == Checkpoint(plain).names


@pytest.mark.slow
@pytest.mark.parametrize("scale_search", [False, True])
def test_a_gguf_file_of_quantized_inputs_is_nearer_to_the_base(
    tmp_path: Path, scale_search: bool
) -> None:
    """Its q_proj and k_proj have their rows in another order than the checkpoint's."""
    workspace = calibrated_model(tmp_path, "llama", samples=96)
    plain, better, again = (
        gguf_of(workspace, name, scale_search=scale_search, quantized_inputs=name != "plain")
        for name in ("plain", "better", "again")
    )
    windows = token_windows(samples=64, seed=1)
    base = log_probabilities(workspace.base_dir, windows)
    kl = [mean_kl(base, llama_cpp_log_probabilities(it, windows)) for it in (plain, better)]
    assert 0 < kl[1] < 0.99 * kl[0], kl
    assert better.read_bytes() == again.read_bytes()
    assert better.stat().st_size == plain.stat().st_size


@pytest.mark.slow
def test_a_file_with_other_rows_than_the_checkpoint_is_one_line(tmp_path: Path) -> None:
    workspace = calibrated_model(tmp_path, "llama", samples=96)
    full = gguf_of(workspace, "plain")
    checkpoint = Checkpoint(workspace.base_dir)
    inputs = QuantizedInputs(
        workspace.base_dir, token_windows(), tmp_path / "work", device=CPU, dampening_frac=FRACTION
    )
    linears_of = {"blk.0.ffn_up.weight": ["model.layers.0.mlp.up_proj"]}
    expected = r"^blk\.0\.ffn_up\.weight: .* set quantized_inputs to false .*$"
    with pytest.raises(FailureError, match=expected):
        round_file_by_layer(full, full, linears_of, checkpoint, inputs)


def test_layers_of_which_nothing_is_quantized_pass_both_on(tmp_path: Path) -> None:
    workspace = calibrated_model(tmp_path, "llama")
    served = QuantizedInputs(
        workspace.base_dir, token_windows(), tmp_path / "work", device=CPU, dampening_frac=FRACTION
    )
    served.advance("model.layers.0", {})
    base, quantized = sorted((tmp_path / "work").glob("*/00001.states"))
    assert base.read_bytes() == quantized.read_bytes()
