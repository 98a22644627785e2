"""The numerics keep their promises on random layers: what each algorithm minimises gets smaller."""

import re

import pytest
import torch
from torch import Tensor

from pipeline.architectures.folds import GATED_FOLDS
from pipeline.core.errors import InputError
from pipeline.numerics.decoder_layer import DecoderLayer, SharedInput
from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.gram import (
    BLOCK,
    GramAccumulator,
    cholesky_factor,
    output_error,
    pack_upper,
    packed_diagonal,
    unpack_upper,
)
from pipeline.numerics.grid import Grid, diagonal_blocks, range_grid, search_clip, storable
from pipeline.numerics.layer import QuantizedLayer, quantize_layer
from pipeline.params.linear_recipe import GroupScheme, LinearRecipe
from pipeline.params.variants import PackedLayout, Rounding

HIDDEN, INTERMEDIATE, HEAD_DIM, KV_HEADS = 64, 96, 16, 2
CPU = torch.device("cpu")


def inputs(features: int, *, seed: int, tokens: int = 512) -> Tensor:
    """Correlated inputs whose channels differ in magnitude, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    magnitudes = torch.rand(features, generator=generator) ** 3 + 0.01
    return torch.randn(tokens, features, generator=generator) @ mixing * magnitudes


def gram_of(samples: Tensor) -> Tensor:
    accumulator = GramAccumulator(samples.shape[1], CPU)
    accumulator.add(samples)
    return accumulator.gram()


def weight(out_features: int, in_features: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_features, in_features, generator=generator) / in_features**0.5


def layer_tensors() -> dict[str, Tensor]:
    sizes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    tensors = {
        f"{name}.weight": weight(*shape, seed=i).half()
        for i, (name, shape) in enumerate(sizes.items())
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        norm = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(len(name)))
        tensors[f"{name}.weight"] = (norm + 0.5).half()
    return tensors


def layer_inputs() -> tuple[SharedInput, ...]:
    readers = {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): HIDDEN,
        ("self_attn.o_proj",): HIDDEN,
        ("mlp.gate_proj", "mlp.up_proj"): HIDDEN,
        ("mlp.down_proj",): INTERMEDIATE,
    }
    return tuple(
        SharedInput(names[0], names, gram_of(inputs(features, seed=features + i)))
        for i, (names, features) in enumerate(readers.items())
    )


def quantized(
    *, scale_search: bool, clip_search: bool, rounding: Rounding, num_bits: int = 4
) -> QuantizedLayer:
    layer = DecoderLayer("model.layers.0", layer_tensors(), layer_inputs())
    recipe = LinearRecipe(
        num_bits=num_bits,
        group_size=32,
        symmetric=False,
        layout=PackedLayout.PACKED,
        per_channel=False,
        clip_search=clip_search,
        rounding=rounding,
        refine_sweeps=0,
        dampening_frac=0.01,
    )
    recipes = {name: recipe for it in layer.inputs for name in it.linears}
    folds = GATED_FOLDS if scale_search else ()
    return quantize_layer(layer, folds, recipes, head_dim=HEAD_DIM)


def total_error(layer: QuantizedLayer) -> float:
    return sum(linear.relative_error for linear in layer.linears.values())


def test_the_gram_of_batches_is_the_gram_of_all() -> None:
    samples = inputs(24, seed=1)
    accumulator = GramAccumulator(24, CPU)
    for batch in samples.split(100):
        accumulator.add(batch.view(-1, 4, 24))
    expected = (samples.double().T @ samples.double() / len(samples)).float()
    torch.testing.assert_close(accumulator.gram(), expected, rtol=1e-5, atol=1e-6)


def test_the_upper_triangle_holds_the_whole_matrix() -> None:
    gram = gram_of(inputs(17, seed=2))
    packed = pack_upper(gram)
    assert packed.shape == (17 * 18 // 2,)
    assert torch.equal(unpack_upper(packed, 17), gram)
    assert torch.equal(packed_diagonal(packed, 17), gram.diagonal())


def test_matrices_larger_than_a_block_are_packed_and_measured_alike() -> None:
    size = BLOCK + 9
    samples = inputs(size, seed=20, tokens=40)
    gram = gram_of(samples)
    assert torch.equal(gram, gram.T)
    assert torch.equal(unpack_upper(pack_upper(gram), size), gram)
    expected = (samples.double().T @ samples.double() / len(samples)).float()
    torch.testing.assert_close(gram, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_output_error_is_the_mean_squared_change_of_the_output() -> None:
    samples, delta = inputs(24, seed=3), weight(8, 24, seed=4)
    measured = (samples @ delta.T).square().sum(-1).mean()
    torch.testing.assert_close(output_error(delta, gram_of(samples)), measured, rtol=1e-4, atol=0)


def test_diagonal_blocks_are_the_blocks() -> None:
    gram = gram_of(inputs(48, seed=5))
    blocks = diagonal_blocks(gram, 16)
    assert all(
        torch.equal(blocks[k], gram[16 * k : 16 * k + 16, 16 * k : 16 * k + 16]) for k in range(3)
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, 64])
def test_rounding_to_nearest_is_off_by_at_most_half_a_step(
    symmetric: bool, group_size: int
) -> None:
    matrix = weight(12, 64, seed=6)
    grid = range_grid(matrix, GroupScheme(num_bits=8, group_size=group_size, symmetric=symmetric))
    scale = grid.scale.repeat_interleave(group_size, dim=1)
    error = (grid.values(grid.round(matrix)) - matrix).abs() / scale
    # Half a step inside the range. At its ends a rounded zero point, or the missing top step of a
    # symmetric grid, costs another half, and a scale of eight significant bits 2^-9 of the range.
    assert error.median() <= 0.5
    assert error.max() <= 1 + grid.largest * 2.0**-9


@pytest.mark.parametrize("scale", [0.0, 3e-8, 1e-6, 3.1e-5, 0.00123456, 0.0789, -0.0789, 123.456])
def test_a_stored_scale_is_the_same_in_both_16_bit_types(scale: float) -> None:
    stored = storable(torch.tensor([scale]))
    assert stored != 0
    assert torch.equal(stored.to(torch.float16).float(), stored)
    assert torch.equal(stored.to(torch.bfloat16).float(), stored)
    assert abs(stored.item() - scale) <= max(abs(scale) * 2.0**-8, 2.0**-24)


@pytest.mark.parametrize("symmetric", [True, False])
def test_values_on_the_grid_are_kept_exactly(symmetric: bool) -> None:
    matrix = weight(12, 64, seed=7)
    grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=32, symmetric=symmetric))
    integers = grid.round(matrix)
    assert torch.equal(grid.round(grid.values(integers)), integers)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_symmetric_grid_reaches_its_extreme_on_either_side(sign: float) -> None:
    matrix = weight(12, 64, seed=20)
    matrix[:, ::32] = 3.0 * sign
    grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=32, symmetric=True))
    reached = grid.values(grid.round(matrix))[:, ::32]
    torch.testing.assert_close(reached, matrix[:, ::32], rtol=1e-3, atol=0)


def test_a_group_of_zeros_stays_zero() -> None:
    matrix = weight(4, 64, seed=8)
    matrix[:, :32] = 0
    for symmetric in (True, False):
        grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=32, symmetric=symmetric))
        assert torch.equal(grid.values(grid.round(matrix))[:, :32], torch.zeros(4, 32))


def test_feedback_beats_rounding_to_nearest_on_the_same_grid() -> None:
    matrix, gram = weight(32, 64, seed=9), gram_of(inputs(64, seed=10))
    grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=32, symmetric=False))
    nearest = output_error(grid.values(grid.round(matrix)) - matrix, gram)
    integers = round_with_feedback(matrix, gram, grid, dampening_frac=0.01)
    assert output_error(grid.values(integers) - matrix, gram) < 0.7 * nearest
    assert integers.min() >= 0
    assert integers.max() <= grid.largest


def test_feedback_is_rounding_to_nearest_when_inputs_are_uncorrelated() -> None:
    matrix = weight(16, 64, seed=11)
    grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=16, symmetric=True))
    gram = torch.diag(torch.rand(64) + 0.1)
    assert torch.equal(
        round_with_feedback(matrix, gram, grid, dampening_frac=0.01), grid.round(matrix)
    )


def test_feedback_follows_a_permutation_of_the_inputs() -> None:
    matrix, gram = weight(16, 48, seed=12), gram_of(inputs(48, seed=13))
    grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=48, symmetric=False))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(14))
    plain = round_with_feedback(matrix, gram, grid, dampening_frac=0.01)
    permuted = round_with_feedback(
        matrix[:, order], gram[order][:, order], grid, dampening_frac=0.01
    )
    assert (permuted == plain[:, order]).float().mean() > 0.999


def test_feedback_is_the_textbook_algorithm() -> None:
    """Against a direct float64 form: quantize a column, then solve for the rest exactly."""
    matrix, gram = weight(6, 32, seed=15), gram_of(inputs(32, seed=16))
    grid = range_grid(matrix, GroupScheme(num_bits=3, group_size=32, symmetric=False))
    assert torch.equal(
        round_with_feedback(matrix, gram, grid, dampening_frac=0.01),
        textbook_gptq(matrix, gram, grid, dampening_frac=0.01),
    )


def test_moments_without_a_factor_are_dampened_more_and_it_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Few tokens, one channel far larger than all others, and next to no dampening."""
    samples = inputs(256, seed=15, tokens=64)
    samples[:, 7] *= 100
    gram, matrix = gram_of(samples), weight(16, 256, seed=16)
    grid = range_grid(matrix, GroupScheme(num_bits=4, group_size=32, symmetric=True))
    plain = output_error(grid.values(grid.round(matrix)) - matrix, gram)
    integers = round_with_feedback(matrix, gram, grid, dampening_frac=1e-12)
    assert output_error(grid.values(integers) - matrix, gram) < plain
    expected = r"dampening_frac = 1e-12: too little for .* of 256 channels; 1e-\d+ was taken"
    assert re.search(expected, capsys.readouterr().err)
    round_with_feedback(matrix, gram, grid, dampening_frac=0.01)
    assert capsys.readouterr().err == ""


