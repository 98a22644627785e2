"""Curves on logarithmic axes: inside their frame, straight where cost is proportional to volume."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from pipeline.report.svg_charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Curve, curves, power_name


def places(svg: ET.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, it.split(","))) for it in line.attrib["points"].split()]  # type: ignore[misc]
        for line in svg.iter("polyline")
    ]


def draw(*series: Curve) -> ET.Element:
    return ET.fromstring(curves(series, title="t", x_label="x", y_label="y"))


def test_a_proportional_cost_is_a_straight_line_inside_the_frame() -> None:
    volumes = [1e3, 1e4, 1e5, 1e6]
    svg = draw(Curve("api", tuple((it, 0.003 * it) for it in volumes)))
    (line,) = places(svg)
    steps = [b[1] - a[1] for a, b in pairwise(line)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert steps[0] < 0
    for x, y in line:
        assert LEFT <= x <= WIDTH
        assert TOP <= y <= HEIGHT - BOTTOM


def test_a_mark_lies_where_two_curves_meet() -> None:
    own = Curve("own", ((1e3, 100.0), (1e6, 100.0)), marks=((1e5, 100.0),))
    svg = draw(own, Curve("api", ((1e3, 1.0), (1e6, 1000.0))))
    flat, rising = places(svg)
    mark = next(svg.iter("circle")).attrib
    share = (float(mark["cx"]) - rising[0][0]) / (rising[1][0] - rising[0][0])
    meeting = rising[0][1] + share * (rising[1][1] - rising[0][1])
    assert float(mark["cy"]) == pytest.approx(flat[0][1], abs=0.2)
    assert float(mark["cy"]) == pytest.approx(meeting, abs=0.5)


@pytest.mark.parametrize(
    ("power", "name"), [(-2, "0.01"), (0, "1"), (2, "100"), (3, "1k"), (7, "10M"), (11, "100G")]
)
def test_powers_of_ten_have_short_names(power: int, name: str) -> None:
    assert power_name(power) == name
