"""A small real model through the whole product, beside published figures of other quantizers.

`python -m benchmarks.babyllama` needs the directory `../shared` with the model and its text. It
makes a workspace of its own, runs every stage up to evaluate and prints KL, top-1, perplexity and
the scores on three paradigms of BLiMP, minimal pairs of English grammar. The figures of other tools
were measured on the same text: 96 x 256 tokens to calibrate, 64 x 256 held out, group size 32.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.result import Row, publish
from benchmarks.workspace import ROOT, copy_repository
from pipeline.core.workspace import BASE, PARAMS_FILE, Workspace
from pipeline.params.reading import read_params
from pipeline.records.evaluation import EvaluationRecord
from pipeline.stages import calibrate, evaluate, fetch, quantize

SHARED_DIR = ROOT.parent / "shared"
MODEL_DIR = SHARED_DIR / "models" / "babyllama-105"
STORIES_PATH = SHARED_DIR / "data" / "tinystories" / "stories.json"
BLIMP_DIR = SHARED_DIR / "data" / "blimp"
PARADIGMS = ("anaphor_number_agreement", "determiner_noun_agreement_1", "principle_A_case_1")
NUM_CALIBRATION_STORIES = 200
NUM_TASK_STORIES = 40
SUITE = "stories"

PACKED = {
    "group_size": 32,
    "scale_search": False,
    "clip_search": True,
    "rounding": "gptq",
    "refine_sweeps": 4,
    "dampening_frac": 0.01,
    "quantized_inputs": False,
    "align_samples": 0,
    "on_indivisible": "error",
}
AWQ = PACKED | {"format": "awq", "num_bits": 4}
GPTQ = PACKED | {"format": "gptq", "num_bits": 4}
ASYMMETRIC = PACKED | {"format": "compressed-tensors", "scheme": "W4A16_ASYM"}
NEAREST = {"clip_search": False, "rounding": "nearest", "refine_sweeps": 0}
UNREFINED = {"refine_sweeps": 0}
GGUF = {
    "format": "gguf",
    "scale_search": False,
    "imatrix": True,
    "rounding": "gptq",
    "quantized_inputs": False,
    "align_samples": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "awq-rtn-w4-g32": AWQ | NEAREST,
    "awq-scales-w4-g32": AWQ | NEAREST | {"scale_search": True},
    "awq-unrefined-w4-g32": AWQ | UNREFINED | {"scale_search": True},
    "awq-w4-g32": AWQ | {"scale_search": True},
    "gptq-unrefined-w4-g32": GPTQ | UNREFINED,
    "gptq-w4-g32": GPTQ,
    "ct-asym-unrefined-w4-g32": ASYMMETRIC | UNREFINED,
    "ct-asym-w4-g32": ASYMMETRIC,
    "gptq-w3-g32": GPTQ | {"num_bits": 3},
    "gguf-q8-0": GGUF | {"type": "Q8_0"},
    "gguf-q4-k-m": GGUF | {"type": "Q4_K_M"},
}
STORIES = {
    "task": "tinystories",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "eval/data/tinystories.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    ],
    "metadata": {"version": 1.0},
}
# Minimal pairs: the model chooses the more likely of two sentences.
# https://github.com/alexwarstadt/blimp
PAIRS = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "target_delimiter": "",
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


def make_workspace(root: Path, *, source: str, variants: tuple[str, ...]) -> Workspace:
    """Copy the tracked files to `root`, with this model's parameters, text and tasks."""
    copy_repository(root)
    # The tokenizer has no newline and merges runs of spaces; llama.cpp's does not merge them.
    stories = [" ".join(story.split()) for story in json.loads(STORIES_PATH.read_text())]
    held_out = stories[NUM_CALIBRATION_STORIES:]
    _write_lines(root / "calibration.jsonl", stories[:NUM_CALIBRATION_STORIES])
    _write_lines(root / "held_out.jsonl", held_out)
    _write_lines(root / "eval/data/tinystories.jsonl", held_out[:NUM_TASK_STORIES])
    yaml = YAML()
    yaml.dump(STORIES, root / "eval/tasks/tinystories.yaml")
    tasks = [{"name": "tinystories", "metric": "bits_per_byte", "margin": 0.05}]
    for paradigm in PARADIGMS:
        file = f"eval/data/{paradigm}.jsonl"
        shutil.copyfile(BLIMP_DIR / f"{paradigm}.jsonl", root / file)
        task = {"task": paradigm, **PAIRS, "dataset_kwargs": {"data_files": {"test": file}}}
        yaml.dump(task, root / f"eval/tasks/{paradigm}.yaml")
        tasks.append({"name": paradigm, "metric": "acc", "margin": 0.05})
    yaml.dump({"suites": {SUITE: {"tasks": tasks}}}, root / "eval/suites.yaml")
    yaml.dump(_params(root, source, variants), root / PARAMS_FILE)
    return Workspace(root)


def _params(root: Path, source: str, variants: tuple[str, ...]) -> dict[str, Any]:
    params: dict[str, Any] = YAML(typ="safe").load(root / PARAMS_FILE)
    params["model"] = {"source": source, "license": None, "gguf_pre_tokenizer": None}
    params["calibration"] |= {
        "text": "calibration.jsonl",
        "license": "CDLA-Sharing-1.0",
        "num_calibration_samples": 96,
        "max_seq_length": 256,
    }
    params["variants"] = {name: VARIANTS[name] for name in variants}
    params["evaluate"] |= {
        "suite": SUITE,
        "text": "held_out.jsonl",
        "window_tokens": 256,
        "num_windows": 64,
    }
    sizes = {"prefix_tokens": 0, "input_tokens": 64, "output_tokens": 32}
    params["serve"] |= {
        "scenarios": {"text": {**sizes, "concurrency": [1, 8]}},
        "base_dtypes": ["float16"],
        "time_budget_s": 20,
    }
    params["release"]["name"] = "babyllama"
    params["registry"]["repository"] = "models/babyllama"
    return params


def _write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        workspace = make_workspace(Path(work), source=str(MODEL_DIR), variants=tuple(VARIANTS))
        params = read_params(workspace.params_path)
        fetch.run(workspace, params)
        calibrate.run(workspace, params)
        evaluate.run(workspace, params, BASE)
        for name in params.variants:
            quantize.run(workspace, params, name)
            evaluate.run(workspace, params, name)
        records = {
            name: EvaluationRecord.from_bytes(
                workspace.evaluation_path(name).read_bytes(), source=name
            )
            for name in (BASE, *params.variants)
        }
    rows = []
    for name, record in records.items():
        if record.perplexity is not None:
            rows.append(Row(f"perplexity_{name}", record.perplexity, None, None, "perplexity"))
        for task, score in record.tasks.items():
            rows.append(Row(f"{task}_{name}", score.value, None, None, score.metric))
        if record.distance:
            distance = record.distance
            low, high = distance.kl_low, distance.kl_high
            rows.append(Row(f"kl_{name}", distance.kl, low, high, "nats per token"))
            rows.append(Row(f"top1_{name}", distance.top1, None, None, "share of tokens"))
    publish("babyllama", rows)


if __name__ == "__main__":
    main()
