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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from math import inf
from random import random
from time import monotonic, sleep
from typing import TypeVar, get_args

from transcoder import bell, log, metrics, placement, queue, retry, settings, slots, spec
from transcoder.breaker import Rules
from transcoder.capacity import Budget, Budgets, CapacityFile
from transcoder.command import Command
from transcoder.drain import Drain
from transcoder.errors import (
    BrokerUnavailable,
    JobCancelled,
    JobUnknown,
    NoRoute,
    NoRouteWorked,
    Quarantined,
    TargetUnwritable,
    TranscoderError,
    TransitionRefused,
    WorkersLost,
)
from transcoder.events import (
    Advanced,
    Emit,
    Event,
    Failed,
    FellBack,
    HandedOn,
    Lost,
    Planned,
    PutOff,
    Started,
    Verifying,
    phase,
)
from transcoder.faults import FaultClass, blames_device
from transcoder.job import transcode
from transcoder.ledger import Claimed, Ledger, Newer, Report, TakenBack, Told, connect
from transcoder.machine import SOFTWARE
from transcoder.manifest import Attempt
from transcoder.mounts import Mounts
from transcoder.placement import Serves
from transcoder.policy import Policy
from transcoder.reaper import Reaper
from transcoder.scout import Scout
from transcoder.settings import Settings
from transcoder.slots import Capacity, Slots
from transcoder.space import Short, Space
from transcoder.spec import JobSpec
from transcoder.station import Post, Station
from transcoder.survey import cpus
from transcoder.version import __version__

BEAT = 0.4
"""Seconds between two words to the ledger while jobs run: with a poll of ffmpeg's, a cancelled job ends within 1 s."""
IDLE_BEAT = 2.0
"""Seconds between them while none runs."""
GATHER = 0.05
"""Seconds in which phases are gathered into one word, so that jobs of milliseconds do not make the heart race."""
FRESH = 6.0
"""Seconds without an answer from Redis after which the worker counts as unhealthy."""

DOUBTS = 4
"""Looks of the drain, one after the other, at which a job would not be done in time, before that is believed."""

ROOM = 30.0
"""Seconds, about half of it at least, before a job for which there was too little space is tried again."""

TEND = 1.0
"""Seconds between two looks at the jobs that wait too long for hardware."""
PER_CPU = 62_000_000
"""Pixels per second that a CPU bears: 1080p30."""

