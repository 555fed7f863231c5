"""Ratios of cells, with their intervals and verdicts, from the runs of a benchmark; the cells' own figures. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, Literal, get_args

from transcoder.bench import design, statistics
from transcoder.bench.result import Cell, Result, Run, Stamp, Workload
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
    half_width: float = math.inf
    """Half of Student's 95 % interval of the mean log ratio; infinite for fewer than two blocks."""
    shaken: bool = False
    """Whether it is inconclusive only because the reference differs from itself (A/A) by as much."""


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
    """The busiest kind of engine's share of the time: of several engines of a kind the sum, which may be above 1.

    None without a GPU.
    """
    lost: int | None
    """Stacks lost when one container is killed; None where that was not tried."""


SEED: Final = 1
"""Of the analysis, so that it says the same of the same result."""
LATENCY_MARGIN: Final = 0.05
"""Tails scatter more than sums."""
_LEAST_WINDOW: Final = 0.5
"""A window shorter than that share of the run says little of it: an encoder that looks ahead holds a short run's frames
back, and a window of the end alone would measure how it hands them all out."""
_WIDEST: Final = 1.0
"""A margin of ± 100 % is none."""


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


def sound_runs(result: Result) -> list[Run]:
    return [run for run in result.runs if not run.warmup and not any(stack.trouble for stack in run.stacks)]


def deviation(result: Result) -> float:
    """The standard deviation of a block's log ratio of throughput: the largest of all contrasts so far, A/A too."""
    found = _paired(sound_runs(result), "fps", result.workload)
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


def without_window(runs: Sequence[Run]) -> dict[int, list[Run]]:
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
class Found:
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
    without = without_window(runs) if metric in ("fps", "slowest") else {}
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


def contrasted(result: Result, runs: Sequence[Run], resamples: int) -> tuple[Found, ...]:
    tables = [_table(result, _paired(runs, metric, result.workload), metric, resamples) for metric in get_args(Metric)]
    found = [one for table in tables for one in table]
    return tuple(sorted(found, key=lambda one: not one.contrast.again))


def _table(result: Result, pairs: Sequence[_Pairs], metric: Metric, resamples: int) -> list[Found]:
    """All contrasts of one metric; Holm's correction is over those that ask something, which A/A does not."""
    margin = LATENCY_MARGIN if metric == "latency" else result.design.margin
    family = [one.logs for one in pairs if not one.again and len(one.logs) >= 3]
    different = dict(zip(family, statistics.holm([statistics.p_different(one) for one in family]), strict=True))
    equivalent = dict(zip(family, _p_equivalent(family, margin), strict=True))
    drifts = [statistics.drift(one.logs, one.blocks) for one in pairs]
    p_drifts = statistics.holm([p for _, p in drifts])
    found = []
    shaken: dict[Cell, Estimate] = {}
    for one, (change, _), p_drift in zip(pairs, drifts, p_drifts, strict=True):
        if len(one.logs) < 3:
            found.append(Found(_too_few(one, metric), 1.0, False))
            continue
        alone = one.again
        ratio = _estimate(one, metric, resamples)
        p_different = statistics.p_different(one.logs) if alone else different[one.logs]
        p_equivalent = statistics.p_equivalent(one.logs, margin) if alone else equivalent[one.logs]
        verdict = judge(ratio, margin, p_equivalent, p_different)
        if alone and verdict == "different":
            shaken[one.cell] = ratio
        doubtful = not alone and verdict == "different" and _explains(shaken.get(one.reference), ratio)
        verdict = "inconclusive" if doubtful else verdict
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
            half_width=statistics.half_width(one.logs),
            shaken=doubtful,
        )
        centre = math.exp(statistics.hodges_lehmann(one.logs))
        found.append(Found(contrast, p_drift, not ratio.low95 <= centre <= ratio.high95))
    return found


def _explains(floor: Estimate | None, ratio: Estimate) -> bool:
    """Whether a reference that differs from itself may differ by as much: then no ratio to it proves anything."""
    return floor is not None and abs(math.log(ratio.value)) <= max(
        abs(math.log(floor.low95)), abs(math.log(floor.high95))
    )


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


def rows_of(result: Result, runs: Sequence[Run]) -> tuple[Row, ...]:
    cells: dict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.cell].append(run)
    without = without_window(runs)
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
