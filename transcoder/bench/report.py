"""A result and what follows from it as a document: the verdict first, what makes it doubtful next. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from transcoder.bench.analysis import Analysis, packings, repeatable
from transcoder.bench.contrasts import LATENCY_MARGIN, Contrast, Metric, Row, asked_for, pilot_cut
from transcoder.bench.document import Block, Bullets, Code, Document, Figure, Heading, Paragraph, Table
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
)
from transcoder.bench.plots import saturation as saturation_plot
from transcoder.bench.result import Cell, Density, Design, Device, Result, Run
from transcoder.bench.statistics import FEW, LEVEL


@dataclass(frozen=True, slots=True)
class Measure:
    """How a metric is called, and what less and more of it means."""

    title: str
    less: str
    more: str


MEASURES: Final[Mapping[Metric, Measure]] = {
    "fps": Measure("Aggregate frames per second", "slower", "faster"),
    "slowest": Measure("The slowest stream, × real time", "slower", "faster"),
    "cpu": Measure("CPU seconds per 1,000 frames", "less CPU", "more CPU"),
    "latency": Measure("Seconds of a job, p95", "sooner", "later"),
    "pss": Measure("Memory (PSS) of all stacks", "less memory", "more memory"),
}
DEVICES: Final = {
    "real": "real",
    "simulated": "simulated: it proves the packing logic and the statistics, not the driver",
    "software": "none, software encoders",
}
SUMMED: Final = "A GPU's engines of one kind are added up: several that all work are above 100 %. "
LIMITS: Final = (1.25, 1.0, 0.98)
"""× real time of the slowest stream: Livepeer's rule, real time, Intel's rule."""


def report(result: Result, analysis: Analysis) -> Document:
    """Everything that a reader needs to believe the verdict, to doubt it and to repeat it."""
    further: list[Block] = [Paragraph(" ".join(analysis.further))] if analysis.further else []
    blocks: list[Block] = [*further, *_doubts(result, analysis), *_compared(result)]
    if result.kind == "density":
        blocks += _density(result)
    else:
        blocks += _topology(result, analysis)
    blocks += [*_busy(result), *_design(result), *_environment(result), *_again(result)]
    return Document(analysis.headline, tuple(blocks))


def on(device: Device) -> str:
    """The device as every caption names it."""
    name = f" ({device.name})" if device.name else ""
    kind, _, proves = DEVICES[device.kind].partition(":")
    return f"Device: {kind}{name}{':' * bool(proves)}{proves}."


def margin_of(metric: Metric, margin: float) -> float:
    """The band of a metric: that of the design, but for tails."""
    return LATENCY_MARGIN if metric == "latency" else margin


def packing(cell: Cell) -> str:
    """How a cell packs its stacks, however many they are."""
    if cell.containers == 0:
        words = "bare"
    elif cell.containers == 1:
        words = "all in one container"
    else:
        words = "one container each" if cell.containers == cell.stacks else f"{cell.containers} containers"
    return f"worker, {words}" if cell.worker else words


def verdict_of(contrast: Contrast) -> str:
    """The verdict in words, with its direction where it has one."""
    if contrast.verdict == "different" and contrast.ratio:
        measure = MEASURES[contrast.metric]
        return f"different: {measure.less if contrast.ratio.value < 1 else measure.more}"
    return f"{contrast.verdict} (yet detectable)" if contrast.detectable else contrast.verdict


def interval_of(contrast: Contrast) -> Interval:
    """A contrast as a line of a forest plot."""
    ratio = contrast.ratio
    nothing = float("nan")
    return Interval(
        _name(contrast),
        ratio.value if ratio else nothing,
        ratio.low90 if ratio else nothing,
        ratio.high90 if ratio else nothing,
        ratio.low95 if ratio else nothing,
        ratio.high95 if ratio else nothing,
        contrast.verdict,
        contrast.again,
    )


def forest_figure(name: str, caption: str, intervals: Sequence[Interval], margin: float, measure: Measure) -> Figure:
    """A forest plot at both widths."""
    wide, narrow = (
        forest(intervals, margin, less=measure.less, more=measure.more, width=width, name=name)
        for width in (WIDE, NARROW)
    )
    return Figure(name, caption, wide, narrow)


def saturation_figure(name: str, caption: str, curves: Sequence[Curve], up: str, limits: Sequence[float]) -> Figure:
    """A saturation curve at both widths; × real time goes on a logarithmic axis, as halving is what it does."""
    across = "streams at a time" if limits else "stacks at a time"
    wide, narrow = (
        saturation_plot(curves, across=across, up=up, limits=limits, log=bool(limits), width=width, name=name)
        for width in (WIDE, NARROW)
    )
    return Figure(name, caption, wide, narrow)


def level_curves(densities: Sequence[Density]) -> tuple[Curve, ...]:
    """The slowest stream's × real time over the number of streams, a curve for each density."""
    return tuple(
        Curve(
            packing(shown),
            tuple(Point(level.streams, level.slowest, level.slowest, level.slowest) for level in found.levels),
        )
        for found, shown in zip(densities, packings(densities), strict=True)
    )


