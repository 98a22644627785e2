"""Sequences with common beginnings: each whole, nothing twice, and only ancestors are seen."""

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import Scorer, continuation_answers
from pipeline.engines.token_forest import NO_PARENT, Forest, Span, forests
from tests.engines.scored_models import both_engines, tiny_model_dir

QUESTIONS = [
    Span((*prompt, *choice), start=len(prompt) - 1)
    for prompt in [(5, 6, 7, 8), (5, 6, 9), (11, 12, 13)]
    for choice in [(), (20,), (21, 22), (21, 23)]
]


def grown(spans: list[Span], **limits: int) -> list[Forest]:
    return list(forests(spans, **{"max_nodes": 100, "max_sequences": 64} | limits))


def test_every_sequence_is_whole_and_common_beginnings_are_there_once() -> None:
    (forest,) = grown(QUESTIONS)
    assert set(forest.spans) == set(QUESTIONS)
    for span, path in zip(forest.spans, forest.paths, strict=True):
        assert tuple(forest.ids[node] for node in path) == span.ids
        assert [forest.positions[node] for node in path] == list(range(len(span.ids)))
        assert [forest.parents[node] for node in path] == [NO_PARENT, *path[:-1]]
    beginnings = {span.ids[:end] for span in QUESTIONS for end in range(1, len(span.ids) + 1)}
    assert len(forest.ids) == len(beginnings)


def test_a_node_sees_its_ancestors_and_itself() -> None:
    (forest,) = grown(QUESTIONS)
    visible = forest.visible()
    for path in forest.paths:
        assert set(np.flatnonzero(visible[path[-1]])) == set(path)


def test_what_is_wanted_are_the_ends_of_the_sequences() -> None:
    (forest,) = grown([Span((1, 2, 3), start=2), Span((1, 2, 4), start=1)])
    assert [forest.ids[node] for node in forest.wanted] == [2, 3, 4]


def test_the_order_of_arrival_changes_nothing() -> None:
    assert grown(QUESTIONS, max_nodes=9) == grown(QUESTIONS[::-1], max_nodes=9)


@pytest.mark.parametrize("limits", [{"max_nodes": 9}, {"max_sequences": 2}])
def test_limits_are_kept_and_lose_nothing(limits: dict[str, int]) -> None:
    found = grown(QUESTIONS, **limits)
    assert sorted(span for forest in found for span in forest.spans) == sorted(QUESTIONS)
    for forest in found:
        assert len(forest.ids) <= limits.get("max_nodes", 100)
        assert len(forest.spans) <= limits.get("max_sequences", 64)


def test_a_sequence_longer_than_the_limit_stands_alone() -> None:
    long = Span(tuple(range(20)), start=3)
    assert [it.spans for it in grown([Span((50,), 0), long], max_nodes=10)] == [
        [long],
        [Span((50,), 0)],
    ]


@pytest.mark.slow
@both_engines
def test_an_engine_gives_a_forest_the_logits_of_each_sequence(
    open_scorer: Callable[[], Scorer],
) -> None:
    (forest,) = grown(QUESTIONS)
    with closing(open_scorer()) as scorer:
        assert scorer.sharing is not None
        assert scorer.sharing.max_shared_length == 1024
        together = scorer.sharing.forest_logits(forest)
        alone = [scorer.logits([span])[0] for span in forest.spans]
    row_of = {node: row for row, node in enumerate(forest.wanted)}
    for span, path, rows in zip(forest.spans, forest.paths, alone, strict=True):
        found = together[[row_of[node] for node in path[span.start :]]]
        np.testing.assert_allclose(found, rows, atol=0.02)


def test_a_model_that_ignores_the_mask_shares_nothing_and_answers_alike() -> None:
    pairs = [(list(range(3, 9)), [20, choice]) for choice in (30, 31, 32)]
    model = unpacked_model(tiny_model_dir())
    with closing(TransformersScorer(model, label="tiny")) as scorer:
        expected = continuation_answers(scorer, pairs, batch_size=2)

    class Unmasked(type(model)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.ndim == 4:  # type: ignore[attr-defined]
                kwargs["attention_mask"] = None
            return super().forward(*args, **kwargs)

    model.__class__ = Unmasked
    with closing(TransformersScorer(model, label="tiny")) as scorer:
        assert scorer.sharing is None
        found = continuation_answers(scorer, pairs, batch_size=2)
    assert [it.logprob for it in found] == pytest.approx([it.logprob for it in expected], abs=1e-4)
