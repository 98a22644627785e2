"""Shapes of published models are counted as their owners count them."""

import pytest

from pipeline.architectures.shapes import InputShape, model_shape
from pipeline.core.errors import InputError
from tests.shapes import llama_3_8b, llama_shapes, mixtral_8x7b


def test_llama_3_8b_has_its_published_number_of_weights() -> None:
    shape = model_shape(llama_3_8b())
    assert shape.num_weights == 8_030_261_248
    assert (len(shape.layers), shape.vocab_size, shape.hidden_size) == (32, 128256, 4096)
    assert shape.largest_matrix == 128256 * 4096


def test_linears_of_a_block_share_their_input_and_output_projections_do_not() -> None:
    layer = model_shape(llama_3_8b(layers=1)).layers[0]
    assert set(layer.inputs) == {
        InputShape(width=4096, rows=4096 + 2 * 1024),
        InputShape(width=4096, rows=4096),
        InputShape(width=4096, rows=2 * 14336),
        InputShape(width=14336, rows=4096),
    }
    assert layer.num_weights - layer.num_linear_weights == 2 * 4096


def test_every_expert_has_inputs_of_its_own() -> None:
    shape = model_shape(mixtral_8x7b())
    assert shape.num_weights == 46_702_792_704
    experts = [it for it in shape.layers[0].inputs if it.is_expert]
    assert len(experts) == 16
    assert sum(it.num_weights for it in experts) == 8 * 3 * 14336 * 4096


def test_stacked_experts_count_like_separate_ones() -> None:
    stacked = {name: it for name, it in mixtral_8x7b().items() if ".experts." not in name}
    for layer in range(32):
        experts = f"model.layers.{layer}.block_sparse_moe.experts"
        stacked[f"{experts}.gate_up_proj"] = (8, 2 * 14336, 4096)
        stacked[f"{experts}.down_proj"] = (8, 4096, 14336)
    assert model_shape(stacked).num_weights == model_shape(mixtral_8x7b()).num_weights
    assert sum(it.num_copies for it in model_shape(stacked).layers[0].inputs if it.is_expert) == 16


def test_tied_embeddings_count_once() -> None:
    sizes = {"hidden": 64, "ffn": 128, "layers": 2, "kv": 32, "vocab": 320}
    tied = model_shape(llama_shapes(**sizes, tied=True)).num_weights
    assert model_shape(llama_shapes(**sizes)).num_weights - tied == 64 * 320


def test_what_is_no_decoder_is_one_line() -> None:
    with pytest.raises(InputError, match="1 tensors, none in a layer named as"):
        model_shape({"weight": (3, 4)})
