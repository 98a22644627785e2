"""The gate as a rule: what passes, what fails, and that it never lies about the numbers."""

import math
import random

import pytest

from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import (
    Distance,
    EvaluationRecord,
    Selection,
    TaskScore,
    VariantVerdict,
    Verdict,
)
from pipeline.domain.gate import Candidate, decide, task_recovery, told_apart
from pipeline.domain.params import GateParams

GATE = GateParams(min_recovery=0.97, min_task_recovery=0.93, max_kl=0.05)
BASE_SHA, OWN_SHA, OTHER_SHA = "aa" * 32, "bb" * 32, "cc" * 32


def score(value: float, *, higher_is_better: bool = True, num_documents: int = 400) -> TaskScore:
    return TaskScore(
        metric="acc" if higher_is_better else "byte_perplexity",
        value=value,
        stderr=None,
        higher_is_better=higher_is_better,
        num_documents=num_documents,
        version="1.0",
    )


def evaluation(tasks: dict[str, TaskScore], *, kl: float | None = None) -> EvaluationRecord:
    distance = None
    if kl is not None:
        distance = Distance(
            kl=kl, kl_low=kl, kl_high=kl, kl_median=kl, kl_p99=kl, kl_p999=kl, kl_max=kl,
            kl_max_text="the old town", top1=0.9, perplexity_ratio=1.25, perplexity_ratio_low=1.2,
            perplexity_ratio_high=1.3, probability_change=-0.01, probability_change_rms=0.05,
        )  # fmt: skip
    return EvaluationRecord(
        name="base" if kl is None else "variant",
        artifact_digest=BASE_SHA if kl is None else OWN_SHA,
        base_digest=BASE_SHA,
        backend="transformers",
        backend_version="1",
        suite="demo",
        tasks=tasks,
        perplexity=4.0 if kl is None else 5.0,
        distance=distance,
        text_sha256=OTHER_SHA,
        token_ids_sha256=OTHER_SHA,
        num_tokens=100,
        documents_sha256=OTHER_SHA,
        looks=(),
        broken=None,
        controls={},
    )


def accuracies(*values: float) -> dict[str, TaskScore]:
    return {f"task_{number}": score(value) for number, value in enumerate(values)}


def judge(
    base: dict[str, TaskScore], own: dict[str, TaskScore], *, kl: float = 0.01
) -> VariantVerdict:
    candidate = Candidate(evaluation=evaluation(own, kl=kl), format="awq", weight_bytes=300)
    return decide(evaluation(base), 1000, {"variant": candidate}, GATE).variants["variant"]


def test_a_variant_as_good_as_the_base_is_approved_with_its_numbers() -> None:
    verdict = judge(accuracies(0.8, 0.6), accuracies(0.8, 0.594))
    assert verdict.verdict is Verdict.APPROVED
    assert verdict.task_recovery == {"task_0": 1.0, "task_1": 0.594 / 0.6}
    assert verdict.recovery == pytest.approx(0.995)
    assert verdict.perplexity_ratio == 1.25
    assert verdict.size_ratio == 0.3
    assert verdict.reasons == (
        "mean recovery 0.995, at least 0.97 required",
        "recovery on task_1 0.99, at least 0.93 required",
        "KL 0.01 nats per token, at most 0.05 allowed",
    )


@pytest.mark.parametrize(
    ("own", "kl", "reasons"),
    [
        ((0.8, 0.6), 0.31, ("KL 0.31 nats per token, at most 0.05 allowed",)),
        (
            (0.8, 0.504),
            0.01,
            (
                "mean recovery 0.92, at least 0.97 required",
                "recovery on task_1 0.84, at least 0.93 required",
            ),
        ),
        ((1.0, 0.504), 0.01, ("recovery on task_1 0.84, at least 0.93 required",)),
        ((0.752, 0.564), 0.01, ("mean recovery 0.94, at least 0.97 required",)),
    ],
)
def test_every_rejection_says_what_was_missed(
    own: tuple[float, ...], kl: float, reasons: tuple[str, ...]
) -> None:
    verdict = judge(accuracies(0.8, 0.6), accuracies(*own), kl=kl)
    assert verdict.verdict is Verdict.REJECTED
    assert verdict.reasons == reasons


@pytest.mark.parametrize("direction", [0.0, 1.0])
def test_thresholds_are_exact(direction: float) -> None:
    """On the threshold passes, the next float beyond it does not, however it would be written."""
    beyond_kl = math.nextafter(0.05, 1.0) if direction else 0.05
    beyond_recovery = math.nextafter(0.97, 0.0) if direction else 0.97
    expected = Verdict.REJECTED if direction else Verdict.APPROVED
    assert judge(accuracies(1.0), accuracies(1.0), kl=beyond_kl).verdict is expected
    assert judge(accuracies(1.0), accuracies(beyond_recovery)).verdict is expected


