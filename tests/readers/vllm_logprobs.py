"""Runs in the serving environment: vLLM scores one prompt with each of several checkpoints.

Arguments: token ids separated by commas, then model directories. Prints for each a line of JSON:
the log-probability of every token after the first. The engine runs in this process, so that vLLM is
imported once.
"""

import gc
import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_PLUGINS": "quantline",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

from vllm import LLM, SamplingParams


def logprobs(model_dir: str, ids: list[int]) -> list[float]:
    engine = LLM(
        model=model_dir, enforce_eager=True, max_model_len=256, enable_prefix_caching=False
    )
    (answer,) = engine.generate(
        [{"prompt_token_ids": ids}],
        SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0),
        use_tqdm=False,
    )
    entries = answer.prompt_logprobs[1:]
    return [entry[token].logprob for entry, token in zip(entries, ids[1:], strict=True)]


if __name__ == "__main__":
    prompt = [int(number) for number in sys.argv[1].split(",")]
    for directory in sys.argv[2:]:
        print(json.dumps(logprobs(directory, prompt)), flush=True)
        gc.collect()
