from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import FailureError, InputError
from pipeline.engines import in_llama_cpp as llama_cpp
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import Scorer, continuation_answers, window_logits
from pipeline.engines.token_forest import Span
from tests.engines.scored_models import (
    OpenScorer,
    both_engines,
    open_llama_cpp,
    open_transformers,
    random_ids,
    random_pairs,
    tiny_gguf_path,
    tiny_model_dir,
)

# llama.cpp gets its file from a converter that takes long to start.
pytestmark = pytest.mark.slow

ENGINE_NOISE = 0.02
"""In nats per token: llama.cpp multiplies float16 weights with float16 activations."""


def reference_logits(ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = unpacked_model(tiny_model_dir())(torch.tensor([ids])).logits[0].numpy()
        return logits


@both_engines
def test_padding_and_company_do_not_change_logits(open_scorer: OpenScorer) -> None:
    short, long = random_ids(7, seed=1), random_ids(40, seed=2)
    with closing(open_scorer()) as scorer:
        rows = scorer.logits([Span(tuple(long), start=30), Span(tuple(short), start=0)])
    assert [it.shape for it in rows] == [(10, 320), (7, 320)]
    np.testing.assert_allclose(rows[0], reference_logits(long)[30:], atol=ENGINE_NOISE)
    np.testing.assert_allclose(rows[1], reference_logits(short), atol=ENGINE_NOISE)


@both_engines
def test_answers_depend_neither_on_order_nor_on_batch_size(open_scorer: OpenScorer) -> None:
    pairs = random_pairs(23)
    order = np.random.default_rng(0).permutation(len(pairs))
    with closing(open_scorer()) as scorer:
        answers = continuation_answers(scorer, pairs, batch_size=4)
        shuffled = continuation_answers(scorer, [pairs[it] for it in order], batch_size=4)
        one_by_one = continuation_answers(scorer, pairs, batch_size=1)
    assert shuffled == [answers[it] for it in order]
    for together, alone in zip(answers, one_by_one, strict=True):
        assert together.is_greedy == alone.is_greedy
        assert together.logprob == pytest.approx(alone.logprob, abs=ENGINE_NOISE)


@both_engines
def test_an_answer_is_the_sum_over_the_continuation(open_scorer: OpenScorer) -> None:
    context, continuation = random_ids(9, seed=3), random_ids(3, seed=4)
    logits = torch.from_numpy(reference_logits(context + continuation)).double()
    rows = torch.log_softmax(logits, dim=-1)[8:11]
    expected = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
    with closing(open_scorer()) as scorer:
        (answer,) = continuation_answers(scorer, [(context, continuation)], batch_size=2)
    assert answer.logprob == pytest.approx(expected, abs=3 * ENGINE_NOISE)


@both_engines
def test_too_long_a_context_loses_its_beginning(open_scorer: OpenScorer) -> None:
    context, continuation = random_ids(1100, seed=5), random_ids(2, seed=6)
    with closing(open_scorer()) as scorer:
        assert scorer.max_length == 1024
        long, cut = continuation_answers(
            scorer, [(context, continuation), (context[-1023:], continuation)], batch_size=1
        )
        assert long == cut
        with pytest.raises(InputError, match="continuation of 1025 tokens; expected 1 to 1024"):
            continuation_answers(scorer, [([1], random_ids(1025, seed=7))], batch_size=1)
        with pytest.raises(InputError, match="continuation of 0 tokens"):
            continuation_answers(scorer, [([1], [])], batch_size=1)


@both_engines
def test_windows_come_back_in_their_order(open_scorer: OpenScorer) -> None:
    windows = [random_ids(16, seed=number) for number in range(5)]
    with closing(open_scorer()) as scorer:
        rows = list(window_logits(scorer, windows, batch_size=2))
    for window, logits in zip(windows, rows, strict=True):
        np.testing.assert_allclose(logits, reference_logits(window), atol=ENGINE_NOISE)


@both_engines
def test_greedy_text_is_what_scoring_calls_greedy(open_scorer: OpenScorer) -> None:
    prompts = [random_ids(length, seed=length) for length in (4, 19, 11)]
    with closing(open_scorer()) as scorer:
        new = scorer.greedy(prompts, max_new_tokens=6, finished=lambda ids: len(ids) == 4)
        assert [len(it) for it in new] == [4, 4, 4]
        answers = continuation_answers(scorer, list(zip(prompts, new, strict=True)), batch_size=3)
    assert all(answer.is_greedy for answer in answers)


@both_engines
def test_each_prompt_ends_by_itself(open_scorer: OpenScorer) -> None:
    prompts = [random_ids(length, seed=length) for length in (4, 19)]
    with closing(open_scorer()) as scorer:
        free = scorer.greedy(prompts, max_new_tokens=5, finished=lambda _: False)
        stop = free[0][:2]
        ended = scorer.greedy(prompts, max_new_tokens=5, finished=lambda ids: list(ids) == stop)
    assert [len(it) for it in free] == [5, 5]
    assert ended == [stop, free[1]]


def test_both_engines_agree() -> None:
    pairs = random_pairs(40)
    with closing(open_transformers()) as one, closing(open_llama_cpp()) as other:
        expected = continuation_answers(one, pairs, batch_size=8)
        found = continuation_answers(other, pairs, batch_size=8)
    for (_, continuation), a, b in zip(pairs, expected, found, strict=True):
        assert b.logprob == pytest.approx(a.logprob, abs=ENGINE_NOISE * len(continuation))


def test_more_prompts_than_sequences_in_one_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [random_ids(5, seed=number) for number in range(5)]
    with closing(open_llama_cpp()) as scorer:
        together = scorer.greedy(prompts, max_new_tokens=3, finished=lambda _: False)
        monkeypatch.setattr(llama_cpp, "MAX_SEQUENCES", 2)
        assert scorer.greedy(prompts, max_new_tokens=3, finished=lambda _: False) == together


def test_llama_cpp_reads_long_texts_in_parts_and_gives_the_same_logits() -> None:
    """Its buffers are for a part, not for the longest text or for all prompts together."""
    long = random_ids(1000, seed=8)
    prompts = [random_ids(300, seed=number) for number in range(4)]
    with closing(LlamaCppScorer(tiny_gguf_path(), label="tiny")) as scorer:
        (rows,) = scorer.logits([Span(tuple(long), start=0)])
        together = scorer.greedy(prompts, max_new_tokens=3, finished=lambda _: False)
        assert llama_cpp.llama_cpp.llama_n_ctx(scorer._context) >= 1200
        assert llama_cpp.llama_cpp.llama_n_ubatch(scorer._context) == llama_cpp.DECODE_TOKENS
    np.testing.assert_allclose(rows, reference_logits(long), atol=ENGINE_NOISE)
    with closing(LlamaCppScorer(tiny_gguf_path(), label="tiny")) as scorer:
        for prompt, new in zip(prompts, together, strict=True):
            assert scorer.greedy([prompt], max_new_tokens=3, finished=lambda _: False) == [new]


def test_logits_that_are_not_finite_name_the_model() -> None:
    model = unpacked_model(tiny_model_dir())
    model.get_output_embeddings().weight.data[7, 0] = float("nan")
    scorer: Scorer = TransformersScorer(model, label="awq-broken")
    with pytest.raises(FailureError, match=r"^awq-broken: .* not finite"):
        continuation_answers(scorer, random_pairs(1), batch_size=1)
    with pytest.raises(FailureError, match=r"^awq-broken: .* not finite"):
        list(window_logits(scorer, [[1, 2, 3]], batch_size=1))


def test_a_file_that_llama_cpp_cannot_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf_path().read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model\.gguf: llama\.cpp cannot read it"):
        LlamaCppScorer(path, label="broken")


def test_llama_cpp_tokenizes_like_the_base() -> None:

    tokenizer = tokenizer_of(tiny_model_dir())
    scorer = LlamaCppScorer(tiny_gguf_path(), label="tiny")
    with closing(scorer):
        for text in ("the old town", "pan y sal ñandú", "12 and\n\n  7?", "end </s> of it"):
            assert scorer.tokenize(text) == tokenizer.encode(text)
