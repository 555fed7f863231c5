"""What follows from a benchmark, in words: the headline, what comes after it, and what makes it doubtful. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from transcoder.bench import design, statistics
from transcoder.bench.contrasts import (
    Contrast,
    Found,
    Metric,
    Row,
    asked_for,
    contrasted,
    judge,
    pilot_cut,
    rows_of,
    sound_runs,
    without_window,
)
from transcoder.bench.result import Cell, Density, Result, Run
from transcoder.bench.statistics import LEVEL


@dataclass(frozen=True, slots=True)
class Analysis:
    """What follows from a result."""

    headline: str
    """The verdict as one sentence in plain words, with margin and interval."""
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    """Every metric, every cell, the A/A rows first."""
    troubles: tuple[str, ...]
    """What makes the result doubtful: outputs that differ, drift, a simulated device with busy CPUs."""
    further: tuple[str, ...] = ()
    """The sentences that follow the headline: other packings, bare, the whole path, the noise floor, the device."""


_WIDEST: Final = 0.5
"""The largest margin that a design may have, and so the largest that is told."""
_NAMED: Final = 5
"""How many troubles of a kind are told apart; of more only the number is told."""


def analyse(result: Result, resamples: int = statistics.RESAMPLES) -> Analysis:
    """What follows from a result; with a seed of its own, so that it says the same each time."""
    sound = sound_runs(result)
    found = contrasted(result, sound, resamples) if result.kind == "topology" else ()
    contrasts = tuple(one.contrast for one in found)
    headline, *further = _density(result) if result.kind == "density" else _topology(result, contrasts)
    return Analysis(
        headline=headline,
        rows=rows_of(result, sound),
        contrasts=contrasts,
        troubles=tuple(_troubles(result, sound, found)),
        further=(*further, *_device(result)),
    )


def verdicts(analysis: Analysis, result: Result) -> dict[str, str]:
    """The sentences on throughput, by cell, as a result keeps them."""
    fps = [one for one in analysis.contrasts if one.metric == "fps" and not one.again]
    return {one.cell.name: f"{_sentence(one, result.design.margin)}." for one in fps}


def packings(densities: Sequence[Density]) -> tuple[Cell, ...]:
    """A cell that shows how each density packs its streams: all in one container, or one in each.

    That of its largest number. One stream alone is packed both ways: it is then the second of two that has one in each,
    as they are searched in that order.
    """
    shown = []
    for place, one in enumerate(densities):
        cell = max((level.cell for level in one.levels), key=lambda cell: cell.stacks, default=one.cell)
        if place and cell.containers == cell.stacks == 1:
            cell = Cell(containers=2, stacks=2)
        shown.append(cell)
    return tuple(shown)


def repeatable(result: Result) -> bool:
    """Whether two runs make the same bytes: software does, a simulated device's too, and a GPU's encoder need not."""
    return result.device.kind != "real"


def _topology(result: Result, contrasts: Sequence[Contrast]) -> list[str]:
    """The headline and what follows it: other packings, bare, the worker's whole path, the noise floor."""
    margin = result.design.margin
    fps = [one for one in contrasts if one.metric == "fps" and not one.again]
    packed = [one for one in fps if one.cell.containers > 1 and not one.cell.worker]
    bare = [one for one in fps if one.cell.containers == 0]
    floor = next((one for one in contrasts if one.metric == "fps" and one.again), None)
    if not fps:
        nothing = "There is nothing to compare: one packing alone was measured."
        return [nothing, _noise(floor)] if floor else ["No block was finished, so nothing can be said."]
    first = max(packed or bare or fps, key=_telling)
    several = len({one.cell.stacks for one in fps}) > 1
    said = [_headline(first, margin, several=several), *_precision(first)]
    said += [f"{_capital(why)}."] if not first.cell.worker and (why := _overruled(first, margin)) else []
    said += [_forecast(first)] if first.verdict == "inconclusive" else []
    others = [one for one in packed if one is not first]
    if others:
        said.append(f"Other packings: {'; '.join(_briefly(one) for one in others)}.")
    for one in (*bare, *(one for one in fps if one.cell.worker)):
        if one is not first and one.cell.stacks == first.cell.stacks:
            said.append(f"{_sentence(one, margin)}.")
    return [*said, *([_noise(floor)] if floor else [])]


