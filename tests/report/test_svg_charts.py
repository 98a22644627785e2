"""Charts: well-formed, inside their frame, true to their numbers, safe against hostile labels."""

import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from pipeline.report.svg_charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Line,
    Point,
    lines,
    place_labels,
    round_ticks,
    scatter,
)


def point(label: str, x: float, y: float, kind: str = "approved") -> Point:
    return Point(label, x, y, 0.9 * y, 1.1 * y, kind)


def draw(*points: Point) -> ET.Element:
    return ET.fromstring(scatter(points, title="t", x_label="x", y_label="y"))


def marks(svg: ET.Element) -> list[tuple[float, float]]:
    return [(float(it.attrib["cx"]), float(it.attrib["cy"])) for it in svg.iter("circle")]


def test_a_factor_of_ten_is_the_same_distance_everywhere() -> None:
    (_, a), (_, b), (_, c) = marks(
        draw(point("a", 1, 1e-3), point("b", 1, 1e-2), point("c", 1, 0.1))
    )
    assert a - b == pytest.approx(b - c, abs=0.2)
    assert a > b > c


def test_everything_stays_inside_the_frame() -> None:
    svg = draw(*(point("name " * 9, x, y) for x in (0.0, 3.0, 977.0) for y in (0.0, 1e-9, 7.0)))
    for x, y in marks(svg):
        assert LEFT <= x <= WIDTH
        assert TOP <= y <= HEIGHT - BOTTOM


def test_a_divergence_of_zero_is_drawn_on_the_lower_edge() -> None:
    places = marks(draw(point("zero", 1, 0.0), point("some", 1, 0.01)))
    assert places[0][1] == HEIGHT - BOTTOM


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    places = [(200.0, 100.0), (204.0, 103.0), (198.0, 96.0), (430.0, 100.0), (60.0, 28.0)]
    boxes = place_labels(places, ["gguf-q4-k-m"] * 5)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(box.left >= 0 and box.right <= WIDTH for box in boxes)


@pytest.mark.parametrize("largest", [0.0, 0.003, 1.0, 7.4, 99.0, 101.0, 5.1e9])
def test_ticks_are_few_round_and_reach_the_largest_value(largest: float) -> None:
    ticks = round_ticks(largest)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] >= largest


def test_a_label_is_text_whatever_it_says() -> None:
    hostile = "</svg><script>1</script>"
    for svg in (
        scatter([point(hostile, 1, 1)], title=hostile, x_label=hostile, y_label=hostile),
        lines([Line(hostile, ((0, 1.0),))], [hostile], title=hostile, x_label="", y_label=""),
    ):
        assert "<script" not in svg
        assert not list(ET.fromstring(svg).iter("script"))


def test_an_interval_is_drawn_around_its_value() -> None:
    line = Line("it", ((0, 2.0),), intervals=((0, 1.0, 3.0),))
    svg = ET.fromstring(lines([line], ["1"], title="t", x_label="x", y_label="y"))
    (bar,) = [it.attrib for it in svg.iter("line") if it.attrib["class"] == "interval"]
    (x, y), *_ = marks(svg)
    assert float(bar["x1"]) == pytest.approx(x, abs=0.1)
    assert float(bar["y2"]) < y < float(bar["y1"])


def test_a_line_with_missing_categories_keeps_the_others_in_place() -> None:
    svg = ET.fromstring(
        lines(
            [Line("all", ((0, 1.0), (1, 2.0), (2, 3.0))), Line("some", ((2, 3.0),))],
            ["1", "4", "8"],
            title="t",
            x_label="x",
            y_label="y",
        )
    )
    full, partial = (it.attrib["points"].split() for it in svg.iter("polyline"))
    assert partial == full[2:]
