"""Arithmetic of what serving costs, from measured throughput and listed prices.

Every name carries its unit. A month is a twelfth of a year of 365 days; money is US dollars. A
machine is paid for by the month whether it works or not, so that all costs of serving oneself are
fixed up to the capacity of the machines; an API costs per token. Utilisation is the share of that
capacity which is really used: traffic has nights and peaks.
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
    """Hold the bill of one month: the machines, and the costs that are easily forgotten."""

    usd_per_machine: float
    usd_operations: float
    usd_monitoring: float
    usd_storage: float

    @property
    def usd_hidden(self) -> float:
        """Add up the costs that do not grow with the number of machines."""
        return self.usd_operations + self.usd_monitoring + self.usd_storage

    def usd_total(self, *, num_machines: int) -> float:
        return num_machines * self.usd_per_machine + self.usd_hidden


@dataclass(frozen=True)
class MeasuredLoad:
    """Hold the measured figures of one machine under one load.

    `prefill_share` is the part of a request's time until its first token.
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
    """Hold US dollars per million tokens: of input, of output, and of both together."""

    usd_per_million_input_tokens: float
    usd_per_million_output_tokens: float
    usd_per_million_tokens: float


def token_costs(usd_per_month: float, load: MeasuredLoad, *, utilisation: float) -> TokenCosts:
    """Compute the cost of tokens on a machine that is used for `utilisation` of the time.

    The machine's time is split between reading and writing as the time of a request is: until its
    first token, and after it.
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
    return queries_per_day * DAYS_PER_MONTH * tokens_per_query


def usd_of_tokens(num_tokens: float, *, usd_per_million_tokens: float) -> float:
    return num_tokens / MILLION * usd_per_million_tokens


def break_even_tokens_per_month(usd_per_month: float, usd_per_million_tokens: float) -> float:
    """Compute the tokens a month above which a fixed bill is lower than an API's."""
    return usd_per_month / usd_per_million_tokens * MILLION


@dataclass(frozen=True)
class BreakEven:
    """State that from `tokens_per_day` on, `num_machines` of one's own cost less than the API."""

    tokens_per_day: float
    num_machines: int


def break_even(
    costs: MonthlyCosts, *, machine_tokens_per_month: float, api_usd_per_million_tokens: float
) -> BreakEven | None:
    """Find the smallest volume at which serving oneself costs no more than an API, if any.

    More tokens than `machine_tokens_per_month` take another machine. A machine that costs more
    than the API charges for the same tokens never pays: the answer is None. Otherwise each machine
    brings a surplus, and it takes enough machines to cover the hidden costs.
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
    """Hold the number of machines and the load at which each was measured."""

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

    Take the load with the most requests per second among those that are fast enough. Return None
    when no measured load is fast enough.
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
    """Compute the tokens until a variant's saving has paid for making it; None: no saving."""
    saving = base_usd_per_million_tokens - variant_usd_per_million_tokens
    return None if saving <= 0 else usd_of_quantization / saving * MILLION
