"""Scores are found again by all that they depend on, and the cache stays small."""

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.machine import Machine, this_machine
from pipeline.engines.scorer import LazyScorer, Scorer
from pipeline.evaluation import score_cache
from pipeline.evaluation.score_cache import ScoreCache, environment_facts, prune
from pipeline.evaluation.task_runs import Rows

AnyChange = Callable[[pytest.MonkeyPatch], None]


def unused() -> Scorer:
    raise AssertionError("a model was loaded")


def memory(directory: Path, *, device: str = "cpu", digest: str = "ab") -> ScoreCache:
    scorer = LazyScorer(unused, label="x", backend="e", backend_version="1", device=device)
    return ScoreCache(directory, scorer, digest, ())


def is_known(memory_: ScoreCache, asked: str = "asked") -> bool:
    """Whether there were rows; there are afterwards."""
    computed: list[str] = []

    def compute() -> Rows:
        computed.append(asked)
        return ()

    memory_.rows(asked, compute)
    return not computed


@pytest.fixture(autouse=True)
def fresh_facts() -> Iterator[None]:
    environment_facts.cache_clear()
    yield
    environment_facts.cache_clear()


def upgraded(package: str) -> AnyChange:
    """Another version of an installed package."""

    def version(name: str) -> str:
        return "9.9.9" if name == package else importlib.metadata.version(name)

    return lambda monkeypatch: monkeypatch.setattr(score_cache, "version", version)


def moved(**facts: object) -> AnyChange:
    """Another machine."""

    def machine() -> Machine:
        return this_machine().model_copy(update=facts)

    return lambda monkeypatch: monkeypatch.setattr(score_cache, "this_machine", machine)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        *map(upgraded, ("lm_eval", "tokenizers", "datasets", "jinja2", "sacrebleu")),
        moved(cpu="Imaginary 9000"),
        moved(cores=97),
        moved(gpus=("Imaginary GPU",)),
    ],
)
def test_scores_of_other_packages_or_another_processor_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: AnyChange
) -> None:
    assert not is_known(memory(tmp_path))
    assert is_known(memory(tmp_path))
    environment_facts.cache_clear()
    change(monkeypatch)
    assert not is_known(memory(tmp_path))


def test_scores_of_another_model_or_device_are_not_taken(tmp_path: Path) -> None:
    assert not is_known(memory(tmp_path))
    assert not is_known(memory(tmp_path, device="cuda"))
    assert not is_known(memory(tmp_path, digest="cd"))
    assert is_known(memory(tmp_path))


def test_a_file_in_use_stays_and_the_longest_unused_go(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in "abcd"]
    for age, path in enumerate(paths):
        path.write_bytes(b"x" * 100)
        os.utime(path, ns=(0, 1_000_000_000 * (10 + age)))
    prune(tmp_path, max_bytes=250)
    assert sorted(tmp_path.iterdir()) == paths[2:]
    prune(tmp_path, max_bytes=200)
    assert sorted(tmp_path.iterdir()) == paths[2:]


def test_the_cache_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = memory(tmp_path)
    assert not is_known(model, "first")
    (only,) = tmp_path.iterdir()
    os.utime(only, ns=(0, 0))
    monkeypatch.setattr(score_cache, "SCORES_CACHE_BYTES", 2 * only.stat().st_size)
    assert not is_known(model, "second")
    assert is_known(model, "first")  # and so used after the second
    assert not is_known(model, "third")
    assert len(list(tmp_path.iterdir())) == 2
    assert is_known(model, "first")
    assert not is_known(model, "second")
