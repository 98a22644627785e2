"""Every packed format, with groups, without and with odd shapes, read by programs of others.

| format | reader |
|---|---|
| compressed-tensors | transformers with the compressed-tensors library, weights and logits |
| awq, gptq of 4 and 8 bits | the functions with which vLLM unpacks them |
| gptq of 2, 3, 4 and 8 bits | the published word layout, bit by bit |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.unpacked_model import unpacked_model, unpacked_weights
from pipeline.core.process import run_program
from pipeline.core.workspace import Workspace
from pipeline.records.variant import VariantRecord
from pipeline.stages import quantize
from tests.readers import gptq_reference
from tests.stages.test_quantize import calibrated, packed, params_for
from tests.support import ROOT, serve_python
from tests.vllm_programs import READ_FILES

pytestmark = pytest.mark.slow

IDS = torch.arange(5, 37).view(1, -1)

ONE_SCALE: dict[str, Any] = {"group_size": None}


def gptq(num_bits: int, **changes: object) -> dict[str, object]:
    return packed("gptq", num_bits=num_bits, **changes)


def ct(scheme: str, **changes: object) -> dict[str, object]:
    recipe = packed("compressed-tensors", scheme=scheme, **changes)
    del recipe["num_bits"]
    return recipe


def slug(scheme: str) -> str:
    return scheme.lower().replace("_", "-")


def nearest(scheme: str) -> dict[str, object]:
    return ct(scheme, group_size=None, clip_search=False, rounding="nearest")


# Enough for 8 bits in some linears and 4 in others.
BUDGET = ct("W4A16", group_size=None, budget={"bits_per_weight": 9.0})
del BUDGET["scheme"]

# 128 hidden, 288 = 9 × 32 intermediate.
EVEN = {
    "awq-g32": packed("awq"),
    "awq-smaller": packed("awq", group_size=128, on_indivisible="smaller_group"),
    **{f"gptq-w{bits}-g32": gptq(bits) for bits in (2, 3, 4, 8)},
    **{f"gptq-w{bits}-channel": gptq(bits, **ONE_SCALE) for bits in (2, 3, 4, 8)},
    "gptq-w4-smaller": gptq(4, group_size=128, on_indivisible="smaller_group"),
    "gptq-w4-scaled": gptq(4, scale_search=True),
    **{f"ct-{slug(it)}-g32": ct(it) for it in ("W4A16", "W4A16_ASYM", "W8A16")},
    **{
        f"ct-{slug(it)}-channel": ct(it, **ONE_SCALE)
        for it in ("W4A16", "W4A16_ASYM", "W8A16", "W8A8")
    },
    "ct-fp8-dynamic-channel": nearest("FP8_DYNAMIC"),
    "ct-w4a16-smaller": ct("W4A16", group_size=128, on_indivisible="smaller_group"),
    "ct-w4a16-asym-smaller": ct("W4A16_ASYM", group_size=128, on_indivisible="smaller_group"),
    "ct-w4a16-asym-scaled": ct("W4A16_ASYM", scale_search=True),
    "ct-budget": BUDGET,
}
# 302 intermediate: no group size divides it, and it fills no whole number of words.
ODD = {
    "awq-keep": packed("awq", group_size=64, on_indivisible="keep"),
    "awq-scaled-keep": packed("awq", scale_search=True, on_indivisible="keep"),
    **{f"gptq-w{bits}-keep": gptq(bits, on_indivisible="keep") for bits in (2, 3, 4, 8)},
    **{
        f"ct-{slug(it)}-keep": ct(it, group_size=64, on_indivisible="keep")
        for it in ("W4A16", "W4A16_ASYM", "W8A16")
    },
    "ct-w4a16-channel-keep": ct("W4A16", group_size=None, on_indivisible="keep"),
    "ct-w8a8-odd": ct("W8A8", **ONE_SCALE),
    "ct-fp8-dynamic-odd": nearest("FP8_DYNAMIC"),
}
ALL = EVEN | ODD


def names(*prefixes: str) -> list[str]:
    return [name for name in ALL if name.startswith(prefixes)]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    """The workspace of every variant; all of them are made."""
    made = {}
    for variants, intermediate in ((EVEN, 288), (ODD, 302)):
        params = params_for(variants)
        root = tmp_path_factory.mktemp(f"of-{intermediate}")
        workspace = calibrated(root, params, hidden=128, intermediate=intermediate)
        for name in variants:
            quantize.run(workspace, params, name)
            made[name] = workspace
    return made


def record_of(layouts: dict[str, Workspace], name: str) -> VariantRecord:
    return VariantRecord.from_bytes(layouts[name].variant_path(name).read_bytes(), source=name)


def read_files(
    readers: Mapping[str, list[str]], model_dirs: Mapping[str, Path], output_dir: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """What each reader makes of its files; a model directory's parent has its variant's name."""
    command = [serve_python(), "-m", READ_FILES, output_dir]
    for reader, files in readers.items():
        for name in files:
            command += [reader, model_dirs[name]]
    run_program(command, log_path=output_dir / "log", environment={"PYTHONPATH": str(ROOT)})
    read = [name for files in readers.values() for name in files]
    return {name: load_file(output_dir / f"{name}.safetensors") for name in read}


VLLM_READS = [name for name in names("awq", "gptq") if "-w2" not in name and "-w3" not in name]


@pytest.fixture(scope="module")
def read_by_others(
    layouts: dict[str, Workspace], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, torch.Tensor]]:
    readers = {"transformers_reader": names("ct-"), "vllm_reader": VLLM_READS}
    model_dirs = {name: it.model_dir(name) for name, it in layouts.items()}
    return read_files(readers, model_dirs, tmp_path_factory.mktemp("read"))


@pytest.mark.parametrize("name", names("ct-"))
def test_transformers_reads_the_same_weights(
    layouts: dict[str, Workspace], read_by_others: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    ours = dict(unpacked_weights(layouts[name].model_dir(name)))
    theirs = read_by_others[name]
    # The library leaves scales and zero points beside the weights that it made of them.
    assert set(ours) == {tensor for tensor in theirs if tensor.endswith(".weight")}
    for tensor, weight in ours.items():
        # The library multiplies in the dtype of the scales, which is float16 where words are
        # packed.
        torch.testing.assert_close(theirs[tensor], weight, rtol=2**-10, atol=1e-7, msg=tensor)


@pytest.mark.parametrize("name", names("ct-"))
def test_transformers_computes_the_same_logits(
    layouts: dict[str, Workspace], read_by_others: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    model = unpacked_model(layouts[name].model_dir(name))
    with torch.inference_mode():
        ours = model(input_ids=IDS).logits
    difference = (read_by_others[name]["logits"] - ours).norm() / ours.norm()
    # Where activations are rounded too, a difference in the last bit moves some to the next step.
    assert difference < (0.03 if "w8a8" in name or "fp8" in name else 0.002)


@pytest.mark.parametrize("name", VLLM_READS)
def test_vllm_unpacks_the_same_weights(
    layouts: dict[str, Workspace], read_by_others: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    ours = dict(unpacked_weights(layouts[name].model_dir(name)))
    assert read_by_others[name]
    for tensor, weight in read_by_others[name].items():
        assert torch.equal(weight, ours[tensor]), tensor


@pytest.mark.parametrize("name", names("gptq"))
def test_the_published_layout_holds_the_same_weights(
    layouts: dict[str, Workspace], name: str
) -> None:
    model_dir = layouts[name].model_dir(name)
    ours = dict(unpacked_weights(model_dir))
    bits = json.loads((model_dir / "config.json").read_text())["quantization_config"]["bits"]
    stored: dict[str, torch.Tensor] = {}
    for file in model_dir.glob("*.safetensors"):
        stored |= load_file(file)
    modules = [it.removesuffix(".qweight") for it in stored if it.endswith(".qweight")]
    for module in modules[:2]:  # bit by bit takes its time
        tensors = {it: stored[f"{module}.{it}"] for it in ("qweight", "qzeros", "scales", "g_idx")}
        assert torch.equal(gptq_reference.weight(tensors, bits), ours[f"{module}.weight"])


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_is_accounted_for(layouts: dict[str, Workspace], name: str) -> None:
    record = record_of(layouts, name)
    rows = {row.name: row for row in record.coverage}
    assert rows.keys() == dict(unpacked_weights(layouts[name].model_dir(name))).keys()
    for row in record.coverage:
        if row.relative_error is None:
            assert row.reason is not None
            assert row.error_ratio is None
            assert row.scheme == "float16"
        else:
            assert row.error_ratio is not None
            # Clip search and feedback together never lose to plain rounding.
            assert 0 < row.error_ratio <= 1.0001, row
            assert row.bits_per_weight < 9.5


def test_what_was_kept_is_named_in_the_file(layouts: dict[str, Workspace]) -> None:
    mlp = {
        f"model.layers.{layer}.mlp.{own}_proj" for layer in (0, 1) for own in ("gate", "up", "down")
    }
    down = {name for name in mlp if "down" in name}
    for name in (it for it in ODD if "keep" in it):
        config = json.loads((layouts[name].model_dir(name) / "config.json").read_text())
        scheme = config["quantization_config"]
        # The inputs of down do not divide; the outputs of gate and up matter only where zero
        # points or weights are packed along them.
        only_inputs = name.startswith("ct-") and "asym" not in name
        expected = down if only_inputs else mlp
        rows = {row.name: row for row in record_of(layouts, name).coverage}
        kept = {
            it.removesuffix(".weight")
            for it, row in rows.items()
            if (row.reason or "").startswith("kept: its 302")
        }
        assert kept == expected, name
        if name.startswith("awq"):
            assert set(scheme["modules_to_not_convert"]) == {"lm_head", *expected}
        elif name.startswith("ct"):
            assert set(scheme["ignore"]) == {"lm_head", *expected}
        else:
            rules = {rule[3:-1].replace("\\", "") for rule in scheme["dynamic"]}
            fused = {f"model.layers.{layer}.mlp.gate_up_proj" for layer in (0, 1)}
            assert rules == expected | fused


def test_smaller_groups_are_in_the_file_and_in_the_coverage(layouts: dict[str, Workspace]) -> None:
    for name in ("awq-smaller", "gptq-w4-smaller"):
        config = json.loads((layouts[name].model_dir(name) / "config.json").read_text())
        assert config["quantization_config"]["group_size"] == 32
        rows = [row for row in record_of(layouts, name).coverage if row.relative_error is not None]
        assert all(row.scheme.endswith("g32") for row in rows)
        assert all((row.reason or "").startswith("group size 32 instead of 128") for row in rows)
    rows = {row.name: row for row in record_of(layouts, "ct-w4a16-smaller").coverage}
    down, up = (rows[f"model.layers.0.mlp.{own}_proj.weight"] for own in ("down", "up"))
    assert (down.scheme, down.reason) == (
        "W4A16 symmetric g32",
        "group size 32: its 288 inputs do not divide by 128",
    )
    assert up.reason is None
    model_dir = layouts["ct-w4a16-smaller"].model_dir("ct-w4a16-smaller")
    config = json.loads((model_dir / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    assert [len(group["targets"]) for group in groups.values()] == [1, 2]