def _doubts(result: Result, analysis: Analysis) -> list[Block]:
    found = [*analysis.troubles, *result.notes]
    return [Bullets(tuple(dict.fromkeys(found)), loud=True)] if found else []


def _compared(result: Result) -> list[Block]:
    work, design = result.workload, result.design
    asked = (
        "the largest number of streams at a time of which the slowest stays real time"
        if result.kind == "density"
        else "whether the way in which equal stacks are packed into containers matters"
    )
    return [
        Heading("What was compared"),
        Paragraph(
            f"Asked: {asked}. Every stack encodes {_clip(work.clip)} ({work.width}×{work.height}, "
            f"{work.frames:,} frames, {brief(work.frame_rate)} per second of real time) to {work.codec} by "
            f"{work.accel}. {on(result.device)}"
        ),
        Paragraph(f"{_packed(result)} Containers by {result.environment.engine or design.engine}{_given(design)}."),
        Paragraph(_outputs(result)),
    ]


def _outputs(result: Result) -> str:
    """How it was seen that all did the same work."""
    if repeatable(result):
        return "The outputs of all runs that count were compared byte by byte, by their SHA-256."
    return (
        "The outputs of all runs that count were compared by their number of pictures alone: two runs of a GPU's "
        "encoder need not make the same bytes."
    )


def _given(design: Design) -> str:
    return f", given {' '.join(design.options)}" if design.options else ""


def _packed(result: Result) -> str:
    if result.kind == "density":
        return f"Packings: {', '.join(map(packing, packings(result.density))) or 'none'}."
    cells = dict.fromkeys(cell.name.replace(" ", "\N{NO-BREAK SPACE}") for cell in result.design.cells)
    return (
        f"Cells: {', '.join(cells) or 'none'}. M × N is M containers with N stacks each; bare is without a container."
    )


def _clip(name: str) -> str:
    """The clip in words; one that is made is named by its seconds alone."""
    made = _MADE.fullmatch(name)
    return f"a clip made on the spot ({made[1]} s)" if made else name


_MADE: Final = re.compile(r"made \(([\d.]+) s\)")


def _topology(result: Result, analysis: Analysis) -> list[Block]:
    device = on(result.device)
    found: list[Block] = []
    metrics = [metric for metric in MEASURES if any(c.metric == metric for c in analysis.contrasts)]
    for metric in metrics[:1]:
        found += [Heading(f"Ratios: {MEASURES[metric].title}"), _needs(result)]
        found += _contrasts(result, analysis, metric)
    found += [*_cells(analysis.rows, device), *_curves(analysis.rows, device)]
    for metric in metrics[1:]:
        found += [Heading(f"Ratios: {MEASURES[metric].title}"), *_contrasts(result, analysis, metric)]
    return [*found, *_noise(analysis.contrasts, device)]


