"""Make the report's tables of costs: models beside APIs, the bill, and the break-even points."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.formatting import significant
from pipeline.core.workspace import BASE
from pipeline.economics.arithmetic import SECONDS_PER_MONTH, payback_tokens, usd_of_tokens
from pipeline.economics.cost_model import CostModel, ServedCost

HOURS_PER_MONTH = SECONDS_PER_MONTH / 3600
NEVER = "never"


@dataclass(frozen=True)
class CostRow:
    """Hold the figures of a model on hardware, or of an API. Fields without a figure are empty."""

    model: str
    scheme: str
    hardware: str
    latency_mean: str
    latency_p95: str
    throughput: str
    usd_per_million: str
    usd_per_month: str
    remark: str


@dataclass(frozen=True)
class BreakEvenRow:
    """Hold the tokens a day from which a model costs less than each API, by the API's label."""

    model: str
    tokens_per_day: Mapping[str, str]


def cost_rows(model: CostModel) -> tuple[CostRow, ...]:
    """Return a row for each measured model, then for each API, at the wanted requests a day."""
    hardware = model.prices.hardware[model.params.hardware].label
    rows = [
        CostRow(
            model=served.name,
            scheme=served.scheme,
            hardware=f"{served.plan.num_machines} × {hardware}",
            latency_mean=significant(served.plan.load.latency_mean_ms),
            latency_p95=significant(served.plan.load.latency_p95_ms),
            throughput=significant(served.plan.load.output_tokens_per_s),
            usd_per_million=_in_and_out(
                served.tokens.usd_per_million_input_tokens,
                served.tokens.usd_per_million_output_tokens,
            ),
            usd_per_month=_usd(model.costs.usd_total(num_machines=served.plan.num_machines)),
            remark=f"at {served.plan.load.concurrency} users" + _payback(model, served),
        )
        for served in model.served
    ]
    rows += [
        CostRow(
            model=api.label,
            scheme="API",
            hardware="",
            latency_mean="",
            latency_p95="",
            throughput="",
            usd_per_million=_in_and_out(
                api.usd_per_million_input_tokens, api.usd_per_million_output_tokens
            ),
            usd_per_month=_usd(
                usd_of_tokens(
                    model.tokens_per_month,
                    usd_per_million_tokens=api.usd_per_million_tokens(
                        input_share=model.input_share
                    ),
                )
            ),
            remark=f"price of {api.date}, {api.source.partition('://')[2]}",
        )
        for api in model.prices.apis.values()
    ]
    return tuple(rows)


def _payback(model: CostModel, served: ServedCost) -> str:
    """Return after how many tokens the saving against the base has paid for the quantization."""
    base = next((other for other in model.served if other.name == BASE), None)
    if base is None or served is base:
        return ""
    tokens = payback_tokens(
        model.costs.usd_per_machine / HOURS_PER_MONTH * model.params.quantization_hours,
        base_usd_per_million_tokens=base.tokens.usd_per_million_tokens,
        variant_usd_per_million_tokens=served.tokens.usd_per_million_tokens,
    )
    if tokens is None:
        return "; no saving against the base"
    return f"; the quantization pays for itself after {_count(tokens)} tokens"


def cost_lines(model: CostModel) -> tuple[tuple[str, str], ...]:
    """Return name and amount of each item on the bill of one machine for a month."""
    costs, hardware = model.costs, model.prices.hardware[model.params.hardware]
    return (
        (
            f"{hardware.label} (price of {hardware.date}, {hardware.source.partition('://')[2]})",
            _usd(costs.usd_per_machine),
        ),
        ("operations", _usd(costs.usd_operations)),
        ("monitoring", _usd(costs.usd_monitoring)),
        ("storage", _usd(costs.usd_storage)),
        ("together, with one machine", _usd(costs.usd_total(num_machines=1))),
    )


def break_even_rows(model: CostModel) -> tuple[BreakEvenRow, ...]:
    """Return a row for each measured model."""
    rows = []
    for served in model.served:
        tokens = {}
        for api, price in model.prices.apis.items():
            even = model.break_even(served, api)
            tokens[price.label] = NEVER
            if even is not None:
                machines = "" if even.num_machines == 1 else f" on {even.num_machines} machines"
                tokens[price.label] = f"{_count(even.tokens_per_day)}{machines}"
        rows.append(BreakEvenRow(served.name, tokens))
    return tuple(rows)


def cost_sentence(model: CostModel) -> str:
    """Return the assumptions of the costs."""
    params = model.params
    slow = ", ".join(model.too_slow)
    return (
        f"The costs are for {params.requests_per_day:,} requests a day of {model.tokens_in} tokens "
        f"in and {model.scenario.output_tokens} out, 95 % of them within "
        f"{params.latency_p95_ms / 1000:g} s. Machines are used for {100 * params.utilisation:g} % "
        f"of their time. Costs are in US dollars; a euro is {model.prices.eur.usd:g} dollars "
        f"({model.prices.eur.date})."
        + (f" Slower than that at every load: {slow}." if slow else "")
    )


def _in_and_out(usd_in: float, usd_out: float) -> str:
    return " / ".join(_usd(usd) if usd >= 0.1 else significant(usd, 2) for usd in (usd_in, usd_out))


def _usd(amount: float) -> str:
    return f"{amount:,.2f}"


def _count(tokens: float) -> str:
    """Return `227 million` for 226700000."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if tokens >= size:
            return significant(tokens / size) + word
    return significant(tokens)
