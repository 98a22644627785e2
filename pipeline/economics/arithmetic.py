"""The arithmetic of serving costs, from measured throughput and listed prices.

Every name has its unit. A month is a twelfth of a year of 365 days; money is in US dollars. A
machine costs its price every month, used or not, so the cost of one's own serving is fixed up to
the capacity of the machines. An API costs per token. Utilisation is the fraction of the capacity
that is used; it is below 1 because traffic varies over the day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

SECONDS_PER_DAY = 86_400
DAYS_PER_MONTH = 365 / 12
SECONDS_PER_MONTH = SECONDS_PER_DAY * DAYS_PER_MONTH
MILLION = 1_000_000


@dataclass(frozen=True)
class MonthlyCosts:
    """The costs of one month: of each machine, and of operations, monitoring and storage."""

    usd_per_machine: float
    usd_operations: float
    usd_monitoring: float
    usd_storage: float

    @property
    def usd_hidden(self) -> float:
        """The costs that do not grow with the number of machines."""
        return self.usd_operations + self.usd_monitoring + self.usd_storage

    def usd_total(self, *, num_machines: int) -> float:
        """Add up all costs for so many machines."""
        return num_machines * self.usd_per_machine + self.usd_hidden


@dataclass(frozen=True)
class MeasuredLoad:
    """The measured figures of one machine under one load.

    `prefill_share` is the time to the first token as a fraction of the time of the request.
    """

    concurrency: int
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    latency_mean_ms: float
    latency_p95_ms: float
    prefill_share: float

    @property
    def tokens_per_s(self) -> float:
        return self.input_tokens_per_s + self.output_tokens_per_s


@dataclass(frozen=True)
class TokenCosts:
    """US dollars per million tokens: of input, of output, and of both together."""

    usd_per_million_input_tokens: float
    usd_per_million_output_tokens: float
    usd_per_million_tokens: float


def token_costs(usd_per_month: float, load: MeasuredLoad, *, utilisation: float) -> TokenCosts:
    """Compute the cost of tokens on a machine that is used for the fraction `utilisation`.

    The cost is divided between input and output like the time of a request: the time to its first
    token pays for the input, the rest for the output.
    """
    usd_per_busy_s = usd_per_month / (SECONDS_PER_MONTH * utilisation)

    def usd_per_million(time_share: float, tokens_per_s: float) -> float:
        return MILLION * usd_per_busy_s * time_share / tokens_per_s

    return TokenCosts(
        usd_per_million(load.prefill_share, load.input_tokens_per_s),
        usd_per_million(1 - load.prefill_share, load.output_tokens_per_s),
        usd_per_million(1.0, load.tokens_per_s),
    )


def tokens_per_month(queries_per_day: float, *, tokens_per_query: float) -> float:
    """Compute the tokens of a month from the queries of a day."""
    return queries_per_day * DAYS_PER_MONTH * tokens_per_query


def usd_of_tokens(num_tokens: float, *, usd_per_million_tokens: float) -> float:
    """Compute the price of tokens."""
    return num_tokens / MILLION * usd_per_million_tokens


def break_even_tokens_per_month(usd_per_month: float, usd_per_million_tokens: float) -> float:
    """Compute the tokens per month above which a fixed cost is lower than an API's."""
    return usd_per_month / usd_per_million_tokens * MILLION


@dataclass(frozen=True)
class BreakEven:
    """The volume from which `num_machines` of one's own cost no more than an API."""

    tokens_per_day: float
    num_machines: int


def break_even(
    costs: MonthlyCosts, *, machine_tokens_per_month: float, api_usd_per_million_tokens: float
) -> BreakEven | None:
    """Find the smallest volume at which one's own machines cost no more than an API.

    More tokens than `machine_tokens_per_month` need another machine. Returns None when a machine
    costs more than the API charges for the tokens of that machine. Otherwise each machine saves the
    difference, and the number of machines is the smallest whose savings cover the hidden costs.
    """
    api_usd = usd_of_tokens(
        machine_tokens_per_month, usd_per_million_tokens=api_usd_per_million_tokens
    )
    surplus_usd = api_usd - costs.usd_per_machine
    if surplus_usd <= 0:
        return None
    num_machines = max(1, ceil(costs.usd_hidden / surplus_usd))
    tokens = break_even_tokens_per_month(
        costs.usd_total(num_machines=num_machines), api_usd_per_million_tokens
    )
    return BreakEven(tokens / DAYS_PER_MONTH, num_machines)


@dataclass(frozen=True)
class Capacity:
    """The number of machines, and the load at which each was measured."""

    num_machines: int
    load: MeasuredLoad


def capacity(
    requests_per_day: float,
    loads: Sequence[MeasuredLoad],
    *,
    latency_p95_ms: float,
    utilisation: float,
) -> Capacity | None:
    """Find the machines for `requests_per_day`, with 95 % of them faster than `latency_p95_ms`.

    The load is the one with the most requests per second among those that are fast enough. Returns
    None when no measured load is fast enough.
    """
    quick = [load for load in loads if load.latency_p95_ms <= latency_p95_ms]
    if not quick:
        return None
    best = max(quick, key=lambda load: load.requests_per_s)
    per_machine = best.requests_per_s * SECONDS_PER_DAY * utilisation
    return Capacity(max(1, ceil(requests_per_day / per_machine)), best)


def payback_tokens(
    usd_of_quantization: float,
    *,
    base_usd_per_million_tokens: float,
    variant_usd_per_million_tokens: float,
) -> float | None:
    """Compute the tokens after which the savings of a variant have paid for quantizing it.

    Returns None when the variant saves nothing.
    """
    saving = base_usd_per_million_tokens - variant_usd_per_million_tokens
    return None if saving <= 0 else usd_of_quantization / saving * MILLION
