"""Streaming calibration: the statistics of the whole model, from one layer at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.architectures.folds import expert_number
from pipeline.calibration.layers import BATCH_TOKENS, calibrate_layers
from pipeline.calibration.statistics import HEAD
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import InputError
from pipeline.numerics.gram import unpack_upper
from pipeline.records.statistics import LayerStatistics
from tests.architecture_models import CONFIGS, HIDDEN, tiny_model, token_windows
from tests.models import write_json

CPU = torch.device("cpu")
MIXTURES = ("mixtral", "qwen3-moe")


def streamed(model_dir: Path, work_dir: Path, windows: list[list[int]]) -> list[LayerStatistics]:
    work_dir.mkdir()
    return calibrate_layers(model_dir, windows, CPU, work_dir)


def grams(layers: list[LayerStatistics], work_dir: Path) -> dict[str, Tensor]:
    """G by the linears that read the input, or by its key where none does."""
    found = {}
    for layer in layers:
        for entry in layer.inputs:
            with safe_open(work_dir / entry.file, framework="pt") as file:
                gram = unpack_upper(file.get_tensor(entry.key), entry.in_features)
            found |= dict.fromkeys((*entry.linears, entry.key), gram)
    return found


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """The inputs of the linears and of the experts of a whole model, by their module's name."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(module, nn.Linear):
                seen.setdefault(name, []).append(inputs[0].reshape(-1, inputs[0].shape[-1]))
            else:
                record_experts(module, name, *inputs)

        return record

    def record_experts(module: Any, name: str, hidden: Tensor, chosen: Tensor, _: Tensor) -> None:
        seen.setdefault(name, []).append(hidden)
        for expert in range(module.num_experts):
            entering = hidden[(chosen == expert).any(-1)]
            gate, up = (entering @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
            seen.setdefault(f"{name}.{expert}.in", []).append(entering)
            seen.setdefault(f"{name}.{expert}.inner", []).append(module.act_fn(gate) * up)

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or name.endswith(".experts")  # the head is one too
    ]
    yield seen
    for handle in handles:
        handle.remove()


def reference(model_dir: Path, windows: list[list[int]]) -> dict[str, Tensor]:
    """G in float64 by the name of what is measured, of one pass of the whole model."""
    model = unpacked_model(model_dir)
    with recorded(model) as seen, torch.inference_mode():
        model(input_ids=torch.tensor(windows))
    inputs = {name: torch.cat(parts).double() for name, parts in seen.items()}
    return {name: it.T @ it / len(it) for name, it in inputs.items()}


def module_of(linear: str) -> str:
    """The reference's name of a linear of the checkpoint."""
    name = {HEAD: "lm_head"}.get(linear, linear.replace(".block_sparse_moe.", ".mlp."))
    if expert_number(linear) is None:
        return name
    inner = linear.rpartition(".")[2] in ("w2", "down_proj")
    return name.rpartition(".")[0] + (".inner" if inner else ".in")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_statistics_are_those_of_the_whole_model(tmp_path: Path, name: str) -> None:
    """Every architecture: sliding windows, biases, tied embeddings, experts one by one."""
    model_dir, windows = tiny_model(tmp_path / "model", name), token_windows()
    layers = streamed(model_dir, tmp_path / "work", windows)
    expected = reference(model_dir, windows)
    measured = grams(layers, tmp_path / "work")
    assert len(measured) >= 8
    for key, gram in measured.items():
        difference = (gram - expected[module_of(key)]).norm() / gram.norm()
        assert difference < 1e-6, key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_linear_inside_the_layers_is_measured(tmp_path: Path, name: str) -> None:
    model_dir = tiny_model(tmp_path / "model", name)
    layers = streamed(model_dir, tmp_path / "work", token_windows())
    linears = [linear for layer in layers for entry in layer.inputs for linear in entry.linears]
    checkpoint = Checkpoint(model_dir)
    expected = {
        tensor.removesuffix(".weight")
        for tensor in checkpoint.names
        if ".layers." in tensor and len(checkpoint.shape(tensor)) == 2
    }
    assert len(linears) == len(set(linears))
    assert set(linears) == {it for it in expected if not it.endswith(("moe.gate", "mlp.gate"))}


