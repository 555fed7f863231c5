"""Two results side by side: does what one says of packing hold in the other? Pure.

Frames per second of different machines or days cannot be compared; ratios within each can. So each cell's ratio to its
reference in B is divided by that in A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from transcoder.bench.analysis import Analysis
from transcoder.bench.contrasts import Contrast, Estimate, Metric, Row, Verdict
from transcoder.bench.document import Block, Bullets, Document, Heading, Paragraph, Table
from transcoder.bench.plots import Curve, Interval, brief, difference, figures
from transcoder.bench.report import (
    LIMITS,
    MEASURES,
    environment,
    forest_figure,
    level_curves,
    margin_of,
    on,
    saturation_figure,
)
from transcoder.bench.result import Cell, Density, Result
from transcoder.errors import ResultUnusable

_MUST_AGREE: Final = {"clip": "clip", "codec": "codec", "accel": "acceleration"}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: what it is called, what it saw, what follows."""

    name: str
    result: Result
    analysis: Analysis


@dataclass(frozen=True, slots=True)
class Shift:
    """How a cell's ratio in B relates to that in A."""

    cell: Cell
    metric: Metric
    a: Estimate
    b: Estimate
    ratio: Estimate
    verdict: Verdict | None
    """None where the two did not do the same, so that none would mean anything."""


def compare(a: Side, b: Side) -> Document:
    """B against A as a document. Raises ResultUnusable where they did not measure the same."""
    refuse_unlike((a.name, a.result), (b.name, b.result))
    blocks: list[Block] = [*_warnings(a, b), _differences(a, b)]
    if a.result.kind == "density":
        return Document(_density_verdict(a, b), (*blocks, *_densities(a, b)))
    margin = max(a.result.design.margin, b.result.design.margin)
    found = shifts(a.analysis, b.analysis, margin, judged=not unlike(a.result, b.result))
    return Document(_verdict(found, a, b), (*blocks, *_ratios(found, a, b), *_absolute(a, b)))


def refuse_unlike(a: tuple[str, Result], b: tuple[str, Result]) -> None:
    """Raise ResultUnusable with the reason where the two, each with its name, cannot be compared."""
    (name_a, in_a), (name_b, in_b) = a, b
    if in_a.kind != in_b.kind:
        raise ResultUnusable(
            f"{name_a} is a {in_a.kind} result and {name_b} a {in_b.kind} result",
            "Compare two results of the same kind.",
        )
    for attribute, word in _MUST_AGREE.items():
        of_a, of_b = getattr(in_a.workload, attribute), getattr(in_b.workload, attribute)
        if of_a != of_b:
            raise ResultUnusable(
                f"the {word} differs: {of_a} in {name_a}, {of_b} in {name_b}",
                "Other work takes other time: compare results of the same clip, codec and acceleration.",
            )


def unlike(a: Result, b: Result) -> tuple[str, ...]:
    """What differs so that a verdict on both would be one on that: as `the engine (docker, podman)`."""
    pairs: dict[str, list[str]] = {
        "the size of the pictures": [f"{side.workload.width}×{side.workload.height}" for side in (a, b)],
        "the frames of a run": [f"{side.workload.frames:,}" for side in (a, b)],
        "the engine": [side.design.engine for side in (a, b)],
        "ffmpeg": [side.environment.ffmpeg for side in (a, b)],
        "the image": [side.environment.image for side in (a, b)],
    }
    return tuple(
        f"{what} ({of_a or 'not known'}, {of_b or 'not known'})" for what, (of_a, of_b) in pairs.items() if of_a != of_b
    )


def shifts(a: Analysis, b: Analysis, margin: float, *, judged: bool = True) -> tuple[Shift, ...]:
    """Each contrast that both have, B's ratio over A's; with a verdict where they are to be judged."""
    in_a = {_key(contrast): contrast for contrast in a.contrasts if not contrast.again}
    found = []
    for contrast in b.contrasts:
        before = in_a.get(_key(contrast))
        if contrast.again or before is None or before.ratio is None or contrast.ratio is None:
            continue
        ratio = ratio_of(before.ratio, contrast.ratio)
        verdict = verdict_on(ratio, margin_of(contrast.metric, margin)) if judged else None
        found.append(Shift(contrast.cell, contrast.metric, before.ratio, contrast.ratio, ratio, verdict))
    return tuple(found)


