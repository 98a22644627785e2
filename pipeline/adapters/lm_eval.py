"""Running suites of lm-eval tasks in this process, without network.

Tasks are the YAML files in `eval/tasks`; paths of data files in them are relative to the workspace.
A suite is checked whole before anything is scored. Only scores and rows come back; the models are
those of `pipeline.adapters.lm_eval_model`.

The task format: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md
"""

import json
import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import lm_eval.api.task
import numpy as np
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from pydantic import ValidationError
from tqdm import tqdm

from pipeline.adapters.params_file import read_yaml
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import DocumentRecord, TaskScore
from pipeline.domain.record import first_problem
from pipeline.domain.suites import Suite, Suites, SuiteTask

SUITES_FILE = "eval/suites.yaml"
TASKS_DIR = "eval/tasks"


@dataclass(frozen=True)
class LoadedTask:
    """A task with its documents; the metric that counts, and the filter it is taken after."""

    name: str
    metric: str
    filter: str
    task: Any

    @property
    def higher_is_better(self) -> bool:
        return bool(self.task.higher_is_better()[self.metric])


@dataclass(frozen=True)
class SuiteResult:
    scores: dict[str, TaskScore]
    documents: tuple[DocumentRecord, ...]


def read_suite(root: Path, name: str) -> Suite:
    """The suite of that name. Raises InputError for a wrong file or an unknown name."""
    path = root / SUITES_FILE
    try:
        suites = Suites.model_validate_json(json.dumps(read_yaml(path), default=str)).suites
    except ValidationError as error:
        raise InputError(f"{SUITES_FILE}: {first_problem(error)}") from error
    if name not in suites:
        known = ", ".join(suites) or "none"
        raise InputError(f"evaluate.suite = {name!r}: not in {SUITES_FILE}; suites there: {known}")
    return suites[name]


@contextmanager
def loaded_tasks(root: Path, suite: Suite) -> Iterator[tuple[LoadedTask, ...]]:
    """The tasks of a suite, ready to run inside the block; their cached data lives as long.

    Raises InputError for an unknown task or metric, a missing data file, a task that cannot load.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as cache, _offline(Path(cache)):
        manager = TaskManager(include_path=str(root / TASKS_DIR), include_defaults=False)
        for entry in suite.tasks:
            _require_data_files(root, manager, entry)
        with chdir(root):
            yield tuple(_load(manager, entry) for entry in suite.tasks)


@contextmanager
def _offline(cache_dir: Path) -> Iterator[None]:
    """No network and no trace outside `cache_dir`; lm-eval's own progress bars are silent.

    The libraries read the environment when they are imported, which may be long ago: hence their
    own settings, put back afterwards.
    """
    datasets.disable_progress_bars()
    with ExitStack() as stack:
        for module, name, value in (
            (datasets.config, "HF_DATASETS_CACHE", cache_dir),
            (datasets.config, "HF_HUB_OFFLINE", True),
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            (lm_eval.api.task, "tqdm", partial(tqdm, disable=True)),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def _require_data_files(root: Path, manager: TaskManager, entry: SuiteTask) -> None:
    known = manager.task_index
    if entry.name not in known or entry.name not in manager.all_subtasks:
        names = ", ".join(manager.all_subtasks) or "none that is valid"
        raise InputError(f"{SUITES_FILE}: {entry.name}: not a task in {TASKS_DIR}; tasks: {names}")
    arguments = known[entry.name].cfg.get("dataset_kwargs") or {}
    for file in _paths_in(arguments.get("data_files")):
        if not (root / file).is_file():
            raise InputError(
                f"{TASKS_DIR}: {entry.name}: data file {file} is missing; put it at {root / file}"
            )


def _paths_in(data_files: object) -> Iterator[str]:
    """Every path in a `data_files` value: a path, a list, or either by split."""
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, Mapping):
        for value in data_files.values():
            yield from _paths_in(value)
    elif isinstance(data_files, Sequence):
        for value in data_files:
            yield from _paths_in(value)


def _load(manager: TaskManager, entry: SuiteTask) -> LoadedTask:
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        task = manager.load([entry.name])["tasks"][entry.name]
    except Exception as error:  # a task file can be wrong in as many ways as lm-eval reads it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{TASKS_DIR}: {entry.name}: cannot be loaded: {reason[:300]}") from error
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    metric, _, filter_name = entry.metric.partition(",")
    if metric not in task.aggregation():
        raise InputError(
            f"{SUITES_FILE}: {entry.name}: metric = {metric!r}: the task has "
            f"{', '.join(task.aggregation())}"
        )
    filters = [it.name for it in task._filters]
    if (filter_name or len(filters) > 1) and filter_name not in filters:
        choices = ", ".join(f"'{metric},{it}'" for it in filters)
        raise InputError(
            f"{SUITES_FILE}: {entry.name}: metric = {entry.metric!r}: expected {choices}"
        )
    return LoadedTask(entry.name, metric, filter_name or filters[0], task)


def run_tasks(tasks: Sequence[LoadedTask], model: LM, *, max_documents: int | None) -> SuiteResult:
    """Score every task with `model` on its first `max_documents` documents (None: all)."""
    results = evaluate(
        lm=model,
        task_dict={"tasks": {it.name: it.task for it in tasks}, "groups": {}},
        limit=max_documents,
        bootstrap_iters=0,
        log_samples=True,
    )
    scores: dict[str, TaskScore] = {}
    documents: list[DocumentRecord] = []
    for loaded in tasks:
        rows = [it for it in results["samples"][loaded.name] if it["filter"] == loaded.filter]
        scores[loaded.name] = TaskScore(
            metric=loaded.metric,
            value=float(results["results"][loaded.name][f"{loaded.metric},{loaded.filter}"]),
            stderr=_stderr(loaded, rows),
            higher_is_better=loaded.higher_is_better,
            num_documents=len(rows),
            version=str(loaded.task.VERSION),
        )
        documents += [_document(loaded.name, row) for row in rows]
    return SuiteResult(scores=scores, documents=tuple(documents))


def _stderr(loaded: LoadedTask, rows: Sequence[dict[str, Any]]) -> float | None:
    """lm-eval's standard error of a mean; what it would bootstrap has none."""
    if loaded.task.aggregation()[loaded.metric] is not mean or len(rows) < 2:
        return None
    return float(mean_stderr([row[loaded.metric] for row in rows]))


def _document(task: str, row: dict[str, Any]) -> DocumentRecord:
    answers = [responses[0] for responses in row["resps"]]
    generated = answers[0] if isinstance(answers[0], str) else None
    return DocumentRecord(
        task=task,
        doc_id=row["doc_id"],
        doc_hash=row["doc_hash"],
        cluster=row["doc_hash"],
        prompt_hash=row["prompt_hash"],
        target=str(row["target"]),
        logprobs=None if generated is not None else tuple(_logprob(it) for it in answers),
        generated=generated,
        metrics={
            name: numbers for name in row["metrics"] if (numbers := _numbers(row[name])) is not None
        },
    )


def _logprob(answer: float | tuple[float, bool]) -> float:
    return float(answer[0] if isinstance(answer, tuple) else answer)


def _numbers(value: object) -> float | tuple[float, ...] | None:
    """A metric's value for one document; None when it is text, such as BLEU's pair of texts."""
    if isinstance(value, (bool, int, float, np.number)):
        return float(value)
    if isinstance(value, (tuple, list)) and all(
        isinstance(it, (bool, int, float, np.number)) for it in value
    ):
        return tuple(float(it) for it in value)
    return None
