"""The kinds of values that parameters are made of."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints


def matching(pattern: str, expected: str) -> AfterValidator:
    """A check of the whole text that says what was expected instead of showing the pattern."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


PositiveInt = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
