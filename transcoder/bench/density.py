"""How many streams a device bears in real time: which number to try next, and what follows from what was seen. Pure.

Streams run as fast as they can, all together, and the slowest one's frames per second in the window in which all run
are held against the clip's frame rate. That is right where a device is shared fairly and lets no turn pass unused: who
got so much in the crowd gets it all the more when the others ask for no more than their own rate. Streams that are
paced (ffmpeg's -readrate 1) would hide what is looked for: each shows 1.0 up to the edge, whether the device has room
or none; what a burst at the start puts into buffers covers a lack for longer than a run lasts; and 0.98 and 1.25 times
real time could not be told at all.

The search doubles, then halves what is left between the largest number that was fast enough and the smallest that was
not, by one run each. Near the boundary a run proves little, so N and N + 1 are then measured anew, in turn, and these
repeats outrank the search: where they contradict it, it goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

REAL_TIME: Final = 1.0
INTEL: Final = 0.98
"""Intel's Media Delivery counts streams that keep 98 % of their frame rate (github.com/intel/media-delivery)."""
LIVEPEER: Final = 1.25
"""Livepeer's livepeer_bench allows a duration ratio of 0.8 at most: a second of video in 0.8 s."""

_AGAIN: Final = 3
"""How many times the repeats are asked for where they are not of one mind."""
_AGREED: Final = 0.75
"""The share of the repeats that must say the same for it to count as confirmed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`most` streams are tried at all; `repeats` runs confirm a number."""

    most: int
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """A run to be made: that many streams, to confirm a number or in search of it."""

    streams: int
    confirms: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A run that was made: its slowest stream, × real time."""

    streams: int
    slowest: float
    confirms: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The largest number of streams of which the slowest is fast enough, by three rules; 0: not even one.

    `confirmed`: N and N + 1 were both measured anew, most of their runs agree, and no larger number contradicts them.
    `capped`: the search ended at its largest number, which then is N and has no N + 1: it is at least that.
    """

    streams: int
    intel: int
    livepeer: int
    confirmed: bool
    capped: bool


def following(seen: Sequence[Seen], limits: Limits) -> Ask | None:
    """The run to make after these, or None: all is known.

    Raises:
        ValueError: fewer than one stream or three repeats are allowed.
    """
    if limits.most < 1 or limits.repeats < 3:
        raise ValueError("a density search needs at least 1 stream and 3 repeats")
    return _to_search(seen, limits, REAL_TIME) or _to_confirm(seen, limits) or _to_compare(seen, limits)


def found(seen: Sequence[Seen], limits: Limits) -> Found:
    """What follows from these runs, which may be fewer than were asked for."""
    low, high = _between(seen, limits, REAL_TIME)
    settled = [_settled(seen, limits, streams) for streams in _confirmable(low, high, limits)]
    return Found(
        streams=low,
        intel=_between(seen, limits, INTEL)[0],
        livepeer=_between(seen, limits, LIVEPEER)[0],
        confirmed=high - low == 1 and all(settled) and not _contradicted(seen, low),
        capped=low == limits.most,
    )


def levels(seen: Sequence[Seen]) -> tuple[tuple[int, float, int], ...]:
    """For each number of streams that was tried, in order: it, the median of its slowest streams, its runs."""
    return tuple(
        (streams, median(_runs(seen, streams)), len(_runs(seen, streams)))
        for streams in sorted({one.streams for one in seen})
    )


def _to_search(seen: Sequence[Seen], limits: Limits, least: float) -> Ask | None:
    low, high = _between(seen, limits, least)
    if high - low == 1:
        return None
    nothing_failed = high > limits.most
    return Ask(min(max(1, 2 * low), limits.most) if nothing_failed else (low + high) // 2)


def _to_confirm(seen: Sequence[Seen], limits: Limits) -> Ask | None:
    """N and N + 1 in turn, so that what drifts meets both alike."""
    low, high = _between(seen, limits, REAL_TIME)
    due = [streams for streams in _confirmable(low, high, limits) if _is_due(seen, limits, streams)]
    fewest = min(due, key=lambda streams: len(_confirming(seen, streams)), default=None)
    return Ask(fewest, confirms=True) if fewest else None


def _to_compare(seen: Sequence[Seen], limits: Limits) -> Ask | None:
    """What the other two rules still lack: a single run each is enough for a figure that decides nothing."""
    return _to_search(seen, limits, LIVEPEER) or _to_search(seen, limits, INTEL)


def _between(seen: Sequence[Seen], limits: Limits, least: float) -> tuple[int, int]:
    """The largest number that is fast enough and the smallest that is not, as far as is known.

    What was confirmed outranks a run of the search; among what was confirmed the smallest number that failed does.
    """
    confirmed = {one.streams for one in seen if not _is_due(seen, limits, one.streams)}
    fast = {one.streams: _speed(seen, limits, one.streams) >= least for one in seen}
    ceiling = min((n for n in confirmed if not fast[n]), default=limits.most + 1)
    floor = max((n for n in confirmed if fast[n] and n < ceiling), default=0)
    open_ = {n for n in fast if floor < n < ceiling}
    high = min((n for n in open_ if not fast[n]), default=ceiling)
    low = max((n for n in open_ if fast[n] and n < high), default=floor)
    return low, high


def _confirmable(low: int, high: int, limits: Limits) -> tuple[int, ...]:
    return tuple(streams for streams in (low, high) if 1 <= streams <= limits.most)


def _speed(seen: Sequence[Seen], limits: Limits, streams: int) -> float:
    """What counts: the median of the repeats once they are all there, so that half of them turn no search round."""
    repeats, runs = _confirming(seen, streams), _runs(seen, streams)
    searching = [one.slowest for one in seen if one.streams == streams and not one.confirms]
    return median((searching or runs) if _is_due(seen, limits, streams) else repeats)


def _runs(seen: Sequence[Seen], streams: int) -> list[float]:
    return [one.slowest for one in seen if one.streams == streams]


def _confirming(seen: Sequence[Seen], streams: int) -> list[float]:
    return [one.slowest for one in seen if one.streams == streams and one.confirms]


def _is_due(seen: Sequence[Seen], limits: Limits, streams: int) -> bool:
    """Whether more repeats are needed: there are too few, or they are not of one mind and there may be more."""
    repeats = _confirming(seen, streams)
    if len(repeats) < limits.repeats:
        return True
    return _agreement(repeats) < 1 and len(repeats) < limits.repeats * _AGAIN


def _settled(seen: Sequence[Seen], limits: Limits, streams: int) -> bool:
    return not _is_due(seen, limits, streams) and _agreement(_confirming(seen, streams)) >= _AGREED


def _agreement(repeats: Sequence[float]) -> float:
    fast = sum(one >= REAL_TIME for one in repeats) / len(repeats)
    return max(fast, 1 - fast)


def _contradicted(seen: Sequence[Seen], streams: int) -> bool:
    """Whether repeats of a larger number found it fast enough."""
    larger = {one.streams for one in seen if one.streams > streams and one.confirms}
    return any(median(_confirming(seen, n)) >= REAL_TIME for n in larger)
