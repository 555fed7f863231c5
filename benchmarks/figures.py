"""Quantiles, ratios and their intervals. Pure: observations and a seed in, figures out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from transcoder.bench import statistics
from transcoder.bench.statistics import quantile

__all__ = ["Interval", "bootstrap", "judge", "quantile", "ratio", "spread"]

CONFIDENCE = 0.95
RESAMPLES = 4000

Verdict = Literal["met", "not met", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval has its ends in order: {self.low} > {self.high}")


def bootstrap(
    statistic: Callable[..., float], *groups: Sequence[Any], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """A statistic of groups of blocks, with its percentile interval.

    Whole blocks are drawn, so that what was measured side by side stays together; each group is drawn by itself.
    """
    generator = random.Random(seed)
    drawn = sorted(statistic(*(generator.choices(group, k=len(group)) for group in groups)) for _ in range(resamples))
    tail = (1 - CONFIDENCE) / 2
    return Interval(statistic(*groups), quantile(drawn, tail), quantile(drawn, 1 - tail))


def ratio(pairs: Sequence[tuple[float, float]], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The geometric mean of first / second over the pairs, with its BCa interval (bias-corrected and accelerated)."""
    logs = statistics.log_ratios(pairs)
    ((low, high),) = statistics.bca(logs, (CONFIDENCE,), seed=seed, resamples=resamples)
    return Interval(math.exp(fmean(logs)), math.exp(low), math.exp(high))


def judge(measured: Interval, bound: float) -> Verdict:
    """Whether the measured value stays within an upper bound, as far as its interval can tell."""
    if measured.high <= bound:
        return "met"
    return "not met" if measured.low > bound else "cannot tell"


def spread(pairs: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of the log ratio of a pair: with A/A pairs it is the noise of one comparison."""
    return statistics.spread(statistics.log_ratios(pairs))
