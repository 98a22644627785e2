"""Find the variants that no other one dominates, and choose one for each profile.

A variant dominates another when it is better in at least one figure and no worse in the others.
A figure with an interval is better only where the intervals do not overlap.

Profiles are applied twice. Select chooses by quality and size. Profiles that optimize speed or cost
are applied after the benchmark, for the report.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.core.formatting import bytes_text, percent, significant
from pipeline.params.gate import Objective, ProfileParams
from pipeline.records.evaluation import Distance
from pipeline.records.selection import Choice, Selection, VariantVerdict, Verdict

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
    Objective.COST: "US dollars per million tokens",
}


@dataclass(frozen=True)
class Figure:
    """A measured value with its interval. The interval of an exact value has no width."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Figure":
        return cls(value, value, value)

    def beats(self, other: "Figure", objective: Objective) -> bool:
        """Tell whether this figure is better and the intervals do not overlap."""
        if objective in HIGHER_IS_BETTER:
            return self.low > other.high
        return self.high < other.low


@dataclass(frozen=True)
class Option:
    """The figures of a variant that a profile can choose."""

    format: str
    size_ratio: float
    figures: Mapping[Objective, Figure]


Options = Mapping[str, Option]


def options_of(
    variants: Mapping[str, VariantVerdict],
    measured: Mapping[str, Mapping[Objective, Figure]] | None = None,
) -> dict[str, Option]:
    """List the approved variants. `measured` has further figures of a benchmark, by variant."""
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
    """Return the figures that are known before the benchmark. A broken variant has no distance."""
    figures = {Objective.SIZE: Figure.exact(weight_bytes)}
    if distance is not None:
        figures[Objective.QUALITY] = Figure(distance.kl, distance.kl_low, distance.kl_high)
    return figures


def pareto_front(
    figures: Mapping[str, Mapping[Objective, Figure]], objectives: Sequence[Objective]
) -> set[str]:
    """Return the names that no other one dominates, among those that have all `objectives`."""
    known = {
        name: own
        for name, own in figures.items()
        if all(objective in own for objective in objectives)
    }
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
    """Tell whether `one` beats `other` in some objective and is no worse in the rest."""
    better = [one[key].beats(other[key], key) for key in objectives]
    equal = [one[key] == other[key] and one[key].low == one[key].high for key in objectives]
    return any(better) and all(b or e for b, e in zip(better, equal, strict=True))


def choose_before_benchmark(
    variants: Mapping[str, VariantVerdict], profiles: Mapping[str, ProfileParams]
) -> dict[str, Choice]:
    """Make the choice of each profile for `selection.json`.

    A profile that optimizes speed or cost has no choice yet, and its reason says so.
    """
    options = options_of(variants)
    return {name: choose(profile, options) for name, profile in profiles.items()}


def choose_after_benchmark(
    selection: Selection,
    measured: Mapping[str, Mapping[Objective, Figure]],
    profiles: Mapping[str, ProfileParams],
) -> dict[str, Choice]:
    """Make the choice of each profile after the benchmark.

    Choices by quality and size are those of `selection`. `measured` has the figures of the
    benchmark by variant, and is empty when there is no benchmark.
    """
    options = options_of(selection.variants, measured)
    return {
        name: choose(profile, options)
        if needs_benchmark(profile) or name not in selection.choices
        else selection.choices[name]
        for name, profile in profiles.items()
    }


def needs_benchmark(profile: ProfileParams) -> bool:
    """Tell whether a profile optimizes a figure that only the benchmark measures."""
    return profile.best not in BEFORE_BENCHMARK


def choose(profile: ProfileParams, options: Options) -> Choice:
    """Choose the best eligible option: the smallest of those whose intervals overlap the best."""
    kind = f"approved variant in {_joined(profile.formats, 'or')}"
    eligible = {name: own for name, own in options.items() if own.format in profile.formats}
    if not eligible:
        return Choice(variant=None, reason=f"no {kind}")
    limit = profile.max_size_ratio
    if limit is not None:
        eligible = {name: own for name, own in eligible.items() if own.size_ratio <= limit}
        kind += f" of at most {percent(limit)} of the base's size"
    known = {name: own for name, own in eligible.items() if profile.best in own.figures}
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
