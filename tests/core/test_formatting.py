"""Numbers for the eye."""

import pytest

from pipeline.core.formatting import NBSP, bytes_text, percent, significant


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (2**53, "8192.0 TiB")],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count).replace(NBSP, " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00401, "0.00401"), (1.0, "1.00"), (42.04, "42.0"), (180.2, "180"),
     (1180.4, "1,180"), (-0.5, "-0.500")],
)  # fmt: skip
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_percent_does_not_break() -> None:
    assert percent(0.97349) == f"97.3{NBSP}%"
