"""Numbers as people read them: rounded for the eye only, never for a decision."""

NBSP = "\N{NO-BREAK SPACE}"  # between a number and its unit
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def unit_of(count: int) -> tuple[str, int]:
    """The largest unit that `count` bytes fill, and its size in bytes."""
    power = 0
    while count >= 1024 ** (power + 1) and power < len(UNITS) - 1:
        power += 1
    return UNITS[power], 1024**power


def bytes_text(count: int) -> str:
    """`1536` is `1.5 KiB`."""
    unit, unit_bytes = unit_of(count)
    number = str(count) if unit_bytes == 1 else f"{count / unit_bytes:.1f}"
    return number + NBSP + unit


def percent(fraction: float) -> str:
    """`0.9734` is `97.3 %`."""
    return f"{100 * fraction:.1f}{NBSP}%"


def significant(value: float, digits: int = 3) -> str:
    """Rounded to significant digits, with their zeros; from 1000 on to whole numbers."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".removesuffix(".")