def test_more_tokens_than_a_batch_are_measured_in_batches(tmp_path: Path) -> None:
    windows = token_windows(samples=2 * BATCH_TOKENS // 64 + 1, tokens=64)
    model_dir = tiny_model(tmp_path / "model", "gemma2")
    layers = streamed(model_dir, tmp_path / "work", windows)
    expected = reference(model_dir, windows)
    for key, gram in grams(layers, tmp_path / "work").items():
        assert (gram - expected[module_of(key)]).norm() / gram.norm() < 2e-6


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_with_too_few_tokens_share_the_statistics_of_all(tmp_path: Path, name: str) -> None:
    """With fewer tokens than channels for most experts, they say so and use the whole input."""
    windows = token_windows(samples=4, tokens=28)
    model_dir = tiny_model(tmp_path / "model", name)
    (layer, *_) = streamed(model_dir, tmp_path / "work", windows)
    tokens = {expert.name: expert.num_tokens for expert in layer.experts}
    assert sum(tokens.values()) == 2 * 4 * 28
    assert min(tokens.values()) < HIDDEN
    by_linear = {linear: entry for entry in layer.inputs for linear in entry.linears}
    measured, expected = grams([layer], tmp_path / "work"), reference(model_dir, windows)
    for expert in layer.experts:
        linears = [it for it in by_linear if it.startswith(f"{expert.name}.")]
        assert len(linears) == 3
        for linear in linears:
            entry = by_linear[linear]
            assert (linear in expert.pooled) == (expert.num_tokens < entry.in_features)
            if linear in expert.pooled and entry.in_features == HIDDEN:
                assert entry.num_tokens == 4 * 28
                whole = expected[module_of(expert.name.rpartition(".")[0])]
                assert (measured[linear] - whole).norm() / whole.norm() < 1e-6


def test_layers_that_are_done_are_not_measured_again(tmp_path: Path) -> None:
    model_dir, windows = tiny_model(tmp_path / "model", "llama"), token_windows()
    made = streamed(model_dir, tmp_path / "work", windows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert len(before) == 3
    assert calibrate_layers(model_dir, windows, CPU, tmp_path / "work") == made
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}


def test_without_the_states_between_layers_all_is_measured_again(tmp_path: Path) -> None:
    model_dir, windows = tiny_model(tmp_path / "model", "llama"), token_windows()
    streamed(model_dir, tmp_path / "work", windows)
    for path in sorted((tmp_path / "work").glob("model.*")):
        before = path.read_bytes()
        path.unlink()
        calibrate_layers(model_dir, windows, CPU, tmp_path / "work")
        assert path.read_bytes() == before


@pytest.mark.parametrize("model_type", ["vit", "invented"])
def test_a_model_that_transformers_does_not_know_is_refused_in_one_line(
    tmp_path: Path, model_type: str
) -> None:
    model_dir = tiny_model(tmp_path / "model", "llama")
    write_json(model_dir / "config.json", {"model_type": model_type})
    expected = f"model_type '{model_type}' is no causal language model"
    with pytest.raises(InputError, match=expected) as error:
        streamed(model_dir, tmp_path / "work", token_windows())
    assert "\n" not in str(error.value)


def test_layers_that_cannot_be_found_are_one_line(tmp_path: Path) -> None:
    model_dir = tiny_model(tmp_path / "model", "gpt2")
    with pytest.raises(InputError, match="GPT2LMHeadModel: has 0 lists of layers, expected one"):
        streamed(model_dir, tmp_path / "work", token_windows())


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model_dir = tiny_model(tmp_path / "model", "qwen3")
    config = (model_dir / "config.json").read_text()
    (model_dir / "config.json").write_text(config.replace('"hidden_size": 64', '"hidden_size": 32'))
    with pytest.raises(InputError, match="of another shape than"):
        streamed(model_dir, tmp_path / "work", token_windows())


def test_inputs_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    model_dir = tiny_model(tmp_path / "model", "qwen3", dtype=torch.float32)
    tensors = load_file(model_dir / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"].fill_(3e38)
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"^model.layers.1.self_attn.._proj: its inputs .* not fi"):
        streamed(model_dir, tmp_path / "work", token_windows(samples=2))
