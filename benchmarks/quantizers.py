"""Compare the quality and the cost of quantline with those of other quantizers.

`python -m benchmarks.quantizers` needs `../shared` with models and texts, and sets up the
environment of a backend when it is first used. Everything runs through the pipeline: the other
quantizers are backends with the same calibration tokens, and the same evaluator scores
their packed files. CPU seconds are of all processes of a quantizer with one thread each
(OMP_NUM_THREADS=1), without imports. Wall seconds are of the whole stage. KL is the median over the
calibration seeds, three for babyllama and one for the others, with the smallest and the largest.
A ratio of KL is of means over seeds and windows of text; its interval of 95 % is by bootstrap over
windows, the same for both.

`--work-dir` keeps workspaces and results, so that a call goes on where one of the same commit
ended, and a change of quantline does not run other quantizers again. A result of theirs from an
earlier run says so in a note and has no CPU ratios, which need one run of both.
"""

import argparse
import statistics as stats
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from benchmarks.calibration_floor import floor_row
from benchmarks.mixtures import NUM_WINDOWS, rank_correlation
from benchmarks.quantizer_recipes import (
    BUDGETS,
    CPU_SETS,
    GGUF,
    GGUF_TYPES,
    KL_RATIOS,
    MAIN_MODELS,
    OTHER_TEXT_RATIOS,
    OTHER_TEXT_RECIPES,
    OURS,
    PEERS,
    Recipe,
)
from benchmarks.quantizer_runs import Measurement, Run, make_run
from benchmarks.quantizer_texts import HeldOut
from benchmarks.result import Row, publish, republish
from pipeline.core.progress import note
from pipeline.engines.distance import Floats
from pipeline.params.params import VariantParams
from pipeline.params.reading import read_workspace

GROUP_SIZES = {"babyllama": 32, "demo": 128, "smollm2": 64}
# One seed where another quantizer takes a quarter of an hour or more on one sample.
SEEDS = {"babyllama": (0, 1, 2), "demo": (0,), "smollm2": (0,)}
# Of one quantizer on one sample; autoawq may need it on a CPU.
TIME_LIMITS_S = {"babyllama": 1200.0, "demo": 1200.0, "smollm2": 7200.0}
BOOTSTRAP_DRAWS = 2000


@dataclass
class Outcome:
    """All measurements of one quantizer on one model, by seed, and whether any was cached."""

    measurements: list[Measurement]
    cached: bool

    def window_kls(self, *, other: bool = False) -> Floats:
        """Return the mean KL over seeds of each window, of the other text or the usual one."""
        field = "other_window_kls" if other else "window_kls"
        of_seeds = np.array([getattr(it, field) for it in self.measurements], np.float64)
        means: Floats = of_seeds.mean(axis=0)
        return means


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quantizers", description=__doc__)
    parser.add_argument(
        "--model", choices=GROUP_SIZES, help="only this one; the rows of the other stay"
    )
    parser.add_argument("--num-seeds", type=int, choices=(1, 2, 3), help="no more than these")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this one; the rows of others stay"
    )
    parser.add_argument("--work-dir", type=Path, help="where the peers' outcomes are kept")
    chosen = parser.parse_args()
    if chosen.only and not chosen.model:
        parser.error("--only needs --model")
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in [chosen.model] if chosen.model else GROUP_SIZES:
            recipes = recipes_for(model, chosen.only, notes)
            runs = [
                make_run(
                    model,
                    (chosen.work_dir or Path(scratch)).resolve() / f"{model}-{seed}",
                    seed=seed,
                    variants=recipes,
                    cache_dir=(chosen.work_dir or Path(scratch)).resolve() / "outcomes",
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
                windows = HeldOut(runs[0].workspace).windows[:NUM_WINDOWS]
                rows += rank_correlation(runs[0].workspace, windows)
                rows.append(floor_row(runs[0].workspace))
    if chosen.model:
        what = ", ".join([chosen.model, *(chosen.only or ())])
        republish("quantizers", rows, notes, what=what)
    else:
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
    other_text = model == "smollm2" and name in OTHER_TEXT_RECIPES
    for seed, run in enumerate(runs):
        note(f"{model}: {name}: seed {seed}")
        measurement, cached = run.measure(name, other_text=other_text)
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
        known = [outcomes[name].window_kls() for name in others if name in outcomes]
        if ours in outcomes and known:
            rows.append(ratio_row(key_for(key, model), outcomes[ours].window_kls(), known))
        of_text = [outcomes[name].window_kls(other=True) for name in others if name in outcomes]
        if key in OTHER_TEXT_RATIOS and model == "smollm2" and ours in outcomes and of_text:
            own = outcomes[ours].window_kls(other=True)
            rows.append(ratio_row(key_for(f"{key}_other", model), own, of_text))
    if model == "smollm2" and "ours-awq" in outcomes:
        cost = median(outcomes["ours-awq"].measurements, "cpu_s") / run.million_weights
        rows.append(Row("quantize_cpu_s_per_million", cost, None, None, "CPU-s of ours-awq"))
    recipes = read_workspace(run.workspace).variants
    for key, (of_key, peers) in CPU_SETS.items():
        names = [name for name in of_key if name in recipes]
        if not all(name in outcomes for name in (*names, *peers)):
            continue
        if any(outcomes[peer].cached for peer in peers):
            notes.append(f"{model}: no {key}: {' and '.join(peers)} did not run this time")
            continue
        peers_s = sum(median(outcomes[peer].measurements, "cpu_s") for peer in peers)
        ratio = cpu_s_of_all(run, names) / peers_s
        rows.append(Row(key_for(key, model), ratio, None, None, "ratio of CPU s"))
    return rows


def ratio_row(key: str, own: Floats, others: Sequence[Floats]) -> Row:
    """Compare the KL of windows with the least of the others."""
    least = min(others, key=lambda kls: float(kls.mean()))
    draws = np.random.default_rng(0).integers(len(own), size=(BOOTSTRAP_DRAWS, len(own)))
    ratios = own[draws].mean(1) / least[draws].mean(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Row(key, float(own.mean() / least.mean()), float(low), float(high), "ratio of KL")


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
