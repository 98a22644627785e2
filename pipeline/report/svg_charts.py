"""Draw the report's charts as inline SVG with Vega-Lite.

The library is vl-convert, which runs Vega-Lite in this process and returns SVG. Three reasons led
to it. Its SVG accepts CSS variables as colours, so that one drawing follows light mode, dark mode
and print; matplotlib fixes colours when it draws. A mark can carry a text, which becomes the
browser's own tooltip here, so that values show on hovering without a script. An interactive Vega
page would need JavaScript in each report and a weaker content security policy. Specifications
are plain data, so that altair, which only builds them, is not needed.

Drawings are about 360 units wide, so that their text keeps its size on a phone. The same numbers
give the same bytes. Nothing is fetched.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, Final

import vl_convert
from markupsafe import Markup

from pipeline.core.formatting import significant

VEGA_LITE: Final = "6.1"
SVG: Final = "{http://www.w3.org/2000/svg}"
FONT: Final = "system-ui, sans-serif"
COLOURS: Final = [f"var(--c{number})" for number in range(6)]
DASHES: Final = [[1, 0], [7, 4], [2, 3], [9, 3, 2, 3], [4, 3], [12, 4]]
SHAPES: Final = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"]
VERDICTS: Final = ["approved", "inconclusive", "rejected"]
VERDICT_COLOURS: Final = ["var(--good)", "var(--open)", "var(--bad)"]
VERDICT_SHAPES: Final = ["circle", "diamond", "cross"]
AXIS: Final = {
    "labelColor": "var(--faint)",
    "titleColor": "var(--faint)",
    "gridColor": "var(--rule)",
    "domainColor": "var(--faint)",
    "tickColor": "var(--faint)",
    "labelFont": FONT,
    "titleFont": FONT,
    "titleFontWeight": "normal",
    "labelFontSize": 12,
    "titleFontSize": 12,
    "labelLimit": 130,
    "labelPadding": 6,
    "titlePadding": 10,
}
LEGEND: Final = {
    "labelColor": "var(--ink)",
    "labelFont": FONT,
    "labelFontSize": 12,
    "labelLimit": 150,
    "orient": "bottom",
    "title": None,
    "symbolSize": 60,
    "symbolStrokeWidth": 2,
}
# Short names of thousands, millions and so on: d3's own says G where readers of prices expect B,
# and has prefixes below one, where readers expect decimals.
SHORT_NUMBER: Final = (
    "datum.value < 1 ? format(datum.value, '~g') : replace(format(datum.value, '~s'), 'G', 'B')"
)


@dataclass(frozen=True)
class Point:
    """Hold one variant: its size, its KL divergence with the interval, and its verdict."""

    label: str
    size: float
    kl: float
    kl_low: float
    kl_high: float
    verdict: str


@dataclass(frozen=True)
class Line:
    """Hold one labelled line: (x, y) points, and (x, low, high) intervals where there are any.

    `marks` are the points that get a symbol; without any, every point gets one.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float, float], ...] = ()
    marks: tuple[tuple[float, float], ...] = ()


def size_and_divergence(points: Sequence[Point], *, title: str, unit: str) -> Markup:
    """Draw one row for each variant: a bar of its size, and its KL divergence with the interval.

    The axis of KL is logarithmic. A KL of 0 or less is drawn at its left edge. At least one KL has
    to be above 0.
    """
    positive = [kl for point in points for kl in (point.kl, point.kl_low, point.kl_high) if kl > 0]
    least = 10.0 ** floor(log10(min(positive)))
    most = max(10.0 ** ceil(log10(max(positive))), 10 * least)
    rows = [
        {
            "name": point.label,
            "size": point.size,
            "kl": max(point.kl, least),
            "low": max(point.kl_low, least),
            "high": max(point.kl_high, least),
            "verdict": point.verdict,
            "text": f"{point.label}, {point.verdict}: {significant(point.size)} {unit}, "
            f"KL {significant(point.kl)} "
            f"({significant(point.kl_low)} to {significant(point.kl_high)})",
        }
        for point in sorted(points, key=lambda point: (point.size, point.label))
    ]
    name = {"field": "name", "type": "nominal", "sort": None, "title": None}
    verdict = {"field": "verdict", "type": "nominal"}
    colour = verdict | {"scale": {"domain": VERDICTS, "range": VERDICT_COLOURS}}
    shape = verdict | {"scale": {"domain": VERDICTS, "range": VERDICT_SHAPES}}
    kl_axis = {"values": [10.0**power for power in _powers(least, most)], "format": "~g"}
    kl = {
        "type": "quantitative",
        "title": "KL, nats per token",
        "scale": {"type": "log", "domain": [least, most]},
        "axis": kl_axis,
    }
    text = {"field": "text"}
    size_panel = {
        "width": 85,
        "height": {"step": 26},
        "mark": {"type": "bar", "height": 10, "color": "var(--c5)"},
        "encoding": {
            "y": name | {"axis": {"labelColor": "var(--ink)", "ticks": False, "domain": False}},
            "x": {
                "field": "size",
                "type": "quantitative",
                "title": f"size, {unit}",
                "axis": {"tickCount": 2},
            },
            "description": text,
        },
    }
    kl_panel = {
        "width": 140,
        "height": {"step": 26},
        "encoding": {"y": name | {"axis": None}, "description": text},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "color": "var(--faint)"},
                "encoding": {"x": kl | {"field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {"x": kl | {"field": "kl"}, "color": colour, "shape": shape},
            },
        ],
    }
    described = f"{title}. " + "; ".join(str(row["text"]) for row in rows)
    # The padding on the left is for fonts that are wider than the one that vl-convert measures.
    padding = {"left": 16, "right": 6, "top": 4, "bottom": 4}
    panels = {"hconcat": [size_panel, kl_panel], "spacing": 18, "padding": padding}
    return _draw(panels, rows, title=described)


