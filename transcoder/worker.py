"""The worker: takes a job off the queue, calls job.transcode, and tells log, metrics and ledger what happens.

While a job runs its thread asks Redis nothing: the heart tells the ledger about all running jobs in one call, and
brings back which of them must stop. So an outage of Redis neither slows nor ends a job; only its beginning, the
claim of its targets, the last check before publishing and its end wait until Redis is back.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from time import monotonic, sleep
from typing import TypeVar

from transcoder import log, metrics, queue, settings, spec
from transcoder.errors import BrokerUnavailable, JobCancelled, JobUnknown, TranscoderError, TransitionRefused
from transcoder.events import Advanced, Emit, Event, Failed, Started, phase
from transcoder.job import transcode
from transcoder.ledger import Claimed, Ledger, Newer, Report
from transcoder.machine import Machine
from transcoder.manifest import Attempt
from transcoder.policy import Policy
from transcoder.settings import Settings
from transcoder.survey import cpus, survey
from transcoder.version import __version__

BEAT = 0.4
"""Seconds between two words to the ledger while jobs run: with a poll of ffmpeg's, a cancelled job ends within 1 s."""
IDLE_BEAT = 2.0
"""Seconds between them while none runs."""
GATHER = 0.05
"""Seconds in which phases are gathered into one word, so that jobs of milliseconds do not make the heart race."""
FRESH = 6.0
"""Seconds without an answer from Redis after which the worker counts as unhealthy."""

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """`transcoder worker`: work until a signal. Gives the exit code.

    Raises:
        SettingsError: a variable is wrong, or the media roots are not set.
        FfmpegMissing: ffmpeg is missing or too old; a job that was taken is back on the queue.
    """
    arguments = _arguments(argv)
    return _work(settings.read(), arguments.concurrency, arguments.name)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    # not typer: it takes a third of the time in which a worker starts
    parser = argparse.ArgumentParser("transcoder worker", description="Run jobs from the queue until SIGTERM.")
    parser.add_argument("--concurrency", type=int, metavar="N", help="jobs at a time (default: one for two CPUs)")
    parser.add_argument("--name", default=socket.gethostname(), help="name in the jobs' records (default: the host's)")
    arguments = parser.parse_args(argv)
    if arguments.concurrency is not None and arguments.concurrency < 1:
        parser.error("--concurrency is 1 or more")
    return arguments


