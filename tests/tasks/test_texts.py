"""What tasks of every kind say, through lm-eval's own objects."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import InputError
from pipeline.tasks.texts import suite_texts

ROW = {
    "q": "Who sells bread?",
    "options": ["the baker", "the smith"],
    "right": 0,
    "many": ["a", "b"],
}
BASE = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "eval/data/rows.jsonl"}},
    "test_split": "test",
    "metadata": {"version": 1.0},
}
ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
BITS = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}]
WRITING = {"output_type": "generate_until", "metric_list": EXACT, "doc_to_text": "{{q}}"}
TASKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "choices": (
        {
            "output_type": "multiple_choice",
            "metric_list": ACC,
            "doc_to_text": "{{q}}",
            "doc_to_choice": "options",
            "doc_to_target": "right",
        },
        ["Who sells bread? the baker"],
    ),
    "prompts": (
        {
            "output_type": "multiple_choice",
            "metric_list": ACC,
            "doc_to_text": "right",
            "doc_to_choice": "options",
            "doc_to_target": "{{q}}",
        },
        ["the baker Who sells bread?"],
    ),
    "writing": (WRITING | {"doc_to_target": "{{options[1]}}"}, ["Who sells bread? the smith"]),
    "answers": (WRITING | {"doc_to_target": "many"}, ["Who sells bread? a", "Who sells bread? b"]),
    "rolling": (
        {
            "output_type": "loglikelihood_rolling",
            "metric_list": BITS,
            "doc_to_text": "",
            "doc_to_target": "{{q}}",
        },
        [" Who sells bread?"],
    ),
}


def write_task(root: Path, name: str, task: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for directory in ("data", "tasks"):
        (root / "eval" / directory).mkdir(parents=True, exist_ok=True)
    metric = task["metric_list"][0]["metric"]
    (root / "eval/suites.yaml").write_text(
        json.dumps({"suites": {"own": {"tasks": [{"name": name, "metric": metric}]}}})
    )
    (root / f"eval/tasks/{name}.yaml").write_text(json.dumps({"task": name} | BASE | task))
    (root / "eval/data/rows.jsonl").write_text("".join(json.dumps(it) + "\n" for it in rows))


@pytest.mark.parametrize("name", TASKS)
def test_every_document_is_its_prompt_and_right_answer(tmp_path: Path, name: str) -> None:
    task, expected = TASKS[name]
    write_task(tmp_path, name, task, [ROW])
    assert list(suite_texts(tmp_path, "own")) == [(name, expected)]


def test_a_document_that_a_task_cannot_read_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "choices", TASKS["choices"][0], [ROW, ROW | {"right": 7}])
    with pytest.raises(InputError, match="eval/tasks: choices: document 1: cannot be read"):
        list(suite_texts(tmp_path, "own"))


def test_an_unknown_suite_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "choices", TASKS["choices"][0], [ROW])
    with pytest.raises(InputError, match=r"evaluate\.suite = 'other': not in"):
        list(suite_texts(tmp_path, "other"))
