"""Reading what people write: `params.yaml` and the price list."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.domain.errors import InputError
from pipeline.domain.params import Params
from pipeline.domain.prices import PriceList
from pipeline.domain.record import Record, first_problem

AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_yaml(path: Path) -> object:
    """A YAML 1.2 file as plain values, read as DVC reads it. Raises InputError."""
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run quantline where it is") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}, line {line}: not valid YAML: {error.problem}") from error
    except YAMLError as error:
        message = " ".join(str(error).split())
        raise InputError(f"{path}: not valid YAML: {message}") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply") from error


def read_params(path: Path) -> Params:
    """The validated parameters. Raises InputError that names the first wrong value."""
    return _read(Params, path)


def read_prices(path: Path) -> PriceList:
    """The validated price list. Raises InputError that names the first wrong value."""
    return _read(PriceList, path)


def _read(kind: type[AnyRecord], path: Path) -> AnyRecord:
    values = read_yaml(path)
    try:
        # Through JSON, whose strict mode takes lists as tuples and strings as enums, nothing else.
        data = json.dumps(values, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name}: expected plain keys and values; found a key that is no text, or a value "
            "that contains itself"
        ) from error
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error, values)}") from error
