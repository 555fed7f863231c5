"""Plots of a benchmark as SVG, drawn by hand: values in, elements out. Pure.

Each plot can be drawn at two widths, for a page and for a phone, because text that is scaled down cannot be read.
Nothing is said by colour alone: verdicts and packings have shapes, engines have patterns, and all have words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from xml.etree.ElementTree import Element, SubElement, tostring

MARK: Final = "made by transcoder bench report"
"""Stands in each file that we write, by which it is known as ours."""
WIDE: Final = 720
NARROW: Final = 360
"""Widths in user units, which are pixels at the usual size."""

Shape = Literal["circle", "square", "diamond", "triangle", "wedge", "cross"]
SHAPES: Final[tuple[Shape, ...]] = ("circle", "square", "diamond", "triangle", "wedge", "cross")

_LIGHT: Final = (
    "--ink:#1b1f24;--muted:#57606a;--grid:#d8dee4;--band:#dbe7f3;--edge:#8aa4bf;--paper:#ffffff;"
    "--c0:#1f5a92;--c1:#b45309;--c2:#2f7d4f;--c3:#8b3f8f;--c4:#6b5a10;--c5:#4b5563"
)
_DARK: Final = (
    "--ink:#e6e9ed;--muted:#a3adb8;--grid:#343c45;--band:#1f3147;--edge:#5f7f9f;--paper:#14181d;"
    "--c0:#7db4ea;--c1:#f0a35e;--c2:#7ccf9b;--c3:#d99bdc;--c4:#d9c46a;--c5:#aab4c0"
)
COLOURS: Final = f":root,svg.plot{{{_LIGHT}}}@media screen and (prefers-color-scheme:dark){{:root,svg.plot{{{_DARK}}}}}"
"""The palette as CSS; paper is always light."""
STYLE: Final = (
    "svg.plot{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;display:block}"
    ".plot text{fill:var(--ink)}.plot .muted{fill:var(--muted)}.plot .strong{font-weight:600}"
    ".plot .small{font-size:11px}.plot .end{text-anchor:end}.plot .mid{text-anchor:middle}"
    ".plot .grid{stroke:var(--grid);stroke-width:1;fill:none}.plot .axis{stroke:var(--muted);stroke-width:1;fill:none}"
    ".plot .rule{stroke:var(--ink);stroke-width:1.25;fill:none}.plot .dotted{stroke-dasharray:2 3}"
    ".plot .band{fill:var(--band)}.plot .edge{stroke:var(--edge);stroke-width:1;stroke-dasharray:4 3;fill:none}"
    ".plot .thin{stroke-width:1.5;fill:none}.plot .thick{stroke-width:5;fill:none}"
    ".plot .curve{stroke-width:2;fill:none}"
    ".plot .track{fill:none;stroke:var(--grid)}.plot .hollow{fill:var(--paper);stroke-width:2}"
    + "".join(f".plot .s{n}{{stroke:var(--c{n})}}.plot .f{n}{{fill:var(--c{n});stroke:var(--c{n})}}" for n in range(6))
)
"""How the classes of the plots look, as CSS."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LINE = 18.0
_PAD = 8.0
_FARTHEST = math.log(4)
"""Ratios are drawn to a quarter and to four times at most; an arrow says that there is more."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")


@dataclass(frozen=True, slots=True)
class Interval:
    """A line of a forest plot: a ratio with its 90 % and 95 % intervals."""

    label: str
    value: float
    low90: float
    high90: float
    low95: float
    high95: float
    verdict: Literal["equivalent", "different", "inconclusive", "no verdict"] = "inconclusive"
    again: bool = False
    """Whether it is the reference against itself: the noise floor."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve, with the least and the largest that was seen."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve with its name."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """What share of the time each engine of a cell worked, from 0 to 1 (more with several of a kind)."""

    label: str
    shares: tuple[tuple[str, float], ...]


def printable(text: object) -> str:
    """The text without what XML forbids and what changes the direction of reading."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