def lines(
    series: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
) -> Markup:
    """Draw lines with a legend below: over named steps from y = 0, or over logarithmic axes."""
    rows = [_row(line.label, x, y) for line in series for x, y in line.points]
    marks = [_row(line.label, x, y) for line in series for x, y in line.marks] or rows
    intervals = [
        {"name": line.label, "x": x, "low": low, "high": high}
        for line in series
        for x, low, high in line.intervals
    ]
    names = [line.label for line in series]
    by_name = {"field": "name", "type": "nominal", "sort": None}

    def styled(styles: Sequence[object]) -> dict[str, Any]:
        used = [styles[number % len(styles)] for number in range(len(names))]
        return by_name | {"scale": {"domain": names, "range": used}}

    x: dict[str, Any] = {"field": "x", "type": "ordinal", "title": x_label, "sort": None}
    x |= {"axis": {"labelAngle": 0}}
    y: dict[str, Any] = {"type": "quantitative", "title": y_label}
    if logarithmic:
        scale = {"type": "log", "nice": False}
        axis = {"labelExpr": SHORT_NUMBER, "tickCount": 5, "labelSeparation": 14}
        x |= {"type": "quantitative", "scale": scale, "axis": axis}
        y |= {"scale": scale, "axis": axis}
    colour = styled(COLOURS)
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "strokeWidth": 2.2},
            "encoding": {
                "x": x,
                "y": y | {"field": "y"},
                "color": colour,
                "strokeDash": styled(DASHES),
            },
        },
        {
            "data": {"values": intervals},
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6},
            "encoding": {
                "x": x,
                "y": y | {"field": "low"},
                "y2": {"field": "high"},
                "color": colour,
            },
        },
        {
            "data": {"values": marks},
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y | {"field": "y"},
                "color": colour,
                "shape": styled(SHAPES),
                "description": {"field": "text"},
            },
        },
    ]
    if not intervals:
        del layers[1]
    config = {"legend": LEGEND | {"columns": 2}}
    return _draw(
        {"width": 300, "height": 210, "layer": layers, "config": config}, rows, title=title
    )


def _row(name: str, x: float, y: float) -> dict[str, object]:
    text = f"{name}: {significant(y)} at {x:,.0f}"
    return {"name": name, "x": x, "y": y, "text": text}


def _powers(least: float, most: float) -> range:
    """Return at most six powers of ten from `least` to `most`."""
    low, high = round(log10(least)), round(log10(most))
    return range(low, high + 1, max(1, ceil((high - low) / 3)))


def _draw(spec: dict[str, Any], rows: list[dict[str, Any]], *, title: str) -> Markup:
    config = {"axis": AXIS, "legend": LEGEND, "view": {"stroke": None}, "background": None}
    svg = vl_convert.vegalite_to_svg(
        {
            **spec,
            "data": {"values": rows},
            "config": config | spec.get("config", {}),
        },
        vl_version=VEGA_LITE,
        allowed_base_urls=[],
    )
    return _inline(svg, title=title)


def _inline(svg: str, *, title: str) -> Markup:
    """Turn a drawing into SVG for a page: no namespaces, one text for all, tooltips for marks."""
    root = ET.fromstring(svg)
    for node in list(root.iter()):
        node.tag = node.tag.removeprefix(SVG)
        description = node.attrib.get("aria-label")
        is_mark = node.attrib.get("aria-roledescription") in ("point", "bar", "rule mark")
        for name in list(node.attrib):
            if name == "role" or name.startswith("aria-"):
                del node.attrib[name]
        if is_mark and description:
            ET.SubElement(node, "title").text = description
    size = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    root.attrib.clear()
    root.attrib.update(size)
    return Markup(ET.tostring(root, encoding="unicode"))  # ElementTree escapes
