"""The benchmark of one model: its server, its parity check and the rounds that it has run.

Servers start and are checked side by side. Then they are warmed up and loaded one at a time, while
no server starts. A failure ends the run of its own model only. It becomes a `problem` in one line,
and the results before it are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from pipeline.core.errors import FailureError
from pipeline.core.progress import note
from pipeline.params.serving import Scenario, ServeParams
from pipeline.records.benchmarks import (
    BenchmarkResult,
    FailedModel,
    LoadResult,
    LoadRound,
    ParityCheck,
    ServedModel,
    ServerMemory,
    SkippedModel,
)
from pipeline.records.rounds import Estimate, ratio
from pipeline.serving.load import LoadGenerator
from pipeline.serving.parity_check import Prompts, Reference, served_texts
from pipeline.serving.servable import ServableModel, weight_bytes
from pipeline.serving.server import ModelRefusedError, Server
from pipeline.serving.server_pool import ServerPool, ServerSpec

PARITY_NEW_TOKENS = 32
WARM_UP_SEED = 0  # rounds have larger ones, so that no prompt is sent twice

# A scenario's name and the number of users.
Cell = tuple[str, int]


@dataclass
class ModelRun:
    """Hold a model, how it is served, and its results. `server` is None until it has answered."""

    model: ServableModel
    spec: ServerSpec
    kv_cache_bytes: int
    reference: Reference
    server: Server | None = None
    parity_check: ParityCheck | None = None
    warm_up_tokens_per_s: float = 0.0
    slower_dtypes: dict[str, float] = field(default_factory=dict)
    resident_bytes: int = 0
    rounds: dict[Cell, list[LoadRound]] = field(default_factory=dict)
    refusal: str | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def is_running(self) -> bool:
        return self.server is not None and self.refusal is None and self.problem is None

    def start(self, pool: ServerPool, prompts: Prompts) -> None:
        """Start the server if it does not run, and compare its texts with the reference."""

        def start_and_check() -> None:
            self.server = pool.server(self.spec)
            self.parity_check = self._compare_texts(self.server, prompts)

        self._keep_failure(pool, start_and_check)

    def warm_up(self, pool: ServerPool, generator: LoadGenerator, serve: ServeParams) -> None:
        """Run the first loads; their speeds decide which activation type serves the base."""

        def run_first_loads() -> None:
            self.warm_up_tokens_per_s = self._run_warm_up(generator, serve)

        self._keep_failure(pool, run_first_loads)

    def run_round(
        self, pool: ServerPool, generator: LoadGenerator, serve: ServeParams, cell: Cell, seed: int
    ) -> None:
        """Run one load of this cell; start and warm up a server that was stopped for memory."""

        def run_load() -> None:
            was_running = pool.is_running(self.spec.name)
            self.server = pool.server(self.spec)
            if not was_running:
                self._run_warm_up(generator, serve)
            name, users = cell
            result = self._run_load(generator, serve, serve.scenarios[name], users, seed)
            self.rounds.setdefault(cell, []).append(result)
            if self.server.process is not None:
                self.resident_bytes = self.server.process.resident_bytes()

        self._keep_failure(pool, run_load)

    def _keep_failure(self, pool: ServerPool, work: Callable[[], None]) -> None:
        """Call `work`; record its failure as the refusal or the problem of this model."""
        try:
            work()
        except ModelRefusedError as error:
            self.refusal = str(error)
            note(f"benchmark: {self.name}: skipped: {self.refusal}")
        except FailureError as error:
            self.problem = str(self.server.explained(error) if self.server else error)
            note(f"benchmark: {self.name}: failed: {self.problem}")
            pool.stop(self.spec.name)

    def _compare_texts(self, server: Server, prompts: Prompts) -> ParityCheck:
        """Count the texts that equal the reference. Raises FailureError when there are none."""
        asked = prompts.ids if self.model.endpoint is None else prompts.texts
        expected = self.reference.texts
        texts = served_texts(server, asked, max_new_tokens=PARITY_NEW_TOKENS)
        num_matches = sum(a == b for a, b in zip(texts, expected, strict=True))
        note(f"benchmark: {self.name}: {num_matches} of {len(texts)} texts as expected")
        if num_matches == 0:
            raise FailureError(
                f"{server.what}: none of {len(texts)} texts is what {self.reference.engine} writes "
                "with these weights; it serves another model, or serves this one wrongly"
            )
        return ParityCheck(
            reference=self.reference.engine, num_matches=num_matches, num_prompts=len(expected)
        )

    def _run_warm_up(self, generator: LoadGenerator, serve: ServeParams) -> float:
        """Return tokens per second: the geometric mean over the fewest and the most users."""
        scenario = next(iter(serve.scenarios.values()))
        ends = sorted({scenario.concurrency[0], scenario.concurrency[-1]})
        speeds = [
            self._run_load(generator, serve, scenario, users, WARM_UP_SEED).output_tokens_per_s
            for users in ends
        ]
        return float(prod(speeds) ** (1 / len(speeds)))

    def _run_load(
        self,
        generator: LoadGenerator,
        serve: ServeParams,
        scenario: Scenario,
        users: int,
        seed: int,
    ) -> LoadRound:
        """Run one load. Raises FailureError, also when the server ended while requests failed."""
        assert self.server is not None
        result = generator.run(
            self.server,
            scenario,
            users=users,
            requests_per_user=serve.requests_per_user,
            seed=seed,
            timeout_s=serve.load_timeout_s,
        )
        process = self.server.process
        if process is not None and process.exit_code() is not None:
            raise FailureError(f"{self.server.what}: ended while it was used")
        return result

    def throughput_ratio(self, base: "ModelRun", cell: Cell) -> Estimate | None:
        """Estimate the ratio of throughputs in a cell; None for the base itself."""
        if base is self:
            return None
        own, others = (
            [one.output_tokens_per_s for one in run.rounds.get(cell, [])] for run in (self, base)
        )
        return ratio(own, others)

    def result(self, base: "ModelRun") -> BenchmarkResult:
        """Make the record of the model as it is now."""
        digest = self.model.digest
        if self.refusal is not None:
            return SkippedModel(artifact_digest=digest, reason=self.refusal)
        if self.server is None or self.parity_check is None or not self.rounds:
            problem = self.problem or "not measured yet"
            return FailedModel(artifact_digest=digest, problem=problem)
        return ServedModel(
            artifact_digest=digest,
            engine=self.server.engine,
            engine_version=self.server.engine_version,
            kernel=self.server.kernel,
            dtype=self.server.dtype,
            command=self.server.command,
            startup_s=round(self.server.startup_s, 1),
            warm_up_tokens_per_s=self.warm_up_tokens_per_s,
            slower_dtypes=self.slower_dtypes,
            memory=self._memory(self.server),
            parity_check=self.parity_check,
            loads=tuple(
                LoadResult(
                    scenario=scenario,
                    concurrency=users,
                    rounds=tuple(rounds),
                    over_base=self.throughput_ratio(base, (scenario, users)),
                )
                for (scenario, users), rounds in self.rounds.items()
            ),
            problem=self.problem,
        )

    def _memory(self, server: Server) -> ServerMemory | None:
        if server.process is None or self.model.endpoint is not None:
            return None
        return ServerMemory(
            resident=self.resident_bytes,
            weights=weight_bytes(self.model),
            kv_cache=self.kv_cache_bytes,
            kv_cache_tokens=server.kv_cache_tokens,
        )
