"""Which linears are quantized in which groups, for shapes that do not divide."""

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import InputError
from pipeline.params.params import GgufParams, PackedVariant
from pipeline.quantization.grouping import Grouping, fused_name, plan_groups, require_no_experts
from tests.gguf_variants import gguf_recipe
from tests.packed_models import packed_recipe

LAYER = "model.layers.0"
ODD_DOWN = {
    f"{LAYER}.self_attn.q_proj": (128, 128),
    f"{LAYER}.self_attn.k_proj": (64, 128),
    f"{LAYER}.self_attn.v_proj": (64, 128),
    f"{LAYER}.mlp.gate_proj": (288, 128),
    f"{LAYER}.mlp.up_proj": (288, 128),
    f"{LAYER}.mlp.down_proj": (128, 288),
}
ODD_KEYS = ODD_DOWN | {
    f"{LAYER}.self_attn.k_proj": (20, 128),
    f"{LAYER}.self_attn.v_proj": (20, 128),
}
FORMATS = ("awq", "gptq", "W4A16", "W4A16_ASYM", "W8A16")


def plan(
    name: str, shapes: dict[str, tuple[int, int]], *, group_size: int | None, rule: str
) -> Grouping:
    return plan_groups(packed_recipe(name, group_size=group_size, on_indivisible=rule), shapes)


def sizes(grouping: Grouping) -> dict[str, int]:
    return {name: recipe.group_size for name, recipe in grouping.recipes.items()}


def reasons(grouping: Grouping) -> dict[str, str]:
    """Why the groups of some linears are smaller than asked."""
    return {name: it.reason for name, it in grouping.recipes.items() if it.reason}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rule", ["error", "smaller_group", "keep"])
def test_what_divides_needs_no_rule(name: str, rule: str) -> None:
    grouping = plan(name, ODD_DOWN, group_size=32, rule=rule)
    assert sizes(grouping) == dict.fromkeys(ODD_DOWN, 32)
    assert not grouping.kept
    assert not reasons(grouping)