def _needs(result: Result) -> Paragraph:
    """What each verdict takes, for who wonders why an interval has that one."""
    margin, level = brief(result.design.margin * 100), brief(LEVEL * 100)
    return Paragraph(
        f"Equivalent: the whole 90 % interval lies within ± {margin} %, and the two one-sided t-tests agree (p at most "
        f"{level} %). Different: the 95 % interval excludes 1, and the paired t-test agrees; by more than {margin} % "
        "only where all of that interval is farther from 1 than that. Inconclusive: neither, which says that more "
        "blocks are needed and not that nothing differs. The tests are stricter the more ratios a table has (Holm), so "
        "that one ratio among several can be inconclusive where it alone would not be. With "
        f"fewer than {FEW} blocks the intervals are Student's, since a bootstrap of so few is too narrow; with more "
        "they are bootstrapped (BCa)."
    )


def _contrasts(result: Result, analysis: Analysis, metric: Metric) -> list[Block]:
    contrasts = [contrast for contrast in analysis.contrasts if contrast.metric == metric]
    measure, device = MEASURES[metric], on(result.device)
    band = margin_of(metric, result.design.margin)
    margin = brief(band * 100)
    picture = (
        f"Thick: 90 % interval; thin: 95 %; band: ± {margin} %. Squares: the reference against itself, the "
        f"noise floor. {_unknown_floor(contrasts)}{device}"
    )
    caption = (
        f"{measure.title}: the cell's over that of what it is held against. Equivalent: the 90 % interval lies "
        f"within ± {margin} %. p of equivalence and of difference, after Holm. {_unknown_floor(contrasts)}{device}"
    )
    columns = ("cell", "against", "verdict", "ratio", "90 % interval", "blocks", "more blocks", "equivalent within")
    intervals = [interval_of(contrast) for contrast in contrasts]
    known = any(contrast.ratio for contrast in contrasts)
    return [
        *([forest_figure(f"forest-{metric}", picture, intervals, band, measure)] if known else []),
        Table(caption, (*columns, "p eq.", "p diff."), tuple(_contrast(contrast) for contrast in contrasts), words=3),
    ]


def _unknown_floor(contrasts: Sequence[Contrast]) -> str:
    """Of which numbers of stacks no noise floor is known: only the largest number's reference is measured twice."""
    known = sorted({one.cell.stacks for one in contrasts if one.again})
    others = sorted({one.cell.stacks for one in contrasts} - set(known))
    if not known or not others:
        return ""
    return (
        f"The noise floor is that of {_listed(known)} stacks; of {_listed(others)} it was not measured, and may be "
        "another. "
    )


def _listed(numbers: Sequence[int]) -> str:
    *before, last = map(str, numbers)
    return f"{', '.join(before)} and {last}" if before else last


def _contrast(one: Contrast) -> tuple[str, ...]:
    ratio = one.ratio
    return (
        _name(one),
        one.reference.name,
        verdict_of(one),
        figures(ratio.value) if ratio else "–",
        f"{difference(ratio.low90)} … {difference(ratio.high90)}" if ratio else "fewer than 3 blocks",
        str(ratio.blocks) if ratio else "–",
        _more(one),
        f"± {brief(one.wider * 100)} %" if ratio and math.isfinite(one.wider) else "–",
        _chance(one.p_equivalent) if ratio else "–",
        _chance(one.p_different) if ratio else "–",
    )


def _more(one: Contrast) -> str:
    if one.more_blocks is None:
        return "too few to say"
    return f"{one.more_blocks:,}" if one.more_blocks else "–"


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _name(one: Contrast) -> str:
    return f"{one.cell.name}, A/A" if one.again else one.cell.name


def _cells(rows: Sequence[Row], device: str) -> list[Block]:
    if not rows:
        return []
    gpu = any(row.engine_busy is not None for row in rows)
    blast = any(row.lost is not None for row in rows)
    columns = ["cell", "runs", "fps median [min–max]", "slowest × real time", "fairness", "job p50 s", "job p95 s"]
    columns += ["CPU s per 1,000 frames", "memory MB", "start s"]
    columns += ["engine busy"] * gpu + ["lost when one container is killed"] * blast
    summed = SUMMED if gpu else ""
    caption = (
        f"Medians over the runs of a cell. Fairness is the slowest stream's fps over the fastest's. {summed}{device}"
    )
    lines = []
    for row in rows:
        least, middle, most = row.fps
        line = [row.cell.name, str(row.runs), f"{figures(middle)} [{figures(least)}–{figures(most)}]"]
        line += [figures(row.speed), figures(row.fairness), figures(row.latency50), figures(row.latency95)]
        line += [figures(row.cpu), figures(row.pss / 1e6), figures(row.start)]
        line += [_share(row.engine_busy)] * gpu
        line += [f"{row.lost} of {row.cell.stacks}" if row.lost is not None else "–"] * blast
        lines.append(tuple(line))
    return [Heading("Cells"), Table(caption, tuple(columns), tuple(lines))]


