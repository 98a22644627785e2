"""Charts: well-formed, true to their numbers, the same each time, safe against hostile labels."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from pipeline.report.svg_charts import Line, Point, lines, size_and_divergence


def point(label: str, size: float, kl: float) -> Point:
    return Point(label, size, kl, 0.9 * kl, 1.1 * kl, "approved")


def draw_sizes(*points: Point) -> str:
    return size_and_divergence(points, title="t", unit="MiB")


def draw_lines(*series: Line, logarithmic: bool = False) -> str:
    return lines(series, title="t", x_label="x", y_label="y", logarithmic=logarithmic)


def marks(svg: str) -> list[tuple[float, float]]:
    """Return the places of the marks with a tooltip that are moved to their place."""
    places = []
    for node in ET.fromstring(svg).iter("path"):
        moved = re.fullmatch(r"translate\((.+?),(.+?)\)", node.attrib.get("transform", ""))
        if moved and node.find("title") is not None:
            places.append((float(moved[1]), float(moved[2])))
    return places


def test_a_factor_of_ten_in_kl_is_the_same_distance_everywhere() -> None:
    places = marks(draw_sizes(point("a", 1, 1e-3), point("b", 2, 1e-2), point("c", 3, 0.1)))
    first, second, third = sorted(x for x, _ in places)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert second > first


def test_a_divergence_of_zero_is_drawn_at_the_edge() -> None:
    places = marks(draw_sizes(point("zero", 1, 0.0), point("some", 2, 0.01)))
    assert min(x for x, _ in places) == pytest.approx(0.0)


def test_a_proportional_cost_is_a_straight_line() -> None:
    points = tuple((10.0**power, 0.003 * 10**power) for power in range(3, 7))
    places = marks(draw_lines(Line("api", points), logarithmic=True))
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(places)]
    for step in steps:
        assert step == pytest.approx(steps[0], abs=0.2)
    assert steps[0][0] > 0 > steps[0][1]


def test_values_show_on_hovering() -> None:
    assert "<title>own: 2.00 at 8</title>" in draw_lines(Line("own", ((1, 1.0), (8, 2.0))))
    assert "a, approved: 1.00 MiB, KL 0.0100 (0.00900 to 0.0110)" in draw_sizes(point("a", 1, 0.01))


def test_a_chart_needs_nothing_from_outside_and_takes_its_colours_from_the_page() -> None:
    svg = draw_lines(Line("own", ((1, 1.0), (8, 2.0)), intervals=((1, 0.5, 1.5),)))
    assert not re.search(r"url\(|https?://|\bid=|href", svg)
    assert "var(--c0)" in svg
    assert not re.search(r'(fill|stroke)="(#|black|white)', svg)


def test_the_same_numbers_give_the_same_bytes() -> None:
    points = [point("a", 1, 0.01), point("b", 2, 0.02)]
    assert draw_sizes(*points) == draw_sizes(*points)


def test_a_label_is_text_whatever_it_says() -> None:
    hostile = "</svg><script>1</script>"
    for svg in (draw_sizes(point(hostile, 1, 1)), draw_lines(Line(hostile, ((1, 1.0),)))):
        assert "<script" not in svg
        assert not list(ET.fromstring(svg).iter("script"))
