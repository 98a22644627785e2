"""Curves over two logarithmic axes as inline SVG, with marks where they meet.

The look is that of `svg_charts`: the same frame, classes and legend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup

from pipeline.report.svg_charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUM_STYLES,
    RIGHT,
    TOP,
    WIDTH,
    frame,
    legend_entry,
    legend_height,
    mark,
    svg,
    x_tick,
    y_tick,
)

POWER_NAMES = {3: "k", 6: "M", 9: "G", 12: "T"}


@dataclass(frozen=True)
class Curve:
    """A labelled curve through points above 0; `marks` are points of it to be seen."""

    label: str
    points: tuple[tuple[float, float], ...]
    marks: tuple[tuple[float, float], ...] = ()


def curves(series: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> Markup:
    """Needs at least one curve with two points."""
    x_low, x_high = _powers([x for it in series for x, _ in it.points])
    y_low, y_high = _powers([y for it in series for _, y in it.points])

    def x_at(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (log10(x) - x_low) / (x_high - x_low)

    def y_at(y: float) -> float:
        share = (log10(y) - y_low) / (y_high - y_low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [
        frame(x_label, y_label),
        *(x_tick(x_at(10.0**power), power_name(power)) for power in range(x_low, x_high + 1)),
        *(y_tick(y_at(10.0**power), power_name(power)) for power in range(y_low, y_high + 1)),
    ]
    for number, curve in enumerate(series):
        style = f"s{number % NUM_STYLES}"
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in curve.points)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(style, path))
        parts += [mark(x_at(x), y_at(y), style) for x, y in curve.marks]
        parts.append(legend_entry(number, curve.label))
    return svg(parts, title=title, height=legend_height(len(series)))


def _powers(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around all values."""
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def power_name(power: int) -> str:
    """`10 ** 7` is `10M`."""
    group = 3 * (power // 3)
    if group == 0 or group not in POWER_NAMES:
        return f"{10.0**power:g}"
    return f"{10 ** (power - group)}{POWER_NAMES[group]}"
