"""Charts: what is drawn where, and what is left out."""

import re

import pytest

from mdlm.view.chart import BOTTOM, HEIGHT, LEFT, MOST, TOP, Series, chart, padded, thinned, ticks


def lines(svg):
    found = re.findall(r'<polyline class="([^"]+)" points="([^"]*)"/>', svg)
    return [
        (name, [tuple(map(float, point.split(","))) for point in points.split()])
        for name, points in found
    ]


def test_a_line_goes_through_its_points():
    svg = chart([Series(name="a", color=2, x=[0, 10, 20], y=[0, 1, 2])], x="step", y="nats")
    [(name, points)] = lines(svg)
    assert name == "s2 line" and points[0][0] == LEFT
    (_, low), (_, middle), (_, high) = points
    assert low == pytest.approx(HEIGHT - BOTTOM) and middle == pytest.approx(
        (low + high) / 2, abs=1
    )
    assert TOP < high < TOP + 20 and 'aria-label="nats over step: a"' in svg


def test_points_have_their_errors():
    one = Series(name="a", color=0, x=[1, 2], y=[5.0, 6.0], error=[0.5, None], style="points")
    svg = chart([one], x="x", y="y")
    assert svg.count("<circle") == 2 and "<title>a: 1, 5 +- 0.5</title>" in svg
    [(top, bottom)] = re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)M', svg)
    at = float(re.findall(r'cy="([\d.]+)"', svg)[0])
    assert at == pytest.approx((float(top) + float(bottom)) / 2, abs=0.2)
    assert abs(float(top) - float(bottom)) > 20


def test_what_is_not_finite_is_left_out():
    y = [1.0, None, float("nan"), float("inf"), 2.0]
    one = Series(name="a", color=0, x=[1, 2, 3, 4, 5], y=y, error=[float("nan")] * 5)
    [(_, points)] = lines(chart([one], x="x", y="y"))
    assert len(points) == 2
    assert chart([Series(name="a", color=0, x=[], y=[])], x="x", y="y") == ""
    assert chart([Series(name="a", color=0, x=[1], y=[None])], x="x", y="y") == ""
    flat = chart([Series(name="a", color=0, x=[0], y=[0.0], style="points")], x="x", y="y")
    assert "<circle" in flat and "nan" not in flat


def test_a_faint_line_does_not_decide_the_range():
    line = Series(name="a", color=0, x=[0, 1], y=[1.0, 2.0])
    faint = Series(name="a", color=0, x=[0, 1], y=[1.0, 900.0], style="faint")
    assert lines(chart([line], x="x", y="y")) == lines(chart([faint, line], x="x", y="y"))[1:]


def test_names_are_escaped():
    svg = chart([Series(name='<b>&"', color=0, x=[0, 1], y=[1, 2], style="points")], x="<i>", y="&")
    assert "<b>" not in svg and "<i>" not in svg and "&lt;b&gt;&amp;" in svg


def test_long_lines_keep_their_extremes():
    points = [(float(i), float(i % 7), 0.0) for i in range(100_000)]
    points[5000] = (5000.0, 99.0, 0.0)
    points[70_001] = (70_001.0, -99.0, 0.0)
    found = thinned(points)
    assert len(found) <= MOST + 2 and found == sorted(found)
    assert points[5000] in found and points[70_001] in found
    assert thinned(points[:50]) == points[:50]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3.34, 7.4, [4, 5, 6, 7]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.0011, 0.0032, [0.0015, 0.002, 0.0025, 0.003]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_the_horizontal_axis_begins_at_0_unless_it_is_given():
    one = Series(name="a", color=0, x=[10, 20], y=[1, 2])
    [(_, ((first, _), _))] = lines(chart([one], x="x", y="y"))
    [(_, ((given, _), (last, _)))] = lines(chart([one], x="x", y="y", across=(10, 20)))
    assert given == LEFT < first < last
    assert padded(4, 6) == pytest.approx((3.88, 6.12)) and padded(5, 5) == (4.5, 5.5)
    assert padded(0, 0) == (-1, 1) and padded(0, 10)[0] == 0