def ratio_of(a: Estimate, b: Estimate) -> Estimate:
    """B over A, of two that were measured apart; `blocks` is the smaller number.

    The interval comes from the two intervals, each with its own two sides, on the logarithm (the method of variance
    estimates recovery: Zou and Donner, Statistics in Medicine 27, 2008), so that lopsided ones stay lopsided.
    """
    low90, high90 = _recovered((a.value, a.low90, a.high90), (b.value, b.low90, b.high90))
    low95, high95 = _recovered((a.value, a.low95, a.high95), (b.value, b.low95, b.high95))
    return Estimate(b.value / a.value, low90, high90, low95, high95, min(a.blocks, b.blocks))


def verdict_on(ratio: Estimate, margin: float) -> Verdict:
    """As in a result: equivalent wins over different."""
    if ratio.low90 >= 1 - margin and ratio.high90 <= 1 + margin:
        return "equivalent"
    return "different" if ratio.low95 > 1 or ratio.high95 < 1 else "inconclusive"


def _recovered(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    (at, a_low, a_high), (b_at, b_low, b_high) = (tuple(map(math.log, side)) for side in (a, b))
    middle = b_at - at
    below, above = math.hypot(b_at - b_low, a_high - at), math.hypot(b_high - b_at, at - a_low)
    return math.exp(middle - below), math.exp(middle + above)


def _key(contrast: Contrast) -> tuple[Cell, Cell, Metric]:
    return contrast.cell, contrast.reference, contrast.metric


def _verdict(found: tuple[Shift, ...], a: Side, b: Side) -> str:
    if not found:
        return f"{b.name} against {a.name}: no ratio that both have with three blocks or more; nothing can be said."
    if unlike(a.result, b.result):
        return (
            f"{b.name} against {a.name}: no verdict, since they did not do the same; the ratios of ratios are for "
            "orientation only."
        )
    margin = brief(max(a.result.design.margin, b.result.design.margin) * 100)
    of = [shift for shift in found if shift.metric == "fps"] or list(found)
    counts = {verdict: sum(shift.verdict == verdict for shift in of) for verdict in ("equivalent", "different")}
    rest = len(of) - sum(counts.values())
    metric = "frames per second" if of[0].metric == "fps" else "all metrics"
    return (
        f"{b.name} against {a.name}, {len(of)} ratio{'s' * (len(of) > 1)} of {metric}: {counts['equivalent']} agree "
        f"within ± {margin} %, {counts['different']} differ, {rest} inconclusive."
    )


def _warnings(a: Side, b: Side) -> list[Block]:
    found = [
        "Runs on different machines or days cannot be compared absolutely: only the ratios within each run can. "
        "No correction is made for the number of ratios."
    ]
    if a.result.device.kind != b.result.device.kind:
        found.append(f"The devices are of different kinds: {a.result.device.kind} and {b.result.device.kind}.")
    if differing := unlike(a.result, b.result):
        found.append(f"Other work or other programs take other time: {'; '.join(differing)}. So there is no verdict.")
    if a.result.workload.argv != b.result.workload.argv:
        found.append("ffmpeg was told different things; see what differs.")
    for side in (a, b):
        found += [f"{side.name}: {trouble}" for trouble in (*side.analysis.troubles, *side.result.notes)]
    return [
        Paragraph(f"{a.name} says: {a.analysis.headline}"),
        Paragraph(f"{b.name} says: {b.analysis.headline}"),
        Bullets(tuple(found), loud=True),
        Heading("What differs"),
    ]


def _differences(a: Side, b: Side) -> Block:
    facts_a, facts_b = _facts(a.result), _facts(b.result)
    differing = [name for name in facts_a if facts_a[name] != facts_b[name]]
    rows = tuple((name, facts_a[name] or "–", facts_b[name] or "–") for name in differing)
    if not rows:
        return Paragraph("Machine, programs, design and workload are named the same in both.")
    return Table(f"Machine, programs, design and workload. {_devices(a, b)}", ("what", a.name, b.name), rows, words=3)


def _facts(result: Result) -> dict[str, str]:
    work, design = result.workload, result.design
    return {
        "device": f"{result.device.kind} {result.device.name} {result.device.address}".strip(),
        **environment(result),
        "begun": result.made,
        "pictures": f"{work.width}×{work.height}, {work.frames} frames, {brief(work.frame_rate)} per second",
        "ffmpeg's words": " ".join(work.argv),
        "profile": design.profile,
        "engine": design.engine,
        "seed": str(design.seed),
        "margin": f"± {brief(design.margin * 100)} %",
        "blocks": str(design.blocks),
    }


def _devices(a: Side, b: Side) -> str:
    if a.result.device == b.result.device:
        return on(a.result.device)
    return f"{a.name}: {on(a.result.device)} {b.name}: {on(b.result.device)}"


def _ratios(found: tuple[Shift, ...], a: Side, b: Side) -> list[Block]:
    blocks: list[Block] = []
    for metric, measure in MEASURES.items():
        margin = margin_of(metric, max(a.result.design.margin, b.result.design.margin))
        of = [shift for shift in found if shift.metric == metric]
        if not of:
            continue
        what = f"{measure.title}: each cell's ratio to its reference in {b.name} over that in {a.name}"
        picture = f"Thick: 90 % interval; thin: 95 %; band: ± {brief(margin * 100)} %. {_devices(a, b)}"
        columns = ("cell", "verdict", f"in {a.name}", f"in {b.name}", "B over A", "90 % interval")
        intervals = [_line(shift) for shift in of]
        less, more = f"{measure.less} in B", f"{measure.more} in B"
        blocks += [
            Heading(f"Ratios of ratios: {measure.title}"),
            forest_figure(f"forest-{metric}", picture, intervals, margin, type(measure)(measure.title, less, more)),
            Table(f"{what}; unpaired. {_devices(a, b)}", columns, tuple(_shift(shift) for shift in of), words=2),
        ]
    return blocks


def _line(shift: Shift) -> Interval:
    ratio = shift.ratio
    ends = (ratio.value, ratio.low90, ratio.high90, ratio.low95, ratio.high95)
    return Interval(shift.cell.name, *ends, shift.verdict or "no verdict")


def _shift(shift: Shift) -> tuple[str, ...]:
    return (
        shift.cell.name,
        shift.verdict or "no verdict",
        f"{figures(shift.a.value)} ({_ends(shift.a)})",
        f"{figures(shift.b.value)} ({_ends(shift.b)})",
        figures(shift.ratio.value),
        _ends(shift.ratio),
    )


def _ends(ratio: Estimate) -> str:
    return f"{difference(ratio.low90)} … {difference(ratio.high90)}"


def _absolute(a: Side, b: Side) -> list[Block]:
    in_a, in_b = ({row.cell: row for row in side.analysis.rows} for side in (a, b))
    cells = [cell for cell in in_a if cell in in_b]
    if not cells:
        return [Paragraph("They have no cell in common.", loud=True)]
    caption = (
        "Aggregate frames per second, median [min–max]: side by side for orientation only, as runs on different "
        f"machines or days cannot be compared absolutely. {_devices(a, b)}"
    )
    rows = tuple((cell.name, _fps(in_a[cell]), _fps(in_b[cell])) for cell in cells)
    return [Heading("Absolute figures"), Table(caption, ("cell", a.name, b.name), rows)]


def _fps(row: Row) -> str:
    least, middle, most = row.fps
    return f"{figures(middle)} [{figures(least)}–{figures(most)}]"


def _density_verdict(a: Side, b: Side) -> str:
    pairs = _pairs(a, b)
    if not pairs:
        return f"{b.name} against {a.name}: no packing that both have; nothing can be said."
    told = "; ".join(f"{name}: {_streams(before)} and {_streams(after)}" for name, before, after in pairs)
    return f"Streams in real time in {a.name} and {b.name}: {told}."


def _pairs(a: Side, b: Side) -> list[tuple[str, Density, Density]]:
    in_a, in_b = (_named(side) for side in (a, b))
    return [(name, in_a[name], in_b[name]) for name in in_a if name in in_b]


def _named(side: Side) -> dict[str, Density]:
    found = side.result.density
    return {curve.label: one for curve, one in zip(level_curves(found), found, strict=True)}


def _streams(one: Density) -> str:
    return f"≥ {one.streams}" if one.capped else str(one.streams)


def _densities(a: Side, b: Side) -> list[Block]:
    curves = [
        Curve(f"{side.name}: {curve.label}", curve.points)
        for side in (a, b)
        for curve in level_curves(side.result.density)
    ]
    caption = f"× real time of the slowest stream over the number of streams. {_devices(a, b)}"
    columns = ("packing", f"real time in {a.name}", f"in {b.name}", f"confirmed in {a.name}", f"in {b.name}")
    rows = tuple(
        (name, _streams(before), _streams(after), _yes(before.confirmed), _yes(after.confirmed))
        for name, before, after in _pairs(a, b)
    )
    return [
        Heading("How many streams stay real time"),
        saturation_figure("saturation", caption, curves, "× real time of the slowest stream", LIMITS),
        Table(f"The largest number of streams of which the slowest stays real time. {_devices(a, b)}", columns, rows),
    ]


def _yes(said: bool) -> str:
    return "yes" if said else "no"
