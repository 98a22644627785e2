"""llama.cpp's server answers like llama.cpp in this process, and says what it runs."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from gguf import GGUFReader

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import FailureError
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.gguf import files as gguf
from pipeline.params.params import GgufType
from pipeline.params.serving import Scenario, ServiceLevel
from pipeline.serving import llama_cpp
from pipeline.serving.load import LoadGenerator
from pipeline.serving.parity_check import reference_texts, served_texts
from pipeline.serving.server import Server, local_session
from tests.models import tiny_llama
from tests.support import serve_python

pytestmark = pytest.mark.slow


SAMPLING = {"repetition_penalty": 1.3, "temperature": 0.7, "top_p": 0.9, "top_k": 20}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose generation_config.json has sampling values, which go into the GGUF file."""
    model = tiny_llama(tmp_path_factory.mktemp("llama") / "base", hidden=256)
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SAMPLING))
    return model


@pytest.fixture(scope="module")
def model_path(base_dir: Path) -> Path:
    full_path = base_dir.parent / "full.gguf"
    gguf.convert(base_dir, full_path, model_name="tiny", pre_tokenizer="gpt-2", weight_names=())
    path = base_dir.parent / "model-Q8_0.gguf"
    gguf.quantize(full_path, path, GgufType.Q8_0, {})
    return path


@contextmanager
def serving(path: Path, log_path: Path, *, port: int | None = None) -> Iterator[Server]:
    serve_python()
    with llama_cpp.serve(
        path,
        name="tiny",
        file_type="Q8_0",
        context_tokens=128,
        users=2,
        port=port,
        timeout_s=60,
        log_path=log_path,
    ) as answer:
        yield answer.result()


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(model_path, tmp_path_factory.mktemp("logs") / "tiny.log") as running:
        yield running


def test_it_says_what_runs(server: Server) -> None:
    assert server.engine == "llama.cpp"
    assert server.engine_version.startswith("xllamacpp 2026")
    assert server.kernel.startswith("CPU: ")
    assert server.dtype == "Q8_0"
    assert server.command[:2] == ("llama-server", "--model=model-Q8_0.gguf")


def test_its_greedy_text_is_that_of_the_file(
    server: Server, model_path: Path, base_dir: Path
) -> None:
    tokenizer = tokenizer_of(base_dir)
    prompts = [tokenizer.encode(text) for text in ("the baker", "a small red", "la panadera")]
    scorer = LlamaCppScorer(model_path, label="tiny")
    expected = reference_texts(scorer, tokenizer, prompts, max_new_tokens=8)
    scorer.close()
    served = served_texts(server, prompts, max_new_tokens=8)
    assert sum(a == b for a, b in zip(served, expected, strict=True)) >= 2


def test_its_text_has_no_part_of_the_sampling_values_in_the_file(
    server: Server, model_path: Path
) -> None:
    """A request that states temperature 0 alone is answered by the file's repetition penalty."""
    stated = {
        field.name.removeprefix("general.sampling."): field.contents()
        for field in GGUFReader(model_path).fields.values()
        if field.name.startswith("general.sampling.")
    }
    assert stated["penalty_repeat"] == pytest.approx(1.3)
    prompt = [5, 6, 7, 5, 6, 7]
    body = {"prompt": prompt, "max_tokens": 40, "temperature": 0}
    answer = local_session().post(f"{server.url}/v1/completions", json=body, timeout=30).json()
    with closing(LlamaCppScorer(model_path, label="tiny")) as scorer:
        (ids,) = scorer.greedy([prompt], max_new_tokens=40, finished=lambda _: False)
    tokenizer = tokenizer_of(model_path.parent / "base")
    expected = tokenizer.decode(ids)
    assert server.complete(prompt, max_tokens=40)[:20] == expected[:20]
    assert answer["choices"][0]["text"][:20] != expected[:20]


def test_the_same_load_generator_drives_it(server: Server, base_dir: Path, tmp_path: Path) -> None:
    scenario = Scenario(prefix_tokens=20, input_tokens=20, output_tokens=10, concurrency=(2,))
    level = ServiceLevel(ttft_ms=1000, tpot_ms=100)
    log_path = tmp_path / "load.log"
    with LoadGenerator(base_dir, service_level=level, log_path=log_path) as generator:
        load = generator.run(server, scenario, users=2, requests_per_user=2, seed=1, timeout_s=120)
    assert (load.completed, load.failed, load.output_tokens) == (4, 0, 40)


def test_an_answer_has_the_tokens_that_were_asked_for(server: Server) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    answer = local_session().post(f"{server.url}/v1/completions", json=body, timeout=30).json()
    assert answer["usage"]["completion_tokens"] == 30


def test_a_port_can_be_used_again_at_once(model_path: Path, tmp_path: Path) -> None:
    with serving(model_path, tmp_path / "first.log") as first:
        port = int(first.url.rpartition(":")[2])
    with serving(model_path, tmp_path / "second.log", port=port) as second:
        assert second.url == first.url


def test_a_file_that_is_no_gguf_fails_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model-Q8_0.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with (
        pytest.raises(FailureError, match=r"llama\.cpp with tiny: ") as caught,
        serving(path, tmp_path / "log"),
    ):
        pass
    assert "\n" not in str(caught.value)