def figures(value: float) -> str:
    """At most three significant digits: 1,230, 12.3, 0.998; a dash for what is no number."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    rounded = f"{value:.2e}"
    size = int(rounded.partition("e")[2])
    return f"{float(rounded):,.{max(0, 2 - size)}f}" if -5 < size < 9 else rounded


def brief(value: float) -> str:
    """A number that was chosen, not measured, so that it has no zeros to show its accuracy: 3, 0.5."""
    text = figures(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def difference(ratio: float) -> str:
    """A ratio as what it is more or less than 1: +0.7 %, −12 %."""
    if not math.isfinite(ratio):
        return "–"
    percent = (ratio - 1) * 100
    text = f"{abs(percent):.1f}" if abs(percent) < 10 else brief(float(f"{abs(percent):.0f}"))
    sign = "" if text == "0.0" else "+" if percent > 0 else "−"
    return f"{sign}{text} %"


def forest(
    intervals: Sequence[Interval], margin: float, *, less: str, more: str, width: int = WIDE, name: str = "forest"
) -> Element:
    """Ratios with their intervals: thick 90 %, thin 95 %, on the band within which they are equivalent.

    `less` and `more` say what a ratio below and above 1 means.
    """
    wide = width >= WIDE
    canvas = _Canvas(name, width, "Ratios with intervals", _told(intervals, margin))
    left, right = (168.0, width - 218.0) if wide else (_PAD + 4, width - _PAD - 4)
    kinds = {_kind(one) for one in intervals}
    entries = [entry for kind, entry in _VERDICTS.items() if kind in kinds]
    top = canvas.legend(entries, 4.0) + (22.0 if wide else 8.0)
    step = 30.0 if wide else 46.0
    bottom = top + step * len(intervals) + 4
    at = _ratio_scale(intervals, margin, left, right)
    _band(canvas, at, margin, top, bottom)
    _ratio_axis(canvas, at, top, bottom, left, right)
    for place, one in enumerate(intervals):
        middle = top + step * place + (step / 2 if wide else 32)
        _interval_words(canvas, one, middle, right + 14, left)
        _interval(canvas, one, at, middle)
    canvas.text(left, bottom + 36, f"← {less}", css="muted small", room=(right - left) / 2)
    canvas.text(right, bottom + 36, f"{more} →", css="muted small end", room=(right - left) / 2)
    if wide:
        canvas.text(right + 14, top - 8, "difference, 90 % interval", css="muted small")
    return canvas.finished(bottom + 46)


def saturation(
    curves: Sequence[Curve],
    *,
    across: str,
    up: str,
    limits: Sequence[float] = (),
    log: bool = False,
    width: int = WIDE,
    name: str = "saturation",
) -> Element:
    """Curves over a number of streams, each with its own shape, dashes and whiskers; `limits` are lines across."""
    drawn = [_finite(curve, positive=log) for curve in curves]
    canvas = _Canvas(name, width, f"{up} against {across}", "; ".join(_curve_told(curve) for curve in drawn))
    entries = [_Entry(curve.label, shape=SHAPES[n % 6], series=n % 6, line=True) for n, curve in enumerate(drawn)]
    heading = canvas.legend(entries, 4.0) + 14
    canvas.text(_PAD, heading, up, css="muted small", room=width - 2 * _PAD)
    top, left, right = heading + 14, 56.0, width - (48.0 if limits else 20.0)
    bottom = top + (280.0 if width >= WIDE else 220.0)
    points = [point for curve in drawn for point in curve.points]
    down = _value_scale([*(value for p in points for value in (p.low, p.y, p.high)), *limits], log, bottom, top)
    over = _count_scale([point.x for point in points], left + 20, right - 20)
    _value_axis(canvas, down, left, right)
    _count_axis(canvas, over, bottom, left, right)
    _limits(canvas, limits, down, left, right)
    for place, curve in enumerate(drawn):
        # side by side, so that equal points do not hide each other
        aside = (place - (len(drawn) - 1) / 2) * min(7.0, 30.0 / max(1, len(drawn)))
        _curve(canvas, curve, place % 6, lambda x, by=aside: over.of(x) + by, down.of)  # type: ignore[misc]
    canvas.text((left + right) / 2, bottom + 36, across, css="muted small mid", room=right - left)
    return canvas.finished(bottom + 46)


def busy(rows: Sequence[Shares], *, width: int = WIDE, name: str = "busy") -> Element:
    """A strip a cell: a bar for each engine, with its pattern and its share of the time."""
    wide = width >= WIDE
    engines = list(dict.fromkeys(engine for row in rows for engine, _ in row.shares))
    told = "; ".join(f"{row.label}: {', '.join(f'{e} {_percent(s)}' for e, s in row.shares)}" for row in rows)
    canvas = _Canvas(name, width, "Share of the time that each engine worked", told)
    for number in range(1, len(engines)):
        canvas.pattern(number)
    entries = [_Entry(engine, series=n % 6, pattern=n) for n, engine in enumerate(engines)]
    top = canvas.legend(entries, 4.0) + 10
    left, right = (168.0 if wide else _PAD + 4), width - 62.0
    most = max([1.0, *(share for row in rows for _, share in row.shares if math.isfinite(share))])
    for row in rows:
        canvas.text(_PAD, top + 11, row.label, css="strong", room=left - 2 * _PAD if wide else width - 2 * _PAD)
        top += 0 if wide else _LINE + 4
        for engine, share in row.shares:
            _share(canvas, engines.index(engine), share, (left, right, most), top)
            top += 16
        top += 8
    step = _round_step(most / 4)
    for place in range(int(most / step) + 1):
        words = _percent(step * place)
        half = room_of(words, 11) / 2
        x = left + (right - left) * step * place / most
        canvas.text(min(max(x, half), width - half), top + 10, words, css="muted small mid")
    return canvas.finished(top + 20)


def standalone(plot: Element) -> str:
    """The plot as a file of its own, with its style."""
    body = "".join(tostring(child, encoding="unicode") for child in plot)
    opening = tostring(Element(plot.tag, plot.attrib), encoding="unicode").removesuffix(" />")
    style = f"{COLOURS}{STYLE}svg.plot{{background:var(--paper)}}"
    return f"{opening}><metadata>{MARK}</metadata><style>{style}</style>{body}</svg>\n"


def room_of(text: str, size: float = 13.0) -> float:
    """About how wide a text is, rather too wide than too narrow."""
    return sum(map(_breadth, text)) * size


def _breadth(sign: str) -> float:
    """Of a sign, in ems of a broad typeface (DejaVu Sans)."""
    if unicodedata.east_asian_width(sign) in "WF" or ord(sign) > 0x2FFF:
        return 1.05
    if sign in "iljtfrI .,:;'()[]|/-":
        return 0.42
    return 1.0 if sign in "mwMW%@→←…" else 0.66


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of a legend."""

    label: str
    shape: Shape | None = None
    series: int = 0
    hollow: bool = False
    line: bool = False
    pattern: int | None = None


