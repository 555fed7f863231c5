"""A job that a worker holds: what it has come to, and whether it may go on.

While a job runs its thread asks Redis nothing; only its beginning, the claim of its targets, the last check before
publishing and its end wait until Redis is back.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from random import random
from time import monotonic, sleep
from typing import TypeVar

from transcoder import log, metrics, placement, retry, slots
from transcoder.capacity import Budget, Budgets
from transcoder.command import Command
from transcoder.errors import (
    BrokerUnavailable,
    JobCancelled,
    NoRoute,
    NoRouteWorked,
    Quarantined,
    TranscoderError,
    WorkersLost,
)
from transcoder.events import (
    Advanced,
    Event,
    FellBack,
    Planned,
    Started,
    Verifying,
    phase,
)
from transcoder.faults import FaultClass, blames_device
from transcoder.ledger import Claimed, Following, Ledger, Place, Report, step
from transcoder.machine import SOFTWARE
from transcoder.slots import Capacity, Slots
from transcoder.space import Space
from transcoder.spec import JobSpec
from transcoder.station import Station

DOUBTS = 4
"""Looks of the drain, one after the other, at which a job would not be done in time, before that is believed."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the jobs of this worker share."""

    station: Station
    share: Share
    metrics: metrics.Metrics
    endpoint_close: Callable[[], None] = lambda: None


class Share:
    """What this worker may take of its device, its CPUs and its disks, which others take of, too."""

    def __init__(self, leases: Slots, budgets: Budgets, space: Space, rise: float = 600.0) -> None:
        self.slots = leases
        self._rise = rise
        self.space = space
        self._budgets = budgets
        self._cpus = slots.of_cpus(budgets.of_cpus().pixels_per_second)

    def budget(self, device: str | None) -> Budget:
        """What the device, or the CPUs for None, bear, and who says so."""
        return self._budgets.of_device(device) if device else self._budgets.of_cpus()

    def capacity(self, device: str | None) -> Capacity:
        """The device, or the CPUs for None."""
        return slots.of_device(device, self.budget(device).pixels_per_second) if device else self._cpus

    def behind(self, priority: int) -> float:
        """Seconds by which a job stands behind the most urgent in the line for a slot: what it takes to rise so far."""
        return step(priority) * self._rise

    def usage(self, device: str | None) -> Mapping[str, slots.Usage]:
        """How much of each is taken, by everybody."""
        return self.slots.usage([self._cpus, *([self.capacity(device)] if device else [])])


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
        place: Callable[[str], Place | None] = lambda _: None,
    ) -> None:
        self.queue = claimed.queue
        self.why_stopped = "cancelled"
        self._over = over
        self._place = place
        self.finished = False
        self.following: Following | None = None
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
        behind = share.behind(self.asked.priority)
        with share.slots.slot(capacity, command.cost, lease, behind=behind, cancelled=self.cancelled, waits=waits):
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

    def finish(
        self, state: str, result: Mapping[str, object] | None = None, error: Mapping[str, object] | None = None
    ) -> None:
        """Record the end, and let the place that it leaves take its next job, which is `following`, if it takes any.

        Waits while Redis is away, unless the worker ends.
        """
        end = partial(self._ledger.finish, state=state, result=result, error=error)
        # Always the same word, so that a repetition gets the same job. The place is looked at anew each time: meanwhile
        # the worker may be told to end, or leave a queue.
        word = secrets.token_hex(8)
        self.following = patiently(lambda: end(self.report(), place=self._place(word)), over=self._over)
        self.finished = True

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
        where = "on hardware, which it requires" if self.asked.acceleration.policy == "require" else "in software too"
        told = self._equipment.station.told()
        evidence = {**wrong.evidence, "source": self._source, "worker": asdict(told), "crashes": deaths}
        return Quarantined(
            f"ffmpeg died {deaths} times on {self.asked.source!r}, {where}: {wrong.what}",
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
