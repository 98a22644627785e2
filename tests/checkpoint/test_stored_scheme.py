"""What config.json says about packed weights is believed only where it makes sense."""

import copy
from typing import Any

import pytest

from pipeline.checkpoint.stored_scheme import Layout, StoredScheme, read_schemes
from pipeline.core.errors import InputError
from pipeline.quantization.grouping import plan_groups
from pipeline.quantization.quantization_config import quantization_config
from tests.packed_models import packed_recipe

SHAPES = {"model.layers.0.mlp.up_proj": (64, 128), "model.layers.0.mlp.down_proj": (128, 96)}
RECIPES = [
    ("awq", 32, {}, StoredScheme(Layout.AWQ, 4, 32, symmetric=False)),
    ("gptq", 32, {"num_bits": 3}, StoredScheme(Layout.GPTQ, 3, 32, symmetric=False)),
    ("gptq", None, {"num_bits": 8}, StoredScheme(Layout.GPTQ, 8, None, symmetric=False)),
    ("W4A16", 32, {}, StoredScheme(Layout.PACKED, 4, 32, symmetric=True)),
    ("W4A16", None, {}, StoredScheme(Layout.PACKED, 4, None, symmetric=True)),
    ("W4A16_ASYM", 32, {}, StoredScheme(Layout.PACKED, 4, 32, symmetric=False)),
    ("W8A16", 32, {}, StoredScheme(Layout.PACKED, 8, 32, symmetric=True)),
    ("W8A8", None, {}, StoredScheme(Layout.INT, 8, None, symmetric=True, rounds_inputs=True)),
    (
        "FP8_DYNAMIC",
        None,
        {},
        StoredScheme(Layout.FLOAT, 8, None, symmetric=True, rounds_inputs=True),
    ),
]


def config_of(name: str, group_size: int | None, **changes: Any) -> dict[str, Any]:
    recipe = packed_recipe(name, group_size=group_size, **changes)
    return {
        "quantization_config": quantization_config(
            recipe, plan_groups(recipe, SHAPES), unquantized=()
        )
    }


@pytest.mark.parametrize(("name", "group_size", "changes", "expected"), RECIPES)
def test_what_is_written_is_read(
    name: str, group_size: int | None, changes: dict[str, Any], expected: StoredScheme
) -> None:
    schemes = read_schemes(config_of(name, group_size, **changes))
    assert schemes is not None
    assert schemes.of("model.layers.0.mlp.up_proj") == expected


def test_a_linear_can_have_groups_of_its_own() -> None:
    schemes = read_schemes(config_of("W4A16", 64, on_indivisible="smaller_group"))
    assert schemes is not None
    sizes = [scheme.group_size for name in SHAPES if (scheme := schemes.of(name))]
    assert sizes == [64, 32]


def test_a_checkpoint_that_is_not_quantized_has_no_schemes() -> None:
    assert read_schemes({"model_type": "llama"}) is None


def changed(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    made = copy.deepcopy(config)
    *parents, last = path.split(".")
    place: Any = made["quantization_config"]
    for key in parents:
        place = place[key]
    place[last] = value
    return made


WEIGHTS = "config_groups.group_0.weights"


@pytest.mark.parametrize(
    ("name", "path", "value", "expected"),
    [
        ("awq", "quant_method", "aqlm", "quant_method = 'aqlm': expected awq, gptq, compressed-t"),
        ("awq", "quant_method", ["awq"], "quant_method = ['awq']: expected awq, gptq"),
        ("awq", "bits", 3, "bits = 3: Input should be 4"),
        ("awq", "bits", True, "bits = True: Input should be"),
        ("awq", "group_size", 0, "group_size = 0: Input should be greater than 0"),
        ("awq", "group_size", -128, "group_size = -128"),
        ("awq", "group_size", "32", "group_size = '32'"),
        ("awq", "zero_point", False, "zero_point = False: Input should be True"),
        ("awq", "version", "gemv", "version = 'gemv': Input should be 'gemm'"),
        ("gptq", "bits", 5, "bits = 5: Input should be 2, 3, 4 or 8"),
        ("gptq", "group_size", -2, "group_size"),
        ("gptq", "desc_act", True, "desc_act = True: Input should be False"),
        ("gptq", "checkpoint_format", "marlin", "checkpoint_format = 'marlin'"),
        (
            "W4A16",
            "config_groups.group_0.format",
            "marlin-24",
            "expected integers of 3, 4 or 8 bits in pack-quantized",
        ),
        ("W4A16", "config_groups", [], "config_groups = []"),
        ("W4A16", "config_groups.group_0.targets", ["re:(a+)+$"], "target 're:(a+)+$': expected"),
        ("W4A16", "config_groups.group_0.targets", [], "at least 1 item"),
        ("W4A16", f"{WEIGHTS}.num_bits", 2, "num_bits = 2: Input should be 3, 4 or 8"),
        ("W4A16", f"{WEIGHTS}.type", "float", "expected integers of 3, 4 or 8 bits"),
        ("W4A16", f"{WEIGHTS}.strategy", "block", "strategy = 'block'"),
        ("W4A16", f"{WEIGHTS}.strategy", "channel", "expected integers of 3, 4 or 8 bits"),
        ("W4A16", f"{WEIGHTS}.group_size", None, "expected integers of 3, 4 or 8 bits"),
        ("W4A16", f"{WEIGHTS}.actorder", "group", "actorder = 'group'"),
        ("W4A16", "kv_cache_scheme", {"num_bits": 8}, "kv_cache_scheme"),
        ("W8A8", "config_groups.group_0.input_activations", None, "expected integers of 3, 4 or 8"),
        ("W8A8", "config_groups.group_0.input_activations.dynamic", False, "dynamic = False"),
        ("W8A8", f"{WEIGHTS}.symmetric", False, "expected integers of 3, 4 or 8 bits"),
        ("FP8_DYNAMIC", f"{WEIGHTS}.type", "int", "expected integers of 3, 4 or 8 bits"),
    ],
)
def test_what_cannot_be_unpacked_is_one_line(
    name: str, path: str, value: object, expected: str
) -> None:
    group_size = None if name in ("W8A8", "FP8_DYNAMIC") else 32
    with pytest.raises(InputError) as caught:
        read_schemes(changed(config_of(name, group_size), f"{path}", value))
    message = str(caught.value)
    assert message.startswith("quantization_config")
    assert expected in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("value", [[], "awq", 3, {}])
def test_a_value_that_is_no_configuration_is_one_line(value: object) -> None:
    with pytest.raises(InputError, match=r"quantization_config\.quant_method = None: expected"):
        read_schemes({"quantization_config": value})
