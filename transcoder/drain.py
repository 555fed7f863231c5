"""The orderly end of a worker: what can finish in the grace time finishes, what cannot goes back to the queue.

Celery's own ways do not fit: its warm shutdown waits for every task however long, its soft and cold ones cannot end the
tasks of a pool of threads. So Celery is told to take no more, and the jobs are looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import Protocol

from transcoder import log

LOOK = 0.25
"""Seconds between two looks at the running jobs."""


class Running(Protocol):
    """A job that this worker holds."""

    def fits(self, seconds: float) -> bool:
        """Whether it may be done by then, as far as anybody knows."""
        ...

    def give_back(self, why: str) -> None:
        """End it here, soon, and let another worker have it. May be said again and again."""
        ...


class Drain:
    """Waits to be told, once or twice. `held` gives the jobs that run at the moment, `grace` is in seconds."""

    def __init__(self, grace: float, held: Callable[[], Iterable[Running]]) -> None:
        self._grace = grace
        self._held = held
        # its put can be interrupted by itself, as by a second signal; an event's lock would wait for ever
        self._told: SimpleQueue[None] = SimpleQueue()
        self.over = Event()
        """Set once the grace time is over: nothing is waited for any more."""

    def start(self) -> None:
        """Wait for the word, in a thread of its own."""
        Thread(target=self._live, name="drain", daemon=True).start()

    def told(self) -> None:
        """End in the grace time; the second time: now. May be called by the handler of a signal."""
        self._told.put(None)

    def _live(self) -> None:
        self._told.get()
        log.write("draining", f"takes no more jobs; those that run have {self._grace:g} s to finish", grace=self._grace)
        deadline = monotonic() + self._grace
        while (left := deadline - monotonic()) > 0 and not self._told_again(min(LOOK, left)):
            for job in self._held():
                if not job.fits(left):
                    job.give_back(f"its worker ends in {left:.0f} s, and it needs longer")
        self.over.set()
        while True:  # a message that was on its way may still become a job
            for job in self._held():
                job.give_back("its worker ends")
            self._told_again(LOOK)

    def _told_again(self, seconds: float) -> bool:
        try:
            self._told.get(timeout=seconds)
        except Empty:
            return False
        return True