def _telling(contrast: Contrast) -> tuple[bool, bool, int, int]:
    """A difference tells most, and the most stacks in the most containers."""
    cell = contrast.cell
    return contrast.verdict == "different", cell.containers == cell.stacks, cell.stacks, cell.containers


def _headline(contrast: Contrast, margin: float, *, several: bool) -> str:
    """As "Packing makes no difference within 3 %: two containers ran at 0.998 of one's speed (90 % interval …)"."""
    cell, ratio = contrast.cell, contrast.ratio
    if cell.worker:
        return f"{_sentence(contrast, margin)}."
    what = "packing" if cell.containers else "a container"
    if several:
        what += f" {'for' if cell.containers == 0 else 'of'} {_many(cell.stacks, 'stack')}"
    if ratio is None:
        return f"This run cannot say whether {what} matters: {_conclusion(contrast, margin)}."
    ran = f"{_who(cell)} ran at {ratio.value:,.3f} of {_against(contrast)}'s speed ({_interval(contrast)})"
    if contrast.verdict == "equivalent":
        return f"{_capital(what)} makes {_conclusion(contrast, margin)}: {ran}."
    if contrast.verdict == "different":
        matters = "matters" if _beyond(contrast, margin) else "makes a difference"
        return f"{_capital(what)} {matters}: {ran}: {_conclusion(contrast, margin)}."
    return f"This run cannot say whether {what} matters: {ran}: {_conclusion(contrast, margin)}."


def _sentence(contrast: Contrast, margin: float) -> str:
    """As "Bare ffmpeg ran at 1.004 of one container's speed (90 % interval …): no difference within 3 %"."""
    who, ratio = _capital(_who(contrast.cell)), contrast.ratio
    if ratio is None:
        return f"{who} against {_against(contrast)}: {_conclusion(contrast, margin)}"
    ran = f"{who} ran at {ratio.value:,.3f} of {_against(contrast)}'s speed ({_interval(contrast)})"
    why = _overruled(contrast, margin)
    return f"{ran}: {_conclusion(contrast, margin)}{f'; {why}' if why else ''}"


def _conclusion(contrast: Contrast, margin: float) -> str:
    """What a ratio says beside the margin, and no more than follows."""
    ratio, within = contrast.ratio, _percent(margin)
    if ratio is None:
        return f"inconclusive at {within}, as it has too few blocks for an interval, which takes three"
    if contrast.verdict == "equivalent":
        return f"no difference within {within}"
    if contrast.verdict == "different":
        size = f"{_percent(abs(ratio.value - 1))} {'slower' if ratio.value < 1 else 'faster'}"
        if _beyond(contrast, margin):
            return f"different, {size}, and by more than {within} over the whole interval"
        return f"different, {size}, and whether by more than {within} is open"
    wider = math.ceil(contrast.wider * 100 - 1e-9) if contrast.wider <= _WIDEST else None
    return f"inconclusive at {within}, equivalent at {f'{wider} %' if wider else 'no margin up to 50 %'}"


def _beyond(contrast: Contrast, margin: float) -> bool:
    """Whether all of the 95 % interval lies outside 1 ± margin: a test against 1 alone does not say how large it is."""
    ratio = contrast.ratio
    return ratio is not None and (ratio.high95 < 1 - margin or ratio.low95 > 1 + margin)


def _precision(contrast: Contrast) -> list[str]:
    """How exact the headline's ratio is, for who compares benchmarks of different lengths."""
    if contrast.ratio is None:
        return []
    return [f"The 95 % interval of that ratio has a half-width of {_percent(math.expm1(contrast.half_width))}."]


def _overruled(contrast: Contrast, margin: float) -> str:
    """Why the verdict is not what the interval alone would say; empty where it is."""
    alone = judge(contrast.ratio, margin, 0.0, 0.0) if contrast.ratio else "inconclusive"
    if alone == contrast.verdict:
        return ""
    if contrast.shaken:
        return "its interval alone says different, but the reference differs from itself (A/A) by as much"
    p = contrast.p_equivalent if alone == "equivalent" else contrast.p_different
    return (
        f"its interval alone says {alone}, but the test, which allows for all ratios of the table, does not (p {p:.2f})"
    )


def _briefly(contrast: Contrast) -> str:
    said = f"{contrast.cell.name} {contrast.verdict}"
    return f"{said} ({contrast.ratio.value:.3f})" if contrast.ratio else said


