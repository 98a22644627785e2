"""The base of everything quantline reads from or writes to a file.

A record is frozen, and unknown keys are refused.

The bytes of a record are canonical: keys in order of declaration, two-space indent, one final
newline. The same record is always the same file.
"""

import hashlib
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.domain.errors import InputError


class Record(BaseModel):
    """A frozen value with a file form."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Self:
        """Parse the file form; `source` names the file in the error.

        Raises InputError with the first thing that is wrong.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InputError(
                f"{source}: {first_problem(error)}; the file is damaged or was written by another "
                "version: delete it and run `dvc repro` again"
            ) from error


def first_problem(error: ValidationError) -> str:
    """The first validation problem as `where = value: what was expected`."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if problem["type"] == "missing":
        return f"{where}: missing"
    if problem["type"] == "json_invalid":
        return f"not valid JSON ({message})"
    return f"{where} = {problem['input']!r}: {message}"


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