def test_inputs_that_are_always_zero_have_a_factor() -> None:
    factor = cholesky_factor(torch.zeros(8, 8), 0.01)
    torch.testing.assert_close(factor, 0.1 * torch.eye(8))


def test_moments_that_are_no_numbers_are_one_line() -> None:
    gram = torch.eye(8)
    gram[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"8 channels, are not finite numbers; set quantized_inp"):
        cholesky_factor(gram, 0.01)


def textbook_gptq(matrix: Tensor, gram: Tensor, grid: Grid, *, dampening_frac: float) -> Tensor:
    """Optimal brain quantization in a fixed order, arXiv 2210.17323, equation 2."""
    dampened = gram.double() + dampening_frac * gram.diagonal().mean() * torch.eye(len(gram))
    order = torch.argsort(gram.diagonal(), descending=True, stable=True).tolist()
    remaining, integers = matrix.double().clone(), torch.zeros_like(matrix)
    scale, zero = (it.repeat_interleave(grid.group_size, dim=1) for it in (grid.scale, grid.zero))
    for position, column in enumerate(order):
        rest = order[position:]
        inverse = torch.linalg.inv(dampened[rest][:, rest])
        chosen = (remaining[:, column] / scale[:, column] + zero[:, column]).round()
        integers[:, column] = chosen.clamp(0, grid.largest)
        value = (integers[:, column] - zero[:, column]) * scale[:, column]
        error = (remaining[:, column] - value) / inverse[0, 0]
        remaining[:, rest] -= torch.outer(error, inverse[0])
    return integers


