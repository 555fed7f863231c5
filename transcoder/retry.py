"""Whether a job that failed is tried again, and when: by the class of its last fault, and by what came before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from transcoder.faults import FaultClass, Next, what_next
from transcoder.machine import SOFTWARE

CRASHES: Final = 2
"""Deaths of ffmpeg on one source after which it is tried once more, in software only."""

_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """How often a job is tried again, and after how many seconds at first and at most."""

    retries: int = 5
    first: float = 10.0
    most: float = 300.0


@dataclass(frozen=True, slots=True)
class Before:
    """What happened to a job so far: how often it was put off, how often ffmpeg died on it, and whether it was tried
    in software only after that.
    """

    put_off: int = 0
    crashes: int = 0
    careful: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Try it again in so many seconds; `careful`: in software only; `held`: nothing failed, so it is not counted."""

    seconds: float
    careful: bool = False
    held: bool = False


Then: TypeAlias = Again | Literal["fail", "quarantine"]


def then(kind: FaultClass, before: Before, crashes: int, rules: Rules, chance: float) -> Then:
    """What to do with a job that a fault of that class ended.

    `crashes` counts the deaths of ffmpeg in this attempt; `chance`, from 0 to 1, spreads what failed together.
    """
    if kind is FaultClass.CRASHED:
        if before.careful:
            return "quarantine"
        again = before.crashes + crashes
        return Again(_pause(again, rules, chance), careful=again >= CRASHES)
    if what_next(kind, SOFTWARE) is Next.LATER and before.put_off < rules.retries:
        return Again(_pause(before.put_off + 1, rules, chance), careful=before.careful)
    return "fail"


def _pause(time: int, rules: Rules, chance: float) -> float:
    """Half of it is left to chance, so that jobs which failed together do not come back together."""
    return min(rules.most, rules.first * float(_FACTOR ** (time - 1))) * (0.5 + chance / 2)
