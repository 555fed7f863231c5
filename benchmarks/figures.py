"""Quantiles, ratios and their intervals. Pure: observations and a seed in, figures out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any, Literal

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


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, interpolated between neighbours."""
    if not values:
        raise ValueError("there is no quantile of nothing")
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


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
    logs = [math.log(first / second) for first, second in pairs]
    mean = fmean(logs)
    if len(logs) < 3 or max(logs) == min(logs):
        return Interval(math.exp(mean), math.exp(min(logs)), math.exp(max(logs)))
    generator = random.Random(seed)
    drawn = sorted(fmean(generator.choices(logs, k=len(logs))) for _ in range(resamples))
    low, high = (quantile(drawn, share) for share in _corrected(logs, mean, drawn))
    return Interval(math.exp(mean), math.exp(low), math.exp(high))


def _corrected(logs: Sequence[float], mean: float, drawn: Sequence[float]) -> tuple[float, float]:
    """The shares at which BCa cuts the drawn means (Efron 1987)."""
    normal = NormalDist()
    below = sum(one < mean for one in drawn) / len(drawn)
    bias = normal.inv_cdf(min(max(below, 1 / len(drawn)), 1 - 1 / len(drawn)))
    without = [(mean * len(logs) - one) / (len(logs) - 1) for one in logs]
    centre = fmean(without)
    spread = sum((centre - one) ** 2 for one in without)
    acceleration = sum((centre - one) ** 3 for one in without) / (6 * spread**1.5) if spread else 0.0
    tail = (1 - CONFIDENCE) / 2

    def share(level: float) -> float:
        step = bias + normal.inv_cdf(level)
        return normal.cdf(bias + step / (1 - acceleration * step))

    return share(tail), share(1 - tail)


def judge(measured: Interval, bound: float) -> Verdict:
    """Whether the measured value stays within an upper bound, as far as its interval can tell."""
    if measured.high <= bound:
        return "met"
    return "not met" if measured.low > bound else "cannot tell"


def spread(pairs: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of the log ratio of a pair: with A/A pairs it is the noise of one comparison."""
    logs = [math.log(first / second) for first, second in pairs]
    if len(logs) < 2:
        return 0.0
    mean = fmean(logs)
    return math.sqrt(sum((one - mean) ** 2 for one in logs) / (len(logs) - 1))