def _forecast(contrast: Contrast) -> str:
    if contrast.more_blocks is None:
        return "These are too few blocks to say how many more would settle it."
    about = _about(contrast.more_blocks)
    return f"About {about:,} more block{'' if about == 1 else 's'} would settle it."


def _noise(floor: Contrast) -> str:
    who = f"The noise floor, {_packing(floor.cell)} with {_many(floor.cell.stacks, 'stack')} against itself (A/A)"
    if floor.ratio is None:
        return f"{who}, is not known from so few blocks."
    return f"{who}, was {floor.ratio.value:.3f} ({_interval(floor)})."


def _interval(contrast: Contrast) -> str:
    """The one that the verdict is from."""
    ratio = contrast.ratio
    if ratio is None:
        return "no interval"
    blocks = _many(ratio.blocks, "block")
    if contrast.verdict == "different":
        return f"95 % interval {ratio.low95:,.3f}–{ratio.high95:,.3f}, {blocks}"
    return f"90 % interval {ratio.low90:,.3f}–{ratio.high90:,.3f}, {blocks}"


def _who(cell: Cell) -> str:
    if cell.worker:
        return "the whole path through queue and worker"
    return _packing(cell) if cell.containers else "bare ffmpeg"


def _packing(cell: Cell) -> str:
    return _many(cell.containers, "container", words=True)


def _against(contrast: Contrast) -> str:
    """Of containers the number is enough."""
    if not contrast.reference.containers:
        return "bare ffmpeg"
    return "one" if contrast.cell.containers and not contrast.cell.worker else "one container"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _density(result: Result) -> list[str]:
    load = result.workload
    if not result.density:
        return ["No number of streams was finished, so nothing can be said."]
    shown = zip(result.density, packings(result.density), strict=True)
    clauses = [_stays(one, cell) for one, cell in sorted(shown, key=lambda pair: pair[1].containers != 1)]
    return [
        f"Streams of {load.width}×{load.height} at {load.frame_rate:g} fps that stay real time: {', '.join(clauses)}."
    ]


def _stays(density: Density, shown: Cell) -> str:
    """As "6 in one container (confirmed at 6 and 7)"."""
    count = density.streams
    sure = f"confirmed at {count} and {count + 1}" if density.confirmed else "not confirmed"
    if density.capped:
        sure = "the search ended there, not the device"
    return f"{'at least ' if density.capped else ''}{count} {_where(shown)} ({sure})"


def _where(shown: Cell) -> str:
    return "in one container" if shown.containers == 1 else "with one container each"


def _device(result: Result) -> list[str]:
    """What encoded."""
    return [f"Each stack encoded by {_encoder(result)}{': no GPU was measured' * (result.device.kind == 'software')}."]


_WORDS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _many(count: int, noun: str, *, words: bool = False) -> str:
    number = _WORDS[count] if words and count < len(_WORDS) else str(count)
    return f"{number} {noun}{'' if count == 1 else 's'}"


def _encoder(result: Result) -> str:
    """As `software libx264`: the words of ffmpeg know best."""
    argv = result.workload.argv
    named = [
        argv[place + 1] for place, word in enumerate(argv[:-1]) if word.split(":")[:2] in (["-c", "v"], ["-codec", "v"])
    ]
    encoder = named[-1] if named else result.workload.codec
    if result.workload.accel == "software":
        return f"software {encoder}"
    device = "a simulated GPU" if result.device.kind == "simulated" else result.device.name
    return f"{encoder if named else f'{result.workload.accel} {encoder}'} on {device}"


def _about(count: int) -> int:
    """With two digits: a forecast knows no more."""
    return round(count, min(0, 2 - len(str(count))))


def _percent(share: float) -> str:
    """With two digits, and never as a power of ten."""
    rounded = float(f"{100 * share:.2g}")
    return f"{rounded:,.0f} %" if rounded >= 10 else f"{rounded:g} %"


def _troubles(result: Result, runs: Sequence[Run], found: Sequence[Found]) -> Iterable[str]:
    """What makes the result doubtful, the worst first."""
    if result.partial:
        yield "It was ended before its time: what follows is from the blocks that were finished."
    if result.device.kind == "simulated":
        yield (
            "The GPU is simulated by a program: this shows that the packing and the statistics work, and nothing of a "
            "real GPU or its driver."
        )
    yield from _of_stacks(result)
    yield from _of_outputs(result, runs)
    yield from _of_the_machine(result, runs)
    yield from _of_contrasts(result, found)
    for density, shown in zip(result.density, packings(result.density), strict=True):
        if not density.confirmed:
            where = _capital(_where(shown))
            yield f"{where}: the number of streams, {density.streams}, could not be confirmed by measuring it anew."


