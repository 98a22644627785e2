"""The command line: wrong input is one line on standard error and the promised exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.adapters.files import file_sha256
from pipeline.cli import main
from pipeline.domain.layout import PARAMS_FILE
from tests.killed import is_running, started_program
from tests.models import tiny_llama
from tests.support import ROOT


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose params.yaml is the repository's, with a tiny model as its source."""
    shutil.copytree(ROOT / "eval", tmp_path / "eval")
    shutil.copytree(ROOT / "demo" / "data", tmp_path / "demo" / "data")
    tiny_llama(tmp_path / "model")
    params = (ROOT / PARAMS_FILE).read_text().replace("source: demo", "source: model")
    (tmp_path / PARAMS_FILE).write_text(params)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(workspace: Path, old: str, new: str) -> None:
    path = workspace / PARAMS_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def fails_with(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and the one line on standard error that explains it."""
    code = main(arguments)
    lines = capsys.readouterr().err.splitlines()
    problem = [line for line in lines if line.startswith(f"quantline {arguments[0]}: ")]
    assert len(problem) == 1, lines
    return code, problem[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  seed: 0", "  seed: 0\n  sed: 1", "calibration.sed: unknown key"),
        ("  seed: 0", "  sed: 0", "calibration.sed: unknown key; seed was expected there"),
        ("num_bits: 4", "num_bits: four", "num_bits = 'four'"),
        ("seed: 0", 'seed: "0"', "calibration.seed = '0'"),
        ("group_size: 128", "group_size: 100", "group_size = 100"),
        ("demo/data/calibration.jsonl", "demo/nothing.jsonl", "demo/nothing.jsonl: no such file"),
        ("format: awq", "format: awk", "awk"),
        ("model:\n", "model: [\n", "not valid YAML"),
        ("version: 0.1.0", "version: one", "release.version = 'one'"),
        ("max_kl: 0.05", "max_kl: .nan", "gate.classes.4-bit.max_kl = nan"),
    ],
)
def test_a_wrong_parameter_stops_every_stage_at_once(
    workspace: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    edit(workspace, old, new)
    code, line = fails_with(capsys, "fetch")
    assert code == 2
    assert said in line
    assert not (workspace / "artifacts").exists()


def test_no_params_file_says_where_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = fails_with(capsys, "fetch")
    assert code == 2
    assert "params.yaml: missing" in line


def test_a_checkpoint_without_license_stops_at_fetch_and_goes_on_once_decided(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "model" / "README.md").unlink()
    text = (workspace / "model" / "LICENSE").rename(workspace / "owner.txt")
    code, line = fails_with(capsys, "fetch")
    assert code == 2
    assert "names no license, and there is no LICENSE" in line
    assert "license-decisions.yaml" in line
    decision = {
        "license": "mit",
        "text": text.name,
        "text_sha256": file_sha256(text),
        "decided_by": "Jane Doe",
        "decided_on": "2026-11-21",
        "reason": "the owner sent the text",
    }
    (workspace / "license-decisions.yaml").write_text(json.dumps({"tiny": decision}))
    edit(workspace, "license: null", "license: tiny")
    assert main(["fetch"]) == 0


def test_a_corrupt_header_and_a_missing_tokenizer_stop_at_fetch(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = workspace / "model" / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(b"\xff" * 8 + intact[8:])
    code, line = fails_with(capsys, "fetch")
    assert code == 2
    assert "model.safetensors" in line
    weights.write_bytes(intact)
    tokenizer = workspace / "model" / "tokenizer.json"
    kept = tokenizer.rename(workspace / "tokenizer.json")
    code, line = fails_with(capsys, "fetch")
    assert code == 2
    assert "no tokenizer" in line
    kept.rename(tokenizer)
    assert main(["fetch"]) == 0


def test_an_interrupt_is_one_line_and_the_rerun_succeeds(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.fetch.run", interrupt)
        code, line = fails_with(capsys, "fetch")
    assert code == 130
    assert "interrupted" in line
    assert main(["fetch"]) == 0


@pytest.mark.slow
def test_a_stage_that_is_told_to_end_takes_what_it_started_with_it(workspace: Path) -> None:
    edit(workspace, "num_calibration_samples: 128", "num_calibration_samples: 8")
    assert main(["fetch"]) == main(["calibrate"]) == 0
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "quantize", "gguf-q8-0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as stage:
        converter = started_program(stage, "gguf_convert")
        stage.send_signal(signal.SIGTERM)
        _, error = stage.communicate(timeout=60)
    assert stage.returncode == 130
    assert error.splitlines()[-1].endswith("interrupted; run the same command to go on")
    assert not is_running(converter)


def test_a_stage_run_too_early_names_the_one_before(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("calibrate", "select", "package"):
        code, line = fails_with(capsys, stage)
        assert code == 2
        assert "run `quantline " in line
