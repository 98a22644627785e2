"""Costs: the figures of guides that users read, and properties that any price has to keep."""

import pytest

from pipeline.economics.arithmetic import (
    DAYS_PER_MONTH,
    SECONDS_PER_MONTH,
    MeasuredLoad,
    MonthlyCosts,
    break_even,
    break_even_tokens_per_month,
    capacity,
    payback_tokens,
    token_costs,
    tokens_per_month,
    usd_of_tokens,
)

API_USD = 0.75  # per million tokens
COSTS = MonthlyCosts(usd_per_machine=100, usd_operations=40, usd_monitoring=20, usd_storage=10)


def load(users: int, requests_per_s: float, p95_ms: float) -> MeasuredLoad:
    """Requests of 500 tokens in and 200 out, a quarter of their time before the first token."""
    return MeasuredLoad(
        concurrency=users,
        requests_per_s=requests_per_s,
        input_tokens_per_s=500 * requests_per_s,
        output_tokens_per_s=200 * requests_per_s,
        latency_mean_ms=0.8 * p95_ms,
        latency_p95_ms=p95_ms,
        prefill_share=0.25,
    )


def test_the_guides_break_even_of_170_a_month_is_226_million_tokens() -> None:
    assert break_even_tokens_per_month(170, API_USD) == pytest.approx(226.67e6, rel=1e-4)
    even = break_even(COSTS, machine_tokens_per_month=1e9, api_usd_per_million_tokens=API_USD)
    assert even is not None
    assert even.tokens_per_day * DAYS_PER_MONTH == pytest.approx(226.67e6, rel=1e-4)
    assert even.num_machines == 1


@pytest.mark.parametrize(
    ("queries_per_day", "million_tokens_per_day", "usd_per_day"),
    [(10_000, 25, 18.75), (100_000, 250, 187.5)],
)
def test_the_guides_loads_of_2000_tokens_in_and_500_out(
    queries_per_day: int, million_tokens_per_day: float, usd_per_day: float
) -> None:
    tokens = tokens_per_month(queries_per_day, tokens_per_query=2000 + 500)
    assert tokens / DAYS_PER_MONTH == pytest.approx(million_tokens_per_day * 1e6)
    usd = usd_of_tokens(tokens, usd_per_million_tokens=API_USD)
    assert usd / DAYS_PER_MONTH == pytest.approx(usd_per_day)


def test_what_the_tokens_of_a_month_cost_together_is_the_months_price() -> None:
    measured = load(8, 2.0, 900)
    costs = token_costs(150, measured, utilisation=0.3)
    busy_s = SECONDS_PER_MONTH * 0.3
    read, written = 500 * 2.0 * busy_s / 1e6, 200 * 2.0 * busy_s / 1e6
    spent = (
        read * costs.usd_per_million_input_tokens + written * costs.usd_per_million_output_tokens
    )
    assert spent == pytest.approx(150)
    assert (read + written) * costs.usd_per_million_tokens == pytest.approx(150)


def test_half_the_utilisation_doubles_the_cost() -> None:
    half, full = (token_costs(100, load(1, 1.0, 500), utilisation=it) for it in (0.4, 0.8))
    assert half.usd_per_million_tokens == pytest.approx(2 * full.usd_per_million_tokens)


def test_a_machine_dearer_than_what_the_api_charges_for_its_work_never_pays() -> None:
    assert break_even(COSTS, machine_tokens_per_month=1e8, api_usd_per_million_tokens=0.9) is None


@pytest.mark.parametrize("machine_tokens", [1.4e8, 1.6e8, 3e8, 1e9])
def test_at_the_break_even_both_bills_are_equal_and_below_it_the_api_is_cheaper(
    machine_tokens: float,
) -> None:
    even = break_even(
        COSTS, machine_tokens_per_month=machine_tokens, api_usd_per_million_tokens=API_USD
    )
    assert even is not None
    tokens = even.tokens_per_day * DAYS_PER_MONTH
    own = COSTS.usd_total(num_machines=even.num_machines)
    assert own == pytest.approx(usd_of_tokens(tokens, usd_per_million_tokens=API_USD))
    assert (even.num_machines - 1) * machine_tokens < tokens <= even.num_machines * machine_tokens


def test_capacity_takes_the_most_productive_load_that_is_fast_enough() -> None:
    loads = [load(1, 1.0, 400), load(8, 4.0, 900), load(32, 6.0, 4000)]
    found = capacity(1_000_000, loads, latency_p95_ms=1000, utilisation=0.5)
    assert found is not None
    assert found.load.concurrency == 8
    assert found.num_machines == 6  # 4 a second, half of 86,400 seconds: 172,800 a day each
    assert capacity(10, loads, latency_p95_ms=100, utilisation=0.5) is None


def test_a_variant_pays_back_only_when_it_is_cheaper() -> None:
    prices = {"base_usd_per_million_tokens": 0.5, "variant_usd_per_million_tokens": 0.3}
    assert payback_tokens(2.0, **prices) == pytest.approx(10e6)
    prices["variant_usd_per_million_tokens"] = 0.5
    assert payback_tokens(2.0, **prices) is None
