"""vLLM serves a packed checkpoint with the weights it stands for, and says what it runs."""

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.cli import main
from pipeline.core.environments import OFFLINE
from pipeline.core.errors import FailureError
from pipeline.core.process import Daemon, free_port
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.params.serving import Scenario, ServiceLevel
from pipeline.records.benchmarks import Benchmarks
from pipeline.records.selection import Verdict
from pipeline.serving import vllm
from pipeline.serving.load import LoadGenerator
from pipeline.serving.parity_check import reference_texts, served_texts
from pipeline.serving.server import Server, is_healthy, local_session
from pipeline.stages import package, publish
from tests.packed_models import tiny_packed
from tests.support import serve_python
from tests.workspace import MadeRun, make_workspace

NEW_TOKENS = 12
TEXTS = (
    "the baker of the old town",
    "a small red boat crosses",
    "la panadera del pueblo",
    "seven and five make",
)

SCENARIO = Scenario(prefix_tokens=0, input_tokens=40, output_tokens=10, concurrency=(1,))

pytestmark = pytest.mark.slow


def load_generator(model_dir: Path, directory: Path) -> LoadGenerator:
    level = ServiceLevel(ttft_ms=1000, tpot_ms=100)
    return LoadGenerator(model_dir, service_level=level, log_path=directory / "load.log")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose generation_config.json has sampling values."""
    model = tiny_packed(tmp_path_factory.mktemp("vllm") / "model", "awq", group_size=128)
    sampling = {"repetition_penalty": 1.3, "temperature": 0.7, "top_k": 20}
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sampling))
    return model


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    serve_python()
    with vllm.serve(
        model_dir,
        name="tiny",
        context_tokens=256,
        kv_cache_bytes=64 << 20,
        port=None,
        timeout_s=300,
        log_path=tmp_path_factory.mktemp("logs") / "tiny.log",
    ) as answer:
        yield answer.result()


def test_it_says_what_runs(server: Server) -> None:
    assert server.engine == "vllm"
    assert server.engine_version.startswith("0.32")
    assert server.dtype == "float16"
    assert "--model=." in server.command
    assert server.kernel not in ("", vllm.DENSE_KERNEL)
    assert server.startup_s > 1
    assert server.kv_cache_tokens is not None
    assert server.kv_cache_tokens >= 256
    assert server.process is not None
    assert server.process.resident_bytes() > 300 << 20


def test_its_greedy_text_is_that_of_the_unpacked_weights(server: Server, model_dir: Path) -> None:
    tokenizer = tokenizer_of(model_dir)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    scorer = TransformersScorer(unpacked_model(model_dir), label="tiny")
    expected = reference_texts(scorer, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
    served = served_texts(server, prompts, max_new_tokens=NEW_TOKENS)
    num_matches = sum(a == b for a, b in zip(served, expected, strict=True))
    # A random model is often undecided between two tokens, where half precision flips a few.
    assert num_matches >= len(TEXTS) - 2


@pytest.mark.usefixtures("own_settings")
def test_a_pulled_release_starts_with_the_command_in_its_card(
    server: Server, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_workspace(
        tmp_path,
        {"awq-w4-g128": Verdict.APPROVED},
        make_packed=partial(shutil.copytree, model_dir, dirs_exist_ok=True),
    )
    write_command(made, server.command)
    package.run(made.workspace, made.params)
    publish.run(made.workspace, made.params)
    tag = f"{made.params.release.version}-awq-w4-g128"
    ref = f"oci:{made.workspace.registry_dir}:{tag}"
    assert main(["pull", ref, "--to", "vllm", "--into", "pulled"]) == 0

    card = (tmp_path / "pulled" / "README.md").read_text()
    (command,) = [line for line in card.splitlines() if line.startswith("python -m vllm")]
    port = free_port()
    with Daemon(
        [serve_python(), *shlex.split(command)[1:], "--host=127.0.0.1", f"--port={port}"],
        log_path=tmp_path / "vllm.log",
        environment=vllm.ENVIRONMENT | OFFLINE,
        cwd=tmp_path / "pulled",
    ) as daemon:
        url = f"http://127.0.0.1:{port}"
        session = local_session()
        daemon.wait_until(lambda: is_healthy(session, url), timeout_s=300, what="vLLM")
        prompt = tokenizer_of(model_dir).encode(TEXTS[0])
        said = replace(server, url=url, model=".").complete(prompt, max_tokens=NEW_TOKENS)
        assert said == server.complete(prompt, max_tokens=NEW_TOKENS)


def write_command(made: MadeRun, command: tuple[str, ...]) -> None:
    """Let the benchmark have served every model with `command`."""
    path = made.workspace.benchmarks_path
    benchmarks = Benchmarks.from_bytes(path.read_bytes(), source="benchmarks")
    models = {
        name: it.model_copy(update={"command": command}) for name, it in benchmarks.models.items()
    }
    path.write_bytes(benchmarks.model_copy(update={"models": models}).to_bytes())


def test_a_load_counts_every_token(server: Server, model_dir: Path, tmp_path: Path) -> None:
    with load_generator(model_dir, tmp_path) as generator:
        one, two = (
            generator.run(
                server, SCENARIO, users=users, requests_per_user=2, seed=users, timeout_s=120
            )
            for users in (1, 2)
        )
    assert [load.completed for load in (one, two)] == [2, 4]
    assert [load.output_tokens for load in (one, two)] == [20, 40]
    for load in (one, two):
        assert load.failed == 0
        assert load.output_tokens_per_s == pytest.approx(load.output_tokens / load.duration_s)
        assert 0 < load.ttft_ms.p50 <= load.ttft_ms.p99 <= load.e2el_ms.p99
        assert load.tpot_ms.mean > 0
        assert load.client_cpu_share < 1.5


def test_a_load_that_nobody_answers_fails_in_one_line(tmp_path: Path, model_dir: Path) -> None:
    serve_python()
    url = f"http://127.0.0.1:{free_port()}"
    nobody = Server("nobody", url, "none", "0", (), tmp_path / "none.log")
    with (
        load_generator(model_dir, tmp_path) as generator,
        pytest.raises(FailureError, match="nobody with 1 users: none of 1 requests") as caught,
    ):
        generator.run(nobody, SCENARIO, users=1, requests_per_user=1, seed=0, timeout_s=120)
    assert "\n" not in str(caught.value)


def test_damaged_weights_fail_with_the_reason(tmp_path: Path) -> None:
    serve_python()
    model_dir = tiny_packed(tmp_path / "model", "gptq", group_size=128)
    weights = (model_dir / "model.safetensors").read_bytes()
    (model_dir / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with (
        pytest.raises(FailureError, match=r"vLLM with tiny: .*incomplete") as caught,
        vllm.serve(
            model_dir,
            name="tiny",
            context_tokens=64,
            kv_cache_bytes=64 << 20,
            port=None,
            timeout_s=300,
            log_path=tmp_path / "tiny.log",
        ) as answer,
    ):
        answer.result()
    assert "\n" not in str(caught.value)