def test_a_number_is_never_written_like_the_threshold_it_misses() -> None:
    verdict = judge(accuracies(1.0), accuracies(0.9699999))
    assert verdict.reasons == ("mean recovery 0.9699999, at least 0.97 required",)
    assert told_apart(math.nextafter(0.05, 1.0), 0.05) == "0.05000000000000001"
    assert told_apart(0.05, 0.05) == "0.05"
    assert told_apart(0.123456, 0.05) == "0.123"


def test_a_better_variant_never_gets_a_worse_verdict() -> None:
    generator = random.Random(0)
    order = [Verdict.REJECTED, Verdict.APPROVED]
    for _ in range(3000):
        base = accuracies(*(generator.uniform(0.0, 1.0) for _ in range(3)))
        base["text"] = score(generator.uniform(1.0, 9.0), higher_is_better=False)
        worse = {
            name: it.model_copy(update={"value": it.value * generator.uniform(0.9, 1.1)})
            for name, it in base.items()
        }
        better = {
            name: it.model_copy(
                update={
                    "value": it.value * generator.uniform(1.0, 1.1)
                    if it.higher_is_better
                    else it.value / generator.uniform(1.0, 1.1)
                }
            )
            for name, it in worse.items()
        }
        kl = generator.uniform(0.0, 0.1)
        one = judge(base, worse, kl=kl)
        other = judge(base, better, kl=kl * generator.uniform(0.0, 1.0))
        assert order.index(other.verdict) >= order.index(one.verdict)
        assert one.reasons


@pytest.mark.parametrize(
    ("base", "own", "higher_is_better", "expected"),
    [
        (0.8, 0.4, True, 0.5),
        (0.8, 0.88, True, 1.1),
        (0.0, 0.0, True, 1.0),
        (0.0, 0.3, True, 1.0),
        (4.0, 5.0, False, 0.8),
        (4.0, 2.0, False, 2.0),
        (0.0, 0.5, False, 0.0),
        (0.0, 0.0, False, 1.0),
    ],
)
def test_recovery_in_both_directions_and_at_zero(
    base: float, own: float, higher_is_better: bool, expected: float
) -> None:
    found = task_recovery(
        score(base, higher_is_better=higher_is_better),
        score(own, higher_is_better=higher_is_better),
    )
    assert found == pytest.approx(expected)


def test_mean_recovery_is_over_the_accuracies_when_there_are_any() -> None:
    text = {"text": score(4.0, higher_is_better=False)}
    worse_text = {"text": score(4.2, higher_is_better=False)}
    both = judge(accuracies(0.8) | text, accuracies(0.8) | worse_text)
    assert both.recovery == 1.0
    assert both.task_recovery["text"] == pytest.approx(4.0 / 4.2)
    assert judge(text, worse_text).recovery == pytest.approx(4.0 / 4.2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"base_digest": OTHER_SHA}, "base"),
        ({"distance": None}, "base"),
        ({"suite": "quick"}, "suite"),
        ({"tasks": accuracies(0.8, 0.7)}, "set of tasks"),
        ({"tasks": {"task_0": score(0.8, num_documents=10)}}, "set of tasks"),
        ({"token_ids_sha256": BASE_SHA}, "text"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(change: dict[str, object], what: str) -> None:
    own = evaluation(accuracies(0.8), kl=0.01).model_copy(update=change)
    candidate = Candidate(evaluation=own, format="awq", weight_bytes=300)
    with pytest.raises(InputError, match=f"^variant: evaluated with another {what} than the base"):
        decide(evaluation(accuracies(0.8)), 1000, {"variant": candidate}, GATE)


def select(points: dict[str, tuple[int, float]]) -> Selection:
    candidates = {
        name: Candidate(
            evaluation=evaluation(accuracies(0.8), kl=kl), format="awq", weight_bytes=size
        )
        for name, (size, kl) in points.items()
    }
    return decide(evaluation(accuracies(0.8)), 1000, candidates, GATE)


def test_the_pareto_front_is_what_nothing_beats_in_size_and_kl() -> None:
    points = {"q8": (500, 0.001), "awq": (300, 0.02), "gptq": (300, 0.03), "q2": (200, 0.3)}
    selection = select(points | {"twin": (300, 0.02)})
    assert [name for name, it in selection.variants.items() if it.pareto] == [
        "q8",
        "awq",
        "q2",
        "twin",
    ]
    assert selection.approved() == ("q8", "awq", "gptq", "twin")
    assert selection.base_weight_bytes == 1000