def _few(said: Sequence[str]) -> Iterable[str]:
    yield from said[:_NAMED]
    if len(said) > _NAMED:
        yield f"… and {len(said) - _NAMED} more of the same kind."


def _of_stacks(result: Result) -> Iterable[str]:
    return _few(
        [
            f"{run.cell.name}, block {run.block}: {stack.trouble}; this run is left out."
            for run in result.runs
            for stack in run.stacks
            if stack.trouble
        ]
    )


def _of_outputs(result: Result, runs: Sequence[Run]) -> Iterable[str]:
    frames = {run.cell.name: stack.frames for run in runs for stack in run.stacks
              if stack.frames != result.workload.frames}  # fmt: skip
    yield from _few(
        [f"{name}: {count:,} frames were encoded, not {result.workload.frames:,}." for name, count in frames.items()]
    )
    if not repeatable(result):
        return
    digests: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for stack in run.stacks:
            if stack.digest:
                digests[stack.digest].add(run.cell.name)
    if len(digests) > 1:
        sides = " | ".join(sorted(", ".join(sorted(names)) for names in digests.values()))
        yield f"The outputs differ, so not all cells did the same work: {sides}."


def _of_the_machine(result: Result, runs: Sequence[Run]) -> Iterable[str]:
    yield from _of_windows(result, runs)
    busiest = max((run.cpu_busy for run in runs), default=0.0)
    if result.device.kind == "simulated" and busiest > design.BUSY:
        yield f"The CPUs were {busiest:.0%} busy beside a simulated device: above half they, not it, may set the pace."
    throttled = [run for run in runs if run.throttled > 0]
    if throttled:
        yield f"A quota on CPUs held containers back in {_many(len(throttled), 'run')}."
    yield from _of_the_time(result)


def _of_windows(result: Result, runs: Sequence[Run]) -> Iterable[str]:
    for stacks, without in sorted(without_window(runs).items()):
        of = sum(run.cell.stacks == stacks and not run.cell.worker for run in runs)
        names = ", ".join(sorted({run.cell.name for run in without}))
        taken = "those are taken whole" if result.kind == "density" else "all of them are taken whole"
        yield (
            f"{_many(stacks, 'stack')}: {len(without)} of {_many(of, 'run')} had no window of at least half of the run "
            f"in which all stacks worked, so {taken}: {names}."
        )


def _of_the_time(result: Result) -> Iterable[str]:
    cut, wanted, planned = pilot_cut(result), asked_for(result), result.design
    if cut:
        yield (
            f"The time ended the pilot after {cut} of {_many(planned.pilot_blocks, 'block')}, so no number of blocks "
            "could be fixed from it."
        )
    elif 0 < planned.blocks < wanted:
        yield (
            f"The time allowed {planned.blocks:,} of the {wanted:,} blocks that ± {_percent(planned.margin)} asks for."
        )


_NAMES: Final[Mapping[Metric, str]] = {
    "fps": "frames per second",
    "slowest": "the slowest stream",
    "cpu": "CPU time",
    "latency": "p95 latency",
    "pss": "memory",
}


def _of_contrasts(result: Result, found: Sequence[Found]) -> Iterable[str]:
    def named(one: Found) -> str:
        cell, metric = one.contrast.cell.name, _NAMES[one.contrast.metric]
        return f"{cell} against itself, {metric}" if one.contrast.again else f"{cell}, {metric}"

    yield from (
        f"{named(one)}: called different, which A against A should not be: something favours a place in the block."
        for one in found
        if one.contrast.again and one.contrast.verdict == "different"
    )
    yield from _few(
        [
            f"{named(one)}: the ratio drifted by {one.contrast.drift:+.1%} over the blocks (p = {one.p_drift:.2g})."
            for one in found
            if one.contrast.metric == "fps" and one.p_drift <= LEVEL  # the others go with it
        ]
    )
    yield from _few(
        [f"{named(one)}: a few blocks pull the mean away from the middle of all." for one in found if one.outliers]
    )
