"""What a worker serves: its device and its CPUs as they proved themselves, without what its breaker holds open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock, Thread
from time import monotonic

from transcoder import log, placement
from transcoder.breaker import Circuit, Rules
from transcoder.errors import NoRoute
from transcoder.events import Event, FellBack
from transcoder.faults import FaultClass, blames_device
from transcoder.ledger import Told
from transcoder.machine import Device, Machine
from transcoder.placement import Serves
from transcoder.policy import Policy
from transcoder.survey import survey_devices, survey_software, try_again


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker was told to be.

    `device` is the id or node of the one to serve (None: the first that proves anything), `serves` what to take jobs
    for (None: what there is), `places` how many at a time.
    """

    name: str
    device: str | None
    serves: Serves | None
    places: int


class Station:
    """One worker's abilities, from the moment when the first of them is known. Safe to share between threads.

    `changed` is called when other queues are served than before. While `obstacle` gives a reason none is.
    """

    def __init__(
        self,
        post: Post,
        policy: Policy,
        rules: Rules,
        changed: Callable[[], None] = lambda: None,
        obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._post = post
        self._policy = policy
        self._rules = rules
        self._changed = changed
        self.obstacle = obstacle
        self._lock = Lock()
        self._proved: Machine | None = None
        self._serves: Serves | None = None
        self._device: Device | None = None
        self._circuits: dict[str, Circuit] = {}

    def look(self, cache_folder: str | None, threads: int) -> Machine:
        """What the CPUs can do, which is soon known. Nothing is served yet.

        Raises:
            FfmpegMissing: ffmpeg or ffprobe is missing or too old.
        """
        return survey_software(self._policy, cache_folder, threads)

    def open(self, machine: Machine) -> None:
        """Serve software from now on, unless hardware is all that is asked."""
        if self._post.serves != "hardware":
            self._serve(machine.served_by(None), "software", None)

    def look_closer(self, machine: Machine, cache_folder: str | None) -> None:
        """What the devices can do, which takes seconds; hardware is served from then on.

        Raises:
            NoRoute: only hardware is asked, and no device here proved anything.
        """
        if self._post.serves == "software":
            return
        found = survey_devices(machine, self._policy, cache_folder)
        device = _chosen(found, self._post.device)
        proved = found.served_by(device.id if device else None)
        if device and placement.abilities(proved):
            self._serve(proved, self._post.serves or "both", device)
        elif self._post.serves == "hardware":
            raise _nothing_proved(found, self._post.device)
        elif self._post.device or self._post.serves == "both":
            log.LOGGER.warning("%s: only software is served", _nothing_proved(found, self._post.device).what)

    def machine(self) -> Machine:
        """What a plan may count on at this moment."""
        with self._lock:
            if self._proved is None:
                raise AssertionError("no queue is served before the first look")
            if self._device is None:
                return self._proved
            return self._proved.without(self._device.id, self._left_alone())

    @property
    def serves(self) -> Serves:
        """What is served since the last look."""
        return self._serves or "software"

    def queues(self) -> tuple[str, ...]:
        """The names on the broker of the queues that are served now; none before the first look, or by an obstacle."""
        if self._proved is None or self.obstacle():
            return ()
        return tuple(placement.queue_name(queue) for queue in placement.served(self.machine(), self.serves))

    def told(self) -> Told:
        """What this worker says of itself."""
        device, queues = self._device, self.queues()
        with self._lock:
            left_alone = tuple(sorted(self._left_alone()))
        return Told(
            name=self._post.name,
            device=device.id if device else None,
            node=device.node if device else None,
            serves=self.serves,
            queues=queues,
            places=self._post.places,
            left_alone=left_alone,
        )

    def circuits(self) -> Mapping[tuple[str, str], bool]:
        """For the device and each codec that it proved: whether it is left alone."""
        with self._lock:
            if not self._device:
                return {}
            left_alone = self._left_alone()
            return {(self._device.id, codec): codec in left_alone for codec in self._codecs()}

    def listen(self, event: Event) -> None:
        """Count a device's faults; at the limit its queues are left."""
        if isinstance(event, FellBack) and blames_device(event.kind, event.route.api):
            self._fault(event)

    def tend(self) -> None:
        """Start the trials that are due. Returns at once."""
        now = monotonic()
        with self._lock:
            due = [codec for codec, circuit in self._circuits.items() if circuit.due(now)]
            self._circuits |= {codec: self._circuits[codec].tried() for codec in due}
        for codec in due:
            Thread(target=self._try, args=(codec,), name=f"trial {codec}", daemon=True).start()

    def _serve(self, machine: Machine, serves: Serves, device: Device | None) -> None:
        with self._lock:
            self._proved, self._serves, self._device = machine, serves, device
        queues = ", ".join(placement.short(name) for name in self.queues())
        log.write("serves", f"serves {queues}", queues=queues, device=device.id if device else None)
        self._changed()

    def _left_alone(self) -> frozenset[str]:
        return frozenset(codec for codec, circuit in self._circuits.items() if circuit.state != "closed")

    def _codecs(self) -> frozenset[str]:
        machine = self._proved
        return frozenset(map(placement.codec_of, placement.abilities(machine))) if machine else frozenset()

    def _fault(self, event: FellBack) -> None:
        with self._lock:
            if not self._device or event.route.device != self._device.id:
                return
            # a device that cannot be opened encodes nothing at all
            everything = event.kind is FaultClass.CONFIG or not event.route.codecs
            for codec in self._codecs() if everything else event.route.codecs:
                self._turn(codec, self._circuits.get(codec, Circuit()).after(event.kind, monotonic(), self._rules))

    def _try(self, codec: str) -> None:
        with self._lock:
            machine, device = self._proved, self._device
        if machine is None or device is None:
            return
        try:
            refused = [one.why for one in try_again(machine, self._policy, device.id, codec)]
        except Exception as wrong:  # a trial that cannot even run proves nothing good
            log.LOGGER.exception("the trial of %s on %s failed", codec, device.id)
            refused = [str(wrong)]
        if refused:
            log.write("trial_failed", f"{codec} on {device.id} still fails: {refused[0]}", level=logging.WARNING)
        with self._lock:
            self._turn(codec, self._circuits[codec].judged(not refused, monotonic(), self._rules))

    def _turn(self, codec: str, circuit: Circuit) -> None:
        """Note the circuit's new state, and say so where other queues follow from it."""
        before = self._circuits.get(codec, Circuit())
        self._circuits[codec] = circuit
        if (before.state == "closed") == (circuit.state == "closed"):
            return
        device = self._device.id if self._device else ""
        if circuit.state == "closed":
            log.write("taken_back", f"{codec} on {device} works again", codec=codec, device=device)
        else:
            pause = max(0.0, circuit.since - monotonic())
            why = f"{codec} on {device} failed: left alone, tried again in {pause:.0f} s"
            log.write("left_alone", why, level=logging.WARNING, codec=codec, device=device, pause=pause)
        self._changed()


def _chosen(machine: Machine, named: str | None) -> Device | None:
    if named:
        return machine.device(named)
    return next((one for one in machine.devices if placement.abilities(machine.served_by(one.id))), None)


def _nothing_proved(machine: Machine, named: str | None) -> NoRoute:
    device = machine.device(named) if named else None
    which = f"the device {named}" if named else "any device"
    troubles = [str(one.trouble) for one in ((device,) if device else machine.devices) if one.trouble]
    there = "" if device or not named else f": there is no such device ({_listed(machine)})"
    return NoRoute(
        f"hardware is to be served and no encoder was proved on {which}{there or _because(troubles)}",
        "`transcoder devices` shows what was tried and why it was refused.",
    )


def _because(troubles: list[str]) -> str:
    return f": {troubles[0]}" if troubles else ""


def _listed(machine: Machine) -> str:
    return ", ".join(f"{one.node} is {one.id}" for one in machine.devices) or "none is mapped here"