@pytest.mark.parametrize("name", ["gptq", "W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8_DYNAMIC"])
def test_without_groups_a_channel_is_one_group(name: str) -> None:
    grouping = plan(name, ODD_DOWN, group_size=None, rule="error")
    assert sizes(grouping) == {module: shape[1] for module, shape in ODD_DOWN.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_error_names_the_linear_and_what_would_do(name: str) -> None:
    with pytest.raises(
        InputError,
        match=r"^group_size = 128: does not divide the 288 inputs of model\.layers\.0\.mlp\.down_"
        r"proj; use 32 \(what divides every linear of this model: 32, 16\) or another on_indivis",
    ):
        plan(name, ODD_DOWN, group_size=128, rule="error")


def test_error_says_when_no_group_size_would_do() -> None:
    with pytest.raises(
        InputError,
        match=r"k_proj: its 20 outputs do not divide by 8, which format awq needs; set on_indivis",
    ):
        plan("awq", ODD_KEYS, group_size=32, rule="error")


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_a_file_with_one_group_size_gets_the_largest_that_divides_all(name: str) -> None:
    grouping = plan(name, ODD_DOWN, group_size=128, rule="smaller_group")
    assert sizes(grouping) == dict.fromkeys(ODD_DOWN, 32)
    assert not grouping.kept
    assert set(reasons(grouping)) == set(ODD_DOWN)
    assert reasons(grouping)[f"{LAYER}.mlp.up_proj"].startswith("group size 32 instead of 128: ")


@pytest.mark.parametrize("name", ["W4A16", "W4A16_ASYM", "W8A16"])
def test_compressed_tensors_gives_one_linear_a_smaller_group(name: str) -> None:
    grouping = plan(name, ODD_DOWN, group_size=128, rule="smaller_group")
    down = f"{LAYER}.mlp.down_proj"
    assert sizes(grouping) == dict.fromkeys(ODD_DOWN, 128) | {down: 32}
    assert reasons(grouping) == {down: "group size 32: its 288 inputs do not divide by 128"}


@pytest.mark.parametrize("name", ["awq", "gptq", "W4A16_ASYM"])
def test_a_smaller_group_cannot_help_outputs(name: str) -> None:
    with pytest.raises(InputError, match=r"no size of 256, 128, 64, 32, 16 helps .* set it to kee"):
        plan(name, ODD_KEYS, group_size=32, rule="smaller_group")


@pytest.mark.parametrize("name", FORMATS)
def test_keep_leaves_alone_what_does_not_divide(name: str) -> None:
    grouping = plan(name, ODD_DOWN, group_size=128, rule="keep")
    assert grouping.kept == {f"{LAYER}.mlp.down_proj": "kept: its 288 inputs do not divide by 128"}
    assert set(grouping.recipes) == set(ODD_DOWN) - set(grouping.kept)


@pytest.mark.parametrize("name", ["awq", "gptq", "W4A16_ASYM"])
def test_keep_takes_along_what_engines_fuse(name: str) -> None:
    grouping = plan(name, ODD_KEYS, group_size=32, rule="keep")
    attention = {f"{LAYER}.self_attn.{it}_proj" for it in "qkv"}
    assert set(grouping.kept) == attention
    assert "20 outputs" in grouping.kept[f"{LAYER}.self_attn.k_proj"]
    assert "fuse" in grouping.kept[f"{LAYER}.self_attn.q_proj"]


@pytest.mark.parametrize("name", ["W4A16", "W8A16", "W8A8", "FP8_DYNAMIC"])
def test_outputs_need_not_divide_where_nothing_is_packed_along_them(name: str) -> None:
    group_size = None if name in ("W8A8", "FP8_DYNAMIC") else 32
    assert not plan(name, ODD_KEYS, group_size=group_size, rule="error").kept


def test_keeping_everything_is_refused() -> None:
    with pytest.raises(InputError, match=r"on_indivisible = keep: would leave every linear alone"):
        plan("awq", {"model.layers.0.mlp.down_proj": (20, 128)}, group_size=32, rule="keep")


def test_experts_of_a_layer_are_kept_together() -> None:
    experts = "model.layers.3.mlp.experts"
    shapes = {
        f"{experts}.{number}.{own}_proj": shape
        for number in range(3)
        for own, shape in {"gate": (96, 128), "up": (96, 128), "down": (128, 96)}.items()
    }
    others = {"model.layers.3.self_attn.o_proj": (128, 128)}
    grouping = plan("gptq", shapes | others, group_size=128, rule="keep")
    assert set(grouping.kept) == set(shapes)
    assert set(grouping.recipes) == set(others)
    assert {fused_name(name) for name in shapes} == {experts}


@pytest.mark.parametrize(
    ("num_bits", "shape", "problem"),
    [
        (3, (64, 48), "its 48 inputs do not divide by 32"),
        (3, (48, 64), "its 48 outputs do not divide by 32"),
        (2, (24, 64), "its 24 outputs do not divide by 16"),
        (8, (6, 64), "its 6 outputs do not divide by 4"),
    ],
)
def test_gptq_needs_whole_words(num_bits: int, shape: tuple[int, int], problem: str) -> None:
    recipe = packed_recipe("gptq", group_size=16, num_bits=num_bits)
    with pytest.raises(InputError, match=f"^model.layers.0.x: {problem}, which format gptq"):
        plan_groups(recipe, {"model.layers.0.x": shape})


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC"])
def test_rounded_activations_allow_no_groups(scheme: str) -> None:
    with pytest.raises(ValidationError, match=f"{scheme} rounds the activations, so each output"):
        packed_recipe(scheme, group_size=64)


def test_awq_has_four_bits_and_groups() -> None:
    for changes in ({"num_bits": 8}, {"group_size": None}):
        with pytest.raises(ValidationError):
            TypeAdapter(PackedVariant).validate_python(
                packed_recipe("awq", group_size=64).model_dump() | changes
            )


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            packed_recipe("awq", group_size=32, quantized_inputs=True),
            "quantized_inputs = true: .* is an expert, which gets other tokens .*; set it to false",
        ),
        (
            packed_recipe("awq", group_size=32, align_samples=2),
            "align_samples = 2: the experts of a mixture cannot be aligned; set it to 0",
        ),
        (
            gguf_recipe(None, budget={"bits_per_weight": 4.5}),
            "budget: .* is an expert, whose sensitivity is not measured; state a type .* it",
        ),
    ],
)
def test_what_experts_do_not_allow_is_refused(
    recipe: PackedVariant | GgufParams, expected: str
) -> None:
    dense, expert = f"{LAYER}.mlp.up_proj", f"{LAYER}.mlp.experts.0.up_proj"
    require_no_experts(recipe, [dense])
    with pytest.raises(InputError, match=f"^{expected}$"):
        require_no_experts(recipe, [dense, expert])


@pytest.mark.parametrize("name", ["W8A8", "FP8_DYNAMIC"])
def test_activations_inside_experts_are_not_rounded(name: str) -> None:
    shapes = {f"{LAYER}.mlp.experts.{number}.up_proj": (64, 64) for number in range(2)}
    with pytest.raises(InputError, match=f"scheme = {name}: .*experts.0.up_proj is an expert"):
        plan(name, shapes, group_size=None, rule="keep")


def test_a_layer_has_the_recipes_of_its_own_linears_alone() -> None:
    up = {f"model.layers.{number}.mlp.up_proj": (64, 64 * number) for number in (1, 2, 10)}
    grouping = plan("gptq", up, group_size=None, rule="error")
    assert {name: it.group_size for name, it in grouping.of_layer("model.layers.1").items()} == {
        "mlp.up_proj": 64
    }
    assert not grouping.of_layer("")