def _work(chosen: Settings, concurrency: int | None, name: str) -> int:
    policy = chosen.policy()
    log.configure(chosen.log_format, chosen.log_level)
    for sentence in settings.unknown():
        log.LOGGER.warning(sentence)
    places = concurrency or chosen.concurrency or max(1, cpus() // 2)
    owner = f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
    ledger = Ledger(chosen.broker_url, chosen.retention)
    heart = Heart(ledger, owner)
    equipped = _aside(lambda: _equip(chosen, policy, ledger, heart.beats))
    equipped.add_done_callback(_stop_where_it_failed)
    heart.start()
    run = Worker(ledger, heart, equipped, policy).run
    code = queue.consume(chosen.broker_url, run, name=f"{name}@{owner}", concurrency=places, ready=heart.consuming)
    heart.stop()
    equipped.result().endpoint_close()
    return code


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the jobs of this worker share."""

    machine: Machine
    metrics: metrics.Metrics
    endpoint_close: Callable[[], None]


def _aside(equip: Callable[[], Equipment]) -> Future[Equipment]:
    """The look at the machine goes on while Celery is imported and connects; the first job waits for it."""
    thread = ThreadPoolExecutor(1, "survey")
    equipped = thread.submit(equip)
    thread.shutdown(wait=False)
    return equipped


def _equip(chosen: Settings, policy: Policy, ledger: Ledger, healthy: Callable[[], bool]) -> Equipment:
    machine = survey(policy, chosen.cache_folder, chosen.threads)
    gathered = metrics.Metrics(__version__, machine.build.version, lambda: ledger.figures().queues)
    if not chosen.metrics_port:
        return Equipment(machine, gathered, lambda: None)
    endpoint = metrics.serve(gathered, chosen.metrics_port, chosen.metrics_host, healthy)
    return Equipment(machine, gathered, endpoint.close)


def _stop_where_it_failed(equipped: Future[Equipment]) -> None:
    if wrong := equipped.exception():
        queue.stop(wrong.exit_code if isinstance(wrong, TranscoderError) else 1)


class Worker:
    """Runs jobs, one in each thread that calls `run`."""

    def __init__(self, ledger: Ledger, heart: Heart, equipped: Future[Equipment], policy: Policy) -> None:
        self._ledger = ledger
        self._heart = heart
        self._equipped = equipped
        self._policy = policy

    def run(self, job_id: str) -> None:
        """Do what the message asks, if the record says that it is still to be done. Raises nothing but bugs."""
        owner = self._heart.owner
        match patiently(lambda: self._ledger.claim(job_id, owner, spec.SCHEMA)):
            case Claimed() as claimed:
                held = Held(self._ledger, job_id, claimed.fence, self._heart.wake)
                # suppressed: what the record's new owner does with the job is not ours to say
                with self._heart.watching(held), suppress(TransitionRefused, JobUnknown):
                    self._hold(held, claimed)
            case Newer() as newer:
                self._pass_on(job_id, newer)
            case None:
                log.write("passed_over", "the message came twice or late", level=logging.DEBUG, job=job_id)

    def _pass_on(self, job_id: str, newer: Newer) -> None:
        why = f"needs a worker that reads schema {newer.schema}; this one reads up to {spec.SCHEMA}"
        log.write("passed_on", why, level=logging.WARNING, job=job_id)
        with suppress(TransitionRefused, JobUnknown):  # cancelled in between
            message = queue.message(job_id, newer.priority, newer.schema)
            patiently(lambda: self._ledger.post(job_id, message, why))

    def _hold(self, held: Held, claimed: Claimed) -> None:
        try:
            equipment = self._equipped.result()
        except Exception as wrong:  # this worker is about to end, see _stop_where_it_failed
            first_line = str(wrong).partition("\n")[0]
            held.hand_back(claimed.priority, f"the worker cannot work: {first_line}")
            return
        self._transcode(held, claimed, equipment)

    def _transcode(self, held: Held, claimed: Claimed, equipment: Equipment) -> None:
        listeners: list[Emit] = [log.listener(held.job_id), held.listen]

        def emit(event: Event) -> None:
            for listen in listeners:
                listen(event)

        try:
            asked = spec.read(json.loads(claimed.spec))
            listeners.append(equipment.metrics.listener(asked))
            attempt = Attempt(held.job_id, claimed.fence)
            published = transcode(asked, attempt, equipment.machine, self._policy, emit, held)
            held.finish("published", result=published.as_record())
        except (TransitionRefused, JobUnknown) as lost:
            emit(Failed(lost))
            log.write("lost", lost.what, level=logging.WARNING, job=held.job_id)
        except TranscoderError as wrong:
            emit(Failed(wrong))
            held.finish("cancelled" if isinstance(wrong, JobCancelled) else "failed", error=wrong.as_record())
        except Exception as bug:
            log.LOGGER.exception("job %s met a bug", held.job_id)
            unexpected = TranscoderError(
                f"{type(bug).__name__}: {bug}", "It is a bug: the worker's log has the traceback."
            )
            emit(Failed(unexpected))
            held.finish("failed", error=unexpected.as_record() | {"kind": "unexpected"})


class Held:
    """A job that this worker holds: what it has come to, and whether it may go on (it is the job's Permit)."""

    def __init__(self, ledger: Ledger, job_id: str, fence: int, changed: Callable[[], None]) -> None:
        self.job_id = job_id
        self.fence = fence
        self._ledger = ledger
        self._changed = changed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._phases: list[tuple[str, float, str]] = []
        self._phase = ""
        self._progress: dict[str, object] | None = None

    def cancelled(self) -> bool:
        """Whether the job was cancelled or taken away. Costs nothing: the heart has asked."""
        return self._stop.is_set()

    def may_write(self, targets: Sequence[str]) -> None:
        """Claim the targets; waits while Redis is away."""
        patiently(lambda: self._ledger.take_targets(self.job_id, self.fence, targets), self._stop)

    def still_ours(self) -> None:
        """Ask Redis, and wait for its answer: a worker cannot tell an outage from being cut off."""
        patiently(lambda: self._ledger.still_ours(self.job_id, self.fence), self._stop)

    def finish(self, state: str, **ending: dict[str, object]) -> None:
        """Record the end; waits while Redis is away."""
        patiently(lambda: self._ledger.finish(self.report(), state, **ending))

    def hand_back(self, priority: int, why: str) -> None:
        """Put the job back on the queue; waits while Redis is away."""
        message = queue.message(self.job_id, priority)
        patiently(lambda: self._ledger.hand_back(self.job_id, self.fence, message, why))

    def must_stop(self) -> None:
        """The ledger says that the job was cancelled or belongs to another worker."""
        self._stop.set()

    def listen(self, event: Event) -> None:
        """Keep what the ledger is to be told."""
        begun = phase(event)
        if isinstance(event, Advanced):
            self._progress = _progress(event)
        if begun and begun != "done" and (begun != self._phase or isinstance(event, Started)):
            with self._lock:
                self._phases.append((begun, monotonic(), event.route.name if isinstance(event, Started) else ""))
            self._phase = begun
            self._changed()

    def report(self) -> Report:
        """What is to be told, now."""
        with self._lock:
            phases = [(name, monotonic() - began, detail) for name, began, detail in self._phases]
        return Report(self.job_id, self.fence, phases, self._progress)

    def told(self, report: Report) -> None:
        """The ledger has it: tell it no second time."""
        with self._lock:
            del self._phases[: len(report.phases)]


class Heart:
    """Tells the ledger every now and then that this worker and its jobs live, and stops the jobs that must stop."""

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self.owner = owner
        self._ledger = ledger
        self._held: set[Held] = set()
        self._awake = threading.Event()
        self._ended = threading.Event()
        self._consuming = False
        self._answered = -inf
        self._away = False
        self._thread = threading.Thread(target=self._live, name="heart", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """The last beat: the worker leaves."""
        self._ended.set()
        self._awake.set()
        self._thread.join()
        with suppress(BrokerUnavailable):
            self._ledger.leave(self.owner)

    def consuming(self) -> None:
        """The worker takes messages from now on."""
        self._consuming = True

    def beats(self) -> bool:
        """Whether this worker takes jobs and heard from Redis lately."""
        return self._consuming and monotonic() - self._answered < FRESH

    def wake(self) -> None:
        """There is something to tell."""
        self._awake.set()

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
            self._awake.wait(BEAT if self._held else IDLE_BEAT)
            sleep(GATHER)
            self._awake.clear()

    def _beat(self) -> None:
        told = [(held, held.report()) for held in self._held.copy()]
        try:
            verdicts = self._ledger.beat(self.owner, [report for _, report in told])
        except BrokerUnavailable as away:
            if not self._away:
                log.LOGGER.warning("%s; running jobs go on", away.what)
            self._away = True
            return
        except Exception:  # a heart that stands still would let nobody cancel a job
            log.LOGGER.exception("the heart missed a beat")
            return
        self._answered, self._away = monotonic(), False
        for (held, report), verdict in zip(told, verdicts, strict=True):
            held.told(report)
            if verdict != "go on":
                held.must_stop()


def patiently(ask: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Ask until Redis answers, at growing intervals of at most 3 s.

    Raises:
        JobCancelled: `stop` was set while waiting.
    """
    pause = 0.1
    while True:
        try:
            return ask()
        except BrokerUnavailable:
            if stop is None:
                sleep(pause)
            elif stop.wait(pause):
                raise JobCancelled("the job was cancelled while Redis was away") from None
            pause = min(3.0, pause * 2)


def _progress(event: Advanced) -> dict[str, object]:
    step = event.progress
    return {
        "fraction": event.fraction,
        "fps": step.fps,
        "speed": step.speed,
        "eta_seconds": event.eta,
        "frame": step.frame,
        "out_time": step.out_time,
    }
