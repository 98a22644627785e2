"""The suites that come with the repository: every task is there, as they say it is."""

from collections.abc import Iterator

import pytest
from lm_eval.tasks import TaskManager

from pipeline.params.suites import read_suite
from pipeline.tasks.index import TASKS_DIR, task_manager
from pipeline.tasks.loading import loaded_tasks
from tests.support import ROOT

HUB_SUITES = ("quick", "openllm", "spanish")


def test_the_demo_needs_no_network_and_states_every_margin() -> None:
    suite = read_suite(ROOT, "demo")
    with loaded_tasks(ROOT, suite) as tasks:
        assert [task.name for task in tasks] == [entry.name for entry in suite.tasks]
    assert all(entry.margin and entry.version for entry in suite.tasks)


def configs(manager: TaskManager, name: str) -> Iterator[dict]:
    """The settings of a task, or of all members of a group or tag."""
    entry = manager.task_index[name]
    members = (entry.cfg or {}).get("task")
    if isinstance(members, list):
        for member in members:
            yield from configs(manager, member)
    elif entry.cfg is None:
        for other in manager.task_index.values():
            if name in other.tags:
                yield from configs(manager, other.name)
    else:
        yield entry.cfg


@pytest.mark.slow
@pytest.mark.parametrize("suite", HUB_SUITES)
def test_suites_of_a_hub_name_tasks_of_lm_eval_with_their_version_and_metric(suite: str) -> None:
    entries = read_suite(ROOT, suite).tasks
    manager = task_manager(ROOT, {entry.name for entry in entries})
    for entry in entries:
        found = list(configs(manager, entry.name))
        assert found, entry.name
        for config in found:
            assert str(config["metadata"]["version"]) == entry.version, entry.name
            metrics = [it["metric"] for it in config["metric_list"]]
            assert entry.metric.partition(",")[0] in metrics
            filters = [it["name"] for it in config.get("filter_list") or []]
            assert not filters or entry.metric.partition(",")[2] in filters


@pytest.mark.full
def test_what_a_name_needs_is_found_as_in_the_whole_index() -> None:
    """Groups of groups, tags in included files, and tasks."""
    whole = TaskManager(include_path=str(ROOT / TASKS_DIR))
    names = ["mgsm_direct", "ntrex_tasks", "leaderboard", "mmlu_pro", "bigbench_multiple_choice_b"]
    for name in names:
        found = list(configs(task_manager(ROOT, {name}), name))
        assert found, name
        assert found == list(configs(whole, name)), name
