"""Make the report's tables of serving: each model under load, and what it ran on.

Numbers are rounded here for reading. The costs are in `pipeline.report.costs`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.core.formatting import NBSP, bytes_text, percent, significant
from pipeline.records.benchmarks import (
    BenchmarkResult,
    Benchmarks,
    FailedModel,
    Latency,
    LoadResult,
    LoadRound,
    SkippedModel,
    served_models,
)
from pipeline.records.rounds import Crossover, Estimate, crossover

NOT_MEASURED = "–"


@dataclass(frozen=True)
class LoadRow:
    """Hold one model under one load: medians over rounds, and 95 % intervals."""

    name: str
    scenario: str
    users: str
    throughput: str
    over_base: str
    over_base_interval: str
    first_token: str
    further_token: str
    whole: str
    good: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class MemoryRow:
    """Hold the memory of one server, measured and predicted."""

    name: str
    weights: str
    kv_cache: str
    kv_cache_tokens: str
    predicted: str
    resident: str


def load_rows(benchmarks: Benchmarks) -> tuple[LoadRow, ...]:
    """Return a row for each load and model, sorted by load."""
    rows = [
        (load.scenario, load.concurrency, _load_row(name, load))
        for name, model in served_models(benchmarks).items()
        for load in model.loads
    ]
    scenarios = list(benchmarks.load.scenarios)
    rows.sort(key=lambda row: (scenarios.index(row[0]), row[1]))
    return tuple(row for _, _, row in rows)


def _load_row(name: str, load: LoadResult) -> LoadRow:
    ratio = load.over_base
    return LoadRow(
        name=name,
        scenario=load.scenario,
        users=str(load.concurrency),
        throughput=significant(load.output_tokens_per_s.median),
        over_base=f"{ratio.median:.2f}" if ratio else "",
        over_base_interval=interval(ratio) if ratio else "",
        first_token=_percentiles(load, lambda one: one.ttft_ms),
        further_token=_percentiles(load, lambda one: one.tpot_ms),
        whole=_percentiles(load, lambda one: one.e2el_ms),
        good=significant(load.median_of(lambda one: one.good_requests_per_s)),
        remarks=tuple(_remarks(load)),
    )


def interval(estimate: Estimate) -> str:
    """Return the 95 % interval of an estimate, or why it has none."""
    if estimate.low is None or estimate.high is None:
        return "too few rounds"
    return f"{estimate.low:.2f} to {estimate.high:.2f}"


def _percentiles(load: LoadResult, latency: Callable[[LoadRound], Latency]) -> str:
    figures = (
        load.median_of(lambda one: latency(one).p50),
        load.median_of(lambda one: latency(one).p95),
        load.median_of(lambda one: latency(one).p99),
    )
    return " / ".join(map(significant, figures))


def _remarks(load: LoadResult) -> list[str]:
    remarks = []
    if load.failed:
        error = next(one.first_error for one in load.rounds if one.failed)
        remarks.append(f"{load.failed} requests failed: {error}")
    busy = [one.client_cpu_share for one in load.rounds if one.client_is_saturated]
    if busy:
        remarks.append(
            f"the load generator was busy for {percent(max(busy))} of the time: the server may be "
            "faster than this"
        )
    energies = [one.energy_j / one.output_tokens for one in load.rounds if one.energy_j is not None]
    if energies:
        remarks.append(f"{significant(sum(energies) / len(energies))}{NBSP}J per output token")
    return remarks


def crossovers(benchmarks: Benchmarks) -> tuple[tuple[str, str], ...]:
    """Return from how many users on each variant is slower than the base.

    There is one text for each scenario with several loads, under the variant and the scenario.
    """
    found = []
    for name, model in served_models(benchmarks).items():
        for scenario in benchmarks.load.scenarios:
            ratios = [
                (load.concurrency, load.over_base)
                for load in model.loads
                if load.scenario == scenario and load.over_base is not None
            ]
            if len(ratios) > 1:
                found.append((f"{name}, {scenario}", crossover_text(crossover(ratios))))
    return tuple(found)


def crossover_text(found: Crossover) -> str:
    """Return such as `slower than the base at 7 users and more (6 to 29)`: a 95 % interval."""
    if found.users is None:
        certain = found.low is None
        return f"not slower up to {found.max_users} users" + (
            "" if certain else f" (perhaps at {found.low:.0f} and more)"
        )
    bounds = f"{found.low:.0f} to " if found.low is not None else ""
    bounds += f"{found.high:.0f}" if found.high is not None else f"more than {found.max_users}"
    return f"slower than the base at {users_text(found.users)} and more ({bounds})"


def users_text(count: float) -> str:
    """Return `1 user` or `29 users`."""
    return f"{count:.0f} user{'' if round(count) == 1 else 's'}"


def memory_rows(benchmarks: Benchmarks) -> tuple[MemoryRow, ...]:
    """Return a row for each server: the memory that it took, and what was predicted."""
    return tuple(
        MemoryRow(
            name=name,
            weights=bytes_text(model.memory.weights),
            kv_cache=bytes_text(model.memory.kv_cache),
            kv_cache_tokens=(
                f"{model.memory.kv_cache_tokens:,}"
                if model.memory.kv_cache_tokens is not None
                else NOT_MEASURED
            ),
            predicted=bytes_text(model.memory.predicted),
            resident=bytes_text(model.memory.resident),
        )
        for name, model in served_models(benchmarks).items()
        if model.memory is not None
    )


def serving_remarks(benchmarks: Benchmarks | None) -> dict[str, str]:
    """Return for each model of the benchmark what served it, or why it was not measured."""
    models = benchmarks.models if benchmarks else {}
    return {name: _remark(model) for name, model in models.items()}


def _remark(model: BenchmarkResult) -> str:
    if isinstance(model, SkippedModel):
        return f"not measured: {model.reason}"
    if isinstance(model, FailedModel):
        return f"failed before it was measured: {model.problem}"
    parity = model.parity_check
    parts = [
        f"{model.engine} {model.engine_version}",
        f"kernel {model.kernel}",
        model.dtype,
        f"first answer after {model.startup_s:.0f}{NBSP}s beside other servers",
        f"greedy text equal to {parity.reference} for {parity.num_matches} of "
        f"{parity.num_prompts} prompts",
    ]
    text = ", ".join(parts)
    if model.slower_dtypes:
        slower = ", ".join(f"{name} {speed:.0f}" for name, speed in model.slower_dtypes.items())
        text += (
            f"; {model.dtype} was the fastest here with {model.warm_up_tokens_per_s:.0f} tokens "
            f"per second in the warm-up, against {slower}"
        )
    return text + (f"; PARTIAL: {model.problem}" if model.problem else "")


def load_sentence(benchmarks: Benchmarks) -> str:
    """Return how the loads were measured, and on which machine."""
    load, machine = benchmarks.load, benchmarks.machine
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    scenarios = "; ".join(
        f"{name}: {scenario.prefix_tokens} shared and {scenario.input_tokens} own tokens in, "
        f"{scenario.output_tokens} out"
        for name, scenario in load.scenarios.items()
    )
    level = load.service_level
    return (
        f"{scenarios}. All models ran each load in turn, in up to {load.max_rounds} rounds; "
        f"figures are medians, intervals 95 %. A request is good when its first token comes within "
        f"{level.ttft_ms:g}{NBSP}ms and each further one within {level.tpot_ms:g}{NBSP}ms. "
        f"Measured on {machine.cores} cores of {machine.cpu} with "
        f"{machine.memory_gib:.0f}{NBSP}GiB{gpus}."
    )
