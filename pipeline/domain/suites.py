"""What `eval/suites.yaml` says: which lm-eval tasks make a suite and which metric counts."""

from typing import Annotated

from pydantic import Field, StringConstraints

from pipeline.domain.record import Record

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class SuiteTask(Record):
    """One task by its lm-eval name.

    `metric` is one of the task's own, such as `acc`; with a comma the filter it is taken after,
    such as `exact_match,strict-match`, which only a task with several filters needs.
    """

    name: Name
    metric: Name


class Suite(Record):
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]


class Suites(Record):
    """All of `eval/suites.yaml`."""

    suites: dict[str, Suite]
