"""Takes back the jobs of workers that are gone, and sends again for jobs whose message was lost.

Every worker looks; one at a time acts, by a lease in Redis that any of them may hold. Nobody's wall clock matters: the
ledger counts signs of life, and a job of which none came since the count stood where this process saw it a lease ago,
on its own monotonic clock, has lost its worker. Where Redis was away, or this process stood still, all that was seen
before is forgotten: a whole lease passes again before anything is taken from anybody.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

from transcoder import log
from transcoder.errors import BrokerUnavailable
from transcoder.ledger import Ledger, Look, TakenBack

PERIOD = 0.5
"""Seconds between two looks."""

GAP = 1.5
"""Seconds without a look after which what was seen before counts no more: others may have been kept from speaking."""

ACTING = 1.5
"""Seconds for which who acts is the only one. Less than the usual lease of a job, so that its death delays nothing."""


class Reaper:
    """One worker's looks at all others. `taken_back` is told of each job that this one took back."""

    def __init__(
        self,
        ledger: Ledger,
        owner: str,
        lease: float,
        taken_back: Callable[[TakenBack], None] = lambda job: None,
        sent_again: Callable[[int], None] = lambda jobs: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._lease = lease
        self._taken_back = taken_back
        self._sent_again = sent_again
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._short: dict[str, float] = {}
        self.paused: frozenset[str] = frozenset()
        """The queues whose jobs shall not begin, as it last saw."""
        self._ended = Event()
        self._thread = Thread(target=self._live, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Look once; to be called every PERIOD."""
        try:
            dead = self._dead()
            seen = self._seen[-1][1] if self._seen else 0
            self._act(self._ledger.reap(self._owner, dead, seen, ACTING))
        except BrokerUnavailable:
            self._forget()
        except Exception:  # who lost a worker shall not lose its job for our bug
            self._forget()
            log.LOGGER.exception("the reaper missed a look")

    def _live(self) -> None:
        while not self._ended.wait(PERIOD):
            self.look()

    def _dead(self) -> int:
        """How far the count of signs of life was a lease ago, as far as this process knows."""
        now = self._clock()
        if self._seen and now - self._seen[-1][0] > GAP:
            self._forget()
        while len(self._seen) > 1 and now - self._seen[1][0] >= self._lease:
            self._seen.popleft()
        return self._seen[0][1] if self._seen and now - self._seen[0][0] >= self._lease else -1

    def _act(self, look: Look) -> None:
        if self._seen and look.count < self._seen[-1][1]:
            self._forget()
        self._seen.append((self._clock(), look.count))
        self.paused = look.paused
        for job in look.taken_back:
            self._tell(job)
            self._taken_back(job)
        self._send_again(look.short)

    def _send_again(self, short: tuple[str, ...]) -> None:
        """For queues that were short at every look for a lease: a message that was just taken is not missing."""
        now = self._clock()
        self._short = {queue: self._short.get(queue, now) for queue in short}
        for queue, since in self._short.items():
            if now - since < self._lease:
                continue
            self._short[queue] = now
            jobs = self._ledger.send_again(queue)
            for job_id in jobs:
                log.write("sent_again", "its message was lost and is sent again", level=logging.WARNING, job=job_id)
            self._sent_again(len(jobs))

    def _forget(self) -> None:
        self._seen.clear()
        self._short.clear()

    def _tell(self, job: TakenBack) -> None:
        what = f"taken back: worker {job.owner} is not heard of any more"
        words = {"owner": job.owner, "attempt": job.fence, "lost": job.lost}
        log.write("reaped", what, level=logging.WARNING, job=job.job_id, **words)