def _share(share: float | None) -> str:
    return "–" if share is None else f"{figures(share * 100)} %"


def _curves(rows: Sequence[Row], device: str) -> list[Block]:
    """Aggregate fps over the number of stacks, where there is more than one number."""
    if len({row.cell.stacks for row in rows}) < 2:
        return []
    named: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda row: row.cell.stacks):
        least, middle, most = row.fps
        for cell in _packings(row.cell):
            named.setdefault(packing(cell), []).append(Point(row.cell.stacks, middle, least, most))
    curves = [Curve(label, tuple(points)) for label, points in named.items()]
    caption = f"Aggregate frames per second over the number of stacks: median, least and largest. {device}"
    return [saturation_figure("saturation", caption, curves, "aggregate frames per second", ())]


def _packings(cell: Cell) -> tuple[Cell, ...]:
    """A lone stack in its container is both: all in one, and one each."""
    if cell.containers == cell.stacks == 1:
        return cell, cell.model_copy(update={"containers": 2, "stacks": 2})
    return (cell,)


def _noise(contrasts: Sequence[Contrast], device: str) -> list[Block]:
    if not contrasts:
        return []
    caption = (
        "The reference against itself (A/A) is the noise floor: what a ratio shows where nothing differs. Drift is "
        "how much a ratio changed from the first block to the last, spread is the standard deviation of one block. "
        f"{_unknown_floor(contrasts)}{device}"
    )
    columns = ("cell", "metric", "ratio", "90 % interval", "spread of a block", "drift")
    order = sorted(contrasts, key=lambda one: not one.again)
    return [Heading("Noise floor and drift"), Table(caption, columns, tuple(map(_noisy, order)), words=2)]


def _noisy(one: Contrast) -> tuple[str, ...]:
    return (
        _name(one),
        MEASURES[one.metric].title,
        figures(one.ratio.value) if one.ratio else "–",
        f"{difference(one.ratio.low90)} … {difference(one.ratio.high90)}" if one.ratio else "–",
        f"{figures(one.spread * 100)} %",
        difference(1 + one.drift) if one.ratio else "–",
    )


def _density(result: Result) -> list[Block]:
    device = on(result.device)
    found: list[Block] = [Heading("How many streams stay real time")]
    curves = level_curves(result.density)
    if any(curve.points for curve in curves):
        caption = (
            "× real time of the slowest stream over the number of streams; the lines are real time (1), Intel's rule "
            f"(0.98) and Livepeer's (1.25). {device}"
        )
        found.append(saturation_figure("saturation", caption, curves, "× real time of the slowest stream", LIMITS))
    columns = ("packing", "real time (≥ 1)", "Intel (≥ 0.98)", "Livepeer (≥ 1.25)", "confirmed at N and N + 1")
    rows = tuple(
        (curve.label, _streams(one), str(one.intel), str(one.livepeer), "yes" if one.confirmed else "no", _mega(one))
        for one, curve in zip(result.density, curves, strict=True)
    )
    caption = f"The largest number of streams of which the slowest stays real time, by three rules. {device}"
    levels = tuple(
        (curve.label, str(level.streams), figures(level.slowest), str(level.runs))
        for one, curve in zip(result.density, curves, strict=True)
        for level in sorted(one.levels, key=lambda level: level.streams)
    )
    return [
        *found,
        Table(caption, (*columns, "million pixels per s at N"), rows),
        Table(f"What each number of streams gave. {device}", ("packing", "streams", "× real time", "runs"), levels),
    ]