_SERIES_OF: Final[dict[str, tuple[Shape, int, bool]]] = {
    "equivalent": ("circle", 0, False),
    "different": ("diamond", 1, False),
    "inconclusive": ("circle", 5, True),
    "no verdict": ("triangle", 5, True),
    "again": ("square", 5, True),
}
_VERDICTS: Final = {
    kind: _Entry("A/A (noise floor)" if kind == "again" else kind, shape, series, hollow)
    for kind, (shape, series, hollow) in _SERIES_OF.items()
}


class _Canvas:
    """An SVG that grows downwards."""

    def __init__(self, name: str, width: int, title: str, description: str) -> None:
        self._id = f"{name}-{width}"
        self.width = width
        # Without it text would start where the last font ended; a name for who does not see the picture.
        self.root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "plot", "role": "img"})
        self.root.set("aria-labelledby", f"{self._id}-title {self._id}-told")
        SubElement(self.root, "title", {"id": f"{self._id}-title"}).text = printable(title)
        SubElement(self.root, "desc", {"id": f"{self._id}-told"}).text = printable(description)

    def finished(self, height: float) -> Element:
        self.root.set("viewBox", f"0 0 {self.width} {math.ceil(height)}")
        self.root.set("width", str(self.width))
        self.root.set("height", str(math.ceil(height)))
        return self.root

    def text(self, x: float, y: float, words: str, *, css: str = "", room: float = math.inf) -> None:
        element = SubElement(self.root, "text", {"x": _n(x), "y": _n(y)})
        if css:
            element.set("class", css)
        element.text = _shortened(printable(words), room, 11.0 if "small" in css else 13.0)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        SubElement(self.root, "line", {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2), "class": css})

    def rect(self, x: float, y: float, width: float, height: float, css: str, fill: str = "") -> None:
        box = {"x": _n(x), "y": _n(y), "width": _n(width), "height": _n(height), "class": css}
        SubElement(self.root, "rect", box | ({"fill": fill} if fill else {}))

    def path(self, d: str, css: str, dashes: str = "") -> None:
        SubElement(self.root, "path", {"d": d, "class": css} | ({"stroke-dasharray": dashes} if dashes else {}))

    def mark(self, x: float, y: float, shape: Shape, series: int, *, hollow: bool = False) -> None:
        self.path(_outline(shape, x, y), f"hollow s{series}" if hollow else f"f{series}")

    def pattern(self, number: int) -> None:
        found = SubElement(
            self.root,
            "pattern",
            {"id": self._pattern(number), "width": "8", "height": "8", "patternUnits": "userSpaceOnUse"},
        )
        SubElement(found, "path", {"d": _HATCHES[number % len(_HATCHES)], "class": f"thin s{number % 6}"})

    def filled(self, x: float, y: float, width: float, height: float, number: int) -> None:
        if number % len(_HATCHES) == 0:
            self.rect(x, y, width, height, "f0")
        else:
            self.rect(x, y, width, height, f"s{number % 6}", fill=f"url(#{self._pattern(number)})")

    def legend(self, entries: Iterable[_Entry], top: float) -> float:
        """Entries side by side, in as many lines as they need. Gives where they end."""
        x, y = _PAD, top + 12
        for entry in entries:
            key = 34.0 if entry.line else 22.0
            taken = min(key + room_of(printable(entry.label)) + 12, self.width - 2 * _PAD)
            if x > _PAD and x + taken > self.width - _PAD:
                x, y = _PAD, y + _LINE + 2
            self._key(entry, x, y - 4)
            self.text(x + key, y, entry.label, room=taken - key)
            x += taken
        return y + 6

    def _key(self, entry: _Entry, x: float, y: float) -> None:
        if entry.line:
            self.path(f"M{_n(x)} {_n(y)}H{_n(x + 28)}", f"curve s{entry.series}", _DASHES[entry.series])
        if entry.pattern is not None:
            self.filled(x, y - 6, 16, 12, entry.pattern)
        elif entry.shape:
            self.mark(x + (14 if entry.line else 8), y, entry.shape, entry.series, hollow=entry.hollow)

    def _pattern(self, number: int) -> str:
        return f"{self._id}-pattern-{number}"


