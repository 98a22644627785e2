"""Reading `eval/suites.yaml`."""

import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from pipeline.core.errors import InputError
from pipeline.core.record import first_problem
from pipeline.params.reading import read_yaml
from pipeline.params.suites import Suite, Suites

SUITES_FILE: Final = "eval/suites.yaml"


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
