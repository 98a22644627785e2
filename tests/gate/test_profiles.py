"""Fronts and choices: only what intervals separate counts, and every choice says why."""

import pytest

from pipeline.gate.profiles import Figure, Option, choose, pareto_front
from pipeline.params.gate import Objective, ProfileParams

QUALITY, SIZE, THROUGHPUT = Objective.QUALITY, Objective.SIZE, Objective.THROUGHPUT


def figures(kl: float, size: float, *, width: float = 0.1) -> dict[Objective, Figure]:
    return {QUALITY: Figure(kl, kl * (1 - width), kl * (1 + width)), SIZE: Figure.exact(size)}


def option(kl: float, size: float, *, format: str = "gguf", speed: Figure | None = None) -> Option:
    known = figures(kl, size) | ({THROUGHPUT: speed} if speed else {})
    return Option(format, size / 1000, known)


def profile(best: Objective, *formats: str, max_size_ratio: float | None = None) -> ProfileParams:
    return ProfileParams(formats=formats or ("gguf",), best=best, max_size_ratio=max_size_ratio)


def test_the_front_is_what_nothing_surely_beats() -> None:
    variants = {
        "q8": figures(0.001, 500),
        "awq": figures(0.02, 300),
        "as good": figures(0.021, 300),
        "gptq": figures(0.03, 300),
        "q2": figures(0.3, 200),
        "worse and larger": figures(0.3, 400),
    }
    assert pareto_front(variants, (QUALITY, SIZE)) == {"q8", "awq", "as good", "q2"}


def test_a_small_measured_difference_dominates_nothing() -> None:
    variants = {"one": figures(0.020, 300), "other": figures(0.021, 310)}
    assert pareto_front(variants, (QUALITY, SIZE)) == {"one", "other"}
    sharp = {
        name: figures(it[QUALITY].value, it[SIZE].value, width=0.01)
        for name, it in variants.items()
    }
    assert pareto_front(sharp, (QUALITY, SIZE)) == {"one"}


def test_more_objectives_keep_more() -> None:
    slow = figures(0.001, 300) | {THROUGHPUT: Figure(10, 9, 11)}
    fast = figures(0.02, 300) | {THROUGHPUT: Figure(30, 28, 32)}
    variants = {"slow": slow, "fast": fast, "unmeasured": figures(0.0001, 10)}
    assert pareto_front(variants, (QUALITY, SIZE)) == {"unmeasured"}
    assert pareto_front(variants, (QUALITY, SIZE, THROUGHPUT)) == {"slow", "fast"}


def test_the_best_wins_and_names_the_next() -> None:
    options = {
        "q4": option(0.02, 300),
        "q8": option(0.001, 500),
        "awq": option(0.0, 1, format="awq"),
    }
    choice = choose(profile(QUALITY), options)
    assert choice.variant == "q8"
    assert choice.reason == (
        "the least KL to the base of 2 approved variants in gguf: 0.00100 nats per token; q4 "
        "follows with 0.0200 nats per token"
    )


def test_what_intervals_do_not_tell_apart_is_chosen_by_size() -> None:
    options = {"large": option(0.020, 500), "small": option(0.021, 300)}
    choice = choose(profile(QUALITY), options)
    assert choice.variant == "small"
    assert choice.reason == (
        "0.0210 nats per token; the intervals of large overlap with this one, and small is the "
        "smallest of them"
    )


def test_more_throughput_is_better() -> None:
    options = {
        "slow": option(0.1, 100, speed=Figure(10, 9, 11)),
        "fast": option(0.1, 200, speed=Figure(30, 29, 31)),
    }
    assert choose(profile(THROUGHPUT), options).variant == "fast"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (profile(QUALITY, "awq", "gptq"), "no approved variant in awq or gptq"),
        (
            profile(SIZE, max_size_ratio=0.1),
            "no approved variant in gguf of at most 10.0\N{NO-BREAK SPACE}% of the base's size",
        ),
        (profile(THROUGHPUT), "no approved variant in gguf has a figure for throughput yet"),
    ],
)
def test_nothing_eligible_says_why(wanted: ProfileParams, reason: str) -> None:
    choice = choose(wanted, {"q4": option(0.02, 300)})
    assert choice.variant is None
    assert choice.reason == reason


def test_the_only_one_is_said_to_be_that() -> None:
    choice = choose(profile(SIZE, max_size_ratio=0.4), {"q4": option(0.02, 300)})
    assert choice.variant == "q4"
    assert choice.reason.startswith("the only approved variant in gguf of at most 40.0")
