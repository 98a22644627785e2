"""Types of values that several parameters share."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints


def matching(pattern: str, expected: str) -> AfterValidator:
    """Make a pydantic check of the whole text whose message says what was `expected`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


PositiveInt = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
