"""Types of values that several parameters share."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo


def matching(pattern: str, expected: str) -> AfterValidator:
    """Make a pydantic check of the whole text whose message says what was `expected`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


def _without_quantized_inputs(num_samples: int, info: ValidationInfo) -> int:
    if num_samples and info.data.get("quantized_inputs"):
        raise ValueError(
            "alignment starts from the base's weights and makes up for the layers before by "
            "itself; set quantized_inputs to false"
        )
    return num_samples


PositiveInt = Annotated[int, Field(gt=0)]
AlignSamples = Annotated[int, Field(ge=0, le=100_000), AfterValidator(_without_quantized_inputs)]
NotNegative = Annotated[float, Field(ge=0.0)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