T = TypeVar("T")


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
    share = Share(Slots(redis), budgets, Space(redis))
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
    run = Worker(ledger, heart, equipped, policy, patience, drain.over, media_gone=media.look).run
    try:
        code = queue.consume(
            chosen.broker_url,
            run,
            name=f"{post.name}@{owner}",
            concurrency=post.places,
            ready=heart.consuming,
            served=lambda: [name for name in station.queues() if name not in reaper.paused],
            ending=drain.told,
        )
    finally:
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


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the jobs of this worker share."""

    station: Station
    share: Share
    metrics: metrics.Metrics
    endpoint_close: Callable[[], None] = lambda: None


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


class Share:
    """What this worker may take of its device, its CPUs and its disks, which others take of, too."""

    def __init__(self, leases: Slots, budgets: Budgets, space: Space) -> None:
        self.slots = leases
        self.space = space
        self._budgets = budgets
        self._cpus = slots.of_cpus(budgets.of_cpus().pixels_per_second)

    def budget(self, device: str | None) -> Budget:
        """What the device, or the CPUs for None, bear, and who says so."""
        return self._budgets.of_device(device) if device else self._budgets.of_cpus()

    def capacity(self, device: str | None) -> Capacity:
        """The device, or the CPUs for None."""
        return slots.of_device(device, self.budget(device).pixels_per_second) if device else self._cpus

    def usage(self, device: str | None) -> Mapping[str, slots.Usage]:
        """How much of each is taken, by everybody."""
        return self.slots.usage([self._cpus, *([self.capacity(device)] if device else [])])


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
    ) -> None:
        self._ledger = ledger
        self._heart = heart
        self._equipped = equipped
        self._policy = policy
        self._patience = patience or Patience()
        self._over = over
        self._media_gone = media_gone

    def run(self, job_id: str) -> None:
        """Do what the message asks, if the record says that it is still to be done. Raises nothing but bugs."""
        with suppress(Ended):  # the reaper finds a job whose message was lost, or which has lost its worker
            self._run(job_id)

    def _run(self, job_id: str) -> None:
        owner = self._heart.owner
        match patiently(lambda: self._ledger.claim(job_id, owner, spec.SCHEMA), over=self._over):
            case Claimed() as claimed:
                # no queue is served before the equipment is there
                equipment = self._equipped.result()
                held = Held(
                    *(self._ledger, job_id, claimed, self._heart.wake, equipment),
                    lost_workers=self._patience.lost_workers,
                    over=self._over,
                )
                with self._heart.watching(held):
                    self._transcode(held, claimed)
            case Newer() as newer:
                self._pass_on(job_id, newer)
            case None:
                log.write("passed_over", "the message came twice or late", level=logging.DEBUG, job=job_id)

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


class Ended(Exception):
    """The worker ends and Redis is away: what it should hear is left for others to find out."""


class Elsewhere(Exception):
    """The job was handed on: it waits in `queue` for another worker."""

    def __init__(self, queue: str, why: str) -> None:
        super().__init__(why)
        self.queue = queue
        self.why = why


class Held:
    """A job that this worker holds: what it has come to, and whether it may go on (it is the job's Permit)."""

    asked: JobSpec
    """What is to be made, as soon as it was read."""

    def __init__(
        self,
        ledger: Ledger,
        job_id: str,
        claimed: Claimed,
        changed: Callable[[], None],
        equipment: Equipment,
        *,
        lost_workers: int = 10,
        over: threading.Event | None = None,
    ) -> None:
        self.queue = claimed.queue
        self.why_stopped = "cancelled"
        self._over = over
        self._eta: float | None = None
        self._doubts = 0
        self._before, self._crashes = claimed.before, 0
        self._source: dict[str, object] = {}
        self.job_id = job_id
        self.fence = claimed.fence
        self._for_hardware = claimed.queue != placement.queue_name(SOFTWARE)
        self._ledger = ledger
        self._changed = changed
        self._equipment = equipment
        self._lost, self._lost_workers = claimed.lost, lost_workers
        self._leases = count(1)
        self._last_fault: FellBack | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._phases: list[tuple[str, float, str]] = []
        self._phase = ""
        self._progress: dict[str, object] | None = None
        self._effort: int | None = None

    def cancelled(self) -> bool:
        """Whether the job was cancelled or taken away. Costs nothing: the heart has asked."""
        return self._stop.is_set()

    def fenced(self) -> None:
        """Record that earlier attempts can publish nothing any more; waits while Redis is away."""
        patiently(lambda: self._ledger.fenced(self.job_id, self.fence), self._stop)
        if self._lost >= self._lost_workers:
            raise WorkersLost(
                f"job {self.job_id} lost {self._lost} workers, one after the other",
                "Look in their logs and the kernel's for what ended them (out of memory?), then submit it again.",
            )

    def may_write(self, targets: Sequence[str]) -> None:
        """Claim the targets; waits while Redis is away."""
        patiently(lambda: self._ledger.take_targets(self.job_id, self.fence, targets), self._stop)

    @contextmanager
    def slot(self, command: Command) -> Iterator[None]:
        """The command's share of the device or of the CPUs, waited for.

        Raises:
            Elsewhere: the command is software's, and the job was handed on to a worker that shall do it before.
            JobCancelled: it was cancelled while it waited.
        """
        if not command.cost:  # streams are copied: that takes a disk, and next to no CPU
            yield
            return
        if command.route.api == SOFTWARE and (queues := self._before_software_here()):
            self._hand_on(queues, self._why_not_hardware())
        share, asked = self._equipment.share, monotonic()
        capacity = share.capacity(command.route.device)
        lease = f"{self.job_id}.{self.fence}.{next(self._leases)}"
        waits = partial(self._begin, "waiting", f"a slot on {capacity.name}")
        with share.slots.slot(capacity, command.cost, lease, cancelled=self.cancelled, waits=waits):
            self._equipment.metrics.waited(capacity.name, monotonic() - asked)
            yield

    def try_elsewhere(self, wrong: TranscoderError) -> None:
        """Hand on a job that requires hardware, if this worker lacks it or its device failed; or that misses its files.

        The latter only once: another host may have mounted what this one has not, and a third need not be asked.

        Raises:
            Elsewhere: it is handed on; otherwise nobody else can do it, or nobody needs to try.
        """
        fault, required = self._last_fault, self.asked.acceleration.policy == "require"
        if wrong.of_this_host:
            software = () if required else (placement.queue_name(SOFTWARE),)
            self._hand_on(list(dict.fromkeys((self.queue, *software))), wrong.what, once=True)
        elif not required or not isinstance(wrong, NoRoute | NoRouteWorked):
            return
        elif isinstance(wrong, NoRoute) or (fault and blames_device(fault.kind, fault.route.api)):
            self._hand_on([placement.queue_name(name) for name in placement.onward(self.asked)], wrong.what)

    def _hand_on(self, queues: Sequence[str], why: str, *, once: bool = False) -> None:
        """Raises Elsewhere where another worker serves one of the queues."""
        answer = patiently(lambda: self._ledger.hand_on(self.job_id, self.fence, queues, why, once=once), self._stop)
        if isinstance(answer, str):
            raise Elsewhere(answer, why)

    def _before_software_here(self) -> list[str]:
        """The queues where another worker may do what this device did not, before it is encoded in software here.

        Another device, where this one lacks the ability: it was not even tried. After a fault software, by a worker
        that serves it; this one too may do it, but only when there is none.
        """
        unsuited = self._for_hardware and self._last_fault is None
        other = placement.onward(self.asked) if unsuited else ()
        software = (SOFTWARE,) if self._equipment.station.serves == "hardware" else ()
        return [placement.queue_name(name) for name in (*other, *software)]

    def _why_not_hardware(self) -> str:
        if fault := self._last_fault:
            return f"{fault.route.name} failed on {fault.route.device} ({fault.kind}): {fault.what}"
        return "the device of this worker cannot do it"

    def still_ours(self) -> None:
        """Ask Redis, and wait for its answer: a worker cannot tell an outage from being cut off."""
        patiently(lambda: self._ledger.still_ours(self.job_id, self.fence), self._stop)

    def finish(self, state: str, **ending: dict[str, object]) -> None:
        """Record the end; waits while Redis is away, unless the worker ends."""
        patiently(lambda: self._ledger.finish(self.report(), state, **ending), over=self._over)

    def hand_back(self, why: str) -> None:
        """Let another worker have it; nothing of it is left here."""
        patiently(lambda: self._ledger.hand_back(self.job_id, self.fence, why), over=self._over)

    @property
    def careful(self) -> bool:
        """Whether only software may touch it, since ffmpeg died of it. What requires hardware takes its chance."""
        return self._before.careful and self.asked.acceleration.policy != "require"

    def then(self, wrong: TranscoderError, rules: retry.Rules) -> retry.Then:
        """What becomes of the job after this error."""
        kind = wrong.evidence.get("fault")
        if not isinstance(kind, str):
            return "fail"
        return retry.then(FaultClass(kind), self._before, self._crashes, rules, random())

    def put_off(self, again: retry.Again, wrong: TranscoderError) -> None:
        """Let it wait until it is tried again, by any worker."""
        software = again.careful and self.asked.acceleration.policy != "require"
        queue = placement.queue_name(SOFTWARE) if software else None
        words = (again, self._crashes, wrong.what, queue)
        patiently(lambda: self._ledger.put_off(self.report(), *words), over=self._over)

    def quarantined(self, wrong: TranscoderError) -> Quarantined:
        """The error of a source on which ffmpeg died again and again, with all that is needed to look into it."""
        deaths = self._before.crashes + self._crashes
        told = self._equipment.station.told()
        evidence = {**wrong.evidence, "source": self._source, "worker": asdict(told), "crashes": deaths}
        return Quarantined(
            f"ffmpeg died {deaths} times on {self.asked.source!r}, in software too: {wrong.what}",
            f"`transcoder status {self.job_id} --json` has the evidence; `transcoder retry {self.job_id}` tries again.",
            json.loads(log.without_passwords(json.dumps(evidence, default=str))),
        )

    def room(self, folder: str, need: int) -> AbstractContextManager[None]:
        """Reserve space for the outputs. Raises Short where there is too little."""
        lease = f"{self.job_id}.{self.fence}"
        return self._equipment.share.space.room(folder, need, lease, cancelled=self.cancelled)

    def must_stop(self, verdict: str) -> None:
        """The ledger says that the job was 'cancelled', or that it is 'lost' to another worker."""
        self.why_stopped = verdict
        self._stop.set()

    def fits(self, seconds: float) -> bool:
        """Whether it may be done by then: not if it has no slot yet, nor if its encoding takes longer at this pace."""
        if self._phase == "waiting":
            return False
        # at its very beginning an encoding is slower than it will be
        self._doubts = self._doubts + 1 if self._eta is not None and self._eta > seconds else 0
        return self._doubts < DOUBTS

    def give_back(self, why: str) -> None:
        """The worker ends and others shall have the job. What is being published is published."""
        if not self._stop.is_set():
            self.why_stopped = why
            self._stop.set()

    def listen(self, event: Event) -> None:
        """Keep what the ledger is to be told."""
        begun = phase(event)
        if isinstance(event, Advanced):
            self._progress, self._eta = _progress(event), event.eta
        if isinstance(event, FellBack | Verifying):
            self._eta = None
        if isinstance(event, Planned):
            self._source = asdict(event.source)
            self._effort = round(event.commands[0].cost * (event.source.duration or 0)) or None
        if isinstance(event, FellBack):
            self._last_fault = event
            self._crashes += event.kind is FaultClass.CRASHED
        if begun and begun != "done" and (begun != self._phase or isinstance(event, Started)):
            self._begin(begun, event.route.name if isinstance(event, Started) else "")

    def _begin(self, phase: str, detail: str) -> None:
        with self._lock:
            self._phases.append((phase, monotonic(), detail))
        self._phase = phase
        self._changed()

    def report(self) -> Report:
        """What is to be told, now."""
        with self._lock:
            phases = [(name, monotonic() - began, detail) for name, began, detail in self._phases]
        return Report(self.job_id, self.fence, phases, self._progress, self._effort)

    def told(self, report: Report) -> None:
        """The ledger has it: tell it no second time."""
        with self._lock:
            del self._phases[: len(report.phases)]
        if report.effort is not None:
            self._effort = None


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


def patiently(ask: Callable[[], T], stop: threading.Event | None = None, *, over: threading.Event | None = None) -> T:
    """Ask until Redis answers, at growing intervals of at most 3 s.

    Raises:
        JobCancelled: `stop` was set while waiting.
        Ended: `over` was.
    """
    pause = 0.1
    while True:
        try:
            return ask()
        except BrokerUnavailable:
            waited = stop or over
            if waited is None:
                sleep(pause)
            elif waited.wait(pause):
                raise (JobCancelled("the job was cancelled while Redis was away") if stop else Ended()) from None
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
