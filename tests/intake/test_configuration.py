"""config.json as transformers reads it: what is mended, what is refused, what stays as it is."""

import json
import math
import random
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from pipeline.core.errors import InputError
from pipeline.intake.configuration import mended_configuration
from tests.architecture_models import COMPOSITES, CONFIGS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
}


def changed(**values: Any) -> tuple[dict[str, Any], list[str]]:
    """Mend LLAMA with these values; return what changed by it, and the findings as text."""
    stated = LLAMA | values
    mended = mended_configuration(stated)
    assert stated == LLAMA | values, "what is examined is left alone"
    differing = {
        key: mended.values.get(key, ...)
        for key in stated.keys() | mended.values.keys()
        if mended.values.get(key, ...) != stated.get(key, ...)
        or type(mended.values.get(key)) is not type(stated.get(key))
    }
    return differing, [f"{finding.found}: {finding.done}" for finding in mended.findings]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_transformers_wrote_stays_as_it_is(name: str) -> None:
    stated = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    mended = mended_configuration(stated)
    assert mended.findings == ()
    assert mended.values == stated
    assert mended.vocab_size == 320


def test_code_of_the_repository_is_not_needed_where_transformers_has_the_class() -> None:
    values, findings = changed(auto_map={"AutoConfig": "configuration_llama.LlamaConfig"})
    assert values == {"auto_map": ...}
    assert len(findings) == 1
    assert findings[0].startswith("auto_map names Python code of the repository: removed: ")


def test_code_of_the_repository_is_refused_where_it_is_needed() -> None:
    with pytest.raises(InputError, match="needs Python code from the checkpoint, which is never"):
        changed(model_type="mine", auto_map={"AutoConfig": "mine.Mine"})
    with pytest.raises(InputError, match="model_type 'mine' is no causal language model"):
        changed(model_type="mine")
    with pytest.raises(InputError, match="model_type 'vit' is no causal language model"):
        changed(model_type="vit")


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_no_attention_kernel_is_asked_for(key: str) -> None:
    values, findings = changed(**{key: "flash_attention_2"})
    assert values == {key: ...}
    assert findings == [
        f"{key} = 'flash_attention_2' asks for one attention kernel: removed: each engine chooses "
        "its own"
    ]


@pytest.mark.parametrize(
    ("key", "stated", "right"), [("rms_norm_eps", 1, 1.0), ("num_hidden_layers", 2.0, 2)]
)
def test_numbers_get_the_type_that_the_class_takes(key: str, stated: float, right: float) -> None:
    values, findings = changed(**{key: stated})
    assert values == {key: right}
    assert type(values[key]) is type(right)
    assert len(findings) == 1


@pytest.mark.parametrize(
    ("stated", "right"),
    [
        ({"pad_token_id": 320}, {"pad_token_id": None}),
        ({"pad_token_id": -1}, {"pad_token_id": None}),
        ({"eos_token_id": [1, 320]}, {"eos_token_id": [1]}),
        ({"eos_token_id": [320]}, {"eos_token_id": None}),
        ({"bos_token_id": 128000}, {"bos_token_id": None}),
    ],
)
def test_ids_that_no_token_has_are_left_out(stated: dict[str, Any], right: dict[str, Any]) -> None:
    values, findings = changed(**stated)
    assert values == right
    assert len(findings) == 1
    assert "and the vocabulary has 320 entries" in findings[0]


def test_the_default_padding_of_a_class_may_be_outside_too() -> None:
    stated = {**LLAMA, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    assert CONFIG_MAPPING["phi3"]().pad_token_id >= 320
    assert mended_configuration(stated).values == stated | {"pad_token_id": None}


def test_a_model_whose_text_part_cannot_be_quantized_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match="text part of Qwen3_5Config is Qwen3_5ForCausalLM, expec"):
        mended_configuration(
            {
                "architectures": ["Qwen3_5ForConditionalGeneration"],
                "model_type": "qwen3_5",
                "text_config": {"vocab_size": 320},
                "vision_config": {},
            }
        )


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_section_of_the_text_is_examined_like_the_rest(name: str) -> None:
    stated = json.loads(COMPOSITES[name].to_json_string(use_diff=False))
    own = type(COMPOSITES[name]).__name__.replace("Config", "ForConditionalGeneration")
    stated |= {"architectures": [own]}
    assert not any(
        "architectures" in found.found for found in mended_configuration(stated).findings
    )
    odd = {"dtype": "auto", "return_dict": False, "_attn_implementation": "eager"}
    stated["text_config"] |= odd
    mended = mended_configuration(stated)
    found = [finding.found for finding in mended.findings]
    for key in odd:
        assert key not in mended.values["text_config"]
        assert any(text.startswith(f"text_config.{key} = ") for text in found)
    for key, value in [("num_hidden_layers", 10**6), ("rms_norm_eps", math.nan)]:
        section = stated["text_config"] | {key: value}
        with pytest.raises(InputError, match=rf"^config.json: text_config.{key} = "):
            mended_configuration(stated | {"text_config": section})
    with pytest.raises(InputError, match=r"^config.json: text_config = 'x', expected an object"):
        mended_configuration(stated | {"text_config": "x"})


def test_a_section_for_another_kind_of_model_is_removed() -> None:
    values, findings = changed(text_config={"hidden_size": 32})
    assert values == {"text_config": ...}
    assert findings[0].startswith("text_config is there, though LlamaConfig has no parts: removed")


def test_whatever_a_key_holds_it_is_read_or_refused_in_one_line() -> None:
    generator = random.Random(0)
    values = ["x", [], {}, None, -1, 0, 1.5, 2**70, True, [1, "a"], {"a": 1}, 1e400]
    messages = []
    for _ in range(100):
        key = generator.choice([*LLAMA, "rope_parameters", "head_dim", "layer_types", "hidden_act"])
        try:
            changed(**{key: generator.choice(values)})
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith("config.json: ") for message in messages)
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("stated", "right"),
    [
        ({"torch_dtype": "auto"}, {"torch_dtype": ...}),
        ({"torch_dtype": "torch.bfloat16"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "int8"}, {"dtype": ...}),
        ({"return_dict": False}, {"return_dict": ...}),
        ({"use_return_dict": True}, {"use_return_dict": ...}),
        ({"output_hidden_states": True}, {"output_hidden_states": ...}),
        ({"architectures": ["LLaMAForCausalLM"]}, {"architectures": ["LlamaForCausalLM"]}),
        ({"architectures": ["MistralForCausalLM"]}, {"architectures": ["LlamaForCausalLM"]}),
    ],
)
def test_what_says_nothing_of_the_model_is_put_right(
    stated: dict[str, Any], right: dict[str, Any]
) -> None:
    values, findings = changed(**stated)
    assert values == right
    assert len(findings) == 1
    ((key, value),) = stated.items()
    assert findings[0].startswith(f"{key} = {value!r}")


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaModel", "RewardModel"])
def test_a_model_without_logits_of_tokens_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"\['{name}'\] is no language model \(model_type llama"):
        changed(architectures=[name])


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("rms_norm_eps", math.nan, "rms_norm_eps = nan"),
        ("rope_theta", math.inf, "rope_theta = inf"),
        ("rope_parameters", {"rope_theta": math.nan}, "rope_parameters.rope_theta = nan"),
    ],
)
def test_what_is_no_number_is_refused(key: str, value: object, place: str) -> None:
    with pytest.raises(InputError, match=rf"^config.json: {place}, expected a finite number"):
        changed(**{key: value})
    assert changed(time_step_limit=[0.0, math.inf]) == ({}, [])
