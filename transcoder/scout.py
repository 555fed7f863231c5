"""Looks into jobs that wait, for how much there is to encode: the order of a queue depends on it.

A client cannot know it, since it needs neither ffmpeg nor a view of the file. So workers look, one job at a time and
beside all else: only into jobs that have waited for a moment, each once, for a tenth of a CPU at most. Of what cannot
be looked into nothing is noted: that job keeps its place, and whoever runs it will say what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread
from time import monotonic

from transcoder import log, plan, spec
from transcoder.errors import BrokerUnavailable, TranscoderError
from transcoder.ledger import Ledger
from transcoder.policy import Policy
from transcoder.probe import probe

AFTER = 1.0
"""Seconds that a job has waited before anybody looks: there is a place for it, or more wait than there are places."""

LIMIT = 5.0
"""Seconds that a look may take: storage that is slower than that has no time to spare."""

IDLE = 0.5
"""Seconds between two questions while there is nothing to look into."""

SHARE = 10
"""One of so many seconds it looks, the others it rests."""


class Scout:
    """One worker's looks at the jobs that wait in the queues that it serves."""

    def __init__(self, ledger: Ledger, policy: Policy, queues: Callable[[], Sequence[str]]) -> None:
        self._ledger = ledger
        self._policy = replace(policy, probe_limit=min(policy.probe_limit, LIMIT))
        self._queues = queues
        self._ended = Event()
        self._thread = Thread(target=self._live, name="scout", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A look that has begun is not waited for."""
        self._ended.set()

    def look(self) -> bool:
        """Look into the next job. Gives whether there was one."""
        found = self._ledger.unweighed(self._queues(), AFTER)
        if not found:
            return False
        job_id, asked = found
        with suppress(TranscoderError):  # of the source, or because the job began or was cancelled in between
            self._weigh(job_id, asked)
        return True

    def _weigh(self, job_id: str, text: str) -> None:
        asked = spec.read(json.loads(text))
        if effort := plan.effort(asked, probe(asked.source, self._policy)):
            self._ledger.weigh(job_id, effort)

    def _live(self) -> None:
        while not self._ended.is_set():
            began = monotonic()
            found = False
            try:
                found = self.look()
            except BrokerUnavailable:
                pass  # the heart says so
            except Exception:  # a bug here must not cost the worker anything but the order
                log.LOGGER.exception("the scout missed a look")
            rest = (SHARE - 1) * (monotonic() - began) if found else 0.0
            self._ended.wait(max(IDLE, rest))
