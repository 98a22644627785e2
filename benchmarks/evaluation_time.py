"""Time the evaluation of the base and five variants of the demo, beside six runs of `lm_eval`.

`python -m benchmarks.evaluation_time` makes a workspace of its own with the demo's parameters.
`quantline evaluate` scores the base and five variants in one process, and then in one process each,
as DVC runs it, without cached scores. `lm_eval` scores the same six models on the same tasks in one
process each. On a CPU lm-eval cannot read packed files, so it gets their weights in float32; their
unpacking is not timed. quantline's time includes work that lm-eval does not do: the distance to the
base on 32,768 tokens, and the conversion and scores of the base in llama.cpp. At the end one
variant changes, and DVC lists the stages that run again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from benchmarks.result import Row, publish
from benchmarks.stage_cost import children_cpu_s
from benchmarks.workspace import copy_repository
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.workspace import BASE, Workspace
from pipeline.params.reading import read_workspace
from pipeline.params.suites import read_suite
from pipeline.stages import calibrate, fetch, quantize

VARIANTS = ("awq-w4-g128", "gptq-w4-g128", "ct-w4a16-g128", "gguf-q8-0", "gguf-q4-k-m")
CHANGED = "awq-w4-g128"
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Cost:
    """The time of a process and its children, in seconds."""

    wall_s: float
    cpu_s: float


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        workspace = Workspace(Path(work) / "workspace")
        make_workspace(workspace)
        dense_dirs = {name: dense(workspace, name, Path(work)) for name in (BASE, *VARIANTS)}
        together = run(workspace, PROGRAMS / "quantline", "evaluate", BASE, *VARIANTS)
        shutil.rmtree(workspace.scores_cache_dir)
        ours = {
            name: run(workspace, PROGRAMS / "quantline", "evaluate", name)
            for name in (BASE, *VARIANTS)
        }
        theirs = {
            name: run(workspace, *lm_eval_command(workspace, path))
            for name, path in dense_dirs.items()
        }
        stages = rerun_stages(workspace)
    peer, apart = total(theirs), total(ours)
    rows = [
        Row("time_ratio", together.wall_s / peer.wall_s, None, None, "one run / lm_eval"),
        Row("cpu_ratio", together.cpu_s / peer.cpu_s, None, None, "one run / lm_eval"),
        Row("time_ratio_apart", apart.wall_s / peer.wall_s, None, None, "six runs / lm_eval"),
        Row("cpu_ratio_apart", apart.cpu_s / peer.cpu_s, None, None, "six runs / lm_eval"),
        Row("quantline_all", together.wall_s, None, None, "s"),
    ]
    for who, costs in (("quantline", ours), ("lm_eval", theirs)):
        for name, cost in costs.items():
            rows.append(Row(f"{who}_{name}", cost.wall_s, None, None, "s"))
    rows.append(Row("stages_rerun", len(stages), None, None, f"after a change of {CHANGED}"))
    publish("evaluation_time", rows, notes=[f"run again: {', '.join(stages)}"])


def make_workspace(workspace: Workspace) -> None:
    """Make a workspace with six models that are ready to be evaluated."""
    copy_repository(workspace.root)
    yaml = YAML()
    params = yaml.load(workspace.params_path)
    params["variants"] = {name: params["variants"][name] for name in VARIANTS}
    yaml.dump(params, workspace.params_path)
    read = read_workspace(workspace)
    fetch.run(workspace, read)
    calibrate.run(workspace, read)
    for name in VARIANTS:
        quantize.run(workspace, read, name)


def dense(workspace: Workspace, name: str, work_dir: Path) -> Path:
    """Write the weights of a model's files as a plain checkpoint in float32."""
    model_dir = workspace.model_dir(name)
    files = sorted(model_dir.glob("*.gguf"))
    model = unpacked_model(workspace.base_dir if files else model_dir)
    if files:
        dequantized = AutoModelForCausalLM.from_pretrained(
            model_dir, gguf_file=files[0].name, dtype=torch.float32, local_files_only=True
        )
        model.load_state_dict(dequantized.state_dict())
    path = work_dir / name
    model.save_pretrained(path)
    tokenizer_of(workspace.base_dir).save_pretrained(path)
    return path


def lm_eval_command(workspace: Workspace, model_dir: Path) -> list[str | Path]:
    evaluate = read_workspace(workspace).evaluate
    tasks = ",".join(task.name for task in read_suite(workspace.root, evaluate.suite).tasks)
    limit = [] if evaluate.max_documents is None else ["--limit", str(evaluate.max_documents)]
    return [
        PROGRAMS / "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size",
        str(evaluate.batch_size), "--model_args", f"pretrained={model_dir},dtype=float32",
        "--include_path", workspace.root / "eval/tasks", "--tasks", tasks, *limit,
    ]  # fmt: skip


def run(workspace: Workspace, *command: str | Path) -> Cost:
    """Run a command in a workspace and measure its time."""
    started, cpu = time.monotonic(), children_cpu_s()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(workspace.root)}
    subprocess.run(command, cwd=workspace.root, env=environment, check=True)
    return Cost(time.monotonic() - started, children_cpu_s() - cpu)


def total(costs: dict[str, Cost]) -> Cost:
    return Cost(
        sum(cost.wall_s for cost in costs.values()), sum(cost.cpu_s for cost in costs.values())
    )


def rerun_stages(workspace: Workspace) -> list[str]:
    """List the stages that `dvc repro` runs up to select when only one variant has changed."""
    subprocess.run(["git", "init", "-q"], cwd=workspace.root, check=True)
    dvc(workspace, "repro", "select")
    yaml = YAML()
    params = yaml.load(workspace.params_path)
    params["variants"][CHANGED]["refine_sweeps"] += 1
    yaml.dump(params, workspace.params_path)
    marker = "Running stage '"
    lines = dvc(workspace, "repro", "select").splitlines()
    return [line.partition(marker)[2].rstrip("':") for line in lines if line.startswith(marker)]


def dvc(workspace: Workspace, *arguments: str) -> str:
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    result = subprocess.run(
        ["dvc", *arguments],
        cwd=workspace.root,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(workspace.root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout


if __name__ == "__main__":
    main()
