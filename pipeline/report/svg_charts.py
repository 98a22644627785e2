"""Two small charts as inline SVG: points on a logarithmic axis, and lines over categories.

Pure functions from numbers to markup. Colours and fonts come from the style sheet of the page
through the classes used here, so that a chart follows dark mode and print. No scripts, no ids.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final, NamedTuple

from markupsafe import Markup

POWER_NAMES = {3: "k", 6: "M", 9: "G", 12: "T"}


@dataclass(frozen=True)
class Curve:
    """A labelled curve through points above 0; `marks` are points of it to be seen."""

    label: str
    points: tuple[tuple[float, float], ...]
    marks: tuple[tuple[float, float], ...] = ()


WIDTH: Final = 440.0
HEIGHT: Final = 300.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 22.0, 26.0, 44.0
LETTER_WIDTH: Final = 7.0  # of the 12-pixel labels, on average
LINE_HEIGHT: Final = 14.0
MAX_LABEL_CHARACTERS: Final = 26
MARK_RADIUS: Final = 5.0
NUM_STYLES: Final = 6  # line styles in the style sheet: s0 … s5


@dataclass(frozen=True)
class Point:
    """One labelled point with the interval of its y; `kind` is a class of the style sheet."""

    label: str
    x: float
    y: float
    y_low: float
    y_high: float
    kind: str


@dataclass(frozen=True)
class Line:
    """One labelled line: y by the index of its category, and its interval where there is one."""

    label: str
    values: tuple[tuple[int, float], ...]
    intervals: tuple[tuple[int, float, float], ...] = ()


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def scatter(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> Markup:
    """Points over a linear x from 0 and a logarithmic y. Needs at least one y above 0.

    A y of 0 or less, which has no logarithm, is drawn on the lower edge.
    """
    positive = [y for point in points for y in (point.y, point.y_low, point.y_high) if y > 0]
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)))
    high = max(high, low + 1)
    x_ticks = round_ticks(max(point.x for point in points) * 1.08)
    x_max = x_ticks[-1]

    def x_at(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_max

    def y_at(y: float) -> float:
        share = (log10(y) - low) / (high - low) if y > 0 else 0.0
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    parts = [
        frame(x_label, y_label),
        *(x_tick(x_at(tick), f"{tick:g}") for tick in x_ticks),
        *(y_tick(y_at(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1)),
    ]
    places = [(x_at(point.x), y_at(point.y)) for point in points]
    labels = place_labels(places, [_shortened(point.label) for point in points])
    for point, (x, y), label in zip(points, places, labels, strict=True):
        parts.append(_interval(x, y_at(point.y_low), y_at(point.y_high)))
        parts.append(mark(x, y, point.kind))
        middle = (label.left + label.right) / 2
        parts.append(_text(middle, label.bottom - 3, _shortened(point.label), "label middle"))
    return svg(parts, title=title, height=HEIGHT)


def lines(series: Sequence[Line], categories: Sequence[str], *, title: str, x_label: str,
          y_label: str) -> Markup:  # fmt: skip
    """Lines over equally spaced categories, y from 0, with a legend below. Needs a value."""
    tops = [value for line in series for _, value in line.values]
    tops += [high for line in series for _, _, high in line.intervals]
    ticks = round_ticks(max(tops) * 1.05)
    step = (WIDTH - LEFT - RIGHT) / len(categories)

    def x_at(index: int) -> float:
        return LEFT + step * (index + 0.5)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / ticks[-1]

    parts = [
        frame(x_label, y_label),
        *(x_tick(x_at(index), name) for index, name in enumerate(categories)),
        *(y_tick(y_at(tick), f"{tick:,g}") for tick in ticks),
    ]
    for number, line in enumerate(series):
        style = f"s{number % NUM_STYLES}"
        places = [(x_at(index), y_at(value)) for index, value in line.values]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(style, path))
        parts += [
            _interval(x_at(index), y_at(low), y_at(high)) for index, low, high in line.intervals
        ]
        parts += [mark(x, y, style) for x, y in places]
        parts.append(legend_entry(number, line.label))
    return svg(parts, title=title, height=legend_height(len(series)))


def legend_entry(number: int, label: str) -> Markup:
    """The style of a line and its name, below the chart."""
    style = f"s{number % NUM_STYLES}"
    y = HEIGHT + LINE_HEIGHT * 1.4 * number + 8
    line = Markup('<line class="line {}" x1="{:.0f}" x2="{:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return (
        line.format(style, LEFT, LEFT + 30, y=y)
        + mark(LEFT + 15, y, style)
        + _text(LEFT + 38, y + 4, label[:48], "label")
    )


def legend_height(num_lines: int) -> float:
    """The height of a chart with its legend."""
    return HEIGHT + LINE_HEIGHT * 1.4 * num_lines + 4


def round_ticks(largest: float) -> tuple[float, ...]:
    """Three to six ticks from 0 in steps of 1, 2 or 5 times a power of ten, up to `largest`."""
    largest = largest if largest > 0 else 1.0
    power = 10.0 ** floor(log10(largest))
    step = next(
        step
        for step in (power / 5, power / 2, power, power * 2)
        if ceil(largest / step - 1e-9) <= 5
    )
    return tuple(step * number for number in range(ceil(largest / step - 1e-9) + 1))


def place_labels(places: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[Box]:
    """A box for each label beside its point, inside the plot and, where possible, apart."""
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    boxes = []
    for place, label in zip(places, labels, strict=True):
        candidates = [_clamped(box) for box in _around(place, label)]
        box = next(
            (it for it in candidates if not any(it.overlaps(other) for other in taken)),
            candidates[0],
        )
        taken.append(box)
        boxes.append(box)
    return boxes


def _around(place: tuple[float, float], label: str) -> Iterator[Box]:
    """Where a label may go, best first: right, left, above, below, then farther up and down."""
    x, y = place
    width, half = len(label) * LETTER_WIDTH, LINE_HEIGHT / 2
    for shift in (0.0, -LINE_HEIGHT, LINE_HEIGHT, -2 * LINE_HEIGHT, 2 * LINE_HEIGHT):
        yield Box(x + 9, y - half + shift, x + 9 + width, y + half + shift)
        yield Box(x - 9 - width, y - half + shift, x - 9, y + half + shift)
        if shift:
            yield Box(x - width / 2, y - half + shift, x + width / 2, y + half + shift)


def _clamped(box: Box) -> Box:
    right = min(max(0.0, LEFT + 2 - box.left), WIDTH) - max(0.0, box.right - WIDTH + 2)
    down = max(0.0, TOP - box.top) - max(0.0, box.bottom - (HEIGHT - BOTTOM))
    return Box(box.left + right, box.top + down, box.right + right, box.bottom + down)


def _shortened(label: str) -> str:
    return label if len(label) <= MAX_LABEL_CHARACTERS else label[: MAX_LABEL_CHARACTERS - 1] + "…"


def svg(parts: Iterable[Markup], *, title: str, height: float) -> Markup:
    return Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img"><title>{}</title>{}</svg>').format(
        WIDTH, height, title, Markup("").join(parts)
    )


def frame(x_label: str, y_label: str) -> Markup:
    axes = Markup('<path class="axis" d="M{:.0f} {:.0f} V{:.0f} H{:.0f}"/>').format(
        LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT
    )
    below = _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "name middle")
    return axes + below + _text(4, 14, y_label, "name")


def x_tick(x: float, label: str) -> Markup:
    bottom = HEIGHT - BOTTOM
    line = Markup('<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{:.0f}" y2="{:.0f}"/>').format(
        bottom, bottom + 4, x=x
    )
    return line + _text(x, bottom + 17, label, "tick middle")


def y_tick(y: float, label: str) -> Markup:
    line = Markup('<line class="grid" x1="{:.0f}" x2="{:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
        LEFT, WIDTH - RIGHT, y=y
    )
    return line + _text(LEFT - 6, y + 4, label, "tick end")


def mark(x: float, y: float, kind: str) -> Markup:
    """A disc, or a cross for what was rejected: to be told apart without colours."""
    if kind == "rejected":
        return Markup('<path class="mark {}" d="M{:.1f} {:.1f} l10 10 m0 -10 l-10 10"/>').format(
            kind, x - MARK_RADIUS, y - MARK_RADIUS
        )
    return Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="{:.0f}"/>').format(
        kind, x, y, MARK_RADIUS
    )


def _interval(x: float, low: float, high: float) -> Markup:
    return Markup(
        '<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}"/>'
    ).format(x=x, a=low, b=high)


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


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