def _mega(one: Density) -> str:
    return figures(one.pixel_rate / 1e6)


def _streams(one: Density) -> str:
    """The search that ended at its largest number knows a lower bound only."""
    return f"≥ {one.streams}" if one.capped else str(one.streams)


def _busy(result: Result) -> list[Block]:
    runs: dict[str, list[Run]] = {}
    for run in result.runs:
        if not run.warmup and not run.again:
            runs.setdefault(run.cell.name, []).append(run)
    if not runs:
        return []
    rows = [Shares(name, _shares(found)) for name, found in runs.items()]
    wide, narrow = (busy(rows, width=width) for width in (WIDE, NARROW))
    engines = tuple(dict.fromkeys(engine for row in rows for engine, _ in row.shares))
    summed = SUMMED if len(engines) > 1 else ""
    caption = (
        f"Share of the time that each kind of GPU engine and the CPUs worked: medians over the runs. {summed}"
        f"{on(result.device)}"
    )
    lines = tuple((row.label, *(_share(dict(row.shares).get(engine)) for engine in engines)) for row in rows)
    return [
        Heading("How busy the engines were"),
        Figure("busy", caption, wide, narrow),
        Table(caption, ("cell", *engines), lines),
    ]


def _shares(runs: Sequence[Run]) -> tuple[tuple[str, float], ...]:
    engines = sorted({engine for run in runs for stack in run.stacks for engine in stack.engines})
    shares = [(engine, median(_engine(run, engine) for run in runs)) for engine in engines]
    return (*shares, ("CPU", median(run.cpu_busy for run in runs)))


def _engine(run: Run, engine: str) -> float:
    began = min((stack.started for stack in run.stacks), default=0.0)
    length = max((stack.ended for stack in run.stacks), default=0.0) - began
    worked = sum(stack.engines.get(engine, 0.0) for stack in run.stacks)
    return worked / length if length > 0 else 0.0


def _design(result: Result) -> list[Block]:
    design = result.design
    facts: dict[str, str] = {"profile": design.profile}
    if result.kind == "topology":
        facts |= {
            "seed": str(design.seed),
            "reference": design.reference.name,
            "margin of equivalence": f"± {brief(design.margin * 100)} %",
            **_blocks(result),
            "time budget": f"{brief(design.budget)} s" if design.budget else "none",
        }
    facts |= {"begun": result.made, "schema version": str(result.schema_version)}
    caption = f"The design, fixed before the first block that counts. {on(result.device)}"
    return [Heading("Design"), _facts(caption, facts)]


def _blocks(result: Result) -> dict[str, str]:
    """How many blocks were planned, asked for and measured; a pilot that was cut fixed and asked for nothing."""
    design, cut, asked = result.design, pilot_cut(result), asked_for(result)
    fixed = f"{design.blocks:,}" if design.blocks else "not yet fixed"
    wanted = f"{asked:,}" if asked else "too few blocks in the pilot to say" if design.wanted else "–"
    return {
        "blocks of the pilot": f"{cut:,} of {design.pilot_blocks:,}: cut by the time budget"
        if cut
        else f"{design.pilot_blocks:,}",
        "blocks, fixed from the pilot": "nothing was fixed, as the pilot was cut" if cut else fixed,
        "blocks the pilot asked for": "nothing, as it was cut" if cut else wanted,
        "blocks measured": f"{len({run.block for run in result.runs if not run.warmup}):,}",
    }


def _environment(result: Result) -> list[Block]:
    found = {"device": f"{result.device.name} {result.device.address}".strip(), **environment(result)}
    facts = {name: value for name, value in found.items() if value}
    return [Heading("Environment"), _facts(f"The machine and the programs. {on(result.device)}", facts)]


def environment(result: Result) -> dict[str, str]:
    """The machine and the programs, by name, in words."""
    known = result.environment
    return {
        "host": known.host,
        "CPU": known.cpu,
        "CPUs": str(known.cpus),
        "memory": f"{figures(known.memory / 1e9)} GB" if known.memory else "",
        "kernel": known.kernel,
        "governor": known.governor,
        "cgroup": known.cgroup,
        "container engine": known.engine,
        "image": known.image,
        "ffmpeg": known.ffmpeg,
        "driver": known.driver,
        "transcoder": known.transcoder,
    }


