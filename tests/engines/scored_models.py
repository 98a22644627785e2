"""Scorers of one tiny random model in both engines, made once for a test run; what they score."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import Scorer
from pipeline.gguf import files as gguf
from tests.models import tiny_llama
from tests.support import missing

OpenScorer = Callable[[], Scorer]
Pair = tuple[list[int], list[int]]


@cache
def tiny_model_dir() -> Path:
    """A LlamaForCausalLM in float16 with 320 tokens."""
    return tiny_llama(Path(mkdtemp(prefix="quantline-")) / "tiny")


@cache
def tiny_gguf_path() -> Path:
    """The same model as an F16 GGUF, by llama.cpp's converter."""
    if not (gguf.CONVERTER_DIR / "conversion").is_dir():
        missing("llama.cpp's converter is not set up: run `make setup`")
    path = tiny_model_dir().parent / "tiny.gguf"
    gguf.convert(tiny_model_dir(), path, model_name="tiny", pre_tokenizer="gpt-2", weight_names=())
    return path


def open_transformers() -> Scorer:
    return TransformersScorer(unpacked_model(tiny_model_dir()), label="tiny")


def open_llama_cpp() -> Scorer:
    return LlamaCppScorer(tiny_gguf_path(), label="tiny")


def random_ids(count: int, *, seed: int) -> list[int]:
    return [int(it) for it in np.random.default_rng(seed).integers(2, 320, count)]


def random_pairs(count: int) -> list[Pair]:
    return [
        (
            random_ids(3 + 5 * number % 31, seed=number),
            random_ids(1 + number % 3, seed=number + 500),
        )
        for number in range(count)
    ]


both_engines = pytest.mark.parametrize(
    "open_scorer", [open_transformers, open_llama_cpp], ids=["transformers", "llama.cpp"]
)
