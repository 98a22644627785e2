"""The command line: wrong input is one line on standard error and the promised exit code."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.files import file_sha256
from pipeline.core.workspace import BASE, PARAMS_FILE
from pipeline.params.reading import read_params
from tests.commands import COMMANDS
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


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_of_any_command_is_one_line(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = COMMANDS[name].callback
    assert command
    package = "stages" if (ROOT / f"pipeline/stages/{command.__name__}.py").exists() else "verbs"
    monkeypatch.setattr(f"pipeline.{package}.{command.__name__}.run", interrupt)
    code = main(examples(name)[0])
    assert code == 130
    assert capsys.readouterr().err == (
        f"quantline {name}: interrupted; run the same command to go on\n"
    )


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("pipeline.params.reading.read_workspace", "quantline fetch"),
        ("typer.main.get_group", "quantline"),
        ("pipeline.cli_app.CommandGroups.make_context", "quantline"),
    ],
)
def test_an_interrupt_before_a_command_begins_is_one_line(
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    said: str,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, interrupt)
        assert main(["fetch"]) == 130
    assert capsys.readouterr().err == f"{said}: interrupted; run the same command to go on\n"
    assert main(["fetch"]) == 0


@pytest.mark.parametrize("program", [["quantline"], [sys.executable, "-m", "pipeline.cli"]])
def test_an_interrupt_while_modules_load_is_one_line(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "typer.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run(
        [*program, "ls"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert done.stderr == "quantline: interrupted; run the same command to go on\n"


def examples(name: str) -> list[list[str]]:
    """The arguments of every example in the help of a command."""
    words = [shlex.split(line) for line in (COMMANDS[name].epilog or "").splitlines()]
    assert all(line[:2] == ["quantline", name] for line in words)
    return [line[1:] for line in words]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_that_are_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert f"  {shlex.join(['quantline', *examples(name)[0]])}" in lines
    for example in examples(name):
        COMMANDS[name].make_context(name, example[1:])  # parses it and runs nothing


def test_the_help_lists_every_command_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert text.isascii()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    commands = lines[lines.index("Stages, in the order in which `dvc repro` runs them:") :]
    named = [line.split()[0] for line in commands if line.startswith("  ") and line[2] != " "]
    assert named == list(COMMANDS)


def test_help_loads_no_model_library() -> None:
    program = (
        "import sys; from pipeline.cli import main; main(['--help']); "
        "print({'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "quantline: missing command (expected: quantline [OPTIONS] COMMAND [ARGS]..."),
        (["evalute"], "quantline: no such command 'evalute'. Did you mean 'evaluate'? (exp"),
        (["quantize"], "quantline quantize: missing argument 'NAME' (expected: quantline quantize"),
        (["evaluate"], "(expected: quantline evaluate [OPTIONS] NAME...); add --help to see h"),
        (["fetch", "x"], "quantline fetch: got unexpected extra argument(s) (x) (expected: "),
        (["plan", "--x"], "quantline plan: no such option: --x (expected: quantline plan [OPT"),
        (["pull", "x"], "quantline pull: missing option '--to'. Choose from: vllm, ollama, dir ("),
        (["pull", "x", "--to", "y"], "value for '--to': 'y' is not one of 'vllm', 'ollama', 'dir'"),
        (["pull", "x", "--to"], "quantline pull: option '--to' requires an argument; add --help t"),
        (["-C"], "quantline: option '-C' requires an argument; add --help to see how"),
        (["-C", "gone", "ls"], "quantline ls: -C gone: No such file or directory; expected a work"),
        (["evalu\nte\x1b[1m"], "quantline: no such command 'evalu"),
    ],
)
def test_wrong_usage_is_one_line(
    workspace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip("\n").isprintable()


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"quantline {version('quantline')}\n"


def test_a_command_runs_in_the_workspace_that_it_is_told(
    workspace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert main(["-C", str(workspace), "fetch"]) == 0
    assert (workspace / "artifacts" / "base.manifest.json").exists()
    assert Path.cwd() == elsewhere
    assert not list(elsewhere.iterdir())


def completed(text: str) -> list[str]:
    """What bash offers after `text`."""
    words = text.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli"],
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "_QUANTLINE_COMPLETE": "complete_bash",
            "COMP_WORDS": text,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_a_shell_completes_commands_and_variants(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = list(read_params(workspace / PARAMS_FILE).variants)
    assert completed("quantline ev") == ["evaluate"]
    assert completed("quantline quantize ") == completed("quantline explain ") == variants
    assert completed("quantline evaluate ") == [BASE, *variants]
    assert completed("quantline evaluate base gptq") == ["gptq-w4-g128"]
    monkeypatch.chdir("/")
    assert completed("quantline quantize ") == []
    assert completed(f"quantline -C {workspace} quantize aw") == ["awq-w4-g128"]


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
        converter = started_program(stage, "gguf.convert")
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
