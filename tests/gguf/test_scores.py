"""llama.cpp scores a GGUF like transformers scores the weights that the file stands for."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import continuation_answers
from pipeline.gguf import files as gguf
from pipeline.params.params import GgufType
from tests.models import tiny_llama

NOISE = 0.05
"""In nats per token: llama.cpp rounds activations to 8 bits in blocks, transformers does not."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GgufType("Q8_0"), GgufType("Q4_K_M")])
def test_scores_are_those_of_the_dequantized_weights(tmp_path: Path, kind: GgufType) -> None:
    base_dir = tiny_llama(tmp_path / "base", hidden=256, layers=2)
    full_path, path = tmp_path / "full.gguf", tmp_path / "model.gguf"
    gguf.convert(base_dir, full_path, model_name="t", pre_tokenizer="gpt-2", weight_names=())
    gguf.quantize(full_path, path, kind, {})
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, local_files_only=True
    )
    draw = np.random.default_rng(0)
    pairs = [
        (draw.integers(2, 320, 12).tolist(), draw.integers(2, 320, 1 + number % 3).tolist())
        for number in range(60)
    ]
    with (
        closing(TransformersScorer(model, label="dequantized")) as reference,
        closing(LlamaCppScorer(path, label=str(kind))) as scorer,
    ):
        expected = continuation_answers(reference, pairs, batch_size=8)
        found = continuation_answers(scorer, pairs, batch_size=8)
    differences = [
        abs(a.logprob - b.logprob) / len(continuation)
        for a, b, (_, continuation) in zip(expected, found, pairs, strict=True)
    ]
    assert max(differences) < NOISE
    assert np.mean([a.is_greedy == b.is_greedy for a, b in zip(expected, found, strict=True)]) > 0.9
