"""The price list of hardware and model APIs, `prices.yaml`, with the day and source of each price.

People write the list; this module fetches no price.
"""

import datetime
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.record import Record
from pipeline.params.fields import matching

Price = Annotated[float, Field(ge=0.0)]


Source = Annotated[str, matching(r"(?s)https?://.*", "the address of the page that states it")]


class ExchangeRate(Record):
    """The price of one euro in US dollars, on one day."""

    usd: Annotated[float, Field(gt=0.0)]
    date: datetime.date
    source: Source


class Hardware(Record):
    """A machine, rented or owned, with the full price of a month, whether it is used or not.

    `memory_gib` is the memory for weights and KV cache: of the GPU, or of the machine without one.
    """

    label: str
    price_per_month: Price
    currency: Literal["USD", "EUR"]
    memory_gib: Annotated[float, Field(gt=0.0)]
    date: datetime.date
    source: Source


class ApiPrice(Record):
    """The price of a hosted model in US dollars per million tokens."""

    label: str
    usd_per_million_input_tokens: Price
    usd_per_million_output_tokens: Price
    date: datetime.date
    source: Source

    def usd_per_million_tokens(self, *, input_share: float) -> float:
        """Return the price of a million tokens, of which the fraction `input_share` is input."""
        return (
            input_share * self.usd_per_million_input_tokens
            + (1 - input_share) * self.usd_per_million_output_tokens
        )


class PriceList(Record):
    """All of `prices.yaml`; `params.yaml` names entries by the keys of `hardware` and `apis`."""

    eur: ExchangeRate
    hardware: dict[str, Hardware]
    apis: dict[str, ApiPrice]

    def usd_per_month(self, name: str) -> float:
        """Return the price of a month of `hardware[name]` in US dollars."""
        hardware = self.hardware[name]
        rate = self.eur.usd if hardware.currency == "EUR" else 1.0
        return hardware.price_per_month * rate
