"""Intervals and tests of paired log ratios. Pure: observations and a seed in, figures out.

A ratio of a block is kept as its natural logarithm: ratios multiply, and a slowdown weighs as much as the same speedup.
No numpy and no scipy in the product; the tests hold every figure beside scipy's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from statistics import NormalDist, fmean, median
from typing import Final

RESAMPLES: Final = 10_000
LEVEL: Final = 0.05
"""Of every test: what the product calls different or equivalent is so by chance in at most 5 of 100 results."""
POWER: Final = 0.9
FEW: Final = 8
"""Blocks from which the bootstrap is taken; of fewer the interval is Student's."""
LEAST_FORECAST: Final = 5
"""Blocks from which a forecast is made: the spread of fewer says little of the spread of more."""
_NORMAL: Final = NormalDist()
_EQUAL: Final = 1e-12
"""Logarithms that differ by less are equal but for rounding."""
_VERSIONS: Final = 100
"""How often the jobs of one block are drawn anew, for all draws of blocks together."""

Interval = tuple[float, float]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, interpolated between neighbours.

    Raises ValueError where there are no values.
    """
    if not values:
        raise ValueError("there is no quantile of nothing")
    return _within(sorted(values), share)


def log_ratios(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Of first over second, pair by pair; all must be above 0."""
    return [math.log(first / second) for first, second in pairs]


