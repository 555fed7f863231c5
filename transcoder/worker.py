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
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from random import random
from typing import get_args

from transcoder import log, metrics, placement, queue, retry, settings, spec
from transcoder.breaker import Rules
from transcoder.capacity import Budgets, CapacityFile
from transcoder.drain import Drain
from transcoder.errors import (
    BrokerUnavailable,
    JobCancelled,
    JobUnknown,
    TargetUnwritable,
    TranscoderError,
    TransitionRefused,
)
from transcoder.events import (
    Emit,
    Event,
    Failed,
    HandedOn,
    Lost,
    PutOff,
)
from transcoder.heart import Heart
from transcoder.held import Elsewhere, Ended, Equipment, Held, Share, patiently
from transcoder.job import transcode
from transcoder.ledger import Claimed, Following, Ledger, Newer, Place, TakenBack, connect
from transcoder.manifest import Attempt
from transcoder.mounts import Mounts
from transcoder.placement import Serves
from transcoder.policy import Policy
from transcoder.reaper import Reaper
from transcoder.scout import Scout
from transcoder.settings import Settings
from transcoder.slots import Slots
from transcoder.space import Short, Space
from transcoder.spec import JobSpec
from transcoder.station import Post, Station
from transcoder.survey import cpus
from transcoder.version import __version__

ROOM = 30.0
"""Seconds, about half of it at least, before a job for which there was too little space is tried again."""
PER_CPU = 62_000_000
"""Pixels per second that a CPU bears: 1080p30."""


def main(argv: Sequence[str] | None = None) -> int:
    """`transcoder worker`: work until a signal. Gives the exit code.

    Raises:
        SettingsError: a variable is wrong, a media root is not set or not there, or the capacity file cannot be used.
        FfmpegMissing: ffmpeg is missing or too old; no job was taken.
        NoRoute: only hardware is to be served, and no device here proved anything.
    """
    chosen = settings.read()
    return _work(chosen, _post(_arguments(argv), chosen))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    # not typer: it takes a third of the time in which a worker starts
    parser = argparse.ArgumentParser("transcoder worker", description="Run jobs from the queue until SIGTERM.")
    parser.add_argument("--concurrency", type=int, metavar="N", help="jobs at a time (default: one for two CPUs)")
    parser.add_argument("--name", default=socket.gethostname(), help="name in the jobs' records (default: the host's)")
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="the device to serve, /dev/dri/renderD128 or a PCI address (default: the first that can encode)",
    )
    parser.add_argument(
        "--serves",
        choices=get_args(Serves),
        help="what to take jobs for (default: both where there is a device, software without)",
    )
    arguments = parser.parse_args(argv)
    if arguments.concurrency is not None and arguments.concurrency < 1:
        parser.error("--concurrency is 1 or more")
    return arguments


