"""What benchmark leaves behind: how each served model answered under load, on which machine."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.domain.manifest import Sha256
from pipeline.domain.params import ServeParams
from pipeline.domain.record import Record


class Latency(Record):
    """A time over all requests of one load, in milliseconds."""

    mean: float
    p50: float
    p95: float
    p99: float


class LoadResult(Record):
    """One run of the load generator at a fixed number of concurrent users.

    `ttft_ms` is the time to the first token, `tpot_ms` the time for each further token of a
    request, `itl_ms` the time between two pieces of its stream, `e2el_ms` the whole request. Tokens
    are counted over the completed requests; `failed` ones are in no other figure.
    """

    concurrency: int
    completed: int
    failed: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Latency
    tpot_ms: Latency
    itl_ms: Latency
    e2el_ms: Latency


class Canary(Record):
    """Greedy text from the server against the same weights in the reference engine.

    `reference` names that engine; `num_matches` of `num_prompts` texts are equal, character by
    character. A few differences are numerics, none equal means that another model is served.
    """

    reference: str
    num_matches: int
    num_prompts: int


class ServedModel(Record):
    """A model that was served and loaded.

    `kernel` is what multiplies the weights, by the engine's own name; `dtype` is the type of the
    activations in vLLM and the file type of a GGUF. `startup_s` runs until the first answer.
    `command` is what served it, in the directory of its files, without the address it listened on.
    """

    status: Literal["served"] = "served"
    artifact_digest: Sha256
    engine: str
    engine_version: str
    kernel: str
    dtype: str
    command: tuple[str, ...]
    startup_s: float
    canary: Canary
    loads: tuple[LoadResult, ...]


class SkippedModel(Record):
    """A model that the engine or the load does not fit, and why."""

    status: Literal["skipped"] = "skipped"
    artifact_digest: Sha256
    reason: str


BenchmarkResult = Annotated[ServedModel | SkippedModel, Field(discriminator="status")]


class Machine(Record):
    """Where the figures were measured. `isa` are the CPU's features that matter to kernels."""

    cpu: str
    cores: int
    memory_gib: float
    isa: tuple[str, ...]
    gpus: tuple[str, ...]


class Benchmarks(Record):
    """`benchmarks.json`: one result for `base` and for each approved variant."""

    base_digest: Sha256
    machine: Machine
    load: ServeParams
    models: dict[str, BenchmarkResult]
