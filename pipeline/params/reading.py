"""Reading what people write: `params.yaml` and the price list."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.core.errors import InputError
from pipeline.core.record import Record, first_problem, problem_keys
from pipeline.params.params import Params
from pipeline.params.prices import PriceList

PRESETS: Final = "presets"
MERGE_KEY: Final = "<<"  # https://yaml.org/type/merge.html

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
    """The validated parameters. Raises InputError that names the first wrong value.

    What variants share stands in a section `presets`, which reaches them by YAML's merge keys.
    """
    values = read_yaml(path)
    if isinstance(values, dict):
        values.pop(PRESETS, None)
    return _validated(Params, values, path)


def read_prices(path: Path) -> PriceList:
    """The validated price list. Raises InputError that names the first wrong value."""
    return _validated(PriceList, read_yaml(path), path)


def _validated(kind: type[AnyRecord], values: object, path: Path) -> AnyRecord:
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
        line = _line_of(problem_keys(error, values), path)
        where = f"{path.name}, line {line}" if line else path.name
        raise InputError(f"{where}: {first_problem(error, values)}") from error


def _line_of(keys: Sequence[str], path: Path) -> int | None:
    """Where the last of nested `keys` that stands in a YAML file was written; lines count from 1.

    A merged value is found where it was written. None when not even the first key is there.
    """
    node = YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))
    line = None
    for key in keys:
        found = _entry(node, key)
        if found is None:
            break
        written, node = found
        line = written.start_mark.line + 1
    return line


def _entry(node: Node, key: str) -> tuple[Node, Node] | None:
    """The node that shows where an entry begins, and that of its value."""
    if isinstance(node, SequenceNode):
        value = node.value[int(key)]
        return value, value
    entries = node.value if isinstance(node, MappingNode) else []
    for written, value in entries:
        if written.value == key:
            return written, value
    for written, value in entries:
        if written.value == MERGE_KEY:
            for merged in value.value if isinstance(value, SequenceNode) else [value]:
                if found := _entry(merged, key):
                    return found
    return None