def _post(arguments: argparse.Namespace, chosen: Settings) -> Post:
    return Post(
        name=arguments.name,
        device=arguments.device or chosen.device,
        serves=arguments.serves or chosen.serves,
        places=arguments.concurrency or chosen.concurrency or max(1, cpus() // 2),
    )


def _work(chosen: Settings, post: Post) -> int:
    policy = chosen.policy()
    budgets = _budgets(chosen)
    log.configure(chosen.log_format, chosen.log_level, sys.stdout)
    for sentence in settings.unknown():
        log.LOGGER.warning(sentence)
    owner = f"{post.name}-{os.getpid()}-{secrets.token_hex(4)}"
    ledger = Ledger(chosen.broker_url, chosen.retention)
    slower = chosen.software_slower if chosen.order == "effort" else None
    heart = Heart(ledger, owner, chosen.prefer_wait, chosen.rise, slower)
    rules = Rules(chosen.breaker_faults, chosen.breaker_window, chosen.breaker_cooldown)
    media = Mounts(policy.roots, changed=heart.changed)
    media.start()
    station = Station(post, policy, rules, changed=heart.changed, obstacle=media.trouble)
    redis = connect(chosen.broker_url)
    share = Share(Slots(redis), budgets, Space(redis), chosen.rise)
    equipped: Future[Equipment] = Future()
    looked = _aside(lambda: _look(chosen, station, share, ledger, heart, equipped))
    reaper = Reaper(ledger, owner, chosen.lease, taken_back=_taken_back(share, equipped))
    heart.start(station, share)
    reaper.start()
    scout = Scout(ledger, policy, station.queues)
    if chosen.order == "effort":
        scout.start()
    drain = Drain(chosen.grace, heart.held)
    drain.start()
    patience = Patience(chosen.lost_workers, retry.Rules(chosen.retries, chosen.retry_delay, chosen.retry_most))

    def served() -> list[str]:
        return [name for name in station.queues() if name not in reaper.paused]

    run = Worker(ledger, heart, equipped, policy, patience, drain.over, media_gone=media.look, served=served).run
    try:
        code = queue.consume(
            chosen.broker_url,
            run,
            name=f"{post.name}@{owner}",
            concurrency=post.places,
            ready=heart.consuming,
            served=served,
            ending=drain.told,
        )
    finally:
        media.stop()
        scout.stop()
        reaper.stop()
        heart.stop()
    if looked.done():
        looked.result()
    if equipped.done():
        equipped.result().endpoint_close()
    return code


def _budgets(chosen: Settings) -> Budgets:
    explicit = chosen.model_fields_set
    return Budgets(
        device=chosen.device_budget if "device_budget" in explicit else None,
        software=chosen.software_budget if "software_budget" in explicit else None,
        device_default=chosen.device_budget,
        cpu_default=PER_CPU,
        cpus=cpus(),
        path=chosen.capacity_file,
        measured=settings.read_capacities(chosen.capacity_file) if chosen.capacity_file else CapacityFile(),
    )


def _aside(look: Callable[[], None]) -> Future[None]:
    """The look at the machine goes on while Celery is imported and connects, and while the first jobs run.

    A worker that is told to end before does not wait for it.
    """
    looked: Future[None] = Future()

    def run() -> None:
        try:
            look()
            looked.set_result(None)
        except BaseException as wrong:  # whoever waits for the look gets it, and the worker ends
            looked.set_exception(wrong)
            queue.stop(wrong.exit_code if isinstance(wrong, TranscoderError) else 1)

    threading.Thread(target=run, name="survey", daemon=True).start()
    return looked


def _look(
    chosen: Settings, station: Station, share: Share, ledger: Ledger, heart: Heart, equipped: Future[Equipment]
) -> None:
    machine = station.look(chosen.cache_folder, chosen.threads)
    gathered = metrics.Metrics(
        __version__,
        machine.build.version,
        ledger.figures,
        lambda: share.usage(station.told().device),
        station.circuits,
    )
    heart.hopped = gathered.hopped
    close: Callable[[], None] = lambda: None  # noqa: E731
    if chosen.metrics_port:
        close = metrics.serve(gathered, chosen.metrics_port, chosen.metrics_host, heart.unwell).close
    equipped.set_result(Equipment(station, share, gathered, close))
    _say_budget(share, None)
    station.open(machine)
    station.look_closer(machine, chosen.cache_folder)
    if device := station.told().device:
        _say_budget(share, device)


def _say_budget(share: Share, device: str | None) -> None:
    budget, name = share.budget(device), device or "cpu"
    log.write(
        "budget",
        f"{name} bears {budget.pixels_per_second:,.0f} pixels/s ({budget.source})",
        device=name,
        pixels_per_second=budget.pixels_per_second,
        source=budget.source,
    )


def _taken_back(share: Share, equipped: Future[Equipment]) -> Callable[[TakenBack], None]:
    def taken_back(job: TakenBack) -> None:
        share.slots.forget(f"{job.job_id}.{job.fence}.")
        if equipped.done():
            equipped.result().metrics.reaped()

    return taken_back


@dataclass(frozen=True, slots=True)
class Patience:
    """How much a job is forgiven: how many workers may be lost with it, how often and when it is tried again."""

    lost_workers: int = 10
    rules: retry.Rules = field(default_factory=retry.Rules)


class Worker:
    """Runs jobs, one in each thread that calls `run`."""

    def __init__(
        self,
        ledger: Ledger,
        heart: Heart,
        equipped: Future[Equipment],
        policy: Policy,
        patience: Patience | None = None,
        over: threading.Event | None = None,
        *,
        media_gone: Callable[[], str | None] = lambda: None,
        served: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._ledger = ledger
        self._heart = heart
        self._equipped = equipped
        self._policy = policy
        self._patience = patience or Patience()
        self._over = over
        self._media_gone = media_gone
        self._served = served

    def run(self, job_id: str) -> None:
        """Do what the message asks, if the record says that it is still to be done; then, one by one, what else waits.

        A place that goes from job to job need not come back to Celery for each, which costs as much as all the rest
        that is done for a job beside its encoding. Raises nothing but bugs.
        """
        with suppress(Ended):  # the reaper finds a job whose message was lost, or which has lost its worker
            words = (job_id, self._heart.owner, spec.SCHEMA, secrets.token_hex(8))
            found = patiently(lambda: self._ledger.claim(*words), over=self._over)
            following = self._run(job_id, found)
            while following:
                following = self._run(*following)

    def _place(self, word: str) -> Place:
        """The place of this thread with the queues that it asks at this moment: none once its worker is to end."""
        return Place(self._heart.owner, () if queue.leaving() else self._served(), spec.SCHEMA, word)

    def _next(self) -> Following | None:
        """What this place takes next; while Redis is away Celery looks for it.

        It asks twice, so that what was taken by a question whose answer was lost is not left to nobody.
        """
        place = self._place(secrets.token_hex(8))
        for _ in range(2 if place.queues else 0):
            with suppress(BrokerUnavailable):
                return self._ledger.take_next(place)
        return None

    def _run(self, job_id: str, found: Claimed | Newer | None) -> Following | None:
        """Do this one; gives the next."""
        match found:
            case Claimed() as claimed:
                # no queue is served before the equipment is there
                equipment = self._equipped.result()
                held = Held(
                    *(self._ledger, job_id, claimed, self._heart.wake, equipment),
                    lost_workers=self._patience.lost_workers,
                    over=self._over,
                    place=self._place,
                )
                try:
                    with self._heart.watching(held):
                        self._transcode(held, claimed)
                except Exception:  # a listener's bug: the next job may be this place's already
                    log.LOGGER.exception("job %s met a bug at its end", job_id)
                if held.finished:
                    return held.following
            case Newer() as newer:
                self._pass_on(job_id, newer)
            case None:
                log.write("passed_over", "the message came twice or late", level=logging.DEBUG, job=job_id)
        return self._next()

    def _pass_on(self, job_id: str, newer: Newer) -> None:
        why = f"needs a worker that reads schema {newer.schema}; this one reads up to {spec.SCHEMA}"
        log.write("passed_on", why, level=logging.WARNING, job=job_id)
        with suppress(TransitionRefused, JobUnknown):  # cancelled in between
            patiently(lambda: self._ledger.post(job_id, newer.queue, why), over=self._over)

    def _transcode(self, held: Held, claimed: Claimed) -> None:
        equipment = self._equipped.result()
        listeners: list[Emit] = [log.listener(held.job_id), held.listen, equipment.station.listen]

        def emit(event: Event) -> None:
            for listen in listeners:
                listen(event)

        try:
            self._bring_to_its_end(
                held, claimed, emit, lambda asked: listeners.append(equipment.metrics.listener(asked))
            )
        except (TransitionRefused, JobUnknown) as lost:  # what its new owner does with it is not ours to say
            emit(Lost(lost.what))
        except Ended:
            log.write("left", "Redis is away and the worker ends: the next one goes on with it", job=held.job_id)

    def _bring_to_its_end(
        self, held: Held, claimed: Claimed, emit: Emit, understood: Callable[[JobSpec], None]
    ) -> None:
        """Do it and record how it ended, which is told to the others only when Redis has heard it and agreed.

        Raises:
            TransitionRefused, JobUnknown: the job is not this worker's any more.
            Ended: the worker ends and Redis is away.
        """
        try:
            asked = held.asked = spec.read(json.loads(claimed.spec))
            understood(asked)
            attempt = Attempt(held.job_id, claimed.fence, claimed.left)
            machine = self._equipped.result().station.machine()
            if held.careful:
                machine = machine.served_by(None)
            try:
                published = transcode(asked, attempt, machine, self._policy, emit, held)
            except TranscoderError as wrong:
                self._try_elsewhere(held, wrong)
                raise
            held.finish("published", result=published.as_record())
        except Elsewhere as gone:
            emit(HandedOn(placement.short(gone.queue), gone.why))
        except Short as short:
            self._hold(held, TargetUnwritable(str(short), "Make room; it goes on by itself."), emit)
        except JobCancelled as stopped:
            self._stop(held, stopped, emit)
        except (TransitionRefused, JobUnknown, Ended):
            raise
        except TranscoderError as wrong:
            self._end(held, wrong, emit)
        except Exception as bug:  # the job fails with it; the worker goes on
            log.LOGGER.exception("job %s met a bug", held.job_id)
            unexpected = TranscoderError(
                f"{type(bug).__name__}: {bug}", "It is a bug: the worker's log has the traceback."
            )
            held.finish("failed", error=unexpected.as_record() | {"kind": "unexpected"})
            emit(Failed(unexpected))

    def _hold(self, held: Held, why: TargetUnwritable, emit: Emit) -> None:
        """There is too little room for the job: it waits in its queue and takes no place meanwhile."""
        again = retry.Again(ROOM * (0.5 + random() / 2), held=True)
        held.put_off(again, why)
        emit(PutOff(why, again.seconds))

    def _stop(self, held: Held, stopped: JobCancelled, emit: Emit) -> None:
        """The job was ended before its time: by its user, because it is another worker's, or because this one ends."""
        match held.why_stopped:
            case "lost":
                raise TransitionRefused(f"job {held.job_id} is not this worker's any more")
            case "cancelled":
                held.finish("cancelled", error=stopped.as_record())
                emit(Failed(stopped))
            case why:
                held.hand_back(why)
                emit(HandedOn(placement.short(held.queue), why))

    def _try_elsewhere(self, held: Held, wrong: TranscoderError) -> None:
        """Hand on what another worker may be able to do: it has another device, or sees other files.

        Raises:
            Elsewhere: it is handed on.
            JobCancelled: this worker has lost its media, and gives the job back.
        """
        if wrong.of_this_host and (gone := self._media_gone()):
            held.give_back(gone)
            raise JobCancelled(gone) from wrong
        held.try_elsewhere(wrong)

    def _end(self, held: Held, wrong: TranscoderError, emit: Emit) -> None:
        """The job failed: it is tried again later where that may help, or rests in quarantine, or that was it."""
        match held.then(wrong, self._patience.rules):
            case retry.Again() as again:
                held.put_off(again, wrong)
                emit(PutOff(wrong, again.seconds))
            case "quarantine":
                rests = held.quarantined(wrong)
                held.finish("quarantined", error=rests.as_record())
                emit(Failed(rests))
            case "fail":
                held.finish("failed", error=wrong.as_record())
                emit(Failed(wrong))
