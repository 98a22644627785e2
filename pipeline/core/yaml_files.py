"""YAML files that people write, read in the way of DVC."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.core.errors import InputError


def read_yaml(path: Path) -> object:
    """Read a YAML 1.2 file as plain values, as DVC does.

    Raises InputError for a file that is missing, unreadable or not valid YAML in UTF-8.
    """
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
