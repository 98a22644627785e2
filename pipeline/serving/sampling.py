"""State greedy decoding to a server, with every other sampling value neutral.

A release carries the sampling values of generation_config.json, and a GGUF file has them too
(`general.sampling.*`). Engines apply them to each request that states none, so that a repetition
penalty would change a text that is compared. Requests of quantline state all of them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# https://platform.openai.com/docs/api-reference/completions/create
OPENAI: Final[Mapping[str, float]] = MappingProxyType(
    {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
)
# https://docs.vllm.ai/en/latest/serving/openai_compatible_server/
VLLM: Final[Mapping[str, float]] = MappingProxyType(
    {**OPENAI, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
)
# https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
LLAMA_CPP: Final[Mapping[str, float]] = MappingProxyType(
    {
        **OPENAI,
        "top_k": 0,
        "min_p": 0,
        "typical_p": 1,
        "top_n_sigma": -1,
        "repeat_penalty": 1,
        "dry_multiplier": 0,
        "xtc_probability": 0,
        "dynatemp_range": 0,
        "mirostat": 0,
    }
)
BY_ENGINE: Final = MappingProxyType({"vllm": VLLM, "llama.cpp": LLAMA_CPP})


def greedy_sampling(engine: str) -> dict[str, float]:
    """Return the fields of a request to `engine`; a server of the user's gets OpenAI's alone."""
    return dict(BY_ENGINE.get(engine, OPENAI))
