"""What quantline reads from vLLM's registry, and what plan says about it.

`test_in_vllm.py` compares it with what vLLM says.
"""

from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.engines import vllm_models
from pipeline.engines.vllm_models import Support, vllm_support
from pipeline.params.params import PackedJudge, Params
from pipeline.verbs.plan import vllm_findings
from tests.stages.test_quantize import gguf, packed, params_for
from tests.support import serve_python

UNKNOWN = "XLMWithLMHeadModel"  # transformers has it, but lets nobody replace its attention


@pytest.fixture(autouse=True)
def vllm() -> None:
    serve_python()


@pytest.mark.parametrize(
    ("architecture", "support"),
    [
        ("LlamaForCausalLM", Support.OWN),
        ("Qwen3_5ForConditionalGeneration", Support.OWN),
        ("Starcoder2ForCausalLM", Support.BY_TRANSFORMERS),
        ("BitNetForCausalLM", Support.BY_TRANSFORMERS),
        (UNKNOWN, Support.NONE),
        ("GenerationConfig", Support.NONE),
        ("MineForCausalLM", Support.NONE),
    ],
)
def test_an_architecture_is_run_by(architecture: str, support: Support) -> None:
    assert vllm_support(architecture) is support


def test_nothing_is_asked_where_there_is_no_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_models, "SERVE_ENVIRONMENT", tmp_path)
    assert vllm_support("LlamaForCausalLM") is None
    assert list(vllm_findings("LlamaForCausalLM", params_of("vllm"))) == []


def params_of(judge: str, **variants: dict[str, object]) -> Params:
    params = params_for(variants or {"awq": packed("awq")})
    evaluate = params.evaluate.model_copy(update={"packed_judge": PackedJudge(judge)})
    return params.model_copy(update={"evaluate": evaluate})


def test_plan_says_how_vllm_runs_the_model() -> None:
    assert list(vllm_findings("LlamaForCausalLM", params_of("vllm"))) == []
    (finding,) = vllm_findings("Starcoder2ForCausalLM", params_of("vllm"))
    assert "has no class of its own for Starcoder2ForCausalLM" in finding.found
    (finding,) = vllm_findings(UNKNOWN, params_of("transformers"))
    assert finding.done == "benchmark skips what vLLM would serve: the base and packed variants"
    (finding,) = vllm_findings(UNKNOWN, params_of("vllm", q8=gguf("Q8_0")))
    assert f"does not have {UNKNOWN}" in finding.found
    with pytest.raises(
        InputError, match=r"^variants.awq: vLLM .* does not have XLM.*, so it cannot"
    ):
        list(vllm_findings(UNKNOWN, params_of("vllm")))
