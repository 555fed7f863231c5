"""Plots: well-formed, within their picture, and true to their values."""

import math
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcoder.bench.plots import (
    NARROW,
    WIDE,
    Curve,
    Interval,
    Point,
    Shares,
    brief,
    busy,
    difference,
    figures,
    forest,
    printable,
    room_of,
    saturation,
    standalone,
)

GOLDEN = Path(__file__).parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"
WIDTHS = st.sampled_from([WIDE, NARROW])
WORDS = st.text(max_size=40)
ANY = st.floats(-1e200, 1e200) | st.floats(0.5, 2) | st.sampled_from([math.nan, math.inf, -math.inf])
"""What is read is at most 1e15: no ratio or sum of such is greater."""
VERDICTS = st.sampled_from(["equivalent", "different", "inconclusive", "no verdict"])
INTERVALS = st.lists(st.builds(Interval, WORDS, ANY, ANY, ANY, ANY, ANY, VERDICTS, st.booleans()), max_size=6)
POINTS = st.builds(Point, st.integers(1, 10**15), ANY, ANY, ANY)
CURVES = st.lists(st.builds(Curve, WORDS, st.lists(POINTS, max_size=6).map(tuple)), max_size=7)
SHARES = st.lists(st.builds(Shares, WORDS, st.lists(st.tuples(WORDS, ANY), max_size=7).map(tuple)), max_size=6)

EQUAL = Interval("4 × 1", 0.998, 0.989, 1.007, 0.987, 1.009, "equivalent")
SLOWER = Interval("worker 1 × 4", 0.9, 0.88, 0.92, 0.876, 0.925, "different")
UNSURE = Interval("bare 4", 1.01, 0.95, 1.07, 0.94, 1.08, "inconclusive")
UNJUDGED = Interval("2 × 2", 1.0, 0.98, 1.02, 0.975, 1.025, "no verdict")
AGAIN = Interval("1 × 4 again", 1.001, 0.99, 1.012, 0.988, 1.014, "equivalent", again=True)


DRAWN = settings(max_examples=40, deadline=None)


@DRAWN
@given(INTERVALS, st.floats(0.001, 0.9), WORDS, WIDTHS)
def test_any_forest_plot_lies_within_its_picture(found: list[Interval], margin: float, words: str, width: int) -> None:
    check(forest(found, margin, less=words, more=words, width=width))


@DRAWN
@given(CURVES, WORDS, st.sampled_from([(), (1.25, 1.0, 0.98)]), st.booleans(), WIDTHS)
def test_any_saturation_curve_lies_within_its_picture(
    curves: list[Curve], words: str, limits: tuple[float, ...], log: bool, width: int
) -> None:
    check(saturation(curves, across=words, up=words, limits=limits, log=log, width=width))


@DRAWN
@given(SHARES, WIDTHS)
def test_any_strip_of_engines_lies_within_its_picture(rows: list[Shares], width: int) -> None:
    check(busy(rows, width=width))


def test_the_check_itself_finds_what_lies_outside() -> None:
    plot = forest([EQUAL], 0.03, less="slower", more="faster")
    plot.append(Element("line", {"x1": "0", "y1": "0", "x2": "721", "y2": "0"}))
    with pytest.raises(AssertionError):
        check(plot)


def test_a_forest_plot_is_drawn_as_before() -> None:
    told = standalone(forest([AGAIN, EQUAL, SLOWER, UNSURE], 0.03, less="slower", more="faster"))
    golden = GOLDEN / "bench-forest.svg"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(told)
    assert golden.read_text() == told


def test_marks_and_lines_stand_where_the_values_say() -> None:
    plot = parsed(forest([EQUAL, SLOWER], 0.05, less="slower", more="faster"))
    marks = [bounds(path)[0] for path in plot.iter(f"{SVG}path")][2:]
    thick = [line for line in plot.iter(f"{SVG}line") if "thick" in line.get("class", "")]
    [band] = list(plot.iter(f"{SVG}rect"))
    low, high = float(band.get("x", "")), float(band.get("x", "")) + float(band.get("width", ""))
    unit = (high - low) / (math.log(1.05) - math.log(0.95))
    one = low - math.log(0.95) * unit
    for interval, mark, line in zip((EQUAL, SLOWER), marks, thick, strict=True):
        centre = (mark[0] + mark[1]) / 2
        assert centre == pytest.approx(one + math.log(interval.value) * unit, abs=0.3)
        assert float(line.get("x1", "")) == pytest.approx(one + math.log(interval.low90) * unit, abs=0.3)
        assert float(line.get("x2", "")) == pytest.approx(one + math.log(interval.high90) * unit, abs=0.3)


def test_verdicts_differ_in_shape_and_not_only_in_colour() -> None:
    plot = parsed(forest([EQUAL, SLOWER, UNSURE, UNJUDGED, AGAIN], 0.03, less="slower", more="faster"))
    marks = [path for path in plot.iter(f"{SVG}path") if "thin" not in path.get("class", "")]
    drawn = [(re.sub(r"[\d.]+", "0", path.get("d", "")), path.get("class", "")[:6]) for path in marks]
    assert len(set(drawn[:5])) == 5
    assert sorted(drawn[:5]) == sorted(drawn[5:])


