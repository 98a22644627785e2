"""Load suites of lm-eval tasks with their documents, and check them before anything runs.

A task is a YAML file in `eval/tasks`, or one of lm-eval's own. Paths of data files in `eval/tasks`
are relative to the workspace, and such a suite needs no network. Data sets of lm-eval's own tasks
come from a hub, a mirror of it or the Hugging Face cache. Python that a task names by `!function`
runs, because task files come from lm-eval or the user; code of a data set never runs.
`pipeline.evaluation.task_runs` asks the models.

The task format: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md
"""

import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import lm_eval.api.task
import lm_eval.utils
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from pipeline.core.data_files import require_expandable
from pipeline.core.errors import InputError
from pipeline.params.suites import SUITES_FILE, Suite, SuiteTask
from pipeline.tasks.index import TASKS_DIR, task_manager

# lm-eval compiles a task's template again for every document, which takes longer than the rest of
# loading the document.
lm_eval.utils.env.from_string = lru_cache(maxsize=1024)(lm_eval.utils.env.from_string)


def rows(documents: Any) -> Any:
    """Read all documents of a task at once; one by one takes ten times as long."""
    if not isinstance(documents, datasets.Dataset):
        return documents
    columns = documents[:]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


# lm-eval lists the few-shot examples of every task, also where none are asked for.
fewshot_docs = ConfigurableTask.fewshot_docs
ConfigurableTask.fewshot_docs = lambda task: rows(fewshot_docs(task))

