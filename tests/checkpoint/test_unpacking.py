"""A packed checkpoint from anybody: what its tensors say is compared before it is believed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.unpacked_model import unpacked_model, unpacked_weights
from pipeline.core.errors import InputError
from tests.models import tiny_llama
from tests.packed_models import tiny_packed

MODULE = "model.layers.0.mlp.down_proj"
KINDS = {
    "awq": ("awq", 32, {}),
    "gptq": ("gptq", 32, {}),
    "gptq-w2": ("gptq", 32, {"num_bits": 2}),
    "gptq-w3": ("gptq", 64, {"num_bits": 3}),
    "gptq-w8": ("gptq", None, {"num_bits": 8}),
    "W4A16": ("W4A16", 32, {}),
    "W4A16-channel": ("W4A16", None, {}),
    "W4A16_ASYM": ("W4A16_ASYM", 32, {}),
    "W8A16": ("W8A16", 64, {}),
    "W8A8": ("W8A8", None, {}),
    "FP8_DYNAMIC": ("FP8_DYNAMIC", None, {}),
}


def packed_dir(path: Path, kind: str) -> Path:
    name, group_size, changes = KINDS[kind]
    return tiny_packed(path, name, group_size=group_size, hidden=64, **changes)


Change = Callable[[dict[str, torch.Tensor]], object]


def damaged(path: Path, kind: str, change: Change) -> Path:
    """The checkpoint with the tensors of one module changed; `change` sees them by suffix."""
    model_dir = packed_dir(path, kind)
    file = model_dir / "model.safetensors"
    tensors = load_file(file)
    prefix = f"{MODULE}."
    own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if prefix in name}
    change(own)
    save_file(tensors | {f"{prefix}{name}": it.contiguous() for name, it in own.items()}, file)
    return model_dir


# How far rounding to nearest may be off, as a share of the norm of the weights.
ERRORS = {"gptq-w2": 0.75, "gptq-w3": 0.35, "gptq-w8": 0.02, "W8A16": 0.02, "W8A8": 0.02}
ERRORS |= {"FP8_DYNAMIC": 0.04}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_nearly_the_original(tmp_path: Path, kind: str) -> None:
    original = load_file(tiny_llama(tmp_path / "base", hidden=64) / "model.safetensors")
    weights = dict(unpacked_weights(packed_dir(tmp_path / "model", kind)))
    assert set(weights) == set(original)
    for name, weight in weights.items():
        assert weight.dtype is torch.float32
        error = (weight - original[name].float()).norm() / original[name].float().norm()
        assert error <= ERRORS.get(kind, 0.15), name
        assert (error > 0) == name.endswith("_proj.weight"), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_has_those_weights(tmp_path: Path, kind: str) -> None:
    model_dir = packed_dir(tmp_path / "model", kind)
    weights = dict(unpacked_weights(model_dir))
    model = unpacked_model(model_dir)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def drop(name: str) -> Change:
    return lambda own: own.pop(name)


def cut(name: str) -> Change:
    return lambda own: own.update({name: own[name][:-1]})


def wider(name: str) -> Change:
    return lambda own: own.update({name: torch.cat([own[name], own[name]], dim=-1)})


def cast(name: str, dtype: torch.dtype) -> Change:
    return lambda own: own.update({name: own[name].to(dtype)})


def put(name: str, value: torch.Tensor) -> Change:
    return lambda own: own.update({name: value})


def poison(name: str) -> Change:
    return lambda own: own[name].view(-1)[0].fill_(float("nan"))


DAMAGE = [
    ("awq", drop("qzeros"), "without qzeros"),
    ("awq", cut("qweight"), "inputs do not divide by group_size 32"),
    ("awq", wider("qweight"), "qzeros has shape"),
    ("awq", wider("scales"), "scales has shape"),
    ("awq", cast("qweight", torch.int64), "qweight is torch.int64, expected torch.int32"),
    ("awq", poison("scales"), "scales has a number that is not finite"),
    ("awq", put("qweight", torch.zeros(0, 8, dtype=torch.int32)), "expected a matrix"),
    ("awq", put("qweight", torch.zeros(8, dtype=torch.int32)), "expected a matrix"),
    ("gptq", cut("qzeros"), "qzeros has shape"),
    ("gptq", put("g_idx", torch.arange(128, dtype=torch.int32)), "g_idx is not in order"),
    ("gptq", put("g_idx", torch.full((128,), -1, dtype=torch.int32)), "g_idx is not in order"),
    ("gptq", drop("g_idx"), "without g_idx"),
    ("gptq-w3", cut("qweight"), "words do not fit 3 bits"),
    ("gptq-w8", wider("scales"), "scales has shape"),
    ("W4A16", put("weight_shape", torch.tensor([64, 10**12])), "weight_shape is [64, 10000000000"),
    ("W4A16", put("weight_shape", torch.tensor([-64, 128])), "weight_shape is [-64, 128], but"),
    ("W4A16", put("weight_shape", torch.tensor([64, 128, 1])), "weight_shape has shape [3]"),
    ("W4A16", drop("weight_shape"), "without weight_shape"),
    ("W4A16", drop("weight_scale"), "without weight_scale"),
    ("W4A16", wider("weight_scale"), "weight_scale has shape [64, 8], expected [64, 4]"),
    ("W4A16_ASYM", drop("weight_zero_point"), "without weight_zero_point"),
    ("W4A16_ASYM", cut("weight_zero_point"), "weight_zero_point has shape"),
    ("W8A16", cut("weight_packed"), "weight_shape is [64, 128], but 63"),
    ("W8A8", cast("weight", torch.float16), "weight is torch.float16, expected torch.int8"),
    ("W8A8", wider("weight_scale"), "weight_scale has shape [64, 2], expected [64, 1]"),
    ("FP8_DYNAMIC", cast("weight", torch.int8), "expected torch.float8_e4m3fn"),
    ("FP8_DYNAMIC", poison("weight_scale"), "weight_scale has a number that is not finite"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "change", "expected"), DAMAGE)
def test_tensors_that_do_not_fit_are_one_line(
    tmp_path: Path, kind: str, change: Change, expected: str
) -> None:
    model_dir = damaged(tmp_path / "model", kind, change)
    with pytest.raises(InputError) as caught:
        list(unpacked_weights(model_dir))
    message = str(caught.value)
    assert expected in message
    assert MODULE in message
    assert "damaged: get it again" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["awq", "W4A16", "W8A8"])
def test_packed_weights_without_a_configuration_are_refused(tmp_path: Path, kind: str) -> None:
    model_dir = packed_dir(tmp_path / "model", kind)
    config = json.loads((model_dir / "config.json").read_text())
    del config["quantization_config"]
    (model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json names no scheme for it"):
        list(unpacked_weights(model_dir))


def test_a_missing_weight_is_not_made_up(tmp_path: Path) -> None:
    model_dir = tiny_llama(tmp_path / "model", hidden=64)
    tensors = load_file(model_dir / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model_dir / "model.safetensors")
    with pytest.raises(InputError, match=r"has no model\.layers\.1\.mlp\.up_proj\.weight; the"):
        unpacked_model(model_dir)


def test_tied_embeddings_are_not_missing(tmp_path: Path) -> None:
    model = unpacked_model(tiny_llama(tmp_path / "model", hidden=64, tie_embeddings=True))
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_activations_are_rounded_where_the_scheme_says_so(tmp_path: Path) -> None:
    ids = torch.arange(5, 37).view(1, -1)
    for kind in ("W8A8", "FP8_DYNAMIC", "W8A16"):
        model = unpacked_model(packed_dir(tmp_path / kind, kind))
        with torch.inference_mode():
            rounded = model(input_ids=ids).logits
            for module in model.modules():
                module._forward_pre_hooks.clear()
            exact = model(input_ids=ids).logits
        difference = ((rounded - exact).norm() / exact.norm()).item()
        if kind == "W8A16":
            assert difference == 0
        else:
            assert 0.0005 < difference < 0.1
