"""The account of tensors: what a recipe implies is there, or the variant fails."""

import pytest

from pipeline.core.errors import FailureError
from pipeline.params.gguf_variants import GgufRounding
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.params import GgufParams, GgufType
from pipeline.quantization.coverage import (
    gguf_coverage,
    implied_by_packing,
    kept_coverage,
    packed_coverage,
    require_covered,
)
from pipeline.quantization.grouping import plan_groups
from pipeline.records.variant import TensorCoverage, bits_per_weight
from tests.packed_models import packed_recipe

UP, DOWN = (f"model.layers.0.mlp.{own}_proj.weight" for own in ("up", "down"))
SHAPE = (64, 128)


def linear_recipe(name: str, kind: str, *, group_size: int | None) -> LinearRecipe:
    return plan_groups(packed_recipe(kind, group_size=group_size), {name: SHAPE}).recipes[name]


def quantized(name: str) -> TensorCoverage:
    return packed_coverage(
        name,
        shape=SHAPE,
        recipe=linear_recipe(name, "awq", group_size=32),
        num_bytes=64 * 128 // 2 + 1024,
        relative_error=0.01,
        error_ratio=0.8,
    )


def kept(name: str, *, shape: tuple[int, ...] = SHAPE, reason: str | None = None) -> TensorCoverage:
    return kept_coverage(
        name, shape=shape, dtype="float16", num_bytes=1, folded=False, reason=reason
    )


def test_a_variant_with_everything_passes() -> None:
    require_covered([quantized(UP), quantized(DOWN)], implied={UP, DOWN}, kept=())


def test_a_tensor_without_values_has_no_bits() -> None:
    row = kept_coverage(
        "empty", shape=(0, 4), dtype="float16", num_bytes=0, folded=False, reason=None
    )
    assert row.bits_per_weight == 0
    assert bits_per_weight([row, kept(UP)]) == bits_per_weight([kept(UP)])


def test_what_the_recipe_keeps_is_not_missed() -> None:
    rows = [quantized(UP), kept(DOWN, reason="kept: its 302 inputs do not divide by 64")]
    require_covered(rows, implied={UP, DOWN}, kept={DOWN})


def test_a_lower_share_than_implied_fails_in_one_line() -> None:
    with pytest.raises(
        FailureError,
        match=r"^model\.layers\.0\.mlp\.down_proj\.weight: stayed float16 \(kept: .*50\.0% of the "
        r"linears' weights are quantized where the recipe implies 100\.0%; this model needs an",
    ):
        require_covered([quantized(UP), kept(DOWN)], implied={UP, DOWN}, kept=())


@pytest.mark.parametrize(
    ("name", "shape", "implied"),
    [
        ("model.layers.0.mlp.up_proj.weight", (64, 32), True),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 64, 32), True),
        ("model.layers.7.mlp.experts.3.down_proj.weight", (64, 32), True),
        ("model.layers.0.mlp.gate.weight", (8, 32), False),
        ("model.layers.0.block_sparse_moe.gate.weight", (8, 32), False),
        ("model.layers.0.input_layernorm.weight", (32,), False),
        ("model.layers.0.conv1d.weight", (64, 1, 4), False),
        ("model.embed_tokens.weight", (320, 32), False),
        ("lm_head.weight", (320, 32), False),
    ],
)
def test_a_recipe_implies_the_matrices_of_decoder_layers(
    name: str, shape: tuple[int, ...], implied: bool
) -> None:
    assert implied_by_packing(name, shape) is implied


@pytest.mark.parametrize(
    ("name", "group_size", "shown"),
    [
        ("awq", 32, "W4A16 asymmetric g32"),
        ("gptq", 32, "W4A16 symmetric g32"),
        ("gptq", None, "W4A16 symmetric per channel"),
        ("W4A16_ASYM", 64, "W4A16 asymmetric g64"),
        ("W8A16", 64, "W8A16 symmetric g64"),
        ("W8A8", None, "W8A8 symmetric per channel"),
        ("FP8_DYNAMIC", None, "FP8 e4m3 per channel"),
    ],
)
def test_the_scheme_is_named(name: str, group_size: int | None, shown: str) -> None:
    row = packed_coverage(
        UP,
        shape=SHAPE,
        recipe=linear_recipe(UP, name, group_size=group_size),
        num_bytes=5120,
        relative_error=0.01,
        error_ratio=0.8,
    )
    assert (row.scheme, row.bits_per_weight) == (shown, 5.0)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.norm.weight", (32,), "kept: a vector"),
        ("model.layers.0.mlp.gate.weight", (8, 32), "kept: chooses the experts"),
        ("lm_head.weight", (320, 32), "kept: not a linear inside a decoder layer"),
        (UP, SHAPE, "kept: calibration measured no input of it"),
    ],
)
def test_what_stays_has_a_reason(name: str, shape: tuple[int, ...], reason: str) -> None:
    assert kept(name, shape=shape).reason == reason


@pytest.mark.parametrize(
    ("kind", "row", "stored", "reason"),
    [
        ("Q4_K_M", 512, "Q4_K", None),
        ("Q4_K_M", 288, "Q5_0", "rows of 288 do not divide by 256: llama.cpp fell back to Q5_0"),
        ("IQ3_M", 288, "IQ4_NL", "rows of 288 do not divide by 256: llama.cpp fell back to IQ4_NL"),
        ("IQ4_NL", 288, "IQ4_NL", None),
        ("Q8_0", 302, "F16", "rows of 302 do not divide by 32: llama.cpp fell back to F16"),
        ("Q4_K_M", 512, "F32", "kept by llama.cpp"),
    ],
)
def test_fallbacks_of_llama_cpp_are_named(
    kind: str, row: int, stored: str, reason: str | None
) -> None:
    made = gguf_coverage(
        "blk.0.ffn_down.weight",
        shape=(64, row),
        stored_type=stored,
        tensor_bits=4.5,
        relative_error=None,
        error_ratio=None,
        recipe=GgufParams(
            format="gguf",
            type=GgufType(kind),
            scale_search=False,
            imatrix=True,
            rounding=GgufRounding.LLAMA_CPP,
            quantized_inputs=False,
            align_samples=0,
        ),
    )
    assert made.reason == reason
