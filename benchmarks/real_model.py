"""Run SmolLM2-135M-Instruct through the whole product, stage by stage, and compare with `plan`.

`python -m benchmarks.real_model --work-dir DIR` needs `../shared` with the model's script,
WikiText-2, HellaSwag and BLiMP. In `DIR/local` the model is a local directory. DVC runs one stage
after the other; each is measured and its cost is kept, so that a second call goes on where the
first ended. Then the releases are verified and pulled for vLLM, for Ollama and as a directory,
served, and asked a question through OpenAI's client. In `DIR/hub` a run with few samples takes the
same model from a hub on this machine by one `dvc repro`.

`plan_time_ratio_worst` and `plan_memory_ratio_worst` are the largest ratio of what happened to what
`plan` said, or the other way round, over the stages that took at least MIN_COMPARED_S. Time that a
host took from this virtual machine does not count there: no plan can know of it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import babyllama
from benchmarks.babyllama import PAIRS, PARADIGMS, SHARED_DIR
from benchmarks.real_model_use import usage_rows
from benchmarks.result import Row, publish
from benchmarks.stage_cost import StageCost, run_measured
from benchmarks.workspace import ROOT, copy_repository
from pipeline.core.files import file_record
from pipeline.core.workspace import BASE, PARAMS_FILE, Workspace
from pipeline.params.params import Params
from pipeline.params.reading import read_workspace
from pipeline.planning.capacity import fetched_source, measured_speed
from pipeline.planning.plan import predict
from pipeline.planning.source import Speed
from pipeline.planning.stage_needs import StageNeed
from pipeline.records.benchmarks import Benchmarks, served_models
from pipeline.records.evaluation import EvaluationRecord
from pipeline.tasks.texts import suite_tokens
from tests.hub_server import COMMIT, Hub, serve_hub

DATA_DIR = SHARED_DIR / "data"
MODEL_SCRIPT = SHARED_DIR / "models/smollm2-135m/make.py"
MIN_ARTICLE_CHARS = 500
NUM_HELD_OUT_ARTICLES = 12
SUITE = "real"
HUB_NAME = "local/smollm2"
MIN_COMPARED_S = 10.0
PROGRAMS = Path(sys.executable).parent

PACKED = babyllama.PACKED | {
    "group_size": 64,  # 128 does not divide the model's 576 inputs
    "scale_search": True,
}
GGUF = babyllama.GGUF | {"scale_search": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "awq-w4-g64": PACKED | {"format": "awq", "num_bits": 4},
    "gptq-w4-g64": PACKED | {"format": "gptq", "num_bits": 4},
    "ct-w4a16-g64": PACKED | {"format": "compressed-tensors", "scheme": "W4A16"},
    "gguf-q8-0": GGUF | {"type": "Q8_0", "scale_search": False},
    "gguf-q4-k-m": GGUF | {"type": "Q4_K_M"},
}
# https://arxiv.org/abs/1905.07830: the right one of four endings.
HELLASWAG: dict[str, Any] = babyllama.PAIRS | {
    "doc_to_text": "{{ctx}}",
    "target_delimiter": " ",
    "doc_to_choice": "endings",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    work_dir = parser.parse_args().work_dir.resolve()
    model_dir = made_model(work_dir / "model")
    workspace = Workspace(work_dir / "local")
    if not workspace.params_path.is_file():
        make_workspace(workspace.root, str(model_dir))
    params = read_workspace(workspace)
    speed = speed_before(workspace.root / "speed.json")
    costs = stage_costs(workspace, params)
    rows = [*cost_rows(costs), *plan_rows(workspace, params, costs, speed)]
    rows += [*quality_rows(workspace, params), *speed_rows(workspace)]
    rows += usage_rows(workspace, work_dir / "pulled")
    rows.append(run_from_hub(workspace, model_dir, work_dir / "hub"))
    publish("real_model", rows)


def made_model(model_dir: Path) -> Path:
    """Make the model by its script where it is not there yet."""
    if not model_dir.is_dir():
        model_dir.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, MODEL_SCRIPT, model_dir], check=True)
    return model_dir


def make_workspace(root: Path, source: str) -> None:
    """Copy the repository to `root`, with this model's parameters, text and tasks."""
    copy_repository(root)
    text = (DATA_DIR / "wikitext-2/wiki.test.raw").read_text()
    articles = [
        article for article in re.split(r"\n(?= = [^=])", text) if len(article) >= MIN_ARTICLE_CHARS
    ]
    lines = [json.dumps({"text": article}) for article in articles[:-NUM_HELD_OUT_ARTICLES]]
    (root / "wikitext.jsonl").write_text("\n".join(lines))
    (root / "held_out.txt").write_text("\n".join(articles[-NUM_HELD_OUT_ARTICLES:]))
    sources = {"hellaswag_1000": (HELLASWAG, DATA_DIR / "hellaswag/validation_1000.jsonl")}
    sources |= {name: (PAIRS, DATA_DIR / f"blimp/{name}.jsonl") for name in PARADIGMS}
    yaml, tasks = YAML(), []
    for name, (task, data_path) in sources.items():
        file = f"eval/data/{name}.jsonl"
        shutil.copyfile(data_path, root / file)
        stated = {"task": name, **task, "dataset_kwargs": {"data_files": {"test": file}}}
        yaml.dump(stated, root / f"eval/tasks/{name}.yaml")
        metric = task["metric_list"][0]["metric"]
        tasks.append({"name": name, "metric": metric, "margin": 0.1})
    yaml.dump({"suites": {SUITE: {"tasks": tasks}}}, root / "eval/suites.yaml")
    yaml.dump(_params(root, source), root / PARAMS_FILE)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)