_HATCHES: Final = (
    "",  # filled
    "M-2 2L2 -2M0 8L8 0M6 10L10 6",
    "M0 4H8",
    "M4 0V8",
    "M-2 6L2 10M0 0L8 8M6 -2L10 2",
    "M0 4H8M4 0V8",
    "M3 4H5",
)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places, with the ticks to draw."""

    of: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]
    reach: float = math.inf
    """How far from 1 it goes, as a logarithm."""


def _ratio_scale(intervals: Sequence[Interval], margin: float, left: float, right: float) -> _Scale:
    reach = _reach(intervals, margin)

    def of(ratio: float) -> float:
        share = math.log(ratio) / reach if ratio > 0 and math.isfinite(ratio) else -math.inf
        return (left + right) / 2 + max(-1.0, min(1.0, share)) * (right - left) / 2

    return _Scale(of, tuple((tick, _tick(tick)) for tick in _apart(_ratio_ticks(reach), of)), reach)


def _apart(ticks: Sequence[float], of: Callable[[float], float]) -> list[float]:
    """The ticks whose words do not touch, from the middle outwards."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda tick: abs(math.log(tick))):
        half = room_of(_tick(tick), 11) / 2
        if all(abs(of(tick) - of(other)) > half + room_of(_tick(other), 11) / 2 for other in kept):
            kept.append(tick)
    return sorted(kept)


