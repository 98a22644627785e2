"""Compare the quality and the cost of quantline with those of other quantizers.

`python -m benchmarks.quantizers` needs `../shared` with models and texts, and sets up the
environment of a backend when it is first used. Everything runs through the pipeline: the other
quantizers are backends with the same calibration tokens, and the same evaluator scores
their packed files. CPU seconds are of all processes of a quantizer with one thread each
(OMP_NUM_THREADS=1), without imports. Wall seconds are of the whole stage. KL is the median over the
calibration seeds, three for babyllama and one for the others, with the smallest and the largest.

`--work-dir` keeps the results of other quantizers, so that a change of quantline does not run them
again. Such a result says so in a note and has no CPU ratios, which need one run of both.
"""

import argparse
import statistics as stats
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from benchmarks.mixtures import NUM_WINDOWS, rank_correlation
from benchmarks.quantizer_recipes import (
    BUDGETS,
    CPU_PEERS,
    CPU_SETS,
    GGUF,
    GGUF_TYPES,
    KL_RATIOS,
    MAIN_MODELS,
    OURS,
    PEERS,
    Recipe,
)
from benchmarks.quantizer_runs import Measurement, Run, make_run
from benchmarks.result import Row, publish, republish
from pipeline.core.progress import note
from pipeline.params.params import VariantParams

GROUP_SIZES = {"babyllama": 32, "demo": 128, "smollm2": 64}
# One seed where another quantizer takes a quarter of an hour or more on one sample.
SEEDS = {"babyllama": (0, 1, 2), "demo": (0,), "smollm2": (0,)}
# Of one quantizer on one sample; autoawq may need it on a CPU.
TIME_LIMITS_S = {"babyllama": 1200.0, "demo": 1200.0, "smollm2": 7200.0}


@dataclass
class Outcome:
    """All measurements of one quantizer on one model, by seed, and whether any was cached."""

    measurements: list[Measurement]
    cached: bool


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quantizers", description=__doc__)
    parser.add_argument(
        "--model", choices=GROUP_SIZES, help="only this one; the rows of the other stay"
    )
    parser.add_argument("--num-seeds", type=int, choices=(1, 2, 3), help="no more than these")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this quantizer; writes no result"
    )
    parser.add_argument("--work-dir", type=Path, help="where the peers' outcomes are kept")
    chosen = parser.parse_args()
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in [chosen.model] if chosen.model else GROUP_SIZES:
            recipes = recipes_for(model, chosen.only, notes)
            runs = [
                make_run(
                    model,
                    Path(scratch) / f"{model}-{seed}",
                    seed=seed,
                    variants=recipes,
                    cache_dir=chosen.work_dir or Path(scratch) / "outcomes",
                    time_limit_s=TIME_LIMITS_S[model],
                )
                for seed in SEEDS[model][: chosen.num_seeds]
            ]
            notes.append(f"{model}: {len(runs)} of {len(SEEDS[model])} calibration seeds")
            outcomes = {name: outcome_of(model, name, runs, notes) for name in recipes}
            made = {name: outcome for name, outcome in outcomes.items() if outcome.measurements}
            print_table(model, made)
            compared = summary_rows(model, made, runs[0], notes)
            print("\n".join(f"{row.key}  {row.value:.3f}" for row in compared))
            rows += compared + raw_rows(model, made)
            if model in BUDGETS and not chosen.only:
                rows += rank_correlation(runs[0].workspace, runs[0].held_out()[:NUM_WINDOWS])
    if chosen.model and not chosen.only:
        republish("quantizers", rows, notes, what=chosen.model)
    elif not chosen.only:
        publish("quantizers", rows, notes)


def recipes_for(model: str, only: Sequence[str] | None, notes: list[str]) -> dict[str, Recipe]:
    """Make every recipe with the model's group size; note those that quantline cannot express."""
    sized = {
        name: recipe | {"group_size": GROUP_SIZES[model]} for name, recipe in (OURS | PEERS).items()
    }
    recipes = {}
    types = GGUF_TYPES.get(model, ())
    gguf = {name: recipe for name, recipe in GGUF.items() if recipe["type"] in types}
    for name, recipe in (sized | gguf | BUDGETS.get(model, {})).items():
        if only and name not in only:
            continue
        try:
            TypeAdapter(VariantParams).validate_python(recipe)
            recipes[name] = recipe
        except ValidationError as error:
            notes.append(f"{model}: {name} left out: {error.errors()[0]['msg']}")
    return recipes


