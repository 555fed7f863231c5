"""When to leave a device alone: it failed repeatedly, or its driver cannot be used; and when to try it again.

A circuit stands for one codec on one device. Closed, jobs go there. Open, none do, until the cool-down has passed; then
one trial decides. Times are seconds on any clock that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from transcoder.faults import FaultClass


@dataclass(frozen=True, slots=True)
class Rules:
    """So many `faults` within `window` seconds open a circuit.

    It is tried again after `cooldown` seconds, which double from trial to trial up to `longest`.
    """

    faults: int = 3
    window: float = 600.0
    cooldown: float = 60.0
    longest: float = 900.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """One codec on one device. `faults` are the times of its faults, `since` when it was closed or is tried next.

    `openings` counts how often in a row it was opened; a window without a fault starts the count anew.
    """

    state: Literal["closed", "open", "trial"] = "closed"
    faults: tuple[float, ...] = ()
    since: float = 0.0
    openings: int = 0

    def after(self, kind: FaultClass, now: float, rules: Rules) -> Circuit:
        """A fault happened there that is to blame on the device (faults.blames_device)."""
        if self.state != "closed":
            return self  # what still ran when it was opened adds nothing
        faults = (*(at for at in self.faults if now - at < rules.window), now)
        openings = self.openings if now - self.since < rules.window else 0
        noted = replace(self, faults=faults, openings=openings)
        if kind is FaultClass.CONFIG or len(faults) >= rules.faults:
            return noted._opened(now, rules)
        # after a hang nobody knows whether the device still answers: it is tried before the next job goes there
        return replace(noted, state="open", since=now) if kind is FaultClass.STALLED else noted

    def due(self, now: float) -> bool:
        """Whether it is time for a trial."""
        return self.state == "open" and now >= self.since

    def tried(self) -> Circuit:
        """A trial runs now."""
        return replace(self, state="trial")

    def judged(self, good: bool, now: float, rules: Rules) -> Circuit:
        """The trial ended."""
        if not good:
            return self._opened(now, rules)
        # a hang that was only looked into still counts; an opened circuit begins anew
        faults = self.faults if len(self.faults) < rules.faults else ()
        return replace(self, state="closed", faults=faults, since=now)

    def _opened(self, now: float, rules: Rules) -> Circuit:
        pause = min(rules.longest, rules.cooldown * 2**self.openings)
        return replace(self, state="open", faults=(), since=now + pause, openings=self.openings + 1)
