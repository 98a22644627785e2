"""The report's costs as rows of text: every model beside every API, and the bill line by line."""

from dataclasses import dataclass

from pipeline.core.formatting import significant
from pipeline.core.workspace import BASE
from pipeline.economics.arithmetic import SECONDS_PER_MONTH, payback_tokens, usd_of_tokens
from pipeline.economics.cost_model import CostModel, ServedCost

HOURS_PER_MONTH = SECONDS_PER_MONTH / 3600
NEVER = "never"


@dataclass(frozen=True)
class CostRow:
    """A model on hardware, or an API: what users of cost guides compare."""

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
    model: str
    api: str
    tokens_per_day: str


def cost_rows(model: CostModel) -> tuple[CostRow, ...]:
    """Every measured model, then every API, for the wanted number of requests a day."""
    hardware = model.prices.hardware[model.params.hardware].label
    rows = [
        CostRow(
            model=it.name,
            scheme=it.scheme,
            hardware=f"{it.plan.num_machines} × {hardware}",
            latency_mean=significant(it.plan.load.latency_mean_ms),
            latency_p95=significant(it.plan.load.latency_p95_ms),
            throughput=significant(it.plan.load.output_tokens_per_s),
            usd_per_million=_in_and_out(
                it.tokens.usd_per_million_input_tokens, it.tokens.usd_per_million_output_tokens
            ),
            usd_per_month=_usd(model.costs.usd_total(num_machines=it.plan.num_machines)),
            remark=f"at {it.plan.load.concurrency} users" + _payback(model, it),
        )
        for it in model.served
    ]
    rows += [
        CostRow(
            model=it.label,
            scheme="API",
            hardware="",
            latency_mean="",
            latency_p95="",
            throughput="",
            usd_per_million=_in_and_out(
                it.usd_per_million_input_tokens, it.usd_per_million_output_tokens
            ),
            usd_per_month=_usd(
                usd_of_tokens(
                    model.tokens_per_month,
                    usd_per_million_tokens=it.usd_per_million_tokens(input_share=model.input_share),
                )
            ),
            remark=f"price of {it.date}, {it.source.partition('://')[2]}",
        )
        for it in model.prices.apis.values()
    ]
    return tuple(rows)


def _payback(model: CostModel, served: ServedCost) -> str:
    """When the saving against the base has paid for the quantization."""
    base = next((it for it in model.served if it.name == BASE), None)
    if base is None or served is base:
        return ""
    tokens = payback_tokens(
        model.costs.usd_per_machine / HOURS_PER_MONTH * model.params.quantization_hours,
        base_usd_per_million_tokens=base.tokens.usd_per_million_tokens,
        variant_usd_per_million_tokens=served.tokens.usd_per_million_tokens,
    )
    if tokens is None:
        return "; no saving against the base"
    return f"; quantizing has paid for itself after {_count(tokens)} tokens"


def cost_lines(model: CostModel) -> tuple[tuple[str, str], ...]:
    """The bill of one machine for a month, line by line."""
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
    """From how many tokens a day each model costs less than each API."""
    rows = []
    for it in model.served:
        for api, price in model.prices.apis.items():
            even = model.break_even(it, api)
            text = NEVER
            if even is not None:
                machines = "" if even.num_machines == 1 else f" on {even.num_machines} machines"
                text = f"{_count(even.tokens_per_day)}{machines}"
            rows.append(BreakEvenRow(it.name, price.label, text))
    return tuple(rows)


def cost_sentence(model: CostModel) -> str:
    it, scenario = model.params, model.scenario
    slow = ", ".join(model.too_slow)
    return (
        f"{it.requests_per_day:,} requests a day of {model.tokens_in} tokens in and "
        f"{scenario.output_tokens} out, 95 % of them within {it.latency_p95_ms / 1000:g} s; "
        f"machines are used for {100 * it.utilisation:g} % of their time. Costs in US dollars, at "
        f"{model.prices.eur.usd:g} for a euro ({model.prices.eur.date})."
        + (f" Slower than that at every load: {slow}." if slow else "")
    )


def _in_and_out(usd_in: float, usd_out: float) -> str:
    return " / ".join(_usd(it) if it >= 0.1 else significant(it, 2) for it in (usd_in, usd_out))


def _usd(amount: float) -> str:
    return f"{amount:,.2f}"


def _count(tokens: float) -> str:
    """`226700000` is `227 million`."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if tokens >= size:
            return significant(tokens / size) + word
    return significant(tokens)