def outcome_of(model: str, name: str, runs: Sequence[Run], notes: list[str]) -> Outcome:
    outcome = Outcome([], cached=False)
    for seed, run in enumerate(runs):
        note(f"{model}: {name}: seed {seed}")
        measurement, cached = run.measure(name)
        if measurement is None:
            notes.append(f"{model}: {name}: not done within {run.time_limit_s:.0f} s; no figures")
            break
        outcome.measurements.append(measurement)
        outcome.cached |= cached
    if outcome.cached:
        dates = sorted({measurement.date for measurement in outcome.measurements})
        notes.append(f"{model}: {name}: from an earlier run, {' and '.join(dates)}")
    return outcome


def print_table(model: str, outcomes: dict[str, Outcome]) -> None:
    print(f"\n{model}, group size {GROUP_SIZES[model]}")
    print(f"{'':<26}{'KL':>9}{'top-1':>8}{'ppl':>8}{'CPU s':>9}{'wall s':>9}{'GiB':>7}")
    for name, outcome in outcomes.items():
        made = outcome.measurements
        print(
            f"{name:<26}{median(made, 'kl'):>9.4f}{median(made, 'top1'):>8.3f}"
            f"{median(made, 'perplexity'):>8.3f}{median(made, 'cpu_s'):>9.1f}"
            f"{median(made, 'wall_s'):>9.1f}{median(made, 'peak_gib'):>7.2f}"
        )


def median(measurements: Sequence[Measurement], field: str) -> float:
    values: list[float] = [getattr(measurement, field) for measurement in measurements]
    return stats.median(values)


def summary_rows(model: str, outcomes: dict[str, Outcome], run: Run, notes: list[str]) -> list[Row]:
    """Make the compared rows; keys end with the model's name, but for those of a main model."""
    rows = []
    for key, (ours, others) in KL_RATIOS.items():
        known = [median(outcomes[name].measurements, "kl") for name in others if name in outcomes]
        if ours in outcomes and known:
            ratio = median(outcomes[ours].measurements, "kl") / min(known)
            rows.append(Row(key_for(key, model), ratio, None, None, "ratio of KL"))
    peers = [outcomes[name] for name in CPU_PEERS if name in outcomes]
    if len(peers) < len(CPU_PEERS) or any(peer.cached for peer in peers):
        notes.append(f"{model}: no CPU ratios: {' and '.join(CPU_PEERS)} did not run this time")
        return rows
    peers_s = sum(median(peer.measurements, "cpu_s") for peer in peers)
    for key, names in CPU_SETS.items():
        if all(name in outcomes for name in names):
            ours_s = cpu_s_of_all(run, names)
            rows.append(Row(key_for(key, model), ours_s / peers_s, None, None, "ratio of CPU s"))
    return rows


def key_for(key: str, model: str) -> str:
    """Return the key of a compared row of a model."""
    main = next(main for start, main in MAIN_MODELS.items() if key.startswith(start))
    return key if model == main else f"{key}_{model}"


def cpu_s_of_all(run: Run, names: Sequence[str]) -> float:
    """Measure the CPU seconds of one calibration and, from it, all of these and an imatrix."""
    costs = run.costs("calibrate", *(f"quantize:{name}" for name in names), "imatrix")
    assert costs is not None, "ours takes seconds"
    return sum(cost.own_cpu_s + cost.children_cpu_s for cost in costs)


def raw_rows(model: str, outcomes: dict[str, Outcome]) -> list[Row]:
    units = {
        "kl": "nats per token",
        "top1": "share of tokens",
        "perplexity": "perplexity",
        "cpu_s": "s",
        "wall_s": "s",
        "peak_gib": "GiB",
    }
    rows = []
    for name, outcome in outcomes.items():
        for field, unit in units.items():
            values = [getattr(measurement, field) for measurement in outcome.measurements]
            key = f"{field}_{name}_{model}"
            rows.append(Row(key, stats.median(values), min(values), max(values), unit))
    return rows


if __name__ == "__main__":
    main()
