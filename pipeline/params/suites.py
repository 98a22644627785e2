"""What `eval/suites.yaml` says: which tasks make a suite, how they are asked, what counts."""

from typing import Annotated

from pydantic import Field, StringConstraints

from pipeline.core.record import Record

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class SuiteTask(Record):
    """One task, or a group of tasks that is scored as one, by its lm-eval name.

    `metric` is one of the task's own, such as `acc`; with a comma the filter it is taken after,
    such as `exact_match,strict-match`, which only a task with several filters needs. `margin` is
    the loss of that metric, as an absolute difference, that is acceptable; null leaves it to
    params.yaml. `num_fewshot` and `version` are the task's own when null; a version that is stated
    must be the task's. `cluster` is the field of a document whose equal values share a passage.
    `chat` asks through the model's chat template, examples as turns.
    """

    name: Name
    metric: Name
    margin: Annotated[float, Field(gt=0.0)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    version: Name | None = None
    cluster: Name | None = None
    chat: bool = False


class Suite(Record):
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]

    def margins(self, default: float) -> dict[str, float]:
        """Of each task; `default` where the suite states none."""
        return {task.name: task.margin or default for task in self.tasks}


class Suites(Record):
    """All of `eval/suites.yaml`."""

    suites: dict[str, Suite]
