"""From what a benchmark saw to what follows from it: ratios, intervals, verdicts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transcoder.bench.result import Cell, Result

Metric = Literal["fps", "slowest", "cpu", "latency", "pss"]
"""Aggregate fps, × real time of the slowest stream, CPU seconds per 1,000 frames, p95 of a job's seconds, memory."""
Verdict = Literal["equivalent", "different", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio to the reference: the geometric mean over blocks, its 90 % and 95 % BCa intervals."""

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
    more_blocks: int
    """Further blocks that would settle an inconclusive one; 0 else."""
    wider: float
    """The smallest margin at which it would be equivalent, as 0.07 for ± 7 %."""
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
    """The verdict as one sentence with margin and interval."""
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    """Every metric, every cell, the A/A rows first."""
    troubles: tuple[str, ...]
    """What makes the result doubtful: outputs that differ, drift, a simulated device with busy CPUs."""


def analyse(result: Result, resamples: int = 10_000) -> Analysis:
    """What follows from a result; with a seed of its own, so that it says the same each time."""
    raise NotImplementedError
