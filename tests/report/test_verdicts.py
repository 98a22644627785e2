"""Drops as the report shows them."""

import pytest

from pipeline.report.verdicts import signed


@pytest.mark.parametrize(
    ("drop", "shown"),
    [
        (0.01234, "0.0123"),
        (-0.00005, "-0.0001"),
        (0.00002, "2.0e-05"),
        (0.0, "0.0000"),
        (0.1 + 0.2 - 0.3, "0.0000"),  # 5.6e-17 of what cancels out
    ],
)
def test_a_drop_is_shown_to_four_decimals_and_noise_as_none(drop: float, shown: str) -> None:
    assert signed(drop) == shown
