"""A benchmark with real servers that behave well or badly: what is recorded, and what is said."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from pipeline.core.errors import FailureError, InputError
from pipeline.core.process import free_port
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.params.serving import Endpoint, ServeParams
from pipeline.records.benchmarks import FailedModel, ServedModel
from pipeline.serving import endpoint
from pipeline.serving.load import LoadGenerator
from pipeline.serving.model_run import PARITY_NEW_TOKENS, ModelRun
from pipeline.serving.parity_check import Prompts, Reference
from pipeline.serving.servable import ServableModel
from pipeline.serving.server import Server
from pipeline.serving.server_pool import ServerPool, ServerSpec
from tests.models import tiny_llama
from tests.openai_server import OUT_OF_MEMORY, WORD
from tests.support import ROOT, serve_python

PROGRAM = ROOT / "tests" / "openai_server.py"
PROMPTS = Prompts(tokenizer=None, ids=[[5, 6, 7]] * 2)
CELL = ("text", 2)
# One text of the parity check for each prompt and one trial request come before any load.
BEFORE_THE_LOAD = 3
WARM_UP = 3  # one request of one user, two of two


def serve_params() -> ServeParams:
    values = read_params(ROOT / "params.yaml").model_dump(mode="json")
    sizes = {"prefix_tokens": 0, "input_tokens": 12, "output_tokens": 8}
    values["serve"]["scenarios"] = {"text": {**sizes, "concurrency": [1, 2]}}
    return Params.model_validate_json(json.dumps(values), strict=True).serve


SERVE = serve_params()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model_run") / "model")


@pytest.fixture(scope="module")
def generator(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadGenerator]:
    serve_python()
    log_path = tmp_path_factory.mktemp("logs") / "load.log"
    level = SERVE.service_level
    with LoadGenerator(model_dir, service_level=level, log_path=log_path) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ServerPool]:
    with ServerPool(free_bytes=lambda: 1 << 40) as running:
        yield running


def serving(
    directory: Path, behaviour: str, num_good: int = 0
) -> AbstractContextManager[Future[Server]]:
    port = free_port()
    command = (sys.executable, str(PROGRAM), str(port), behaviour, str(num_good))
    return endpoint.serve(
        behaviour,
        Endpoint(
            url=f"http://127.0.0.1:{port}",
            model="m",
            serves="base",
            command=command,
            api_key_variable=None,
        ),
        timeout_s=30,
        log_path=directory / f"{behaviour}.log",
    )


def model_run(
    directory: Path, model_dir: Path, behaviour: str, num_good: int = 0, *, word: str = WORD
) -> ModelRun:
    return ModelRun(
        ServableModel(behaviour, "ab" * 32, model_dir, file_type=None),
        ServerSpec(behaviour, 0, partial(serving, directory, behaviour, num_good)),
        kv_cache_bytes=1 << 20,
        reference=Reference("transformers", [word * PARITY_NEW_TOKENS] * 2, 512),
    )


def start_and_warm_up(run: ModelRun, pool: ServerPool, generator: LoadGenerator) -> None:
    run.start(pool, PROMPTS)
    run.warm_up(pool, generator, SERVE)


@pytest.mark.slow
def test_a_good_server_is_measured_in_rounds(
    tmp_path: Path, model_dir: Path, pool: ServerPool, generator: LoadGenerator
) -> None:
    base, other = (model_run(tmp_path, model_dir, "good") for _ in range(2))
    other.spec = ServerSpec("other", 0, other.spec.serve)
    for it in (base, other):
        start_and_warm_up(it, pool, generator)
    for seed in (1, 2, 3):
        for it in (base, other):
            it.run_round(pool, generator, SERVE, CELL, seed)
    result = other.result(base)
    assert isinstance(result, ServedModel)
    (load,) = result.loads
    assert [it.completed for it in load.rounds] == [2, 2, 2]
    assert [it.output_tokens for it in load.rounds] == [16, 16, 16]
    assert result.parity_check.num_matches == 2
    assert result.problem is None
    assert result.memory is not None
    assert 1 << 20 < result.memory.resident < 1 << 30
    assert load.over_base is not None
    assert 0.4 < load.over_base.median < 2.5
    assert load.over_base.low is not None
    for it in load.rounds:
        assert it.failed == 0
        assert 8 * 2 <= it.e2el_ms.p50 < 2000
        assert it.good_requests_per_s == pytest.approx(it.requests_per_s)
        assert 0 < it.client_cpu_share <= 1.5
    own = base.result(base)
    assert isinstance(own, ServedModel)
    assert own.loads[0].over_base is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("error", "none of 2 requests was answered: Internal Server Error"),
        ("garbage", "none of 2 requests was answered: "),
        ("die", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_server_that_fails_in_the_middle_keeps_its_earlier_rounds(
    tmp_path: Path,
    model_dir: Path,
    pool: ServerPool,
    generator: LoadGenerator,
    behaviour: str,
    said: str,
) -> None:
    first_round = 2
    it = model_run(tmp_path, model_dir, behaviour, BEFORE_THE_LOAD + WARM_UP + first_round)
    start_and_warm_up(it, pool, generator)
    for seed in (1, 2):
        assert it.is_running
        it.run_round(pool, generator, SERVE, CELL, seed)
    assert not it.is_running
    assert not pool.is_running(it.spec.name)
    result = it.result(it)
    assert isinstance(result, ServedModel)
    assert len(result.loads[0].rounds) == 1
    assert result.problem is not None
    assert said in result.problem
    assert "\n" not in result.problem


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up_and_the_next_one_is_measured(
    tmp_path: Path, model_dir: Path, pool: ServerPool, generator: LoadGenerator
) -> None:
    scenario = SERVE.scenarios["text"]
    with (
        serving(tmp_path, "hang", num_good=1) as hanging,
        pytest.raises(FailureError, match="no end after 3 s; the server hangs"),
    ):
        generator.run(hanging.result(), scenario, users=1, requests_per_user=1, seed=1, timeout_s=3)
    it = model_run(tmp_path, model_dir, "good")
    start_and_warm_up(it, pool, generator)
    it.run_round(pool, generator, SERVE, CELL, 1)
    assert isinstance(it.result(it), ServedModel)


@pytest.mark.slow
def test_a_server_killed_from_outside_says_so(
    tmp_path: Path, model_dir: Path, pool: ServerPool, generator: LoadGenerator
) -> None:
    it = model_run(tmp_path, model_dir, "good")
    start_and_warm_up(it, pool, generator)
    assert it.server is not None
    assert it.server.process is not None
    os.kill(it.server.process.pid, signal.SIGKILL)
    it.server.process.wait()
    it.run_round(pool, generator, SERVE, CELL, 1)
    assert it.problem is not None
    assert "was ended by SIGKILL, which Linux does when memory runs out" in it.problem
    result = it.result(it)
    assert isinstance(result, FailedModel)


@pytest.mark.parametrize("behaviour", ["error", "garbage", "die"])
def test_a_server_that_fails_at_once_is_recorded_as_failed(
    tmp_path: Path, model_dir: Path, pool: ServerPool, behaviour: str
) -> None:
    it = model_run(tmp_path, model_dir, behaviour)
    it.start(pool, PROMPTS)
    result = it.result(it)
    assert isinstance(result, FailedModel)
    assert "\n" not in result.problem
    if behaviour == "die":
        assert OUT_OF_MEMORY.partition(".")[2] in result.problem


def test_a_server_with_another_models_text_is_not_measured(
    tmp_path: Path, model_dir: Path, pool: ServerPool
) -> None:
    it = model_run(tmp_path, model_dir, "good", word=" other")
    it.start(pool, PROMPTS)
    assert it.problem is not None
    assert "none of 2 texts is what transformers writes with these weights" in it.problem


def test_a_command_is_not_credited_with_another_servers_answers(tmp_path: Path) -> None:
    with serving(tmp_path, "good") as server:
        taken = Endpoint(
            url=server.result().url,
            model="m",
            serves="base",
            command=("true",),
            api_key_variable=None,
        )
        with (
            pytest.raises(InputError, match="the port is taken by another program"),
            endpoint.serve("mine", taken, timeout_s=5, log_path=tmp_path / "log"),
        ):
            pass


def test_a_server_that_runs_already_is_left_running(tmp_path: Path) -> None:
    with serving(tmp_path, "good") as server:
        there = Endpoint(
            url=server.result().url, model="m", serves="base", command=None, api_key_variable=None
        )
        for _ in range(2):
            with endpoint.serve("mine", there, timeout_s=5, log_path=tmp_path / "log") as found:
                assert found.result().complete("Hello", max_tokens=2) == 2 * WORD


def test_a_key_that_is_not_set_is_named(tmp_path: Path) -> None:
    wanted = Endpoint(
        url="http://127.0.0.1:9", model="m", serves="base", command=None, api_key_variable="NO_KEY"
    )
    with (
        pytest.raises(InputError, match="api_key_variable = NO_KEY: not set; export it"),
        endpoint.serve("mine", wanted, timeout_s=5, log_path=tmp_path / "log"),
    ):
        pass
