"""Numbers as text for people: rounded for display only, never before a decision."""

NBSP = "\N{NO-BREAK SPACE}"  # between a number and its unit
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def unit_of(count: int) -> tuple[str, int]:
    """Return the largest unit that `count` bytes fill, and its size in bytes."""
    power = 0
    while count >= 1024 ** (power + 1) and power < len(UNITS) - 1:
        power += 1
    return UNITS[power], 1024**power


def bytes_text(count: int) -> str:
    """Format a number of bytes: `1536` is `1.5 KiB`."""
    unit, unit_bytes = unit_of(count)
    number = str(count) if unit_bytes == 1 else f"{count / unit_bytes:.1f}"
    return number + NBSP + unit


def percent(fraction: float) -> str:
    """Format a fraction as a percentage: `0.9734` is `97.3 %`."""
    return f"{100 * fraction:.1f}{NBSP}%"


def significant(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits; from 1000 on as a whole number."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".removesuffix(".")
