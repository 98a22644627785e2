"""The price list: what hardware and model APIs cost, each with the day and the page it was read on.

The list is data (`prices.yaml`), written by people; nothing here fetches a price.
"""

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.core.record import Record

Price = Annotated[float, Field(ge=0.0)]


def _is_page(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError("expected the address of the page that states it")
    return value


Source = Annotated[str, AfterValidator(_is_page)]


class ExchangeRate(Record):
    """US dollars for one euro, of one day."""

    usd: Annotated[float, Field(gt=0.0)]
    date: datetime.date
    source: Source


class Hardware(Record):
    """A machine to rent or one's own: what it costs a month, all of it, used or not.

    `memory_gib` is where weights and KV cache go: of the GPU, or of the machine without one.
    """

    label: str
    price_per_month: Price
    currency: Literal["USD", "EUR"]
    memory_gib: Annotated[float, Field(gt=0.0)]
    date: datetime.date
    source: Source


class ApiPrice(Record):
    """What a hosted model costs in US dollars per million tokens."""

    label: str
    usd_per_million_input_tokens: Price
    usd_per_million_output_tokens: Price
    date: datetime.date
    source: Source

    def usd_per_million_tokens(self, *, input_share: float) -> float:
        """The price of a mix of tokens, of which `input_share` go in."""
        return (
            input_share * self.usd_per_million_input_tokens
            + (1 - input_share) * self.usd_per_million_output_tokens
        )


class PriceList(Record):
    """`prices.yaml`. The keys of `hardware` and `apis` are the names that `params.yaml` uses."""

    eur: ExchangeRate
    hardware: dict[str, Hardware]
    apis: dict[str, ApiPrice]

    def usd_per_month(self, name: str) -> float:
        hardware = self.hardware[name]
        rate = self.eur.usd if hardware.currency == "EUR" else 1.0
        return hardware.price_per_month * rate
