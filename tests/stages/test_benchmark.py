"""benchmark on tiny models: what it serves, what it skips, and what it refuses to begin."""

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import FailureError, InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, write_record
from pipeline.core.process import free_port
from pipeline.core.workspace import BASE, Workspace
from pipeline.gguf import files as gguf
from pipeline.params.params import GgufParams, PackedJudge, Params
from pipeline.records.benchmarks import Benchmarks, FailedModel, ServedModel, SkippedModel
from pipeline.records.selection import Verdict
from pipeline.records.variant import VariantRecord
from pipeline.serving import servable
from pipeline.serving.server_pool import ServerPool
from pipeline.stages import benchmark
from tests.models import tiny_llama
from tests.support import serve_python
from tests.workspace import MadeRun, make_workspace, verdict_on, write_evaluation, write_selection

APPROVED, REJECTED = "gguf-q8-0", "gguf-q2-k"
SCENARIO = {"prefix_tokens": 0, "input_tokens": 32, "output_tokens": 8, "concurrency": [1, 2]}
LIGHT = {"scenarios": {"text": SCENARIO}, "base_dtypes": ["float32"], "max_rounds": 3}
TEXT = '{"text": "the baker of the old town sells bread and salt near the river"}\n'


def with_params(made: MadeRun, **serve: object) -> Params:
    """The parameters with a light load and held-out text of the workspace."""
    (made.workspace.root / "heldout.jsonl").write_text(TEXT * 60)
    values = made.params.model_dump(mode="json")
    values["serve"] |= LIGHT | serve
    values["evaluate"]["text"] = "heldout.jsonl"
    return Params.model_validate(values)


def with_real_gguf(made: MadeRun, name: str) -> None:
    """Put llama.cpp's own file in the place of the variant's stand-in, and approve it."""
    workspace, recipe = made.workspace, made.params.variants[name]
    assert isinstance(recipe, GgufParams)
    model_dir = workspace.model_dir(name)
    full_path = workspace.root / "full.gguf"
    gguf.convert(
        workspace.base_dir, full_path, model_name="t", pre_tokenizer="gpt-2", weight_names=()
    )
    gguf.quantize(full_path, model_dir / f"model-{recipe.type}.gguf", recipe.type, {})
    path = workspace.variant_path(name)
    stand_in = VariantRecord.from_bytes(path.read_bytes(), source=name)
    files = directory_records(model_dir)
    record = stand_in.model_copy(update={"files": files, "digest": tree_digest(files)})
    write_record(path, record)
    evaluation = write_evaluation(workspace, name, record.digest, harm=0.001)
    verdict = verdict_on(evaluation, record, Verdict.APPROVED, harm=0.001)
    write_selection(workspace, {name: verdict})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Benchmarks:
    """The record of a run; the tiny base's head size of 16 is one that vLLM does not have."""
    serve_python()
    root = tmp_path_factory.mktemp("benchmark")
    made = make_workspace(root, {APPROVED: Verdict.APPROVED, REJECTED: Verdict.REJECTED})
    with_real_gguf(made, APPROVED)
    benchmark.run(made.workspace, with_params(made))
    data = made.workspace.benchmarks_path.read_bytes()
    return Benchmarks.from_bytes(data, source="benchmarks")


@pytest.mark.slow
def test_a_model_that_vllm_does_not_support_is_skipped_and_the_run_goes_on(
    served: Benchmarks,
) -> None:
    assert list(served.models) == [BASE, APPROVED]
    base = served.models[BASE]
    assert isinstance(base, SkippedModel)
    assert "head_dim=16" in base.reason


@pytest.mark.slow
def test_an_approved_gguf_is_measured_at_every_number_of_users(served: Benchmarks) -> None:
    model = served.models[APPROVED]
    assert isinstance(model, ServedModel)
    assert (model.engine, model.dtype) == ("llama.cpp", "Q8_0")
    assert served.complete
    assert [load.concurrency for load in model.loads] == [1, 2]
    for load in model.loads:
        assert [it.output_tokens for it in load.rounds] == [8 * load.concurrency] * 3
        assert load.over_base is None  # the base was skipped
    assert model.parity_check.reference == "llama.cpp"
    assert model.parity_check.num_matches >= model.parity_check.num_prompts // 2
    assert served.machine.cores >= 1


