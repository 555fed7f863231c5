"""From what a benchmark saw to what follows from it: ratios, intervals, verdicts. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, Literal, get_args

from transcoder.bench import design, statistics
from transcoder.bench.result import Cell, Density, Result, Run, Stamp, Workload
from transcoder.bench.statistics import LEVEL

Metric = Literal["fps", "slowest", "cpu", "latency", "pss"]
"""Aggregate fps, × real time of the slowest stream, CPU seconds per 1,000 frames, p95 of a job's seconds, memory."""
Verdict = Literal["equivalent", "different", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio to the reference: the geometric mean over blocks, its 90 % and 95 % intervals.

    They are Student's with fewer than `statistics.FEW` blocks, so that they say what the t-tests say; BCa else.
    """

    value: float
    low90: float
    high90: float
    low95: float
    high95: float
    blocks: int


@dataclass(frozen=True, slots=True)
class Contrast:
    """A cell against the reference of its number of stacks, in one metric."""

    cell: Cell
    reference: Cell
    metric: Metric
    ratio: Estimate | None
    """None with fewer than three blocks."""
    verdict: Verdict
    p_equivalent: float
    p_different: float
    """Of TOST and of the paired t-test on log ratios, both after Holm over the contrasts of the table."""
    detectable: bool
    """Equivalent, and yet the 95 % interval excludes 1."""
    more_blocks: int | None
    """Further blocks that would settle an inconclusive one; 0 else, and None with too few to say how many."""
    wider: float
    """The smallest margin at which it would be equivalent, as 0.07 for ± 7 %; infinite where none below 1 is."""
    again: bool = False
    """Whether it is the reference against itself: the noise floor."""
    drift: float = 0.0
    """How much the ratio changes over all blocks, as a share: 0.01 is 1 %."""
    spread: float = 0.0
    """The standard deviation of the log ratio of a block."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell as people compare them: medians over its runs, with the least and the largest."""

    cell: Cell
    runs: int
    fps: tuple[float, float, float]
    """Least, median, largest."""
    speed: float
    """The slowest stream, × real time."""
    fairness: float
    """The slowest stream's fps over the fastest's."""
    latency50: float
    latency95: float
    """Seconds of a job."""
    cpu: float
    """Seconds of the CPU per 1,000 frames."""
    pss: float
    """Bytes, of all stacks together."""
    start: float
    """Seconds until the containers were ready."""
    engine_busy: float | None
    """The busiest engine's share of the time, 0 to 1; None without a GPU."""
    lost: int | None
    """Stacks lost when one container is killed; None where that was not tried."""


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


SEED: Final = 1
"""Of the analysis, so that it says the same of the same result."""
LATENCY_MARGIN: Final = 0.05
"""Tails scatter more than sums."""
_LEAST_WINDOW: Final = 0.5
"""A window shorter than that share of the run says little of it: an encoder that looks ahead holds a short run's frames
back, and a window of the end alone would measure how it hands them all out."""
_WIDEST: Final = 1.0
"""A margin of ± 100 % is none."""
_NAMED: Final = 5
"""How many troubles of a kind are told apart; of more only the number is told."""


def analyse(result: Result, resamples: int = statistics.RESAMPLES) -> Analysis:
    """What follows from a result; with a seed of its own, so that it says the same each time."""
    sound = _sound(result)
    found = _contrasts(result, sound, resamples) if result.kind == "topology" else ()
    contrasts = tuple(one.contrast for one in found)
    headline, *further = _density(result) if result.kind == "density" else _topology(result, contrasts)
    return Analysis(
        headline=headline,
        rows=_rows(result, sound),
        contrasts=contrasts,
        troubles=tuple(_troubles(result, sound, found)),
        further=(*further, *_device(result)),
    )


def verdicts(analysis: Analysis, result: Result) -> dict[str, str]:
    """The sentences on throughput, by cell, as a result keeps them."""
    fps = [one for one in analysis.contrasts if one.metric == "fps" and not one.again]
    return {one.cell.name: f"{_sentence(one, result.design.margin)}." for one in fps}


def pilot_cut(result: Result) -> int:
    """How many blocks a pilot had that the time ended early, so that nothing was fixed from it; 0 where none did."""
    if result.kind == "density" or not result.design.blocks:
        return 0
    blocks = len({run.block for run in result.runs if run.pilot and not run.warmup})
    return blocks if blocks < result.design.pilot_blocks else 0


def asked_for(result: Result) -> int:
    """The blocks that the pilot asked for; 0 where it was not finished, or too short to say.

    It asks by frames per second alone.
    """
    short = pilot_cut(result) or result.design.pilot_blocks < statistics.LEAST_FORECAST
    return result.design.wanted if result.design.blocks and not short else 0


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


def _sound(result: Result) -> list[Run]:
    return [run for run in result.runs if not run.warmup and not any(stack.trouble for stack in run.stacks)]


def deviation(result: Result) -> float:
    """The standard deviation of a block's log ratio of throughput: the largest of all contrasts so far, A/A too."""
    found = _paired(_sound(result), "fps", result.workload)
    return max((statistics.spread(one.logs) for one in found), default=0.0)


def throughput(run: Run) -> tuple[tuple[float, ...], bool]:
    """Frames per second of each stack in the window in which all are active; whether there is such a window.

    It lasts from the latest first stamp to the earliest last one; stamps are interpolated linearly. What tells that
    all frames are made is no stamp: it comes when ffmpeg has closed file and device, which is late in a short run.
    Where the window is empty or shorter than half of the run, each stack's whole run is taken instead. That is of one
    run alone: a ratio of two takes both in the same way.
    """
    windowed = _windowed(run)
    return (_whole(run), False) if windowed is None else (windowed, True)


def _windowed(run: Run) -> tuple[float, ...] | None:
    stamps = [[one for one in stack.stamps if one.frames < stack.frames] for stack in run.stacks]
    if all(len(one) > 1 for one in stamps):
        begin, end = max(one[0].at for one in stamps), min(one[-1].at for one in stamps)
        if end - begin >= _LEAST_WINDOW * _duration(run) > 0:
            frames = ((_frames_at(one, end) - _frames_at(one, begin)) for one in stamps)
            return tuple(one / (end - begin) for one in frames)
    return None


def _without_window(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """By number of stacks the runs without a window; all of that number are then taken whole.

    With a worker no run has one, since a job begins and ends beside what it encodes: these say nothing of the others.
    """
    found: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        if not run.cell.worker and _windowed(run) is None:
            found[run.cell.stacks].append(run)
    return dict(found)


def _rates(run: Run, *, whole: bool) -> tuple[float, ...]:
    return _whole(run) if whole else throughput(run)[0]


def _whole(run: Run) -> tuple[float, ...]:
    """Frames per second of each stack over all its time."""
    return tuple(stack.frames / max(stack.ended - stack.started, 1e-9) for stack in run.stacks)


def _duration(run: Run) -> float:
    return max(stack.ended for stack in run.stacks) - min(stack.started for stack in run.stacks)


def _frames_at(stamps: Sequence[Stamp], moment: float) -> float:
    """Encoded by then, between the two stamps around it."""
    after = next((place for place, one in enumerate(stamps) if one.at >= moment), len(stamps) - 1)
    first, last = stamps[max(0, after - 1)], stamps[after]
    if last.at <= first.at:
        return last.frames
    return first.frames + (last.frames - first.frames) * (moment - first.at) / (last.at - first.at)


def _jobs(run: Run) -> tuple[float, ...]:
    return tuple(max(stack.ended - stack.started, 1e-9) for stack in run.stacks)


def _p95(jobs: Sequence[float]) -> float:
    return statistics.quantile(jobs, 0.95)


def _cpu(run: Run) -> float:
    seconds = math.fsum(stack.cpu_user + stack.cpu_system for stack in run.stacks)
    return 1000 * seconds / max(1, sum(stack.frames for stack in run.stacks))


def _observed(run: Run, metric: Metric, workload: Workload, *, whole: bool) -> float:
    """A run in one metric; 0 where it was not measured. `whole` takes the throughput of all its time."""
    match metric:
        case "fps":
            return math.fsum(_rates(run, whole=whole))
        case "slowest":
            return min(_rates(run, whole=whole)) / workload.frame_rate
        case "cpu":
            return _cpu(run)
        case "latency":
            return _p95(_jobs(run))
        case "pss":
            return sum(stack.pss for stack in run.stacks)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Block by block a cell and what it is held against."""

    cell: Cell
    reference: Cell
    again: bool
    blocks: tuple[int, ...]
    logs: tuple[float, ...]
    jobs: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A contrast, and what only its troubles need."""

    contrast: Contrast
    p_drift: float
    outliers: bool


def _held_against(cell: Cell, measured: Iterable[Cell]) -> Cell:
    """One container with as many stacks; for the product's whole path bare ffmpeg, where that was measured."""
    bare = Cell(containers=0, stacks=cell.stacks)
    return bare if cell.worker and bare in set(measured) else design.reference(cell)


def _paired(runs: Sequence[Run], metric: Metric, workload: Workload) -> list[_Pairs]:
    """All pairs of a metric, the A/A first; cells of which no block has both are left out."""
    seen = {(run.block, run.cell, run.again): run for run in runs}
    without = _without_window(runs) if metric in ("fps", "slowest") else {}
    cells = dict.fromkeys(cell for _, cell, again in sorted(seen, key=lambda one: (one[0], one[2])) if not again)
    doubled = dict.fromkeys(cell for _, cell, again in seen if again)
    kinds = [(cell, cell, True) for cell in doubled]
    kinds += [(cell, held, False) for cell in sorted(cells, key=_place) if (held := _held_against(cell, cells)) != cell]
    found = []
    for cell, held, again in kinds:
        both = [
            (block, seen[block, cell, again], seen[block, held, False])
            for block in sorted({run.block for run in runs})
            if (block, cell, again) in seen and (block, held, False) in seen
        ]
        whole = cell.worker or cell.stacks in without
        values = [
            (
                block,
                _observed(one, metric, workload, whole=whole),
                _observed(other, metric, workload, whole=whole),
                _jobs(one),
                _jobs(other),
            )
            for block, one, other in both
        ]
        kept = [one for one in values if one[1] > 0 < one[2]]
        if kept:
            logs = statistics.log_ratios([(one[1], one[2]) for one in kept])
            jobs = tuple((one[3], one[4]) for one in kept)
            found.append(_Pairs(cell, held, again, tuple(one[0] for one in kept), tuple(logs), jobs))
    return found


def _place(cell: Cell) -> tuple[int, bool, int]:
    return cell.stacks, cell.worker, cell.containers


def _contrasts(result: Result, runs: Sequence[Run], resamples: int) -> tuple[_Found, ...]:
    tables = [_table(result, _paired(runs, metric, result.workload), metric, resamples) for metric in get_args(Metric)]
    found = [one for table in tables for one in table]
    return tuple(sorted(found, key=lambda one: not one.contrast.again))


def _table(result: Result, pairs: Sequence[_Pairs], metric: Metric, resamples: int) -> list[_Found]:
    """All contrasts of one metric; Holm's correction is over those that ask something, which A/A does not."""
    margin = LATENCY_MARGIN if metric == "latency" else result.design.margin
    family = [one.logs for one in pairs if not one.again and len(one.logs) >= 3]
    different = dict(zip(family, statistics.holm([statistics.p_different(one) for one in family]), strict=True))
    equivalent = dict(zip(family, _p_equivalent(family, margin), strict=True))
    drifts = [statistics.drift(one.logs, one.blocks) for one in pairs]
    p_drifts = statistics.holm([p for _, p in drifts])
    found = []
    for one, (change, _), p_drift in zip(pairs, drifts, p_drifts, strict=True):
        if len(one.logs) < 3:
            found.append(_Found(_too_few(one, metric), 1.0, False))
            continue
        alone = one.again
        ratio = _estimate(one, metric, resamples)
        p_different = statistics.p_different(one.logs) if alone else different[one.logs]
        p_equivalent = statistics.p_equivalent(one.logs, margin) if alone else equivalent[one.logs]
        verdict = judge(ratio, margin, p_equivalent, p_different)
        contrast = Contrast(
            cell=one.cell,
            reference=one.reference,
            metric=metric,
            ratio=ratio,
            verdict=verdict,
            p_equivalent=p_equivalent,
            p_different=p_different,
            detectable=verdict == "equivalent" and not ratio.low95 <= 1 <= ratio.high95,
            more_blocks=_more_blocks(result, one, metric, margin, 1 if alone else len(family))
            if verdict == "inconclusive"
            else 0,
            wider=_smallest_margin(one.logs, ratio, [one.logs] if alone else family),
            again=one.again,
            drift=math.expm1(change),
            spread=statistics.spread(one.logs),
        )
        centre = math.exp(statistics.hodges_lehmann(one.logs))
        found.append(_Found(contrast, p_drift, not ratio.low95 <= centre <= ratio.high95))
    return found


def _more_blocks(result: Result, pairs: _Pairs, metric: Metric, margin: float, contrasts: int) -> int | None:
    """What the pilot asked for and was not measured; where it asked for no more, by the spread of all blocks."""
    if metric == "fps" and (missing := asked_for(result) - len(pairs.logs)) > 0:
        return missing
    return statistics.more_blocks(pairs.logs, margin, contrasts)


def judge(ratio: Estimate, margin: float, p_equivalent: float, p_different: float) -> Verdict:
    """Equivalent where all of the 90 % interval is within 1 ± margin and TOST agrees; this wins over different."""
    if 1 - margin < ratio.low90 and ratio.high90 < 1 + margin and p_equivalent <= LEVEL:
        return "equivalent"
    return "different" if p_different <= LEVEL and not ratio.low95 <= 1 <= ratio.high95 else "inconclusive"


def _p_equivalent(family: Sequence[Sequence[float]], margin: float) -> tuple[float, ...]:
    return statistics.holm([statistics.p_equivalent(one, margin) for one in family])


def _estimate(pairs: _Pairs, metric: Metric, resamples: int) -> Estimate:
    confidences = (0.9, 0.95)
    if len(pairs.logs) < statistics.FEW:
        ends = statistics.student(pairs.logs, confidences)
    elif metric == "latency":
        ends = statistics.two_level(pairs.jobs, _p95, confidences, seed=SEED, resamples=resamples)
    else:
        ends = statistics.bca(pairs.logs, confidences, seed=SEED, resamples=resamples)
    (low90, high90), (low95, high95) = ends
    value, low90, high90, low95, high95 = map(math.exp, (fmean(pairs.logs), low90, high90, low95, high95))
    return Estimate(value, low90, high90, low95, high95, len(pairs.logs))


def _smallest_margin(logs: Sequence[float], ratio: Estimate, family: Sequence[Sequence[float]]) -> float:
    """At which it would be called equivalent, to 0.0001, Holm's correction included; infinite where none below 1 is."""
    place = list(family).index(logs)

    def equivalent(margin: float) -> bool:
        return judge(ratio, margin, _p_equivalent(family, margin)[place], 1.0) == "equivalent"

    if not equivalent(_WIDEST):
        return math.inf
    low, high = 0.0, _WIDEST
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if equivalent(middle) else (middle, high)
    return high


def _too_few(pairs: _Pairs, metric: Metric) -> Contrast:
    """Two blocks have no interval, and foretell nothing."""
    return Contrast(pairs.cell, pairs.reference, metric, None, "inconclusive", 1.0, 1.0, False, None, math.inf,
                    again=pairs.again, spread=statistics.spread(pairs.logs))  # fmt: skip


def _rows(result: Result, runs: Sequence[Run]) -> tuple[Row, ...]:
    cells: dict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.cell].append(run)
    without = _without_window(runs)
    return tuple(
        _row(result, cell, cells[cell], whole=cell.worker or cell.stacks in without)
        for cell in sorted(cells, key=_place)
    )


def _row(result: Result, cell: Cell, runs: Sequence[Run], *, whole: bool) -> Row:
    rates = [_rates(run, whole=whole) for run in runs]
    fps = [math.fsum(one) for one in rates]
    jobs = [job for run in runs for job in _jobs(run)]
    starts = [run.start for run in result.runs if run.cell == cell and run.start > 0]
    busy = [share for run in runs if (share := _engine_busy(run)) is not None]
    return Row(
        cell=cell,
        runs=len(runs),
        fps=(min(fps), median(fps), max(fps)),
        speed=median(min(one) for one in rates) / result.workload.frame_rate,
        fairness=median(min(one) / max(one) if max(one) else 0.0 for one in rates),
        latency50=statistics.quantile(jobs, 0.5),
        latency95=_p95(jobs),
        cpu=median(map(_cpu, runs)),
        pss=median(sum(stack.pss for stack in run.stacks) for run in runs),
        start=median(starts) if starts else 0.0,
        engine_busy=median(busy) if busy else None,
        lost=next((one.lost for one in result.blast if one.cell == cell), None),
    )


def _engine_busy(run: Run) -> float | None:
    """The busiest kind of engine's share of the run; above 1 where a device has several of the kind."""
    seconds: dict[str, float] = defaultdict(float)
    for stack in run.stacks:
        for engine, spent in stack.engines.items():
            seconds[engine] += spent
    return max(seconds.values()) / max(_duration(run), 1e-9) if seconds else None


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
    said = [_headline(first, floor, margin, several=several)]
    if first.verdict == "inconclusive":
        said += [*([f"{_capital(why)}."] if (why := _overruled(first, margin)) else []), _forecast(first)]
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


def _headline(contrast: Contrast, floor: Contrast | None, margin: float, *, several: bool) -> str:
    """As "Packing makes no difference within 3 %: two containers ran at 0.998 of one's speed (90 % interval …)"."""
    cell, ratio = contrast.cell, contrast.ratio
    if cell.worker:
        return f"{_sentence(contrast, margin)}."
    what = "packing" if cell.containers else "a container"
    if several:
        what += f" {'for' if cell.containers == 0 else 'of'} {_many(cell.stacks, 'stack')}"
    if ratio is None:
        return f"This run cannot say whether {what} matters: it has too few blocks for an interval, which takes three."
    ran = f"{_who(cell)} ran at {ratio.value:,.3f} of {_against(contrast)}'s speed"
    if contrast.verdict == "different":
        return f"{_capital(what)} matters: {ran} ({_interval(contrast)})."
    if contrast.verdict == "equivalent":
        return f"{_capital(what)} makes no difference within {_percent(margin)}: {ran} ({_interval(contrast)})."
    noise = f"; the noise floor (A/A) was {floor.ratio.value:.3f}" if floor and floor.ratio else ""
    return f"This run cannot say whether {what} matters: {ran} ({_interval(contrast)}){noise}."


def _sentence(contrast: Contrast, margin: float) -> str:
    """As "Bare ffmpeg ran at 1.004 of one container's speed (90 % interval …): no difference within 3 %"."""
    who, ratio = _capital(_who(contrast.cell)), contrast.ratio
    if ratio is None:
        return f"{who} against {_against(contrast)}: too few blocks for an interval"
    ran = f"{who} ran at {ratio.value:,.3f} of {_against(contrast)}'s speed ({_interval(contrast)})"
    if contrast.verdict == "different":
        return f"{ran}: {_percent(abs(ratio.value - 1))} {'slower' if ratio.value < 1 else 'faster'}"
    if contrast.verdict == "equivalent":
        return f"{ran}: no difference within {_percent(margin)}"
    also = f", equivalent at {math.ceil(contrast.wider * 100 - 1e-9)} %" if contrast.wider <= 0.5 else ""
    why = _overruled(contrast, margin)
    return f"{ran}: inconclusive at {_percent(margin)}{also}{f'; {why}' if why else ''}"


def _overruled(contrast: Contrast, margin: float) -> str:
    """Why a ratio is inconclusive whose interval alone would say more; empty where it would not."""
    alone = judge(contrast.ratio, margin, 0.0, 0.0) if contrast.ratio else "inconclusive"
    if alone == contrast.verdict:
        return ""
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
    said = [f"Each stack encoded by {_encoder(result)}{': no GPU was measured' * (result.device.kind == 'software')}."]
    if result.device.kind == "simulated":
        said.append("The device is simulated: this proves the packing and the statistics, not a driver.")
    return said


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
    device = f"simulated {result.device.name}" if result.device.kind == "simulated" else result.device.name
    return f"{encoder if named else f'{result.workload.accel} {encoder}'} on {device}"


def _about(count: int) -> int:
    """With two digits: a forecast knows no more."""
    return round(count, min(0, 2 - len(str(count))))


def _percent(share: float) -> str:
    """With two digits, and never as a power of ten."""
    rounded = float(f"{100 * share:.2g}")
    return f"{rounded:,.0f} %" if rounded >= 10 else f"{rounded:g} %"


def _troubles(result: Result, runs: Sequence[Run], found: Sequence[_Found]) -> Iterable[str]:
    """What makes the result doubtful, the worst first."""
    if result.partial:
        yield "It was ended before its time: what follows is from the blocks that were finished."
    if result.device.kind == "simulated":
        yield f"{result.device.name} is a simulated device: it proves the packing and the statistics, not a driver."
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
    if result.workload.accel != "software":
        return  # two runs of a GPU's encoder need not agree to the bit
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
    if result.device.kind == "simulated" and busiest > 0.5:
        yield f"The CPUs were {busiest:.0%} busy beside a simulated device: above half they, not it, may set the pace."
    throttled = [run for run in runs if run.throttled > 0]
    if throttled:
        yield f"A quota on CPUs held containers back in {_many(len(throttled), 'run')}."
    yield from _of_the_time(result)


def _of_windows(result: Result, runs: Sequence[Run]) -> Iterable[str]:
    for stacks, without in sorted(_without_window(runs).items()):
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


def _of_contrasts(result: Result, found: Sequence[_Found]) -> Iterable[str]:
    def named(one: _Found) -> str:
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