def _reach(intervals: Sequence[Interval], margin: float) -> float:
    """How far the axis goes: to the farthest end, unless that would press most of the others into a point."""
    ends = [[abs(math.log(end)) for end in _ends(one) if math.isfinite(end) and end > 0] for one in intervals]
    fars = sorted(max(found) for found in ends if found) or [0.0]
    most = max(3 * fars[len(fars) // 2], 2 * margin, 0.02)
    return min(max(fars[-1], 1.3 * margin, 0.02), most, _FARTHEST) * 1.12


def _ends(one: Interval) -> tuple[float, ...]:
    return one.value, one.low90, one.high90, one.low95, one.high95


def _ratio_ticks(reach: float) -> list[float]:
    """Three ticks or five, around 1, at round differences."""
    if reach > math.log(1.9):
        return [0.25, 0.5, 1, 2, 4] if reach > math.log(3) else [0.5, 1, 2]
    down = 1 - math.exp(-reach)
    step = next(step for step in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005) if step <= down / 1.6)
    count = min(2, int(down / step))
    return [1 + step * place for place in range(-count, count + 1)]


def _tick(ratio: float) -> str:
    if ratio in (0.25, 0.5, 2, 4):
        return {0.25: "÷ 4", 0.5: "÷ 2", 2: "× 2", 4: "× 4"}[ratio]
    return "same" if ratio == 1 else f"{(ratio - 1) * 100:+.3g} %".replace("-", "−")


def _band(canvas: _Canvas, at: _Scale, margin: float, top: float, bottom: float) -> None:
    low, high = at.of(1 - margin), at.of(1 + margin)
    canvas.rect(low, top, high - low, bottom - top, "band")
    canvas.line(low, top, low, bottom, "edge")
    canvas.line(high, top, high, bottom, "edge")
    if canvas.width >= WIDE:
        canvas.text((low + high) / 2, top - 8, f"± {brief(margin * 100)} %", css="muted small mid")


def _ratio_axis(canvas: _Canvas, at: _Scale, top: float, bottom: float, left: float, right: float) -> None:
    for tick, words in at.ticks:
        x = at.of(tick)
        canvas.line(x, top, x, bottom + 4, "rule" if tick == 1 else "grid")
        half = room_of(words, 11) / 2
        canvas.text(min(max(x, half + 2), canvas.width - half - 2), bottom + 18, words, css="small mid")
    canvas.line(left, bottom, right, bottom, "axis")


def _interval_words(canvas: _Canvas, one: Interval, middle: float, right: float, left: float) -> None:
    found = f"{difference(one.value)}  ({difference(one.low90)} … {difference(one.high90)})"
    found = found if math.isfinite(one.value) else "too few blocks"
    if canvas.width >= WIDE:
        canvas.text(_PAD, middle + 4, one.label, room=left - 2 * _PAD, css="" if one.again else "strong")
        canvas.text(right, middle + 4, found, css="small", room=canvas.width - right - 2)
        return
    room = canvas.width - 2 * _PAD
    canvas.text(_PAD, middle - 17, one.label, room=room * 0.48, css="" if one.again else "strong")
    canvas.text(canvas.width - _PAD, middle - 17, found, css="small end", room=room * 0.52 - 4)


def _interval(canvas: _Canvas, one: Interval, at: _Scale, y: float) -> None:
    shape, series, hollow = _SERIES_OF[_kind(one)]
    if not all(map(math.isfinite, _ends(one))):
        return
    low, high = at.of(one.low95), at.of(one.high95)
    canvas.line(low, y, high, y, f"thin s{series}{' dotted' if one.again else ''}")
    for end, x in ((one.low95, low), (one.high95, high)):
        _ending(canvas, x, y, series, beyond=end <= 0 or abs(math.log(end)) > at.reach)
    canvas.line(at.of(one.low90), y, at.of(one.high90), y, f"thick s{series}")
    canvas.mark(at.of(one.value), y, shape, series, hollow=hollow)


def _kind(one: Interval) -> str:
    return "again" if one.again else one.verdict


def _ending(canvas: _Canvas, x: float, y: float, series: int, *, beyond: bool) -> None:
    """A bar across where an interval ends, an arrow where it goes on."""
    if not beyond:
        canvas.line(x, y - 5, x, y + 5, f"thin s{series}")
        return
    back = 6 if x > canvas.width / 2 else -6
    canvas.path(f"M{_n(x - back)} {_n(y - 5)}L{_n(x)} {_n(y)}L{_n(x - back)} {_n(y + 5)}", f"thin s{series}")


def _value_scale(values: Sequence[float], log: bool, bottom: float, top: float) -> _Scale:
    known = [value for value in values if math.isfinite(value) and value >= 0]
    most = min(max([*known, 1e-9]), 1e12)
    if log:
        least = max(min([value for value in known if value > 0], default=0.5), most / 1e6)
        low, high = math.floor(math.log2(least) - 0.1), math.ceil(math.log2(most) + 0.05)
        high = max(high, low + 1)
        every = max(1, (high - low) // 6)
        ticks = [2.0**power for power in range(low, high + 1, every)]

        def share(value: float) -> float:
            return (math.log2(value) - low) / (high - low) if value > 0 else 0.0
    else:
        step = _round_step(most / 4)
        end = step * math.ceil(most / step - 1e-9)
        ticks = [step * place for place in range(round(end / step) + 1)]

        def share(value: float) -> float:
            return value / end

    return _Scale(
        lambda value: bottom - max(0.0, min(1.0, share(value))) * (bottom - top),
        tuple((tick, brief(tick)) for tick in ticks),
    )


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, … that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10, 20) if step * power >= least)