def spread(logs: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 for fewer than two values."""
    if len(logs) < 2:
        return 0.0
    mean = fmean(logs)
    return math.sqrt(math.fsum((one - mean) ** 2 for one in logs) / (len(logs) - 1))


def bca(
    logs: Sequence[float], confidences: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> tuple[Interval, ...]:
    """The bias-corrected and accelerated bootstrap intervals of the mean, one per confidence (Efron 1987).

    Fewer than three values, or values that are all equal, tell nothing of their distribution: their interval is from
    the least to the largest. Raises ValueError where there are none.
    """
    return _corrected(logs, logs, confidences, seed, resamples)


def student(logs: Sequence[float], confidences: Sequence[float]) -> tuple[Interval, ...]:
    """Student's intervals of the mean, one per confidence: of few values, and then at one with the t-tests.

    What is drawn anew from n values scatters by √((n-1)/n) too little, and the bootstrap's ends are those of the normal
    distribution: its 90 % interval of five values is two thirds as wide as Student's, and covers far less than 90 %
    (Hesterberg, The American Statistician 69, 2015). Fewer than two values have their range, as in `bca`.
    """
    if not logs:
        raise ValueError("there is no interval of nothing")
    mean, error = _mean_and_error(logs)
    if not error:
        return ((mean, mean),) * len(confidences)
    reaches = [student_quantile((1 + confidence) / 2, len(logs) - 1) * error for confidence in confidences]
    return tuple((mean - reach, mean + reach) for reach in reaches)


def two_level(
    blocks: Sequence[tuple[Sequence[float], Sequence[float]]],
    statistic: Callable[[Sequence[float]], float],
    confidences: Sequence[float],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[Interval, ...]:
    """Like `bca`, of the mean log ratio of a statistic of jobs; a block is its jobs in one cell and in the reference.

    Blocks are drawn, and in each the jobs of both. Each block's jobs are drawn a hundred times beforehand, and a draw
    of blocks takes one of these at random: the same distribution at a hundredth of the sorting.
    """
    logs = log_ratios([(statistic(first), statistic(second)) for first, second in blocks])
    generator = random.Random(seed)
    pool: list[float] = []
    for log, (first, second) in zip(logs, blocks, strict=True):
        again = [
            math.log(
                statistic(generator.choices(first, k=len(first))) / statistic(generator.choices(second, k=len(second)))
            )
            for _ in range(_VERSIONS)
        ]
        mean = fmean(again)
        pool += [log + one - mean for one in again]  # drawing anew takes something off a tail, which is put back
    return _corrected(logs, pool, confidences, seed, resamples)


def student_cdf(t: float, freedom: float) -> float:
    """The share of Student's distribution with that many degrees of freedom that lies below t."""
    tail = incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
    return tail if t < 0 else 1 - tail


def student_quantile(share: float, freedom: float) -> float:
    """Where that share of Student's distribution lies below; 0 < share < 1, else ValueError."""
    if not 0 < share < 1:
        raise ValueError(f"a share of a distribution is between 0 and 1, not {share}")
    if share > 0.5:
        return -student_quantile(1 - share, freedom)
    low, high = -1.0, 0.0
    while student_cdf(low, freedom) > share:
        low *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return high


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (dlmf.nist.gov/8.17.E22)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly its mirror converges fast
        return 1 - incomplete_beta(1 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / (a * _fraction(x, a, b))


def p_different(logs: Sequence[float]) -> float:
    """Of the paired t-test that the mean is 0, two-sided; 1 for fewer than two values."""
    mean, error = _mean_and_error(logs)
    if not error:
        return 0.0 if mean and len(logs) > 1 else 1.0
    freedom = len(logs) - 1
    return 2 * student_cdf(-abs(mean / error), freedom)


def p_equivalent(logs: Sequence[float], margin: float) -> float:
    """Of two one-sided t-tests that the ratio lies outside 1 ± margin (Schuirmann 1987): the larger of both.

    A margin of 1 or more has no lower end. 1 for fewer than two values.
    """
    mean, error = _mean_and_error(logs)
    low, high = math.log1p(-margin) if margin < 1 else -math.inf, math.log1p(margin)
    if not error:
        return 0.0 if low < mean < high and len(logs) > 1 else 1.0
    freedom = len(logs) - 1
    below = student_cdf(-(mean - low) / error, freedom) if math.isfinite(low) else 0.0
    return max(below, student_cdf((mean - high) / error, freedom))


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Each p adjusted for there being several tests, so that one false claim among all is as rare as wanted (1979)."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return tuple(adjusted)


def hodges_lehmann(logs: Sequence[float]) -> float:
    """The median of the means of all pairs, each value with itself too: a centre that outliers hardly move."""
    return median((one + other) / 2 for place, one in enumerate(logs) for other in logs[place:])


def drift(logs: Sequence[float], blocks: Sequence[int]) -> tuple[float, float]:
    """How much the logarithm changes from the first block to the last by the line of least squares; the slope's p.

    No change, with p = 1, for fewer than three blocks.
    """
    if len(logs) < 3:
        return 0.0, 1.0
    middle, mean = fmean(blocks), fmean(logs)
    square = math.fsum((block - middle) ** 2 for block in blocks)
    slope = math.fsum((block - middle) * one for block, one in zip(blocks, logs, strict=True)) / square
    left = math.fsum((one - mean - slope * (block - middle)) ** 2 for block, one in zip(blocks, logs, strict=True))
    freedom = len(logs) - 2
    error = math.sqrt(left / freedom / square)
    change = slope * (max(blocks) - min(blocks))
    if not error:
        return change, 0.0 if slope else 1.0
    return change, 2 * student_cdf(-abs(slope / error), freedom)


def half_width(logs: Sequence[float], confidence: float = 0.95) -> float:
    """Half of Student's interval of the mean, for who watches it narrow; infinite for fewer than two values."""
    if len(logs) < 2:
        return math.inf
    return student_quantile((1 + confidence) / 2, len(logs) - 1) * spread(logs) / math.sqrt(len(logs))


def needed_blocks(deviation: float, margin: float) -> int:
    """How many blocks find a difference of `margin` in 9 of 10 benchmarks: 10.5 (sd / margin)², at least 3.

    10.5 is (1.96 + 1.28)²: two-sided at 5 %, power 90 %. What is truly equal is called
    equivalent nearly as often, which would take 10.8.
    """
    return max(3, math.ceil(10.5 * (deviation / margin) ** 2))


def more_blocks(logs: Sequence[float], margin: float, contrasts: int = 1) -> int | None:
    """How many further blocks would settle an inconclusive one, if its mean and spread stay as they are; at least 1.

    Settled is whichever comes first, equivalent or different. The level is the one that holds whatever Holm makes of
    that many contrasts, so it is rather too many than too few. The quantiles are Student's, of as many blocks as the
    spread is known from (Stein, Annals of Mathematical Statistics 16, 1945). None for fewer than `LEAST_FORECAST`.
    """
    if len(logs) < LEAST_FORECAST:
        return None
    mean, deviation, freedom = abs(fmean(logs)), spread(logs), len(logs) - 1
    inside = math.log1p(margin) - mean
    reach = student_quantile(1 - LEVEL / 2 / contrasts, freedom) + student_quantile(POWER, freedom)
    farther = max(inside, mean)
    return max(1, math.ceil((reach * deviation / farther) ** 2) - len(logs))


def _mean_and_error(logs: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; rounding alone is no error."""
    mean = fmean(logs)
    error = spread(logs) / math.sqrt(len(logs))
    return mean, error if error > 1e-14 * abs(mean) else 0.0


def _within(ordered: Sequence[float], share: float) -> float:
    place = (len(ordered) - 1) * share
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _corrected(
    logs: Sequence[float], pool: Sequence[float], confidences: Sequence[float], seed: int, resamples: int
) -> tuple[Interval, ...]:
    """BCa intervals of the mean of `logs`, whose means are drawn from a pool: themselves, or versions of them."""
    if not logs:
        raise ValueError("there is no interval of nothing")
    if len(logs) < 3 or max(logs) - min(logs) < _EQUAL:
        return ((min(logs), max(logs)),) * len(confidences)
    drawn = sorted(sum(pick(pool)) / len(logs) for pick in _draws(len(pool), len(logs), seed, resamples))
    mean = sum(logs) / len(logs)  # added up as the drawn means are, so that equal ones are equal
    bias, acceleration = _bias(drawn, mean), _acceleration(logs, mean)

    def end(level: float) -> float:
        step = bias + _NORMAL.inv_cdf(level)
        return _within(drawn, _NORMAL.cdf(bias + step / (1 - acceleration * step)))

    return tuple((end((1 - confidence) / 2), end((1 + confidence) / 2)) for confidence in confidences)


@lru_cache(maxsize=2)
def _draws(
    size: int, count: int, seed: int, resamples: int
) -> tuple[Callable[[Sequence[float]], tuple[float, ...]], ...]:
    """What to draw, with replacement; kept, since all metrics and cells of one benchmark have as many blocks."""
    generator = random.Random(seed)
    places = range(size)
    return tuple(itemgetter(*generator.choices(places, k=count)) for _ in range(resamples))


def _bias(drawn: Sequence[float], mean: float) -> float:
    """How far the drawn means lie off the mean, in normal deviations; of equal ones half count as below it."""
    below = (sum(one < mean for one in drawn) + sum(one <= mean for one in drawn)) / 2 / len(drawn)
    return _NORMAL.inv_cdf(min(max(below, 1 / len(drawn)), 1 - 1 / len(drawn)))


def _acceleration(logs: Sequence[float], mean: float) -> float:
    """A sixth of the skewness of the mean, which is what the jackknife gives for a mean."""
    square = math.fsum((one - mean) ** 2 for one in logs)
    return math.fsum((one - mean) ** 3 for one in logs) / (6 * square * math.sqrt(square))


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (dlmf.nist.gov/3.10.iii)."""
    tiny = 1e-300
    found, c, d = 1.0, 1.0, 0.0
    for step in range(1, 1000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + term * d) or tiny)
        c = (1 + term / c) or tiny
        found *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return found
