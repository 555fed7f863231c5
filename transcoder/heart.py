"""The heart of a worker: one word to the ledger about all running jobs, and what comes back of them.

So an outage of Redis neither slows nor ends a job.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import inf
from time import monotonic, sleep

from transcoder import bell, log, placement, queue
from transcoder.errors import (
    BrokerUnavailable,
)
from transcoder.held import Held, Share
from transcoder.ledger import Ledger, Told
from transcoder.station import Station

BEAT = 0.4
"""Seconds between two words to the ledger while jobs run: with a poll of ffmpeg's, a cancelled job ends within 1 s."""
IDLE_BEAT = 2.0
"""Seconds between them while none runs."""
GATHER = 0.05
"""Seconds in which phases are gathered into one word, so that jobs of milliseconds do not make the heart race."""
FRESH = 6.0
"""Seconds without an answer from Redis after which the worker counts as unhealthy."""
TEND = 1.0
"""Seconds between two looks at the jobs that wait too long for hardware."""


class Heart:
    """Tells the ledger every now and then that this worker and its jobs live, and stops the jobs that must stop."""

    hopped: Callable[[str, str], None] = staticmethod(lambda queue, why: None)
    """Called with the queue that a job left for software, and why."""

    def __init__(
        self,
        ledger: Ledger,
        owner: str,
        prefer_wait: float = 60.0,
        rise: float = 600.0,
        slower: float | None = None,
    ) -> None:
        self.owner = owner
        self._ledger = ledger
        self._prefer_wait, self._rise, self._slower = prefer_wait, rise, slower
        self._tended = -inf
        self._station: Station | None = None
        self._share: Share | None = None
        self._held: set[Held] = set()
        self._awake = threading.Event()
        self._ended = threading.Event()
        self._consuming = False
        self._serves = False
        self._answered = -inf
        self._away = False
        self._thread = threading.Thread(target=self._live, name="heart", daemon=True)

    def start(self, station: Station | None = None, share: Share | None = None) -> None:
        """Begin to beat, for what the station serves and the share that its jobs hold."""
        self._station, self._share = station, share
        self._thread.start()

    def stop(self) -> None:
        """The last beat: the worker leaves."""
        self._ended.set()
        self._awake.set()
        self._thread.join()
        with suppress(BrokerUnavailable):
            self._ledger.leave(self.owner)

    def held(self) -> set[Held]:
        """The jobs that run at the moment."""
        return self._held.copy()

    def consuming(self) -> None:
        """The worker takes messages from now on."""
        self._consuming = True

    def unwell(self) -> str | None:
        """Why this worker takes no jobs; None where it does and heard from Redis lately."""
        troubles = {
            self._station.obstacle() if self._station else None: True,
            "it was told to end": queue.leaving(),
            "Redis does not answer": monotonic() - self._answered >= FRESH,
            "it takes no jobs yet": not self._consuming,
            "it serves no queue": not self._serves,
        }
        return next((why for why, true in troubles.items() if why and true), None)

    def wake(self) -> None:
        """There is something to tell."""
        self._awake.set()

    def changed(self) -> None:
        """Other queues are served than before: the ledger is told, and Celery asks them."""
        self._awake.set()
        bell.ring()

    @contextmanager
    def watching(self, held: Held) -> Iterator[None]:
        """Tell about this job, too."""
        self._held.add(held)
        self._awake.set()
        try:
            yield
        finally:
            self._held.discard(held)

    def _live(self) -> None:
        while not self._ended.is_set():
            self._beat()
            self._tend()
            self._awake.wait(BEAT if self._held else IDLE_BEAT)
            sleep(GATHER)
            self._awake.clear()

    def _beat(self) -> None:
        told = [(held, held.report()) for held in self.held()]
        try:
            serves = self._station.told() if self._station else Told()
            if queue.leaving():  # `require` is refused from now on where nobody else serves it
                serves = replace(serves, queues=())
            verdicts = self._ledger.beat(self.owner, [report for _, report in told], serves)
        except BrokerUnavailable as away:
            if not self._away:
                log.LOGGER.warning("%s; running jobs go on", away.what)
            self._away = True
            return
        except Exception:  # a heart that stands still would let nobody cancel a job
            log.LOGGER.exception("the heart missed a beat")
            return
        self._answered, self._away = monotonic(), False
        self._serves = bool(serves.queues)
        for (held, report), verdict in zip(told, verdicts, strict=True):
            held.told(report)
            if verdict != "go on":
                held.must_stop(verdict)

    def _tend(self) -> None:
        """What any worker does for all: leases renewed, trials of what failed, jobs that waited too long moved."""
        if self._away:  # each question would keep the next beat waiting
            return
        if self._share:
            self._share.slots.renew()
            self._share.space.renew()
        if self._station:
            self._station.tend()
        if monotonic() - self._tended < TEND:
            return
        self._tended = monotonic()
        try:
            hops = self._ledger.tend(self._prefer_wait, self._rise, self._slower)
        except BrokerUnavailable:
            return  # the beat has said so
        except Exception:  # it must go on beating
            log.LOGGER.exception("the heart could not look after waiting jobs")
            return
        for hop in hops:
            name = placement.short(hop.queue)
            log.write("hopped", f"from {name} to software ({hop.why})", job=hop.job_id, queue=name, why=hop.why)
            self.hopped(name, hop.why)
