"""Which models are loaded at the same time while one is compared with another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.reading import tokenizer_of
from pipeline.engines.scorer import LateScorer, Scorer
from pipeline.evaluation import judge as judging
from pipeline.evaluation.judge import HeldOut, Judge, Judgement, Subject
from pipeline.params.reading import read_params
from tests.engines.scored_models import open_transformers, random_ids, tiny_model_dir
from tests.support import ROOT

WINDOWS = [random_ids(16, seed=number) for number in range(3)]


class Events:
    """Models of transformers that write down when they are loaded and closed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def subject(self, label: str) -> Subject:
        def opened() -> Scorer:
            self.seen.append(f"{label} opened")
            scorer = open_transformers()
            close = scorer.close

            def closed() -> None:
                self.seen.append(f"{label} closed")
                close()

            scorer.close = closed  # type: ignore[method-assign]
            return scorer

        scorer = LateScorer(opened, label=label, backend=label, backend_version="1", device="cpu")
        return Subject("ab" * 32, scorer)


def judge_in(tmp_path: Path) -> Judge:
    evaluate = read_params(ROOT / "params.yaml").evaluate
    few = evaluate.model_copy(update={"window_tokens": 16, "num_windows": 3})
    questions: Sequence[Any] = ()
    return Judge(
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
    events, judge = Events(), judge_in(tmp_path)
    base = events.subject("base")
    judge.judge(base, None)
    judge.judge(events.subject("vllm"), base)
    assert events.seen == ["base opened", "base closed", "vllm opened"]
    judge.judge(events.subject("llama.cpp"), base)
    assert events.seen[3:] == ["llama.cpp opened"]


def test_a_reference_whose_logits_are_too_many_is_loaded_after_the_other_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, judge = Events(), judge_in(tmp_path)
    base = events.subject("base")
    judge.judge(base, None)
    kept = judge.judge(events.subject("other"), base)
    monkeypatch.setattr(judging, "KEPT_BYTES", 0)
    events.seen.clear()
    own = judge.judge(events.subject("vllm"), base)
    assert events.seen == ["vllm opened", "base opened", "base closed"]
    assert distances(own) == distances(kept)


def test_the_same_files_in_two_engines_are_two_references(tmp_path: Path) -> None:
    """The base in vLLM has the base's digest, and other logits."""
    events, judge = Events(), judge_in(tmp_path)
    own = events.subject("own")
    judge.judge(own, events.subject("transformers"))
    judge.judge(own, events.subject("vllm"))
    assert [it for it in events.seen if "opened" in it] == [
        "transformers opened",
        "own opened",
        "vllm opened",
    ]
    assert len(list(tmp_path.iterdir())) == 2


def distances(judgement: Judgement) -> object:
    return judgement.distance
