"""The records of `benchmarks.json`: measurements of each served model under load."""

from collections.abc import Callable
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.file_records import Sha256
from pipeline.core.machine import Machine
from pipeline.core.record import Record
from pipeline.params.serving import ServeParams
from pipeline.records.rounds import Estimate, estimate

# The generator is one thread of Python: near a whole core, it may be slower than the server.
SATURATED_CPU_SHARE = 0.8


class Latency(Record):
    """A time over all requests of one load, in milliseconds: its mean and percentiles."""

    mean: float
    p50: float
    p95: float
    p99: float


class LoadRound(Record):
    """One run of the load generator at a fixed number of concurrent users.

    `ttft_ms` is the time to the first token, `tpot_ms` the time for each further token of a
    request, `itl_ms` the time between two pieces of its stream, `e2el_ms` the whole request. Tokens
    are counted over the completed requests; `failed` ones are in no other figure, and `first_error`
    says why the first of them failed. Good requests are those within the service level.
    `client_cpu_share` is the share of one core that the generator itself was busy; `energy_j` is
    the energy by the machine's own counters, null where it has none.
    """

    completed: int
    failed: int
    first_error: str | None
    duration_s: float
    input_tokens: int
    output_tokens: int
    requests_per_s: float
    good_requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Latency
    tpot_ms: Latency
    itl_ms: Latency
    e2el_ms: Latency
    client_cpu_share: float
    energy_j: float | None

    @property
    def client_is_saturated(self) -> bool:
        """Tell whether the generator, which runs on one core, may have been the bottleneck."""
        return self.client_cpu_share > SATURATED_CPU_SHARE


class LoadResult(Record):
    """All rounds of one scenario at one number of users.

    `over_base` is the output throughput divided by the base's in the same round; null for the base
    itself, and where the base was not measured.
    """

    scenario: str
    concurrency: int
    rounds: Annotated[tuple[LoadRound, ...], Field(min_length=1)]
    over_base: Estimate | None

    def median_of(self, figure: Callable[[LoadRound], float]) -> float:
        """Take the median of one figure over the rounds."""
        return median(figure(one) for one in self.rounds)

    @property
    def output_tokens_per_s(self) -> Estimate:
        return estimate([one.output_tokens_per_s for one in self.rounds])

    @property
    def failed(self) -> int:
        return sum(one.failed for one in self.rounds)


class ParityCheck(Record):
    """A comparison of greedy texts of the server and of a reference engine, from equal weights.

    `reference` names that engine. `num_matches` of `num_prompts` texts are equal, character by
    character. A few differences come from rounding; no equal text means another model is served.
    """

    reference: str
    num_matches: int
    num_prompts: int


class ServerMemory(Record):
    """The memory of a server in bytes, measured and predicted.

    `resident` is the memory of all its processes after the loads, shared pages counted once.
    `weights` is the size of its files. `kv_cache` was reserved for it and has room for
    `kv_cache_tokens` tokens, as the engine says.
    """

    resident: int
    weights: int
    kv_cache: int
    kv_cache_tokens: int | None

    @property
    def predicted(self) -> int:
        return self.weights + self.kv_cache


class ServedModel(Record):
    """The results of a model that was served under load.

    `kernel` is the engine's name of the kernel that multiplies the weights. `dtype` is the type of
    the activations in vLLM and the file type of a GGUF. `startup_s` is the time from the start of
    the server to its first answer, by the launcher that benchmark uses, while other servers start
    beside it. `command` starts the same server in the directory of its files,
    without the address. `slower_dtypes` are the other types that were tried, with their tokens per
    second in the warm-up. `memory` is null for a server of the user. `problem` says why the
    measurement ended early; `loads` are those until then.
    """

    status: Literal["served"] = "served"
    artifact_digest: Sha256 | None
    engine: str
    engine_version: str
    kernel: str
    dtype: str
    command: tuple[str, ...]
    startup_s: float
    warm_up_tokens_per_s: float
    slower_dtypes: dict[str, float]
    memory: ServerMemory | None
    parity_check: ParityCheck
    loads: tuple[LoadResult, ...]
    problem: str | None


class SkippedModel(Record):
    """A model that cannot be served or loaded, and the reason."""

    status: Literal["skipped"] = "skipped"
    artifact_digest: Sha256 | None
    reason: str


class FailedModel(Record):
    """A model whose server failed before its first load; another try may succeed."""

    status: Literal["failed"] = "failed"
    artifact_digest: Sha256 | None
    problem: str


BenchmarkResult = Annotated[ServedModel | SkippedModel | FailedModel, Field(discriminator="status")]


class Benchmarks(Record):
    """All of `benchmarks.json`: a result for `base`, each approved variant and each endpoint.

    `complete` is false while the stage runs and where a server failed: the result is then partial.
    """

    complete: bool
    base_digest: Sha256
    machine: Machine
    load: ServeParams
    models: dict[str, BenchmarkResult]


def served_models(benchmarks: Benchmarks | None) -> dict[str, ServedModel]:
    """List the models that were measured under load."""
    models = benchmarks.models if benchmarks else {}
    return {name: model for name, model in models.items() if isinstance(model, ServedModel)}