def _params(root: Path, source: str) -> dict[str, Any]:
    params: dict[str, Any] = YAML(typ="safe").load(root / PARAMS_FILE)
    params["model"] = {"source": source, "license": None, "gguf_pre_tokenizer": None}
    params["calibration"] |= {"text": "wikitext.jsonl", "license": "CC-BY-SA-3.0"}
    params["variants"] = VARIANTS
    params["evaluate"] |= {
        "suite": SUITE,
        "text": "held_out.txt",
        "num_windows": 40,
        "max_documents": 200,
    }
    # Four bits cost a model of 135 million weights more than a large one.
    params["gate"]["classes"]["4-bit"] |= {
        "max_mean_drop": 0.1,
        "max_kl": 0.2,
        "max_perplexity_ratio": 1.2,
    }
    params["serve"] |= {"base_dtypes": ["bfloat16"], "time_budget_s": 240}
    params["release"]["name"] = "smollm2-135m-instruct"
    params["registry"]["repository"] = "models/smollm2"
    return params


def dvc_target(stage: str) -> str:
    """Return DVC's name of a stage of the plan, such as `quantize@NAME` for `quantize NAME`."""
    verb, _, name = stage.partition(" ")
    if verb == "evaluate" and name == BASE:
        return "evaluate_base"
    return f"{verb}@{name}" if name else verb


def speed_before(path: Path) -> Speed:
    """Measure the speed of the machine as `plan` does, once for all calls."""
    if not path.is_file():
        path.write_text(json.dumps(asdict(measured_speed())))
    return Speed(**json.loads(path.read_text()))


def stage_costs(workspace: Workspace, params: Params) -> dict[str, StageCost]:
    """Run every stage that has no cost yet, by DVC; costs by the plan's name of the stage."""
    path = workspace.root / "costs.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    costs = {stage: StageCost(**cost) for stage, cost in kept.items()}
    each = [f"quantize {name}" for name in params.variants]
    each += [f"evaluate {name}" for name in (BASE, *params.variants)]
    for stage in ("inputs", "fetch", "calibrate", *each, "select", "benchmark", "package",
                  "publish", "report"):  # fmt: skip
        if stage not in costs:
            costs[stage] = repro(workspace.root, "--single-item", dvc_target(stage))
            path.write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}))
    return costs


def repro(root: Path, *arguments: str, environment: dict[str, str] | None = None) -> StageCost:
    path = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["dvc", "repro", *arguments]
    return run_measured(command, cwd=root, environment=path | (environment or {}))


def cost_rows(costs: dict[str, StageCost]) -> list[Row]:
    rows = []
    for stage, cost in costs.items():
        key = stage.replace(" ", "_")
        rows.append(Row(f"{key}_wall_s", cost.wall_s, None, None, "s"))
        rows.append(Row(f"{key}_stolen_s", cost.stolen_s, None, None, "s of wall_s"))
        rows.append(Row(f"{key}_cpu_s", cost.cpu_s, None, None, "CPU-s"))
        rows.append(Row(f"{key}_peak_gib", cost.peak_gib, None, None, "GiB"))
    total = sum(cost.wall_s for cost in costs.values())
    return [*rows, Row("all_stages_wall_s", total, None, None, "s")]