def test_curves_differ_in_shape_and_dashes_and_engines_in_pattern() -> None:
    curves = [Curve(str(n), (Point(1, 1, 1, 1), Point(2, 2, 2, 2))) for n in range(6)]
    plot = parsed(saturation(curves, across="streams", up="fps"))
    lines = [path for path in plot.iter(f"{SVG}path") if "curve" in path.get("class", "")]
    assert len({line.get("stroke-dasharray") for line in lines}) == 6
    strip = parsed(busy([Shares("bare 4", tuple((str(n), 0.5) for n in range(6)))]))
    assert len({pattern[0].get("d") for pattern in strip.iter(f"{SVG}pattern")}) == 5


def test_one_wild_interval_does_not_press_the_others_into_a_point() -> None:
    wild = Interval("8 × 1", 1.0, 0.3, 3.0, 0.1, 9.0)
    plot = parsed(forest([EQUAL, AGAIN, UNSURE, wild], 0.03, less="slower", more="faster"))
    thick = [line for line in plot.iter(f"{SVG}line") if "thick" in line.get("class", "")]
    lengths = [float(line.get("x2", "")) - float(line.get("x1", "")) for line in thick]
    assert lengths[2] > 60
    assert "thin" in list(plot.iter(f"{SVG}path"))[-2].get("class", ""), "an arrow says that there is more"


def test_the_words_of_an_axis_do_not_touch() -> None:
    for width in (WIDE, NARROW):
        for reach in (0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 3.0):
            one = Interval("a", 1.0, 1 / (1 + reach), 1 + reach, 1 / (1 + reach), 1 + reach)
            plot = parsed(forest([one], 0.01, less="slower", more="faster", width=width))
            ticks = sorted(extent(text) for text in plot.iter(f"{SVG}text") if text.get("class") == "small mid")
            assert len(ticks) >= 3
            assert all(before[1] <= after[0] for before, after in pairwise(ticks))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0"),
        (0.9984, "0.998"),
        (0.9996, "1.00"),
        (1.007, "1.01"),
        (12.34, "12.3"),
        (1234.0, "1,230"),
        (-0.01234, "-0.0123"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_figures_have_three_digits(value: float, told: str) -> None:
    assert figures(value) == told


@given(st.floats(-1e200, 1e200))
def test_no_figure_has_more_than_three_significant_digits(value: float) -> None:
    digits = re.sub(r"e.*|\D", "", figures(value)).lstrip("0")
    assert len(digits.rstrip("0")) <= 3
    assert float(figures(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_differences_have_their_sign_and_chosen_numbers_no_zeros() -> None:
    assert [difference(ratio) for ratio in (1.0, 1.007, 0.88, 2.7, 0.9999)] == [
        "0.0 %",
        "+0.7 %",
        "−12 %",
        "+170 %",
        "0.0 %",
    ]
    assert [brief(value) for value in (3.0, 0.5, 30.0, 12.5)] == ["3", "0.5", "30", "12.5"]


def check(plot: Element) -> None:
    """Well-formed, and nothing outside."""
    root = parsed(plot)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for element in drawn(root):
        (left, right), (top, bottom) = bounds(element)
        assert left >= 0, (element.attrib, element.text)
        assert right <= width, (element.attrib, element.text)
        assert top >= 0, (element.attrib, element.text)
        assert bottom <= height, (element.attrib, element.text)


def parsed(plot: Element) -> Element:
    return fromstring(standalone(plot))


def drawn(root: Element) -> Iterator[Element]:
    """All that is seen: not what patterns are made of, which is clipped."""
    for element in root:
        if element.tag.removeprefix(SVG) in ("line", "rect", "path", "text"):
            yield element


def bounds(element: Element) -> tuple[tuple[float, float], tuple[float, float]]:
    """From where to where an element goes, across and down."""
    at = {name: float(value) for name, value in element.attrib.items() if name in _PLACES}
    match element.tag.removeprefix(SVG):
        case "line":
            xs, ys = [at["x1"], at["x2"]], [at["y1"], at["y2"]]
        case "rect":
            xs, ys = [at["x"], at["x"] + at["width"]], [at["y"], at["y"] + at["height"]]
        case "text":
            xs, ys = list(extent(element)), [at["y"] - 11, at["y"] + 4]
        case _:
            xs, ys = outline(element.get("d", ""))
    return (min(xs), max(xs)), (min(ys), max(ys))


_PLACES = {"x", "y", "x1", "x2", "y1", "y2", "width", "height"}


def extent(text: Element) -> tuple[float, float]:
    css = text.get("class", "").split()
    broad = room_of(text.text or "", 11 if "small" in css else 13)
    x = float(text.get("x", ""))
    start = x - broad if "end" in css else x - broad / 2 if "mid" in css else x
    return start, start + broad


def outline(d: str) -> tuple[list[float], list[float]]:
    xs, ys = [], []
    for letter, rest in re.findall(r"([MLHaZ])([^MLHaZ]*)", d):
        numbers = [float(number) for number in rest.split()]
        match letter:
            case "M" | "L":
                xs.append(numbers[0])
                ys.append(numbers[1])
            case "H":
                xs.append(numbers[0])
            case "a":  # half a circle to the right, or back
                xs.append(xs[-1] + numbers[5])
                ys += [ys[0] - numbers[1], ys[0] + numbers[1]]
            case _:
                pass
    return xs, ys


@given(st.text())
def test_what_xml_forbids_is_replaced(text: str) -> None:
    assert fromstring(f"<a>{printable(text).replace('&', '').replace('<', '')}</a>") is not None
