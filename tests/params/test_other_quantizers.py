"""Recipes for other quantizers: what each may be asked for, and how a wrong one is named."""

import json
from typing import Any

import pytest

from pipeline.core.errors import InputError
from pipeline.core.workspace import PARAMS_FILE
from pipeline.params.other_quantizers import AutoRoundParams, BackendWeights, kind_of_recipe
from pipeline.params.params import GgufParams, Params
from pipeline.params.reading import read_params
from tests.support import ROOT

GPTQ = {"format": "gptq", "num_bits": 4, "group_size": 128, "symmetric": True}
AWQ = {"format": "awq", "num_bits": 4, "group_size": 128, "symmetric": False}
RECIPES: list[dict[str, Any]] = [
    AWQ | {"backend": "autoawq"},
    GPTQ | {"backend": "auto-gptq"},
    GPTQ | {"backend": "gptqmodel", "num_bits": 3},
    GPTQ | {"backend": "llmcompressor", "format": "compressed-tensors", "algorithm": "awq"},
    AWQ | {"backend": "auto-round", "iterations": 200},
    GPTQ | {"backend": "auto-round", "iterations": 200},
]


def params_with(recipe: dict[str, Any]) -> Params:
    values = read_params(ROOT / PARAMS_FILE).model_dump(mode="json")
    return Params.from_bytes(
        json.dumps(values | {"variants": {"a": recipe}}).encode(), source="params"
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda it: f"{it['backend']}-{it['format']}")
def test_a_recipe_of_a_backend_survives_its_file(recipe: dict[str, Any]) -> None:
    params = params_with(recipe)
    made = params.variants["a"]
    assert isinstance(made, BackendWeights)
    assert made.model_dump(mode="json") == recipe
    assert Params.from_bytes(params.to_bytes(), source="params") == params


def test_native_is_what_the_absence_of_a_backend_says() -> None:
    recipe = {"format": "gguf", "type": "Q8_0", "scale_search": False, "imatrix": True}
    recipe |= {"rounding": "gptq", "quantized_inputs": False, "align_samples": 0}
    assert params_with(recipe | {"backend": "native"}) == params_with(recipe)
    assert isinstance(params_with(recipe).variants["a"], GgufParams)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"backend": "exllama"}, "backend = 'exllama': expected 'autoawq', 'auto-gptq', "),
        ({"backend": None}, "backend = 'None': expected 'autoawq'"),
        (AWQ | {"backend": "gptqmodel"}, "format = 'awq': Input should be 'gptq'"),
        (AWQ | {"backend": "autoawq", "symmetric": True}, "symmetric = True: Input should be"),
        (GPTQ | {"backend": "gptqmodel", "num_bits": 5}, "num_bits = 5: Input should be 2, 3, 4"),
        (GPTQ | {"backend": "gptqmodel", "iterations": 1}, "iterations: unknown key"),
        (GPTQ | {"backend": "auto-round"}, "iterations: missing"),
        (
            AWQ | {"backend": "auto-round", "iterations": 1, "num_bits": 3},
            "num_bits = 3, symmetric = false: format awq holds 4 bits with zero points",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line(recipe: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        params_with(recipe)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_kind_of_a_recipe_is_the_same_before_and_after_it_is_checked() -> None:
    checked = AutoRoundParams(**RECIPES[-1])
    assert kind_of_recipe(RECIPES[-1]) == kind_of_recipe(checked) == "foreign"
    assert kind_of_recipe({"format": "gguf"}) == kind_of_recipe(None) == "native"
