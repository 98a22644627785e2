"""FP8 rounding: the nearest number of the format, and nothing beyond its ends."""

import torch

from pipeline.numerics.decoder_layer import DecoderLayer, SharedInput
from pipeline.numerics.fp8 import LARGEST, round_to_e4m3
from pipeline.numerics.layer import quantize_layer
from pipeline.numerics.rounded_inputs import e4m3_by_token, int8_by_token
from pipeline.quantization.grouping import plan_groups
from tests.packed_models import packed_recipe


def every_e4m3() -> torch.Tensor:
    """All finite numbers of the format, sorted, worked out from its bits."""
    numbers = {0.0}
    for exponent in range(16):
        for mantissa in range(8):
            if exponent == 0:
                number = mantissa / 8 * 2.0**-6
            elif (exponent, mantissa) == (15, 7):
                continue  # not a number
            else:
                number = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
            numbers |= {number, -number}
    return torch.tensor(sorted(numbers))


def test_rounding_finds_the_nearest_number() -> None:
    numbers = every_e4m3()
    assert numbers.max() == LARGEST == 448
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 100
    rounded = round_to_e4m3(values)
    nearest = (values.clamp(-448, 448)[:, None] - numbers).abs().amin(-1)
    assert torch.isin(rounded, numbers).all()
    torch.testing.assert_close((rounded - values.clamp(-448, 448)).abs(), nearest)


def test_what_lies_beyond_the_ends_becomes_the_end() -> None:
    assert round_to_e4m3(torch.tensor([1e9, -450.0, 465.0])).tolist() == [448, -448, 448]


def test_a_layer_is_rounded_row_by_row() -> None:
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).half()
    weight[3] = 0
    up = SharedInput("up", ("up",), torch.eye(24))
    layer = DecoderLayer("model.layers.0", {"up.weight": weight}, (up,))
    recipe = packed_recipe("FP8_DYNAMIC", group_size=None)
    recipes = plan_groups(recipe, {"model.layers.0.up": (8, 24)}).of_layer("model.layers.0")
    linear = quantize_layer(layer, (), recipes, head_dim=24).linears["up"]
    values = linear.grid.values(linear.integers)
    assert linear.grid.scale.shape == (8, 1)
    assert torch.equal(values[3], torch.zeros(24))
    # Three bits of mantissa: half a step is 1/16 of the number.
    assert ((values - weight).abs() <= weight.float().abs() / 16 + 1e-3 * weight.abs().max()).all()
    assert 0 < linear.relative_error < 0.002
    assert linear.error_ratio == 1


def test_inputs_are_rounded_token_by_token() -> None:
    tokens = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    tokens[1] *= 1000
    tokens[2] = 0
    for rounded, step in ((int8_by_token(tokens), 1 / 254), (e4m3_by_token(tokens), 1 / 16)):
        error = (rounded - tokens).abs().amax(-1)
        assert (error <= tokens.abs().amax(-1) * step * 1.001).all()
        assert torch.equal(rounded[2], tokens[2])
        assert not torch.equal(rounded[0], tokens[0])
