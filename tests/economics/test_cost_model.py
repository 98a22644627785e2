"""One row of the cost table by hand, and curves that are true to their marks."""

import json

from pipeline.core.machine import Machine
from pipeline.economics.cost_model import CostModel, cost_curves, cost_model
from pipeline.params.params import Params
from pipeline.params.reading import read_params, read_prices
from pipeline.records.benchmarks import Benchmarks
from pipeline.report.costs import break_even_rows, cost_rows
from tests.support import ROOT
from tests.workspace import SHA, served_model

PRICES = read_prices(ROOT / "prices.yaml")


def model(**economics: object) -> CostModel:
    values = read_params(ROOT / "params.yaml").model_dump(mode="json")
    values["economics"] |= economics
    params = Params.model_validate_json(json.dumps(values), strict=True)
    speeds = {"base": 15.5, "awq-w4-g128": 24.0}
    benchmarks = Benchmarks(
        complete=True,
        base_digest=SHA,
        machine=Machine(cpu="it", cores=2, memory_gib=23.5, isa=("avx2",), gpus=()),
        load=params.serve,
        models={name: served_model(params.serve, it, 15.5) for name, it in speeds.items()},
    )
    return cost_model(benchmarks, params.economics, PRICES, {"awq-w4-g128": "awq"})


def test_one_row_recomputed_by_hand() -> None:
    row = cost_rows(model(requests_per_day=10_000, latency_p95_ms=5000, utilisation=0.3))[1]
    # At 8 users 24 × √8 / 200 = 0.3394 requests a second; 30 % of a day of that are 8,797 requests:
    # two machines of 6.49 EUR × 1.1133, and 225 USD of hidden costs.
    assert row.model == "awq-w4-g128"
    assert row.hardware == "2 × Hetzner CX33, 4 shared vCPU"
    assert row.usd_per_month == "239.45"
    # 1,500 × 8 tokens in and 600 × 8 out in 60 s of a machine whose busy second costs
    # 7.2253 / (2,628,000 × 0.3) USD; the first token comes after 666.7 of 2,357 ms.
    busy_second = 6.49 * 1.1133 / (2_628_000 * 0.3)
    prefill_share = (2000 * 8 / 24) / (20_000 * 8 / (24 * 8**0.5))
    usd_in = 1e6 * busy_second * prefill_share / (1500 * 8 / 60)
    usd_out = 1e6 * busy_second * (1 - prefill_share) / (600 * 8 / 60)
    assert row.usd_per_million == f"{usd_in:.2g} / {usd_out:.2g}"


def test_an_api_costs_what_its_price_list_says() -> None:
    (row,) = (it for it in cost_rows(model()) if it.model == "OpenAI GPT-4o mini")
    # 10,000 × 365 / 12 requests of 128 tokens in and 32 out.
    million_in, million_out = 304_166.67 * 128 / 1e6, 304_166.67 * 32 / 1e6
    assert row.usd_per_month == f"{0.15 * million_in + 0.60 * million_out:.2f}"


def test_marks_lie_on_the_curve_of_ones_own_machines() -> None:
    found = model()
    own, *apis = cost_curves(found)
    assert own.label == "awq-w4-g128, own machines"
    assert len(apis) == len(PRICES.apis)
    assert own.marks
    for volume, usd in own.marks:
        around = [it for it in own.points if 0.7 < it[0] / volume < 1.4]
        assert min(it[1] for it in around) <= usd * 1.0001
        assert usd <= max(it[1] for it in around) * 1.0001


def test_a_model_that_is_never_quick_enough_has_no_cost_but_is_named() -> None:
    found = model(latency_p95_ms=1)
    assert found.served == ()
    assert found.too_slow == ("base", "awq-w4-g128")
    assert cost_curves(found) == ()
    assert break_even_rows(found) == ()