def plan_rows(
    workspace: Workspace, params: Params, costs: dict[str, StageCost], speed: Speed
) -> list[Row]:
    """Return the plan's predictions, and the worst ratio of time and of memory."""
    evaluate = params.evaluate
    tokens = suite_tokens(workspace.root, evaluate.suite, max_documents=evaluate.max_documents)
    needs = predict(fetched_source(workspace), params, suite_tokens=tokens)
    seconds = {need.stage: need.duration(speed) for need in needs}
    rows = []
    for need in needs:
        key = need.stage.replace(" ", "_")
        rows.append(Row(f"{key}_plan_s", seconds[need.stage], None, None, "s"))
        rows.append(Row(f"{key}_plan_gib", need.memory / 2**30, None, None, "GiB"))
    compared = [need for need in needs if costs[need.stage].wall_s >= MIN_COMPARED_S]
    took = {stage: cost.wall_s - cost.stolen_s for stage, cost in costs.items()}
    time_ratio = max(_off(took[need.stage], seconds[need.stage]) for need in compared)
    memory_ratio = max(_memory_ratio(costs[need.stage].peak_gib, need) for need in compared)
    rows.append(Row("plan_time_ratio_worst", time_ratio, None, None, "ratio"))
    rows.append(Row("plan_memory_ratio_worst", memory_ratio, None, None, "ratio"))
    return rows


def _off(measured: float, predicted: float) -> float:
    return max(measured / predicted, predicted / measured)


def _memory_ratio(peak_gib: float, need: StageNeed) -> float:
    """Return how far a peak is off what plan says, which may be a range."""
    least, most = need.memory / 2**30, max(need.memory, need.most_memory) / 2**30
    return 1.0 if least <= peak_gib <= most else min(_off(peak_gib, least), _off(peak_gib, most))


def quality_rows(workspace: Workspace, params: Params) -> list[Row]:
    rows = []
    for name in (BASE, *params.variants):
        data = workspace.evaluation_path(name).read_bytes()
        record = EvaluationRecord.from_bytes(data, source=name)
        if record.perplexity is not None:
            rows.append(Row(f"perplexity_{name}", record.perplexity, None, None, "perplexity"))
        for task, score in record.tasks.items():
            rows.append(Row(f"{task}_{name}", score.value, None, None, score.metric))
        if distance := record.distance:
            low, high = distance.kl_low, distance.kl_high
            rows.append(Row(f"kl_{name}", distance.kl, low, high, "nats per token"))
            rows.append(Row(f"top1_{name}", distance.top1, None, None, "share of tokens"))
    return rows


def speed_rows(workspace: Workspace) -> list[Row]:
    """Return the output tokens per second of each server under each load."""
    benchmarks = Benchmarks.from_bytes(workspace.benchmarks_path.read_bytes(), source="benchmarks")
    rows = []
    for name, model in served_models(benchmarks).items():
        for load in model.loads:
            speed = load.output_tokens_per_s
            key = f"tokens_per_s_{name}_{load.scenario}_{load.concurrency}"
            rows.append(Row(key, speed.median, speed.low, speed.high, "output tokens per second"))
    return rows


def run_from_hub(local: Workspace, model_dir: Path, root: Path) -> Row:
    """Run the whole graph on the model of a hub on this machine, with few samples.

    The row says whether the base is the one of the local directory, byte for byte.
    """
    if not (root / PARAMS_FILE).is_file():
        make_workspace(root, f"hf:{HUB_NAME}@{COMMIT}")
        yaml = YAML()
        params = yaml.load(root / PARAMS_FILE)
        params["calibration"]["num_calibration_samples"] = 8
        params["evaluate"] |= {"num_windows": 4, "max_documents": 20}
        params["serve"]["time_budget_s"] = 20
        for bounds in params["gate"]["classes"].values():  # few samples decide nothing
            bounds |= {"max_mean_drop": 0.9, "max_kl": 1.0, "max_perplexity_ratio": 2.0}
        params["variants"] = {
            name: params["variants"][name] for name in ("awq-w4-g64", "gguf-q8-0")
        }
        yaml.dump(params, root / PARAMS_FILE)
        suites = yaml.load(root / "eval/suites.yaml")
        for task in suites["suites"][SUITE]["tasks"]:
            task["margin"] = 0.9
        yaml.dump(suites, root / "eval/suites.yaml")
    with serve_hub(Hub({HUB_NAME: model_dir})) as hub:
        repro(root, environment={"HF_ENDPOINT": hub.endpoint})
    directories = (local.base_dir, Workspace(root).base_dir)
    digests = [
        {path.name: file_record(path, path.parent).sha256 for path in directory.iterdir()}
        for directory in directories
    ]
    return Row("hub_base_identical", digests[0] == digests[1], None, None, "1: every file")


if __name__ == "__main__":
    main()