@pytest.mark.slow
def test_a_context_too_short_for_the_load_is_a_reason_to_skip(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, {})
    long = {"text": SCENARIO | {"input_tokens": 2000}}
    benchmark.run(made.workspace, with_params(made, scenarios=long))
    data = made.workspace.benchmarks_path.read_bytes()
    base = Benchmarks.from_bytes(data, source="benchmarks").models[BASE]
    assert isinstance(base, SkippedModel)
    assert base.reason.startswith("its context has 1024 tokens, the load needs 2032")


def test_a_taken_port_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, {})
    made.workspace.benchmarks_path.unlink()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"serve.port = {port}: taken"):
            benchmark.run(made.workspace, with_params(made, port=port))
    assert not made.workspace.benchmarks_path.exists()


def test_files_that_were_not_approved_are_refused(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, {APPROVED: Verdict.APPROVED})
    path = made.workspace.variant_path(APPROVED)
    record = VariantRecord.from_bytes(path.read_bytes(), source=APPROVED)
    write_record(path, record.model_copy(update={"digest": "ab" * 32}))
    with pytest.raises(InputError, match="not the files that were approved"):
        benchmark.run(made.workspace, with_params(made))


@pytest.mark.slow
def test_too_little_memory_for_the_expected_text_is_one_line_before_a_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_workspace(tmp_path, {})
    made.workspace.benchmarks_path.unlink()
    monkeypatch.setattr(servable, "memory_for_servers", lambda: 1000)
    with pytest.raises(
        FailureError, match=r"^base: the engine that scored it needs .* are free"
    ) as it:
        benchmark.run(made.workspace, with_params(made))
    assert "\n" not in str(it.value)
    assert not made.workspace.benchmarks_path.exists()


def test_memory_that_torch_does_not_get_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_workspace(tmp_path, {})

    def huge(_: Path) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(servable, "unpacked_model", huge)
    with pytest.raises(FailureError, match=r"^benchmark: base: memory ran out; use a") as it:
        benchmark.run(made.workspace, with_params(made))
    assert "\n" not in str(it.value)


@pytest.mark.slow
def test_all_texts_are_written_and_models_closed_before_a_server_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file's once, one model at a time; an endpoint is compared with what it serves."""
    made = make_workspace(tmp_path, {APPROVED: Verdict.APPROVED})
    with_real_gguf(made, APPROVED)
    events: list[str] = []
    for kind in (servable.TransformersScorer, servable.LlamaCppScorer):
        monkeypatch.setattr(kind, "close", noting(kind.close, f"{kind.backend} closed", events))
    monkeypatch.setattr(ServerPool, "server", noting(ServerPool.server, "server", events))
    mine = {
        "url": f"http://127.0.0.1:{free_port()}",
        "model": "m",
        "serves": BASE,
        "command": None,
        "api_key_variable": None,
    }
    params = with_params(made, endpoints={"mine": mine}, startup_timeout_s=1)
    with pytest.raises(FailureError):
        benchmark.run(made.workspace, params)
    assert events[:2] == ["transformers closed", "llama.cpp closed"]
    assert set(events[2:]) == {"server"}


def noting(method: Callable[..., Any], event: str, events: list[str]) -> Callable[..., Any]:
    """The method, which writes down that it was called."""

    def noted(*arguments: Any, **keywords: Any) -> Any:
        events.append(event)
        return method(*arguments, **keywords)

    return noted


@pytest.mark.slow
def test_a_checkpoint_is_compared_with_the_engine_that_scored_it(tmp_path: Path) -> None:
    serve_python()
    workspace = Workspace(tmp_path)
    tiny_llama(workspace.base_dir, heads=2)
    base = servable.ServableModel(BASE, "ab" * 32, workspace.base_dir, file_type=None)
    for packed_judge in (PackedJudge.VLLM, PackedJudge.TRANSFORMERS):
        with closing(servable.scorer_of(workspace, base, packed_judge)) as scorer:
            assert scorer.backend == packed_judge


@pytest.mark.slow
def test_an_endpoint_that_cannot_be_reached_leaves_a_partial_result(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, {})
    nobody = {
        "url": f"http://127.0.0.1:{free_port()}",
        "model": "m",
        "serves": BASE,
        "command": None,
        "api_key_variable": None,
    }
    long = {"text": SCENARIO | {"input_tokens": 400}}
    params = with_params(made, scenarios=long, endpoints={"mine": nobody})
    with pytest.raises(FailureError, match=r"no completion: .*marked as partial") as caught:
        benchmark.run(made.workspace, params)
    assert "\n" not in str(caught.value)
    data = made.workspace.benchmarks_path.read_bytes()
    record = Benchmarks.from_bytes(data, source="benchmarks")
    assert not record.complete
    assert isinstance(record.models["mine"], FailedModel)
