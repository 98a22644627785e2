"""Load on a server: `vllm bench serve` against the OpenAI API, the same for every engine.

Requests are random tokens of a fixed length, each sent as soon as a user is free, and every answer
has the same length because the end of text is ignored.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.adapters.engine import OFFLINE, SERVE_PYTHON, SERVED_NAME, Server
from pipeline.adapters.process import last_lines, run_program
from pipeline.domain.errors import FailureError
from pipeline.domain.serving import Latency, LoadResult

METRICS = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50, 95, 99)


class BenchResult(BaseModel):
    """The part of the load generator's result file that is used.

    Its latencies have keys like `mean_ttft_ms` and `p95_ttft_ms`; they stay among the extra keys,
    where `latency` finds them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    completed: int
    failed: int
    duration: float
    total_input_tokens: int
    total_output_tokens: int
    output_throughput: float
    total_token_throughput: float

    def latency(self, metric: str) -> Latency:
        extra = self.model_extra or {}
        names = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
        return Latency.model_validate({name: extra.get(f"{name}_{metric}_ms") for name in names})


def run_loads(
    server: Server,
    *,
    tokenizer_dir: Path,
    concurrency: Sequence[int],
    requests_per_user: int,
    input_tokens: int,
    output_tokens: int,
) -> tuple[LoadResult, ...]:
    """One load after the other, for each number of users in `concurrency`.

    Every user sends one unmeasured request and then `requests_per_user`. The load generator's log
    goes beside the server's. Raises FailureError when no request of a load is answered.
    """
    log_path = server.log_path.with_suffix(".load.log")
    with TemporaryDirectory() as result_dir:
        run_program(
            [
                SERVE_PYTHON,
                "-m",
                "quantline_vllm.bench",
                "--users",
                *map(str, concurrency),
                f"--requests-per-user={requests_per_user}",
                f"--base-url={server.url}",
                "--endpoint=/v1/completions",
                f"--model={SERVED_NAME}",
                f"--tokenizer={tokenizer_dir}",
                "--dataset-name=random",
                f"--random-input-len={input_tokens}",
                f"--random-output-len={output_tokens}",
                "--temperature=0",
                # A connection kept for the next request may be closed by the server just as that
                # request is sent; a new one for each request cannot be.
                "--header",
                "Connection=close",
                f"--percentile-metrics={','.join(METRICS)}",
                f"--metric-percentiles={','.join(map(str, PERCENTILES))}",
                "--save-result",
                f"--result-dir={result_dir}",
                "--disable-tqdm",
            ],
            log_path=log_path,
            environment={**OFFLINE, "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""},
        )
        return tuple(
            parsed(Path(result_dir) / f"{users}.json", concurrency=users, log_path=log_path)
            for users in concurrency
        )


def parsed(path: Path, *, concurrency: int, log_path: Path) -> LoadResult:
    """The typed form of a result file. Raises FailureError when it is not one, or holds nothing."""
    try:
        result = BenchResult.model_validate_json(path.read_bytes())
        if result.completed == 0:
            raise FailureError(
                f"load with {concurrency} users: none of {result.failed} requests was answered: "
                f"{last_lines(log_path)}"
            )
        return LoadResult(
            concurrency=concurrency,
            completed=result.completed,
            failed=result.failed,
            duration_s=result.duration,
            input_tokens=result.total_input_tokens,
            output_tokens=result.total_output_tokens,
            output_tokens_per_s=result.output_throughput,
            total_tokens_per_s=result.total_token_throughput,
            ttft_ms=result.latency("ttft"),
            tpot_ms=result.latency("tpot"),
            itl_ms=result.latency("itl"),
            e2el_ms=result.latency("e2el"),
        )
    except (OSError, ValidationError) as error:
        raise FailureError(
            f"load with {concurrency} users: no usable result: {last_lines(log_path)}"
        ) from error
