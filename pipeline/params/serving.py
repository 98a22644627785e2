"""The parameters of the load test of served models, and of the costs that the report estimates."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.core.record import Record
from pipeline.params.fields import NotNegative, PositiveInt, Text, matching

ENDPOINT_URL = r"^https?://[^/\s@]+(/[^\s@]*)?(?<!/)(?<!/v1)$"


class Scenario(Record):
    """Requests of one length, sent by several numbers of concurrent users.

    The `prefix_tokens` are the same in all requests of a load, like a system prompt. The
    `input_tokens` follow them and are new in every request. `concurrency` is in rising order.
    """

    prefix_tokens: Annotated[int, Field(ge=0)]
    input_tokens: PositiveInt
    output_tokens: PositiveInt
    concurrency: tuple[PositiveInt, ...]

    @field_validator("concurrency")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or list(value) != sorted(set(value)):
            raise ValueError("expected numbers of users in rising order, such as [1, 8]")
        return value

    @property
    def context_tokens(self) -> int:
        return self.prefix_tokens + self.input_tokens + self.output_tokens


class Endpoint(Record):
    """A server of the user with OpenAI's API under `url`/v1.

    `model` is the model's name in requests. `serves` names the weights that it has, `base` or a
    variant, with whose text its own is compared. `command` starts the server where it does not run
    yet. `api_key_variable` names the environment variable with its key.
    """

    url: Annotated[str, matching(ENDPOINT_URL, "http://HOST:PORT, without /v1")]
    model: Text
    serves: Text
    command: tuple[Text, ...] | None
    api_key_variable: Text | None


class ServiceLevel(Record):
    """The longest times, in milliseconds, to the first token and to each further one.

    A request within both is a good one.
    """

    ttft_ms: Annotated[float, Field(gt=0.0)]
    tpot_ms: Annotated[float, Field(gt=0.0)]


class ServeParams(Record):
    """The load test of every served model.

    `port` is the first port of the servers, which take one each; null takes free ones. A server
    fails when it needs longer than `startup_timeout_s` to answer or than `load_timeout_s` for one
    load. The base is served in the fastest of `base_dtypes`. Every load gets at least one round, in
    which every user sends `requests_per_user` requests. Rounds are repeated until every interval of
    a ratio is within the fraction `narrow_enough` of it, there were `max_rounds`, or the loads have
    taken `time_budget_s`.
    """

    port: Annotated[int, Field(ge=1, le=65535)] | None
    startup_timeout_s: PositiveInt
    load_timeout_s: PositiveInt
    base_dtypes: Annotated[
        tuple[Literal["bfloat16", "float16", "float32"], ...], Field(min_length=1)
    ]
    scenarios: Annotated[dict[str, Scenario], Field(min_length=1)]
    requests_per_user: PositiveInt
    max_rounds: PositiveInt
    narrow_enough: Annotated[float, Field(gt=0.0)]
    time_budget_s: PositiveInt
    service_level: ServiceLevel
    endpoints: dict[str, Endpoint]

    @property
    def max_users(self) -> int:
        return max(max(scenario.concurrency) for scenario in self.scenarios.values())

    @property
    def context_tokens(self) -> int:
        """The number of tokens of the longest request."""
        return max(scenario.context_tokens for scenario in self.scenarios.values())


class EconomicsParams(Record):
    """The values from which the report estimates costs.

    `prices` is the file of a price list. `hardware` is the key in it of the machine that the load
    was measured on, or of one that is as fast. `utilisation` is the fraction of a machine's time
    that is used. The three costs per month are for all machines together. `quantization_hours` are
    hours of one such machine.
    """

    prices: Text
    hardware: Text
    utilisation: Annotated[float, Field(gt=0.0, le=1.0)]
    usd_operations_per_month: NotNegative
    usd_monitoring_per_month: NotNegative
    usd_storage_per_month: NotNegative
    requests_per_day: PositiveInt
    latency_p95_ms: Annotated[float, Field(gt=0.0)]
    quantization_hours: NotNegative
