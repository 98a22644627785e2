"""Which folds a decoder layer gets from the tensors it has."""

import pytest

from pipeline.architectures.folds import (
    FOLDS,
    GATED_FOLDS,
    expert_number,
    folds_of,
    layer_folds,
)
from pipeline.core.errors import InputError

ATTENTION = {
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{it}_proj" for it in "qkvo"),
}
DENSE = {f"mlp.{it}_proj" for it in ("gate", "up", "down")}
EXPERTS = {
    "mlp.gate",
    *(f"mlp.experts.{n}.{it}_proj" for n in range(12) for it in ("gate", "up", "down")),
}


def test_a_dense_layer_gets_every_fold_of_its_architecture() -> None:
    assert layer_folds(GATED_FOLDS, ATTENTION | DENSE) == GATED_FOLDS


def test_a_layer_with_experts_gets_one_fold_before_all_and_one_inside_each() -> None:
    found = layer_folds(FOLDS["Qwen3MoeForCausalLM"], ATTENTION | EXPERTS)
    (entering,) = (it for it in found if it.shared_input)
    assert entering.previous == "post_attention_layernorm"
    assert entering.unquantized == ("mlp.gate",)
    assert len(entering.linears) == 2 * 12
    inside = [it for it in found if it.previous.startswith("mlp.experts.")]
    assert [expert_number(f"{it.previous}.weight") for it in inside] == list(range(12))
    assert all(
        it.previous.replace("up_proj", "down_proj") == linear
        for it in inside
        for linear in it.linears
    )


def test_a_dense_layer_among_experts_gets_the_dense_folds() -> None:
    found = layer_folds(FOLDS["Qwen3MoeForCausalLM"], ATTENTION | DENSE)
    assert found == layer_folds(GATED_FOLDS, ATTENTION | DENSE)


@pytest.mark.parametrize("absent", ["self_attn.k_proj", "input_layernorm"])
def test_a_fold_is_left_out_when_a_part_of_it_is_missing(absent: str) -> None:
    found = layer_folds(GATED_FOLDS, (ATTENTION | DENSE) - {absent})
    assert all(it.previous != "input_layernorm" for it in found)


def test_an_unknown_architecture_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match="set scale_search to false"):
        folds_of("UnheardOfForCausalLM")
