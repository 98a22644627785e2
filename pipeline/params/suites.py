"""What `eval/suites.yaml` says: which tasks make a suite, how they are asked, what counts."""

import json
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, StringConstraints, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.record import Record, first_problem
from pipeline.core.yaml_files import read_yaml

SUITES_FILE: Final = "eval/suites.yaml"


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
