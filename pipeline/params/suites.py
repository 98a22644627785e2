"""The schema of `eval/suites.yaml`: the tasks of each suite, their prompts and their metrics."""

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

    `metric` is one of the task's own, such as `acc`. Only a task with several filters needs the
    name of one after a comma, as in `exact_match,strict-match`. `margin` is the acceptable loss of
    that metric, as an absolute difference; null takes the margin of params.yaml. `num_fewshot`:
    null takes the task's own. A `version` that is stated must be the task's. `cluster` is the field
    of a document that names its passage: documents with equal values share one. `chat` puts prompts
    into the model's chat template, with the examples as turns.
    """

    name: Name
    metric: Name
    margin: Annotated[float, Field(gt=0.0)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    version: Name | None = None
    cluster: Name | None = None
    chat: bool = False


class Suite(Record):
    """The tasks that are run together."""

    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]

    def margins(self, default: float) -> dict[str, float]:
        """Return the margin of each task; `default` where the suite states none."""
        return {task.name: task.margin or default for task in self.tasks}


class Suites(Record):
    """All of `eval/suites.yaml`."""

    suites: dict[str, Suite]


def read_suite(root: Path, name: str) -> Suite:
    """Read the suite `name`. Raises InputError for an invalid file or an unknown name."""
    path = root / SUITES_FILE
    try:
        suites = Suites.model_validate_json(json.dumps(read_yaml(path), default=str)).suites
    except ValidationError as error:
        raise InputError(f"{SUITES_FILE}: {first_problem(error)}") from error
    if name not in suites:
        known = ", ".join(suites) or "none"
        raise InputError(f"evaluate.suite = {name!r}: not in {SUITES_FILE}; suites there: {known}")
    return suites[name]
