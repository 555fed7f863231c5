"""What is asked and what breaks, drawn from a seed: the same seed gives the same jobs and the same faults."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

POINTS: Final = (
    "before the probe",
    "during the encode",
    "before the verification",
    "between verify and rename",
    "before the first rename",
    "between outputs of a ladder",
    "before the manifest",
    "after the manifest",
    "before the record",
    "while taking over",
)
"""The places on a job's way at which a worker can be made to kill itself, or to stop (worker.py)."""

KILLS: Final = tuple(f"kill {point}" for point in POINTS)
STOPS: Final = ("stop between verify and rename", "stop before the first rename")
DEVICE: Final = {
    "device fails": "status 24",
    "device hangs": "hang",
    "device vanishes": "vanish",
    "driver segfault": "segfault",
}

LASTS: Final = {
    "stop worker": (4.5, 8.0),  # the lease is 3 s
    **dict.fromkeys(STOPS, (4.5, 8.0)),
    "redis killed": (0.2, 2.0),
    "redis paused": (10.0, 10.0),
    "network cut": (2.0, 7.0),
    "network silent": (2.0, 9.0),
    "disk full": (2.0, 4.0),
    **dict.fromkeys(DEVICE, (1.5, 4.0)),
}
"""Seconds that a fault lasts, at least and at most."""

KINDS: Final = (
    *(*KILLS, "kill worker", "kill worker", "kill child", "kill child"),
    *("stop worker", *STOPS, "drain", "drain", "drain now", "clock stepped"),
    *("redis killed", "redis paused", "message doubled", "message doubled", "message dropped", "message dropped"),
    *("network cut", "network silent", "disk full", *DEVICE, "cancel", "cancel", "cancel", "retry"),
)
"""One round of faults, in some order; each comes once or more."""

SOURCES: Final = {"short": 6, "long": 6, "with sound": 4, "cut short": 1, "poison": 1}
SHAPES: Final = {"one file": 6, "ladder": 6, "over an old file": 2, "sound alone": 1}
POLICIES: Final = {"prefer": 5, "never": 4, "require": 2}
VOLUMES: Final = {"disk": 5, "small": 2}


@dataclass(frozen=True, slots=True)
class Order:
    """One job to submit."""

    number: int
    source: str
    shape: str
    policy: str
    volume: str
    priority: int


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault, due when that many jobs have finished. `chance` picks whom it meets; it lasts so many seconds."""

    number: int
    after: int
    kind: str
    chance: float
    lasts: float


def orders(seed: int, jobs: int) -> list[Order]:
    """The jobs, in the order in which they are submitted."""
    draw = random.Random(f"jobs {seed}")

    def one(number: int) -> Order:
        source = _choice(draw, SOURCES)
        shape = _choice(draw, SHAPES if source == "with sound" else {**SHAPES, "sound alone": 0})
        # a sound alone needs no device
        policy = "never" if shape == "sound alone" else _choice(draw, POLICIES)
        return Order(number, source, shape, policy, _choice(draw, VOLUMES), draw.randrange(10))

    return [one(number) for number in range(jobs)]


def blows(seed: int, jobs: int, faults: int, pause: float = 10.0) -> list[Blow]:
    """The faults, spread over the run. `pause` is for how many seconds Redis stands still."""
    draw = random.Random(f"faults {seed}")
    kinds = _rounds(draw)
    made = []
    for number in range(faults):
        kind = next(kinds)
        lasts = draw.uniform(*LASTS.get(kind, (0.0, 0.0)))
        after = int(jobs * 0.9 * number / faults)  # the last ones meet jobs, too
        made.append(Blow(number, after, kind, draw.random(), pause if kind == "redis paused" else lasts))
    return made


def _rounds(draw: random.Random) -> Iterator[str]:
    while True:
        yield from draw.sample(KINDS, len(KINDS))


def _choice(draw: random.Random, weights: dict[str, int]) -> str:
    return draw.choices(list(weights), list(weights.values()))[0]
