"""A real model from a hub through every stage, by `dvc repro`, with another params file."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import pytest
from ruamel.yaml import YAML

from benchmarks.babyllama import SUITE, make_workspace
from pipeline.core.workspace import Workspace
from pipeline.params.suites import SUITES_FILE
from pipeline.records.selection import Selection
from pipeline.records.variant import VariantRecord
from tests.forks import ForkServer, Libraries, forked_program
from tests.hub_server import COMMIT, Hub, serve_hub
from tests.support import serve_python, shared_dir

REPO = "EN10/BabyLlama"
VARIANTS = ("awq-w4-g32", "gguf-q4-k-m")  # one of each kind: the graph runs both alike
STAGES = (
    "pipeline.commands",
    *(f"pipeline.stages.{name}" for name in ("calibrate", "quantize", "evaluate", "benchmark")),
    "pipeline.quantization.other_quantizers",
)


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory,
    libraries: Callable[[], Libraries],
    python_of_forks: Path,
    vllm_server: Callable[[], socket],
) -> Workspace:
    """The workspace after one `dvc repro` against a hub on this machine."""
    model_dir = shared_dir() / "models" / "babyllama-105"
    serve_python()
    root = tmp_path_factory.mktemp("babyllama")
    made = make_workspace(root, source=f"hf:{REPO}@{COMMIT}", variants=VARIANTS)
    shorten(made)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    quantline = tmp_path_factory.mktemp("bin") / "quantline"
    with (
        serve_hub(Hub({REPO: model_dir})) as hub,
        libraries().fork_server("tests.vllm_programs", *STAGES, python=python_of_forks) as forks,
        forked_stages(quantline, root, forks, vllm_server()),
    ):
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root / "hf")}
        result = dvc_repro(root, **environment, PATH=str(quantline.parent))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return made


def shorten(workspace: Workspace) -> None:
    """Leave of the benchmark's texts and rounds what verdicts on these variants need."""
    yaml = YAML()
    suites_path = workspace.root / SUITES_FILE
    suites = yaml.load(suites_path)
    kept = ("tinystories", "principle_A_case_1")
    suite = suites["suites"][SUITE]
    suite["tasks"] = [task for task in suite["tasks"] if task["name"] in kept]
    assert len(suite["tasks"]) == len(kept)
    yaml.dump(suites, suites_path)
    params = yaml.load(workspace.params_path)
    params["evaluate"] |= {"num_windows": 16, "max_documents": 250}
    params["serve"] |= {"max_rounds": 3, "time_budget_s": 5}
    yaml.dump(params, workspace.params_path)


@contextmanager
def forked_stages(path: Path, root: Path, forks: ForkServer, vllm: socket) -> Iterator[None]:
    """A `quantline` at `path` runs each stage in a fork, without the seconds of its imports.

    fetch is the real program, because it is not offline. tests/test_graph.py and tests/test_cli.py
    start the others as a user does. `vllm` is asked for vLLM's programs.
    """

    def run(command: list[str], log_path: Path) -> int:
        return forks.run(
            "tests.vllm_programs",
            "run_command",
            ["-C", str(root), *command],
            log_path=log_path,
            files=[vllm.fileno()],
        )

    with forked_program(path, run, forked="[!f]*", otherwise=f"{sys.executable} -m pipeline.cli"):
        yield


def dvc_repro(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["dvc", "repro"],
        cwd=root,
        env={**os.environ, **environment, "PATH": f"{environment.get('PATH', '')}:{path}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_variant_is_approved_and_published(workspace: Workspace) -> None:
    selection = Selection.from_bytes(workspace.selection_path.read_bytes(), source="selection")
    assert set(selection.approved()) == set(VARIANTS)
    for name in VARIANTS:
        distance = selection.variants[name].distance
        assert distance is not None
        assert 0 < distance.kl < 0.05
    receipts = workspace.receipts_path.read_text()
    assert all(f"0.1.0-{name}" in receipts for name in VARIANTS)
    assert "babyllama" in workspace.report_path.read_text()


@pytest.mark.slow
def test_what_no_superblock_fits_is_said(workspace: Workspace) -> None:
    record = VariantRecord.from_bytes(
        workspace.variant_path("gguf-q4-k-m").read_bytes(), source="variant"
    )
    reasons = {row.name: row.reason for row in record.coverage}
    assert (reasons["blk.0.ffn_down.weight"] or "").startswith("rows of 352 do not divide by 256")


@pytest.mark.slow
def test_what_vllm_cannot_serve_is_skipped_with_its_reason(workspace: Workspace) -> None:
    models = json.loads(workspace.benchmarks_path.read_text())["models"]
    assert {"base", *VARIANTS} == set(models)
    for name in ("base", "awq-w4-g32"):
        assert "head" in json.dumps(models[name]).lower()
    assert [load["concurrency"] for load in models["gguf-q4-k-m"]["loads"]] == [1, 8]


@pytest.mark.slow
def test_a_second_run_looks_at_what_parameters_name_and_does_nothing(workspace: Workspace) -> None:
    result = dvc_repro(workspace.root)
    assert result.returncode == 0
    assert re.findall("Running stage '(.*)'", result.stdout) == ["inputs"]
