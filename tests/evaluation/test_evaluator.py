"""Which models are loaded at the same time while one is compared with another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.engines.scorer import BrokenModelError, LazyScorer, Scorer
from pipeline.evaluation import evaluator as evaluator_module
from pipeline.evaluation.evaluator import (
    EvaluationResult,
    Evaluator,
    ScoredModel,
    score_windows,
)
from pipeline.evaluation.held_out import HeldOut
from pipeline.params.reading import read_params
from tests.engines.scored_models import open_transformers, random_ids, tiny_model_dir
from tests.support import ROOT

WINDOWS = [random_ids(16, seed=number) for number in range(3)]


class Events:
    """Models of transformers that write down when they are loaded and closed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def model(self, label: str) -> ScoredModel:
        def opened() -> Scorer:
            self.seen.append(f"{label} opened")
            scorer = open_transformers()
            close = scorer.close

            def closed() -> None:
                self.seen.append(f"{label} closed")
                close()

            scorer.close = closed  # type: ignore[method-assign]
            return scorer

        scorer = LazyScorer(opened, label=label, backend=label, backend_version="1", device="cpu")
        return ScoredModel("ab" * 32, scorer)


def evaluator_in(tmp_path: Path) -> Evaluator:
    evaluate = read_params(ROOT / "params.yaml").evaluate
    few = evaluate.model_copy(update={"window_tokens": 16, "num_windows": 3})
    questions: Sequence[Any] = ()
    return Evaluator(
        "cd" * 32,
        tokenizer_of(tiny_model_dir()),
        320,
        HeldOut(["text"], WINDOWS, "ef" * 32, "ef" * 32),
        questions,
        few,
        tmp_path,
    )


def test_the_reference_is_closed_before_another_engine_starts(tmp_path: Path) -> None:
    """Also when it is loaded because its own scores were just measured."""
    events, evaluator = Events(), evaluator_in(tmp_path)
    base = events.model("base")
    evaluator.evaluate(base, None)
    evaluator.evaluate(events.model("vllm"), base)
    assert events.seen == ["base opened", "base closed", "vllm opened"]
    evaluator.evaluate(events.model("llama.cpp"), base)
    assert events.seen[3:] == ["llama.cpp opened"]


def test_a_reference_whose_logits_are_too_many_is_loaded_after_the_other_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, evaluator = Events(), evaluator_in(tmp_path)
    base = events.model("base")
    evaluator.evaluate(base, None)
    kept = evaluator.evaluate(events.model("other"), base)
    monkeypatch.setattr(evaluator_module, "KEPT_LOGITS_BYTES", 0)
    events.seen.clear()
    own = evaluator.evaluate(events.model("vllm"), base)
    assert events.seen == ["vllm opened", "base opened", "base closed"]
    assert distances(own) == distances(kept)


def test_the_same_files_in_two_engines_are_two_references(tmp_path: Path) -> None:
    """The base in vLLM has the base's digest, and other logits."""
    events, evaluator = Events(), evaluator_in(tmp_path)
    own = events.model("own")
    evaluator.evaluate(own, events.model("transformers"))
    evaluator.evaluate(own, events.model("vllm"))
    assert [it for it in events.seen if "opened" in it] == [
        "transformers opened",
        "own opened",
        "vllm opened",
    ]
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert len(list(tmp_path.glob("*.logits"))) == 2


def distances(judgement: EvaluationResult) -> object:
    return judgement.distance


def test_a_perplexity_beyond_any_number_is_one_line() -> None:
    sure_of_another = np.zeros((4, 8), np.float32)
    sure_of_another[:, 7] = 2000
    with pytest.raises(BrokenModelError, match=r"^tiny: the perplexity of the held-out text"):
        score_windows([[0, 1, 2, 3]], [sure_of_another], None, None, label="tiny")
