"""The parameters of serving: what load is put on which servers, and what their costs depend on."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.core.record import Record
from pipeline.params.fields import NotNegative, PositiveInt, Text, matching

ENDPOINT_URL = r"^https?://[^/\s@]+(/[^\s@]*)?(?<!/)(?<!/v1)$"


class Scenario(Record):
    """Requests of one kind, at several numbers of users.

    `prefix_tokens` are the same in all requests of a load, as a system prompt is; `input_tokens`
    follow them and are new in every request.
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
    """A server of the user's that speaks OpenAI's API under `url`/v1.

    `model` is its name in requests, `serves` says which weights it has (`base` or a variant):
    its text is compared with theirs. `command` starts it where it does not run yet.
    `api_key_variable` names the environment variable with its key.
    """

    url: Annotated[str, matching(ENDPOINT_URL, "http://HOST:PORT, without /v1")]
    model: Text
    serves: Text
    command: tuple[Text, ...] | None
    api_key_variable: Text | None


class ServiceLevel(Record):
    """A request is good when its first token and each further one come within these times."""

    ttft_ms: Annotated[float, Field(gt=0.0)]
    tpot_ms: Annotated[float, Field(gt=0.0)]


class ServeParams(Record):
    """The load every served model gets.

    `port` is the first of as many as there are servers; null: free ones. A server that needs longer
    than `startup_timeout_s` to answer, or than `load_timeout_s` for one load, counts as hanging.
    The base is served in the fastest of `base_dtypes`. Rounds go on until every interval of a ratio
    is within `narrow_enough` of it, there were `max_rounds`, or the loads have taken
    `time_budget_s`; each load gets one round. In a round every user sends `requests_per_user`.
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
        return max(max(it.concurrency) for it in self.scenarios.values())

    @property
    def context_tokens(self) -> int:
        """Of the longest request."""
        return max(it.context_tokens for it in self.scenarios.values())


class EconomicsParams(Record):
    """What the report reckons costs with.

    `prices` is a price list, `hardware` the key in it of the machine that the load was measured
    on, or one as fast. `utilisation` is the share of a machine's time that is used. The hidden
    costs are of everything together; `quantization_hours` are hours of one such machine.
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