def _count_scale(counts: Sequence[int], left: float, right: float) -> _Scale:
    """Numbers of streams: as they are where they are few, in doublings where they go far."""
    shown = sorted({max(1, count) for count in counts}) or [1]
    far = shown[-1] / shown[0] >= 8
    put: Callable[[float], float] = math.log if far else float
    low, high = put(shown[0]), put(shown[-1])

    def of(count: float) -> float:
        return (left + right) / 2 if high == low else left + (put(max(1, count)) - low) / (high - low) * (right - left)

    ticks: list[tuple[float, str]] = []
    end = -math.inf
    for count in shown:
        words = brief(count)
        half = room_of(words, 11) / 2
        if of(count) - half > end + 4:
            ticks.append((count, words))
            end = of(count) + half
    return _Scale(of, tuple(ticks))


def _value_axis(canvas: _Canvas, down: _Scale, left: float, right: float) -> None:
    for tick, words in down.ticks:
        y = down.of(tick)
        canvas.line(left, y, right, y, "grid")
        canvas.text(left - 8, y + 4, words, css="small end", room=left - 10)


def _count_axis(canvas: _Canvas, over: _Scale, bottom: float, left: float, right: float) -> None:
    canvas.line(left, bottom, right, bottom, "axis")
    for tick, words in over.ticks:
        x = over.of(tick)
        canvas.line(x, bottom, x, bottom + 4, "axis")
        canvas.text(x, bottom + 18, words, css="small mid")


def _limits(canvas: _Canvas, limits: Sequence[float], down: _Scale, left: float, right: float) -> None:
    """Lines across; their words are moved apart where they would touch."""
    below = -math.inf
    for place, limit in enumerate(sorted(limits, reverse=True)):
        y = down.of(limit)
        canvas.line(left, y, right, y, "rule" if limit == 1 else "rule dotted")
        below = max(y + (0 if place == 0 else 4), below + 12)
        canvas.text(right + 6, below + 4 - (3 if limit == 1 else 0), f"{limit:g} ×", css="small")


def _curve(
    canvas: _Canvas, curve: Curve, series: int, over: Callable[[float], float], down: Callable[[float], float]
) -> None:
    places = [(over(point.x), down(point.y)) for point in curve.points]
    if len(places) > 1:
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in places)
        canvas.path(path, f"curve s{series}", _DASHES[series])
    for point, (x, y) in zip(curve.points, places, strict=True):
        if point.high > point.low:
            canvas.line(x, down(point.low), x, down(point.high), f"thin s{series}")
        canvas.mark(x, y, SHAPES[series], series, hollow=series % 2 == 1)


def _share(canvas: _Canvas, number: int, share: float, over: tuple[float, float, float], top: float) -> None:
    left, right, most = over
    length = max(0.0, min(1.0, share / most if math.isfinite(share) else 0.0)) * (right - left)
    canvas.rect(left, top, right - left, 12, "track")
    if length:
        canvas.filled(left, top, length, 12, number)
    canvas.text(right + 8, top + 10, _percent(share), css="small", room=canvas.width - right - 10)


def _finite(curve: Curve, *, positive: bool) -> Curve:
    least = 0.0 if positive else -math.inf
    points = [p for p in curve.points if all(math.isfinite(v) and v > least for v in (p.low, p.y, p.high))]
    return Curve(curve.label, tuple(sorted(points, key=lambda point: point.x)))


def _told(intervals: Sequence[Interval], margin: float) -> str:
    lines = [f"{one.label}: {difference(one.value)}, {one.verdict}" for one in intervals]
    return f"Equivalent is within ± {brief(margin * 100)} %. " + "; ".join(lines)


def _curve_told(curve: Curve) -> str:
    return f"{curve.label}: " + ", ".join(f"{figures(point.y)} at {point.x}" for point in curve.points)


def _percent(share: float) -> str:
    return f"{brief(round(share * 100))} %" if math.isfinite(share) else "–"


def _shortened(text: str, room: float, size: float) -> str:
    if room_of(text, size) <= room:
        return text
    left, kept = room - room_of("…", size), 0
    for sign in text:
        left -= room_of(sign, size)
        if left < 0:
            break
        kept += 1
    return text[:kept].rstrip() + "…"


def _outline(shape: Shape, x: float, y: float, r: float = 5.0) -> str:
    points = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
        "triangle": ((0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
        "wedge": ((0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
        "cross": (
            *((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)),
            *((0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
        ),
    }
    if shape == "circle":
        return f"M{_n(x - r)} {_n(y)}a{_n(r)} {_n(r)} 0 1 0 {_n(2 * r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(-2 * r)} 0Z"
    return "M" + "L".join(f"{_n(x + dx * r)} {_n(y + dy * r)}" for dx, dy in points[shape]) + "Z"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
