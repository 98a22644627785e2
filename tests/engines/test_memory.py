"""Memory is given back when a model is closed, and too little of it is one line."""

import weakref
from contextlib import closing

import pytest
import torch

from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.allocator import release_gpu_memory
from pipeline.core.errors import FailureError
from pipeline.core.system_errors import readable_memory_errors
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.planning.capacity import measured_speed
from tests.engines.scored_models import random_ids, tiny_model_dir

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def used_scorer() -> TransformersScorer:
    """One that has scored and written text."""
    scorer = TransformersScorer(unpacked_model(tiny_model_dir()), label="tiny")
    scorer.greedy([random_ids(9, seed=1)], max_new_tokens=3, finished=lambda _: False)
    return scorer


def test_a_closed_scorer_keeps_no_weight() -> None:
    """Nothing but the scorer holds them, so that what torch holds of a GPU can go."""
    scorer = used_scorer()
    weights = [weakref.ref(it) for it in scorer._model.parameters()]
    scorer.close()
    release_gpu_memory()
    assert weights
    assert not any(it() is not None for it in weights)
    scorer.close()


@needs_gpu
def test_the_gpu_is_as_free_after_a_scorer_as_before() -> None:
    release_gpu_memory()
    before = torch.cuda.memory_reserved()
    with closing(used_scorer()):
        assert torch.cuda.memory_reserved() > before
    assert torch.cuda.memory_reserved() == before


@needs_gpu
def test_the_gpu_is_as_free_after_its_speed_is_measured() -> None:
    before = torch.cuda.memory_reserved()
    measured_speed()
    assert torch.cuda.memory_reserved() == before


def test_memory_that_the_system_refuses_is_one_line() -> None:
    for allocate in (lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)):
        with (
            pytest.raises(FailureError, match=r"^evaluate x: memory ran out; lower it$"),
            readable_memory_errors("evaluate x", "lower it"),
        ):
            allocate()


def test_memory_of_a_gpu_is_named() -> None:
    with (
        pytest.raises(FailureError, match=r"^evaluate x: GPU memory ran out; lower it$"),
        readable_memory_errors("evaluate x", "lower it"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="mat1"), readable_memory_errors("x", "y"):
        torch.ones(2, 3) @ torch.ones(2, 3)
