"""Load on a server: `vllm bench serve` against the OpenAI API, the same for every engine.

Prompts are random tokens of a fixed length. Each user sends the next request after an answer. Every
answer has the same length, because the end of text is ignored. One process of the serving
environment runs all loads, one after the other (`quantline_vllm.bench`).
"""

import json
from pathlib import Path
from typing import Self

import requests
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.environments import HOST, OFFLINE, SERVE_PYTHON
from pipeline.core.errors import FailureError
from pipeline.core.process import Daemon, exit_text, free_port, last_lines
from pipeline.params.serving import Scenario, ServiceLevel
from pipeline.records.benchmarks import Latency, LoadRound
from pipeline.serving.sampling import greedy_sampling
from pipeline.serving.server import Server, is_healthy, local_session

GENERATOR = "the load generator"
START_TIMEOUT_S = 300.0
METRICS = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50, 95, 99)
SHOWN_ERROR_CHARACTERS = 200


class BenchResult(BaseModel):
    """Read the part of the load generator's answer that is used.

    Latencies have keys like `mean_ttft_ms` and `p95_ttft_ms`. They stay among the extra keys, where
    `latency` finds them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    completed: int
    failed: int
    first_error: str | None
    duration: float
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    request_goodput: float
    output_throughput: float
    total_token_throughput: float
    client_cpu_share: float
    energy_j: float | None

    def latency(self, metric: str) -> Latency:
        extra = self.model_extra or {}
        names = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
        return Latency.model_validate({name: extra.get(f"{name}_{metric}_ms") for name in names})


class LoadGenerator:
    """Run loads in one process, which ends with the `with` block.

    `service_level` says which requests count as good.
    """

    def __init__(self, tokenizer_dir: Path, *, service_level: ServiceLevel, log_path: Path) -> None:
        self._tokenizer_dir = tokenizer_dir
        self._service_level = service_level
        self._log_path = log_path
        self._running: tuple[Daemon, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def start(self) -> None:
        """Start the process if it does not run, and return before its imports are done."""
        if self._running is None:
            port = free_port()
            process = Daemon(
                [SERVE_PYTHON, "-m", "quantline_vllm.bench", f"--port={port}"],
                log_path=self._log_path,
                environment={**OFFLINE, "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""},
            )
            self._running = process.__enter__(), f"http://{HOST}:{port}"

    def run(
        self,
        server: Server,
        scenario: Scenario,
        *,
        users: int,
        requests_per_user: int,
        seed: int,
        timeout_s: float,
    ) -> LoadRound:
        """Run one load. The same `seed` sends the same prompts to every server.

        Raises FailureError when no request is answered, or not all within `timeout_s`.
        """
        process, url = self._ready()
        what = f"{server.what} with {users} users"
        arguments = [
            *_target(server),
            *_requests(scenario, users=users, requests_per_user=requests_per_user),
            f"--tokenizer={self._tokenizer_dir}",
            f"--seed={seed}",
            "--goodput",
            f"ttft:{self._service_level.ttft_ms}",
            f"tpot:{self._service_level.tpot_ms}",
            f"--percentile-metrics={','.join(METRICS)}",
            f"--metric-percentiles={','.join(map(str, PERCENTILES))}",
        ]
        try:
            answer = local_session().post(url, json=arguments, timeout=timeout_s)
        except requests.Timeout as error:
            self._stop()
            raise FailureError(
                f"{what}: no end after {timeout_s:.0f} s; the server hangs, or is slower than "
                "serve.load_timeout_s allows"
            ) from error
        except requests.RequestException as error:
            code = process.exit_code()
            state = "no answer" if code is None else exit_text(code)
            self._stop()
            raise FailureError(f"{GENERATOR}: {state}: {last_lines(self._log_path)}") from error
        if not answer.ok:
            raise FailureError(f"{what}: {GENERATOR}: {answer.text:.{SHOWN_ERROR_CHARACTERS}}")
        return load_round(answer.content, what=what)

    def _ready(self) -> tuple[Daemon, str]:
        self.start()
        assert self._running is not None
        process, url = self._running
        session = local_session()
        try:
            process.wait_until(
                lambda: is_healthy(session, url), timeout_s=START_TIMEOUT_S, what=GENERATOR
            )
        except FailureError:
            self._stop()
            raise
        return process, url

    def _stop(self) -> None:
        if self._running is not None:
            process, _ = self._running
            self._running = None
            process.__exit__(None, None, None)


def _target(server: Server) -> list[str]:
    return [
        f"--base-url={server.url}",
        "--endpoint=/v1/completions",
        f"--model={server.model}",
        # The flag alone silences a warning; the body of a request has all sampling values.
        "--temperature=0",
        f"--extra-body={json.dumps(greedy_sampling(server.engine))}",
        # A connection kept for the next request may be closed by the server just as that request
        # is sent; a new one for each request cannot be.
        "--header",
        "Connection=close",
        *([f"Authorization=Bearer {server.api_key}"] if server.api_key else []),
        # Its trial request is the first one of the load, which a prefix cache would then know.
        "--ready-check-timeout-sec=0",
    ]


def _requests(scenario: Scenario, *, users: int, requests_per_user: int) -> list[str]:
    return [
        "--dataset-name=random",
        f"--random-prefix-len={scenario.prefix_tokens}",
        f"--random-input-len={scenario.input_tokens}",
        f"--random-output-len={scenario.output_tokens}",
        f"--max-concurrency={users}",
        f"--num-prompts={users * requests_per_user}",
    ]


def load_round(answer: bytes, *, what: str) -> LoadRound:
    """Parse an answer of the generator. Raises FailureError when no request was completed."""
    try:
        result = BenchResult.model_validate_json(answer)
        error = _last_line(result.first_error)
        if result.completed == 0:
            raise FailureError(f"{what}: none of {result.failed} requests was answered: {error}")
        return LoadRound(
            completed=result.completed,
            failed=result.failed,
            first_error=error,
            duration_s=result.duration,
            input_tokens=result.total_input_tokens,
            output_tokens=result.total_output_tokens,
            requests_per_s=result.request_throughput,
            good_requests_per_s=result.request_goodput,
            output_tokens_per_s=result.output_throughput,
            total_tokens_per_s=result.total_token_throughput,
            ttft_ms=result.latency("ttft"),
            tpot_ms=result.latency("tpot"),
            itl_ms=result.latency("itl"),
            e2el_ms=result.latency("e2el"),
            client_cpu_share=result.client_cpu_share,
            energy_j=result.energy_j,
        )
    except ValidationError as error:
        raise FailureError(f"{what}: {GENERATOR} gave no usable result") from error


def _last_line(error: str | None) -> str | None:
    """Return the last line of a traceback, which names the exception."""
    if error is None:
        return None
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:SHOWN_ERROR_CHARACTERS] if lines else None