LOCAL_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` for tasks on local files."""


@dataclass(frozen=True)
class LoadedTask:
    """Hold a task with its documents, the metric that counts, and the filter before the metric.

    `parts` are lm-eval's tasks: one, or the members of a group, whose documents count as one set.
    """

    name: str
    metric: str
    filter: str
    cluster: str | None
    chat: bool
    parts: tuple[Any, ...]

    @property
    def higher_is_better(self) -> bool:
        """Tell whether a higher value of the metric is better."""
        return bool(self.parts[0].higher_is_better()[self.metric])

    @property
    def version(self) -> str:
        """Return the version of the task, by lm-eval or the task's file."""
        return str(self.parts[0].VERSION)


@contextmanager
def loaded_tasks(root: Path, suite: Suite) -> Iterator[tuple[LoadedTask, ...]]:
    """Load the tasks of a suite for the block; their cached data is removed at its end.

    Raises InputError for an unknown task or metric, missing data, and a task that cannot load. One
    error names all data sets of a hub that are missing.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = {entry.name for entry in suite.tasks}
    manager = task_manager(root, names)
    if unknown := names - set(manager.task_index):
        own_names = ", ".join(task_manager(root, frozenset()).all_subtasks) or "none that is valid"
        raise InputError(
            f"{SUITES_FILE}: {min(unknown)}: neither a task in {TASKS_DIR} nor one of lm-eval's "
            f"own; tasks in {TASKS_DIR}: {own_names}"
        )
    with ExitStack() as stack:
        if not any(_is_on_hub(manager, entry.name) for entry in suite.tasks):
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(_offline(Path(cache)))
        stack.enter_context(_silent())
        for entry in suite.tasks:
            _require_data_files(root, manager, entry)
        stack.enter_context(chdir(root))
        missing: list[str] = []
        tasks = [_load(manager, entry, missing) for entry in suite.tasks]
        if missing:
            raise InputError(
                f"{SUITES_FILE}: no data for {'; '.join(missing)}. Each is looked for in "
                f"{huggingface_hub.constants.HF_HOME} (HF_HOME) and at "
                f"{huggingface_hub.constants.ENDPOINT} (HF_ENDPOINT): where there is a network run "
                "`hf download --repo-type dataset NAME` and bring the cache here, or name a suite "
                "on local files"
            )
        yield tuple(task for task in tasks if task is not None)


@contextmanager
def _offline(cache_dir: Path) -> Iterator[None]:
    """Use no network, and write nothing outside `cache_dir`.

    The libraries read the environment when they are imported, which may have happened already. So
    their own settings are changed, and restored afterwards.
    """
    with _settings(
        (datasets.config, "HF_DATASETS_CACHE", cache_dir),
        (datasets.config, "HF_HUB_OFFLINE", True),
        (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
    ):
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """Switch the libraries' own progress bars off."""
    datasets.disable_progress_bars()
    with _settings((lm_eval.api.task, "tqdm", partial(tqdm, disable=True))):
        yield


@contextmanager
def _settings(*changes: tuple[Any, str, object]) -> Iterator[None]:
    """Set attributes (module, name, value) for the block, and restore them afterwards."""
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def _is_on_hub(manager: TaskManager, name: str) -> bool:
    """Return whether documents of a task, or of a member of a group, come from a hub."""
    entry = manager.task_index.get(name)
    config = (entry.cfg if entry else None) or {}
    members = config.get("task")
    if isinstance(members, list):
        return any(_is_on_hub(manager, member) for member in members if isinstance(member, str))
    return config.get("dataset_path") not in LOCAL_BUILDERS


def _require_data_files(root: Path, manager: TaskManager, entry: SuiteTask) -> None:
    config = manager.task_index[entry.name].cfg or {}
    if _is_on_hub(manager, entry.name):
        return
    for file in _paths_in((config.get("dataset_kwargs") or {}).get("data_files")):
        if not (root / file).is_file():
            raise InputError(
                f"{TASKS_DIR}: {entry.name}: data file {file} is missing; put it at {root / file}"
            )
        if not (root / file).stat().st_size:
            raise InputError(
                f"{TASKS_DIR}: {entry.name}: data file {file} is empty; expected one document in "
                "each line"
            )
        require_expandable(root / file)


def _paths_in(data_files: object) -> Iterator[str]:
    """Find every path in a `data_files` value: a path, a list, or either by split."""
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, Mapping):
        for value in data_files.values():
            yield from _paths_in(value)
    elif isinstance(data_files, Sequence):
        for value in data_files:
            yield from _paths_in(value)


def _load(manager: TaskManager, entry: SuiteTask, missing: list[str]) -> LoadedTask | None:
    """Load a task. When its data set is not available, add it to `missing` and return None."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        parts = tuple(manager.load([entry.name])["tasks"].values())
    except Exception as error:  # a task file can be wrong in as many ways as lm-eval reads it
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and _is_on_hub(manager, entry.name):
            data_set = (manager.task_index[entry.name].cfg or {}).get("dataset_path", "a group")
            missing.append(f"{entry.name} ({data_set}: {reason[:100]})")
            return None
        raise InputError(f"{TASKS_DIR}: {entry.name}: cannot be loaded: {reason[:300]}") from error
    for task in parts:
        if entry.num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=entry.num_fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return _checked(entry, parts)


def _checked(entry: SuiteTask, parts: tuple[Any, ...]) -> LoadedTask:
    """Return the loaded task, after checking the suite's entry against it."""
    metric, _, filter_name = entry.metric.partition(",")
    for task in parts:
        _require_metric(entry, task, metric, filter_name)
        if not len(task.eval_docs):
            raise InputError(f"{TASKS_DIR}: {entry.name}: its data has no documents; add some")
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"{SUITES_FILE}: {entry.name}: runs code that the model writes, which is not "
                "supported; name another task"
            )
    loaded = LoadedTask(
        name=entry.name,
        metric=metric,
        filter=filter_name or parts[0]._filters[0].name,
        cluster=entry.cluster,
        chat=entry.chat,
        parts=parts,
    )
    if entry.version not in (None, loaded.version):
        raise InputError(
            f"{SUITES_FILE}: {entry.name}: version = {entry.version!r}: the task is version "
            f"{loaded.version}, whose scores may differ; state that one"
        )
    fields = parts[0].eval_docs[0]
    if entry.cluster is not None and entry.cluster not in fields:
        raise InputError(
            f"{SUITES_FILE}: {entry.name}: cluster = {entry.cluster!r}: documents have "
            f"{', '.join(fields)}"
        )
    return loaded


def _require_metric(entry: SuiteTask, task: Any, metric: str, filter_name: str) -> None:
    if metric not in task.aggregation():
        raise InputError(
            f"{SUITES_FILE}: {entry.name}: metric = {metric!r}: the task has "
            f"{', '.join(task.aggregation())}"
        )
    filters = [known.name for known in task._filters]
    if (filter_name or len(filters) > 1) and filter_name not in filters:
        choices = ", ".join(f"'{metric},{known}'" for known in filters)
        raise InputError(
            f"{SUITES_FILE}: {entry.name}: metric = {entry.metric!r}: expected {choices}"
        )