def _facts(caption: str, facts: Mapping[str, str]) -> Table:
    return Table(caption, ("what", "value"), tuple(facts.items()), words=2)


def _again(result: Result) -> list[Block]:
    words = result.workload.argv
    ffmpeg: list[Block] = [Paragraph("Each stack's ffmpeg, as planned:"), Code(shlex.join(words))] if words else []
    return [Heading("How to repeat it"), Code(command_line(result)), Paragraph(_unknown(result)), *ffmpeg]


def command_line(result: Result) -> str:
    """The command that asks the same, as far as the result knows; its words are quoted for a shell."""
    design, work = result.design, result.workload
    words = ["transcoder", "bench", result.kind]
    words += _of_topology(result) if result.kind == "topology" else _of_density(result)
    words += ["--height", str(work.height), "--accel", work.accel, "--engine", design.engine]
    if design.engine != "processes" and (image := result.environment.image.partition(" ")[0]):
        words += ["--image", image]
    words += [part for word in design.options or () for part in ("--run-option", word)]
    if not _MADE.fullmatch(work.clip):
        words += ["--clip", work.clip]
    return shlex.join(words)


def _of_topology(result: Result) -> list[str]:
    design = result.design
    words = ["--profile", design.profile, "--seed", str(design.seed)]
    words += ["--stacks", ",".join(str(n) for n in sorted({cell.stacks for cell in design.cells}) or [1])]
    words += ["--pilot", str(design.pilot_blocks)]
    words += ["--budget", f"{design.budget:.15g}"] if design.budget else []
    words += ["--seconds", f"{design.seconds:.15g}"] if design.seconds else []
    return [*words, "--worker" if any(cell.worker for cell in design.cells) else "--no-worker"]


def _of_density(result: Result) -> list[str]:
    work = result.workload
    words = ["--codec", work.codec, "--seconds", f"{work.frames / work.frame_rate:.6g}"]
    words += ["--packing", known] if (known := _packing_word(result)) else []
    return [*words, "--repeats", str(repeats)] if (repeats := _repeats(result)) else words


def _packing_word(result: Result) -> str:
    """As --packing says it; empty where one stream alone was tried in one packing, which may be either."""
    shown = packings(result.density)
    if len(shown) > 1:
        return "both"
    several = [cell for cell in shown if cell.stacks > 1]
    return ("one" if several[0].containers == 1 else "each") if several else ""


def _repeats(result: Result) -> int:
    """How often a number that was confirmed was measured anew; 0 where none was, or of one stream, as all pack it."""
    confirming = {
        Cell(containers=1 if shown.containers == 1 else streams, stacks=streams)
        for one, shown in zip(result.density, packings(result.density), strict=True)
        for streams in (one.streams, one.streams + 1)
        if one.confirmed and streams > 1
    }
    anew = Counter(run.cell for run in result.runs if not (run.warmup or run.pilot))
    return max((anew[cell] for cell in confirming), default=0)


def _unknown(result: Result) -> str:
    """What a user may have said that no result keeps."""
    made = _MADE.fullmatch(result.workload.clip)
    missing = [] if result.design.options is not None else ["words for the container engine (--run-option)"]
    if any(word.startswith(("-e", "--env")) for word in result.design.options or ()):
        missing.append("the values of variables")
    if not made:
        missing.append("the folder of the clip")
    if result.kind == "topology" and not result.design.seconds:
        frames = f"each encoded {result.workload.frames:,} frames"
        missing.append(f"how long a run was to be (--seconds; {frames}, fitted to this machine's speed)")
    if result.kind == "density":
        missing += ["the most streams to try (--stacks-max)", "the device that was named (--device)"]
        missing += [] if _packing_word(result) else ["which packing was tried (--packing)"]
        missing += [] if _repeats(result) else ["how often a number was to be confirmed (--repeats)"]
    return f"The result does not know: {'; '.join(missing)}." if missing else "The result knows all of it."
