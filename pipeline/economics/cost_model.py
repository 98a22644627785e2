"""The cost of serving each measured model, from a benchmark, a price list and the parameters.

The arithmetic is in `arithmetic`. Costs are those of the first scenario. Each model is computed at
the load with the most requests per second among those that are fast enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from pipeline.core.errors import InputError
from pipeline.economics.arithmetic import (
    DAYS_PER_MONTH,
    SECONDS_PER_MONTH,
    BreakEven,
    Capacity,
    MeasuredLoad,
    MonthlyCosts,
    TokenCosts,
    break_even,
    capacity,
    token_costs,
    tokens_per_month,
    usd_of_tokens,
)
from pipeline.params.prices import PriceList
from pipeline.params.serving import EconomicsParams, Scenario
from pipeline.records.benchmarks import Benchmarks, LoadResult, ServedModel, served_models

# Curves go from a tenth to a hundred times the expected load, in steps of a tenth of a decade.
CURVE_DECADES = range(-10, 21)


@dataclass(frozen=True)
class Curve:
    """Points of (tokens per day, US dollars per month); `marks` are break-even points with APIs."""

    label: str
    points: tuple[tuple[float, float], ...]
    marks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class ServedCost:
    """One model at the load that determines its cost."""

    name: str
    scheme: str
    plan: Capacity
    tokens: TokenCosts


@dataclass(frozen=True)
class CostModel:
    """The inputs of the cost computation, and every model that is fast enough.

    `too_slow` names the others.
    """

    params: EconomicsParams
    prices: PriceList
    scenario: Scenario
    served: tuple[ServedCost, ...]
    too_slow: tuple[str, ...]

    @property
    def costs(self) -> MonthlyCosts:
        params = self.params
        return MonthlyCosts(
            usd_per_machine=self.prices.usd_per_month(params.hardware),
            usd_operations=params.usd_operations_per_month,
            usd_monitoring=params.usd_monitoring_per_month,
            usd_storage=params.usd_storage_per_month,
        )

    @property
    def tokens_in(self) -> int:
        """The input tokens of a request."""
        return self.scenario.prefix_tokens + self.scenario.input_tokens

    @property
    def input_share(self) -> float:
        """The input tokens of a request as a fraction of all its tokens."""
        return self.tokens_in / self.scenario.context_tokens

    @property
    def tokens_per_month(self) -> float:
        """The tokens of the expected load."""
        return tokens_per_month(
            self.params.requests_per_day, tokens_per_query=self.scenario.context_tokens
        )

    def machine_tokens_per_month(self, served: ServedCost) -> float:
        """Compute the tokens of one machine in a month at the stated utilisation."""
        return served.plan.load.tokens_per_s * SECONDS_PER_MONTH * self.params.utilisation

    def break_even(self, served: ServedCost, api: str) -> BreakEven | None:
        """Compare the costs of a served model with the price of an API."""
        price = self.prices.apis[api].usd_per_million_tokens(input_share=self.input_share)
        return break_even(
            self.costs,
            machine_tokens_per_month=self.machine_tokens_per_month(served),
            api_usd_per_million_tokens=price,
        )


def cost_model(
    benchmarks: Benchmarks,
    params: EconomicsParams,
    prices: PriceList,
    schemes: Mapping[str, str],
) -> CostModel:
    """Plan capacity and token costs for every measured model.

    `schemes` are the variants' formats. Raises InputError for hardware that has no price.
    """
    if params.hardware not in prices.hardware:
        raise InputError(
            f"economics.hardware = {params.hardware}: not in {params.prices}; expected one of "
            f"{', '.join(prices.hardware)}, or add it there"
        )
    name, scenario = next(iter(benchmarks.load.scenarios.items()))
    served, too_slow = [], []
    for model_name, model in served_models(benchmarks).items():
        plan = capacity(
            params.requests_per_day,
            measured_loads(model, name),
            latency_p95_ms=params.latency_p95_ms,
            utilisation=params.utilisation,
        )
        if plan is None:
            too_slow.append(model_name)
            continue
        tokens = token_costs(
            prices.usd_per_month(params.hardware), plan.load, utilisation=params.utilisation
        )
        served.append(ServedCost(model_name, schemes.get(model_name, model.dtype), plan, tokens))
    return CostModel(params, prices, scenario, tuple(served), tuple(too_slow))


def measured_loads(model: ServedModel, scenario: str) -> list[MeasuredLoad]:
    """Take the medians over rounds of each load of a scenario."""
    return [_medians(load) for load in model.loads if load.scenario == scenario]


def _medians(load: LoadResult) -> MeasuredLoad:
    first_token_ms = load.median_of(lambda one: one.ttft_ms.mean)
    request_ms = load.median_of(lambda one: one.e2el_ms.mean)
    return MeasuredLoad(
        concurrency=load.concurrency,
        requests_per_s=load.median_of(lambda one: one.requests_per_s),
        input_tokens_per_s=load.median_of(lambda one: one.input_tokens / one.duration_s),
        output_tokens_per_s=load.median_of(lambda one: one.output_tokens / one.duration_s),
        latency_mean_ms=request_ms,
        latency_p95_ms=load.median_of(lambda one: one.e2el_ms.p95),
        prefill_share=first_token_ms / request_ms,
    )


def cost_curves(model: CostModel) -> tuple[Curve, ...]:
    """Compute the cost by volume of the cheapest served model and of every API."""
    if not model.served:
        return ()
    wanted = model.tokens_per_month / DAYS_PER_MONTH
    volumes = [wanted * 10 ** (step / 10) for step in CURVE_DECADES]
    cheapest = min(model.served, key=lambda cost: cost.tokens.usd_per_million_tokens)
    curves = []
    marks = []
    for name, price in model.prices.apis.items():
        usd = price.usd_per_million_tokens(input_share=model.input_share)
        points = tuple(
            (volume, usd_of_tokens(volume * DAYS_PER_MONTH, usd_per_million_tokens=usd))
            for volume in volumes
        )
        curves.append(Curve(price.label, points))
        even = model.break_even(cheapest, name)
        if even is not None and volumes[0] <= even.tokens_per_day <= volumes[-1]:
            monthly = model.costs.usd_total(num_machines=even.num_machines)
            marks.append((even.tokens_per_day, monthly))
    capacity_tokens = model.machine_tokens_per_month(cheapest)
    own = tuple(
        (
            volume,
            model.costs.usd_total(
                num_machines=max(1, ceil(volume * DAYS_PER_MONTH / capacity_tokens))
            ),
        )
        for volume in volumes
    )
    return (Curve(f"{cheapest.name}, own machines", own, tuple(marks)), *curves)
