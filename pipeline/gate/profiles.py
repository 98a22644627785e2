"""Find the variants that no other dominates, and choose one for a use.

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
    """Hold a measured value with its interval; an exact value has an interval of no width."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Figure":
        return cls(value, value, value)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def beats(self, other: "Figure", objective: Objective) -> bool:
        """Return whether it is better beyond the intervals."""
        if objective in HIGHER_IS_BETTER:
            return self.low > other.high
        return self.high < other.low


@dataclass(frozen=True)
class Option:
    """Hold a variant that can be chosen, with its figures."""

    format: str
    size_ratio: float
    figures: Mapping[Objective, Figure]


Options = Mapping[str, Option]


def options_of(
    variants: Mapping[str, VariantVerdict],
    measured: Mapping[str, Mapping[Objective, Figure]] | None = None,
) -> dict[str, Option]:
    """Return the approved variants, with the benchmark figures of each where it was `measured`."""
    return {
        name: Option(
            verdict.format,
            verdict.size_ratio,
            {
                **figures_of(verdict.distance, verdict.weight_bytes),
                **(measured or {}).get(name, {}),
            },
        )
        for name, verdict in variants.items()
        if verdict.verdict is Verdict.APPROVED
    }


def figures_of(distance: Distance | None, weight_bytes: int) -> dict[Objective, Figure]:
    """Return a variant's figures before the benchmark; a broken one has no distance."""
    figures = {Objective.SIZE: Figure.exact(weight_bytes)}
    if distance is not None:
        figures[Objective.QUALITY] = Figure(distance.kl, distance.kl_low, distance.kl_high)
    return figures


def pareto_front(
    figures: Mapping[str, Mapping[Objective, Figure]], objectives: Sequence[Objective]
) -> set[str]:
    """Return the names that no other one dominates, among those with all figures."""
    known = {name: own for name, own in figures.items() if own.keys() >= set(objectives)}
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
    """Return whether `one` is better in some objective, and better or equal in the others."""
    better = [one[objective].beats(other[objective], objective) for objective in objectives]
    equal = [
        one[objective] == other[objective] and one[objective].is_exact for objective in objectives
    ]
    return any(better) and all(b or e for b, e in zip(better, equal, strict=True))


def choose(profile: ProfileParams, options: Options) -> Choice:
    """Choose the best eligible option; where intervals overlap, the smallest of these."""
    kind = f"approved variant in {_joined(profile.formats, 'or')}"
    eligible = {
        name: option for name, option in options.items() if option.format in profile.formats
    }
    if not eligible:
        return Choice(variant=None, reason=f"no {kind}")
    limit = profile.max_size_ratio
    if limit is not None:
        eligible = {name: option for name, option in eligible.items() if option.size_ratio <= limit}
        kind += f" of at most {percent(limit)} of the base's size"
    known = {name: option for name, option in eligible.items() if profile.best in option.figures}
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
