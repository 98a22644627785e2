"""vLLM scores by the weights that the files stand for, and says in one line why it cannot."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.environments import OFFLINE
from pipeline.core.errors import FailureError, InputError
from pipeline.core.process import run_program
from pipeline.engines.distance import window_distance
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.in_vllm import VllmScorer
from pipeline.engines.scorer import BrokenModelError, continuation_answers, window_logits
from pipeline.engines.token_forest import Span
from pipeline.engines.vllm_models import known_models
from tests.engines.scored_models import random_ids, random_pairs
from tests.models import tiny_llama
from tests.packed_models import tiny_packed
from tests.support import serve_python
from tests.vllm_programs import KNOWN_MODELS

# vLLM multiplies in the type of the checkpoint, float16; the reference in float32.
LOGIT_ERROR = 0.03
MEAN_KL = 1e-5
ANSWER_ERROR = 0.02

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["base", "awq"])
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmScorer, TransformersScorer]]:
    """The same checkpoint in vLLM and in transformers."""
    serve_python()
    path = tmp_path_factory.mktemp("scored") / "model"
    if request.param == "base":
        tiny_llama(path, hidden=256)
    else:
        tiny_packed(path, request.param, group_size=128)
    exact = TransformersScorer(unpacked_model(path), label="exact")
    with closing(VllmScorer(path, label="tiny")) as scorer:
        yield scorer, exact


def test_logits_are_those_of_the_weights(engines: tuple[VllmScorer, TransformersScorer]) -> None:
    scorer, exact = engines
    assert (scorer.vocab_size, scorer.max_length) == (exact.vocab_size, exact.max_length)
    windows = [random_ids(length, seed=length) for length in (200, 90, 1024)]
    found = list(window_logits(scorer, windows, batch_size=3))
    expected = list(window_logits(exact, windows, batch_size=1))
    for window, own, other in zip(windows, found, expected, strict=True):
        np.testing.assert_allclose(own, other, atol=LOGIT_ERROR)
        assert window_distance(other, own, window).kl.mean() < MEAN_KL


def test_answers_depend_neither_on_order_nor_on_batch_size(
    engines: tuple[VllmScorer, TransformersScorer],
) -> None:
    scorer, exact = engines
    pairs = random_pairs(40)
    expected = continuation_answers(exact, pairs, batch_size=8)
    together = continuation_answers(scorer, pairs, batch_size=16)
    one_by_one = continuation_answers(scorer, pairs[::-1], batch_size=1)[::-1]
    for answers in (together, one_by_one):
        for own, other in zip(answers, expected, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=ANSWER_ERROR)


def test_greedy_text_is_what_scoring_calls_greedy(
    engines: tuple[VllmScorer, TransformersScorer],
) -> None:
    scorer, _ = engines
    prompts = [random_ids(length, seed=length) for length in (4, 19, 11)]
    free = scorer.greedy(prompts, max_new_tokens=6, finished=lambda _: False)
    assert [len(ids) for ids in free] == [6, 6, 6]
    answers = continuation_answers(scorer, list(zip(prompts, free, strict=True)), batch_size=3)
    assert all(answer.is_greedy for answer in answers)
    stop = free[0][:2]
    ended = scorer.greedy(prompts, max_new_tokens=6, finished=lambda ids: list(ids) == stop)
    assert ended == [stop, *free[1:]]


def test_more_tokens_than_it_reads_are_refused(
    engines: tuple[VllmScorer, TransformersScorer],
) -> None:
    scorer, _ = engines
    with pytest.raises(
        InputError, match=r"^tiny: a sequence of 1025 tokens; expected at most 1024"
    ):
        scorer.logits([Span(tuple(random_ids(1025, seed=1)), start=1000)])


def test_vllm_itself_has_the_models_that_are_read_in_its_registry(tmp_path: Path) -> None:
    run_program(
        [serve_python(), "-m", KNOWN_MODELS], log_path=tmp_path / "log", environment=OFFLINE
    )
    known = set(json.loads((tmp_path / "log").read_text().splitlines()[-1]))
    models = known_models()
    assert models is not None
    own, by_transformers = models
    assert len(own) > 200
    assert len(by_transformers) > 10
    assert own | by_transformers <= known


@pytest.mark.usefixtures("own_programs")
def test_a_broken_model_and_a_killed_engine_are_one_line_each(tmp_path: Path) -> None:
    serve_python()
    weights_path = tiny_llama(tmp_path / "model", hidden=256) / "model.safetensors"
    tensors = load_file(weights_path)
    tensors["lm_head.weight"][7, 0] = float("nan")
    save_file(tensors, weights_path, metadata={"format": "pt"})
    with closing(VllmScorer(tmp_path / "model", label="tiny")) as scorer:
        (process,) = processes_of(tmp_path / "model")
        with pytest.raises(BrokenModelError, match=r"^tiny: vllm computed logits that are not fin"):
            continuation_answers(scorer, random_pairs(1), batch_size=1)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(FailureError, match=r"^tiny: vLLM was ended by SIGKILL") as caught:
            scorer.logits([Span((1, 2, 3), start=0)])
    assert "\n" not in str(caught.value)
    assert not processes_of(tmp_path / "model")


def processes_of(model_dir: Path) -> list[int]:
    """The programs that were started with this model."""
    commands = psutil.process_iter(["cmdline"])
    return [it.pid for it in commands if str(model_dir) in (it.info["cmdline"] or ())]


def test_weights_that_vllm_cannot_read_end_it_with_the_reason(tmp_path: Path) -> None:
    serve_python()
    model_dir = tiny_packed(tmp_path / "model", "gptq", group_size=128)
    weights_path = model_dir / "model.safetensors"
    weights = weights_path.read_bytes()
    weights_path.write_bytes(weights[: len(weights) // 2])
    with pytest.raises(FailureError, match=r"^tiny: vLLM ended with exit code 1: .*incomplete"):
        VllmScorer(model_dir, label="tiny")
