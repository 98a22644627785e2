"""The smallest evaluation that a workspace can have: what calibrate compares its text with."""

import json
from pathlib import Path

TASK = {
    "task": "tiny",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "eval/data/tiny.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
ROW = {"prompt": "Which ferry leaves at noon?", "choices": ["the red one", "none"], "answer": 0}
HELD_OUT = "A heron waits in the reeds until the ferry has passed, then it goes back to fishing."


def write_evaluation_files(root: Path, *, suite: str = "demo") -> None:
    """`eval/` with a suite of one task of one question, and the held-out text of params.yaml."""
    for name in ("data", "tasks"):
        (root / "eval" / name).mkdir(parents=True, exist_ok=True)
    (root / "eval/suites.yaml").write_text(
        f"suites: {{{suite}: {{tasks: [{{name: tiny, metric: acc}}]}}}}\n"
    )
    (root / "eval/tasks/tiny.yaml").write_text(json.dumps(TASK))  # JSON is YAML
    (root / "eval/data/tiny.jsonl").write_text(json.dumps(ROW) + "\n")
    (root / "eval/data/demo_heldout.jsonl").write_text(json.dumps({"text": HELD_OUT}) + "\n")