def test_clip_search_never_hurts_the_error_it_minimises() -> None:
    matrix, gram = weight(16, 64, seed=17), gram_of(inputs(64, seed=18))
    for symmetric in (True, False):
        scheme = GroupScheme(num_bits=4, group_size=64, symmetric=symmetric)
        full, clipped = range_grid(matrix, scheme), search_clip(matrix, gram, scheme)
        errors = [
            output_error(it.values(it.round(matrix)) - matrix, gram) for it in (full, clipped)
        ]
        assert errors[1] <= errors[0]


def test_each_step_of_the_recipe_pays() -> None:
    nearest = quantized(scale_search=False, clip_search=False, rounding=Rounding.NEAREST)
    scaled = quantized(scale_search=True, clip_search=False, rounding=Rounding.NEAREST)
    clipped = quantized(scale_search=True, clip_search=True, rounding=Rounding.NEAREST)
    compensated = quantized(scale_search=True, clip_search=True, rounding=Rounding.GPTQ)
    errors = [total_error(it) for it in (nearest, scaled, clipped, compensated)]
    assert errors == sorted(errors, reverse=True)


def test_folding_changes_nothing_but_the_rounding() -> None:
    """With the scales folded, the layer's products are those of the original layer."""
    layer = quantized(scale_search=True, clip_search=False, rounding=Rounding.NEAREST, num_bits=8)
    tensors = layer_tensors()
    assert set(layer.changed) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    hidden = inputs(HIDDEN, seed=19)
    folds = {
        "self_attn.q_proj": "input_layernorm",
        "mlp.gate_proj": "post_attention_layernorm",
    }
    for name, norm in folds.items():
        linear = layer.linears[name]
        before = (hidden * tensors[f"{norm}.weight"]) @ tensors[f"{name}.weight"].float().T
        stored = layer.changed[f"{norm}.weight"].float()
        after = (hidden * stored) @ linear.grid.values(linear.integers).T
        assert (after - before).norm() / before.norm() < 0.03
    value, output = layer.linears["self_attn.v_proj"], layer.linears["self_attn.o_proj"]
    repeat = HIDDEN // (KV_HEADS * HEAD_DIM)
    mixed = product_through_heads(
        value.grid.values(value.integers), output.grid.values(output.integers), repeat
    )
    norm_ratio = tensors["input_layernorm.weight"] / layer.changed["input_layernorm.weight"]
    original = product_through_heads(
        tensors["self_attn.v_proj.weight"].float() * norm_ratio.float(),
        tensors["self_attn.o_proj.weight"].float(),
        repeat,
    )
    assert (mixed - original).norm() / original.norm() < 0.03


def product_through_heads(value: Tensor, output: Tensor, repeat: int) -> Tensor:
    """o_proj · v_proj with each value head used by `repeat` heads."""
    heads = value.view(KV_HEADS, 1, HEAD_DIM, HIDDEN).expand(-1, repeat, -1, -1)
    return output @ heads.reshape(HIDDEN, HIDDEN)


def test_the_same_layer_gives_the_same_integers() -> None:
    first, second = (
        quantized(scale_search=True, clip_search=True, rounding=Rounding.GPTQ) for _ in range(2)
    )
    assert all(
        torch.equal(first.linears[name].integers, second.linears[name].integers)
        for name in first.linears
    )
