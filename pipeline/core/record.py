"""The base class of the records that quantline reads from files and writes to them.

A record is frozen and refuses unknown keys. Its bytes are canonical: keys in order of declaration,
two-space indent, one final newline. The same record always gives the same file.
"""

import hashlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.errors import InputError, printable, short_repr

# User and password in a URL, which no message may show.
USER_INFO = re.compile(r"//[^/@\s]*@")


class Record(BaseModel):
    """A frozen pydantic model that is stored as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str, made_by: str | None = None) -> Self:
        """Parse JSON; `source` names the file in the error.

        `made_by` is the quantline command that makes the file again. Raises InputError with the
        first problem and this command, or `dvc repro` where none is given.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            command = f"quantline {made_by}" if made_by else "dvc repro"
            raise InputError(
                f"{source}: {first_problem(error)}; the file is damaged or was written by another "
                f"version: delete it and run `{command}` again"
            ) from error

    @classmethod
    def from_untrusted(cls, data: bytes, *, source: str) -> Self:
        """Parse untrusted JSON of a registry or an archive. Raises InputError with the problem."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"{source}: {printable(first_problem(error))}") from error


def first_problem(error: ValidationError, data: object = None) -> str:
    """Describe the first validation problem as `where = value: what was expected`.

    An unknown key comes before a missing one: a misspelt key is both, and the reader can find the
    one that was written. With `data`, the validated value, `where` names the keys that it has.
    """
    problems = error.errors(include_url=False)
    problem = _first(problems)
    where = ".".join(problem_keys(error, data)) or "the file"
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_suggestion(problem['loc'], problems)}"
        case "missing" | "union_tag_not_found":
            return f"{where}: missing"
        case "json_invalid":
            return f"not valid JSON ({message})"
        case "union_tag_invalid":
            found, expected = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            return f"{where} = {short_repr(found)}: expected {expected}"
        case "value_error" if not problem["loc"]:
            return message
    return f"{where} = {USER_INFO.sub('//…@', short_repr(problem['input']))}: {message}"


def problem_keys(error: ValidationError, data: object = None) -> list[str]:
    """Return the keys that lead to the problem that `first_problem` names, as `data` has them."""
    problem = _first(error.errors(include_url=False))
    keys = _place(problem["loc"], data, missing=problem["type"] == "missing")
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        keys.append(str(problem["ctx"]["discriminator"]).strip("'"))
    return keys


def _first(problems: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return the first unknown key, or the first problem where every key is known."""
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    return (unknown or problems)[0]


def _suggestion(loc: tuple[int | str, ...], problems: Sequence[ErrorDetails]) -> str:
    """Name the missing key that looks most like the unknown key at `loc`, if there is one."""
    missing = [
        str(problem["loc"][-1])
        for problem in problems
        if problem["type"] == "missing" and problem["loc"][:-1] == loc[:-1]
    ]
    close = get_close_matches(str(loc[-1]), missing, n=1)
    return f"; {close[0]} was expected there" if close else ""


def _place(loc: tuple[int | str, ...], data: object, *, missing: bool) -> list[str]:
    """Return the path to a problem without pydantic's own names for the members of a union.

    These names are not keys in `data`. Neither is the last part of the path of a `missing` key.
    """
    known = data is not None
    parts = []
    for number, part in enumerate(loc, start=1):
        inside = (isinstance(data, dict) and part in data) or isinstance(data, list)
        if known and not inside and not (missing and number == len(loc)):
            continue
        data = data[part] if inside else None  # type: ignore[index]
        parts.append(str(part))
    return parts


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
