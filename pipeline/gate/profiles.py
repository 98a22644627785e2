"""Which variants are worth having, and which one to take for a use.

One variant dominates another only where this is sure: in every figure it is better, and where a
figure has an interval the two intervals separate. What is merely measured better stays a choice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.core.formatting import bytes_text, percent, significant
from pipeline.params.gate import Objective, ProfileParams
from pipeline.records.evaluation import Distance
from pipeline.records.selection import Choice, VariantVerdict, Verdict

HIGHER_IS_BETTER: Final = frozenset({Objective.THROUGHPUT})
BEFORE_BENCHMARK: Final = (Objective.QUALITY, Objective.SIZE)
WORDS: Final = {
    Objective.QUALITY: "the least KL to the base",
    Objective.SIZE: "the smallest weights",
    Objective.THROUGHPUT: "the highest throughput",
    Objective.LATENCY: "the shortest latency",
    Objective.COST: "the lowest cost",
}
UNITS: Final = {
    Objective.QUALITY: "nats per token",
    Objective.THROUGHPUT: "output tokens per second",
    Objective.LATENCY: "ms",
    Objective.COST: "per million tokens",
}


@dataclass(frozen=True)
class Figure:
    """A measured value with its interval; an exact one has no width."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Figure":
        return cls(value, value, value)

    def beats(self, other: "Figure", objective: Objective) -> bool:
        """Whether it is better beyond the intervals."""
        if objective in HIGHER_IS_BETTER:
            return self.low > other.high
        return self.high < other.low


@dataclass(frozen=True)
class Option:
    """A variant that can be chosen, with what is known about it."""

    format: str
    size_ratio: float
    figures: Mapping[Objective, Figure]


Options = Mapping[str, Option]


def options_of(
    variants: Mapping[str, VariantVerdict],
    measured: Mapping[str, Mapping[Objective, Figure]] | None = None,
) -> dict[str, Option]:
    """The approved variants, with what a benchmark `measured` of each, where there is one."""
    return {
        name: Option(
            it.format,
            it.size_ratio,
            {**figures_of(it.distance, it.weight_bytes), **(measured or {}).get(name, {})},
        )
        for name, it in variants.items()
        if it.verdict is Verdict.APPROVED
    }


def figures_of(distance: Distance | None, weight_bytes: int) -> dict[Objective, Figure]:
    """What is known of a variant before the benchmark; a broken one has no distance."""
    figures = {Objective.SIZE: Figure.exact(weight_bytes)}
    if distance is not None:
        figures[Objective.QUALITY] = Figure(distance.kl, distance.kl_low, distance.kl_high)
    return figures


def pareto_front(
    figures: Mapping[str, Mapping[Objective, Figure]], objectives: Sequence[Objective]
) -> set[str]:
    """Names that no other one dominates; only those count that have all the figures."""
    known = {name: it for name, it in figures.items() if all(which in it for which in objectives)}
    return {
        name
        for name, own in known.items()
        if not any(_dominates(other, own, objectives) for other in known.values())
    }


def _dominates(
    one: Mapping[Objective, Figure],
    other: Mapping[Objective, Figure],
    objectives: Sequence[Objective],
) -> bool:
    """Better beyond the intervals in some objective, and in the others that or exactly equal."""
    better = [one[it].beats(other[it], it) for it in objectives]
    equal = [one[it] == other[it] and one[it].low == one[it].high for it in objectives]
    return any(better) and all(b or e for b, e in zip(better, equal, strict=True))


def choose(profile: ProfileParams, options: Options) -> Choice:
    """The best eligible option; among those that intervals do not tell apart, the smallest."""
    kind = f"approved variant in {_joined(profile.formats, 'or')}"
    eligible = {name: it for name, it in options.items() if it.format in profile.formats}
    if not eligible:
        return Choice(variant=None, reason=f"no {kind}")
    limit = profile.max_size_ratio
    if limit is not None:
        eligible = {name: it for name, it in eligible.items() if it.size_ratio <= limit}
        kind += f" of at most {percent(limit)} of the base's size"
    known = {name: it for name, it in eligible.items() if profile.best in it.figures}
    if not eligible:
        return Choice(variant=None, reason=f"no {kind}")
    if not known:
        return Choice(variant=None, reason=f"no {kind} has a figure for {profile.best.value} yet")
    return _best(profile.best, known, kind)


def _best(objective: Objective, known: Options, kind: str) -> Choice:
    sign = -1 if objective in HIGHER_IS_BETTER else 1
    ranked = sorted(known, key=lambda name: sign * known[name].figures[objective].value)
    first = known[ranked[0]].figures[objective]
    tied = [name for name in ranked if not first.beats(known[name].figures[objective], objective)]
    winner = min(tied, key=lambda name: known[name].figures[Objective.SIZE].value)
    shown = _shown(objective, known[winner].figures[objective])
    if len(known) == 1:
        return Choice(variant=winner, reason=f"the only {kind}: {shown}")
    if len(tied) > 1:
        others = _joined([name for name in tied if name != winner], "and")
        return Choice(
            variant=winner,
            reason=f"{shown}; the intervals of {others} overlap with this one, and {winner} is "
            "the smallest of them",
        )
    following = ranked[1]
    return Choice(
        variant=winner,
        reason=f"{WORDS[objective]} of {len(known)} {kind.replace('variant', 'variants', 1)}: "
        f"{shown}; {following} follows with "
        f"{_shown(objective, known[following].figures[objective])}",
    )


def _shown(objective: Objective, figure: Figure) -> str:
    if objective is Objective.SIZE:
        return bytes_text(int(figure.value))
    return f"{significant(figure.value)} {UNITS[objective]}"


def _joined(names: Collection[str], word: str) -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last
