"""The suites that come with the repository: every task is there, as they say it is."""

from collections.abc import Iterator

import pytest
from lm_eval.tasks import TaskManager

from pipeline.params.suites import read_suite
from pipeline.tasks.loading import TASKS_DIR, loaded_tasks
from tests.support import ROOT

HUB_SUITES = ("quick", "openllm", "spanish")


def test_the_demo_needs_no_network_and_states_every_margin() -> None:
    suite = read_suite(ROOT, "demo")
    with loaded_tasks(ROOT, suite) as tasks:
        assert [task.name for task in tasks] == [entry.name for entry in suite.tasks]
    assert all(entry.margin and entry.version for entry in suite.tasks)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(ROOT / TASKS_DIR))


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
def test_suites_of_a_hub_name_tasks_of_lm_eval_with_their_version_and_metric(
    manager: TaskManager, suite: str
) -> None:
    for entry in read_suite(ROOT, suite).tasks:
        found = list(configs(manager, entry.name))
        assert found, entry.name
        for config in found:
            assert str(config["metadata"]["version"]) == entry.version, entry.name
            metrics = [it["metric"] for it in config["metric_list"]]
            assert entry.metric.partition(",")[0] in metrics
            filters = [it["name"] for it in config.get("filter_list") or []]
            assert not filters or entry.metric.partition(",")[2] in filters
