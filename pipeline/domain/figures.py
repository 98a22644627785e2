"""Numbers as people read them: rounded for the eye only, never for a decision."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: int) -> str:
    """`1536` is `1.5 KiB`."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.1f} {UNITS[unit]}"


def percent(fraction: float) -> str:
    """`0.9734` is `97.3 %`."""
    return f"{100 * fraction:.1f} %"


def significant(value: float, digits: int = 3) -> str:
    """Rounded to significant digits; from 1000 on to whole numbers."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def short_digest(digest: str) -> str:
    """The first twelve hex digits, with the algorithm if it was there."""
    algorithm, _, value = digest.rpartition(":")
    return f"{algorithm}:{value[:12]}" if algorithm else value[:12]
