"""What the benchmarks have in common: a session that runs cells, keeps what it sees in a file, and ends in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, NoReturn, Protocol

from transcoder import signals
from transcoder.bench import design
from transcoder.bench.destination import Destination
from transcoder.bench.environment import crowded, of_others, ticks
from transcoder.bench.result import Device, Result, Run
from transcoder.bench.rig import Seen
from transcoder.errors import MachineBusy, TargetUnwritable, TranscoderError
from transcoder.machine import SOFTWARE

LEAST_FRAMES = 100
"""An encoder holds some forty pictures back before it gives the first: shorter runs show little but that."""


class Show(Protocol):
    """Who is told how far it is."""

    def phase(self, sentence: str) -> None:
        """What is done now."""

    def block(self, number: int, of: int | None, left: float) -> None:
        """A block begins, counted from 1; how many there will be, as far as known, and seconds to the end of all."""

    def ran(self, run: Run) -> None:
        """A cell has run."""

    def note(self, sentence: str) -> None:
        """Something that the reader must know."""


class Session:
    """A benchmark under way. `_others` are the shares of the CPUs that other programs had, of each run."""

    _result: Result

    def __init__(self, out: Destination, show: Show) -> None:
        self._out, self._show = out, show
        self._notes: list[str] = []
        self._others: list[float] = []

    def broken(self, why: str) -> str | None:
        """Keep why it ended before its time; gives the file that has what was measured, None where nothing was."""
        if self._out.last is None:
            return None
        self._notes.append(f"ended before its time: {why}")
        with suppress(TargetUnwritable):  # which may be why
            self._save()
        return self._out.path

    def _note(self, sentence: str) -> None:
        self._notes.append(sentence)
        self._show.note(sentence)

    def _crowded(self) -> str:
        """What is to be said of other programs; nothing where they had little."""
        return crowded(self._others)

    def _cpus_limit(self, share: float) -> bool:
        """Whether a device is simulated by so much of the CPUs that they would be measured, and no device."""
        return self._result.device.kind == "simulated" and share > design.BUSY

    def _refuse_busy(self, run: Run, next_step: str) -> None:
        """A simulated device is none if the CPUs that simulate it are the limit; what else runs here is not meant."""
        share = work(run) / self._result.environment.cpus
        if self._cpus_limit(share):
            raise MachineBusy(
                f"the stacks of {run.cell.name} took {share:.0%} of the CPUs: they would be measured, and no device",
                next_step,
            )

    def _save(self, **found: object) -> None:
        """Put the result in its file, with what was found since."""
        notes = (*self._notes, *filter(None, [self._crowded()]))
        self._result = self._result.model_copy(update={"notes": notes, **found})
        self._out.write(self._result)

    def _ended(self, **found: object) -> Result:
        """The whole result, which is no longer partial, in its file."""
        self._save(partial=False, **found)
        if others := self._crowded():
            self._show.note(others)
        return self._result

    def _observed(self, planned: Run, work: Callable[[], Seen]) -> Run:
        """The run with what its stacks did and what the machine did meanwhile."""
        before, began = ticks(), monotonic()
        seen = work()
        after, took = ticks(), monotonic() - began
        self._others.append(of_others(before, after, took, seen.cpu))
        return planned.model_copy(
            update={
                "stacks": seen.stacks,
                "cpu_busy": round(after.busy(before), 4),
                "steal": round(after.stolen(before), 4),
                "load": os.getloadavg()[0],
                "throttled": seen.throttled,
            }
        )


def work(run: Run) -> float:
    """How many CPUs the stacks of a run kept busy, from the first's start to the last's end."""
    seconds = max(stack.ended for stack in run.stacks) - min(stack.started for stack in run.stacks)
    return sum(stack.cpu_user + stack.cpu_system for stack in run.stacks) / max(seconds, 1e-3)


def trouble(run: Run | Seen, frames: int) -> str:
    """Why one of its stacks is none: it failed, or made fewer pictures; nothing where all is well."""
    for stack in run.stacks:
        if stack.trouble:
            return stack.trouble
        if stack.frames != frames:
            return f"it made {stack.frames} of {frames} pictures"
    return ""


@contextmanager
def telling_why(session: Session) -> Iterator[None]:
    """Whatever ends a benchmark before its time is told in what it keeps, and an error tells where that is."""
    try:
        yield
    except BaseException as ended:  # Ctrl-C and signals among them; it goes on its way
        kept = session.broken(_why(ended))
        if kept and isinstance(ended, TranscoderError):
            ended.next_step = f"{ended.next_step} What was measured is in {kept}.".strip()
        raise


def _why(ended: BaseException) -> str:
    if isinstance(ended, KeyboardInterrupt):
        return "it was interrupted (Ctrl-C)"
    if isinstance(ended, SystemExit):
        return "it was ended by a signal"
    return ended.what if isinstance(ended, TranscoderError) else f"{type(ended).__name__}: {ended}"


@contextmanager
def in_order() -> Iterator[None]:
    """A plain kill and a terminal that closes end it as Ctrl-C does: everything is taken down first."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    with signals.heard((signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), leave):
        yield


def cut(argv: Sequence[str], frames: int, rate: float) -> tuple[str, ...]:
    """The words with only the first frames of the source read: half a frame less than the next one's time."""
    before = list(argv).index("-i")
    return (*argv[:before], "-t", f"{(frames - 0.5) / rate:.6f}", *argv[before:])


def paced(argv: Sequence[str], rate: float) -> tuple[str, ...]:
    """The words with the source read at so many times real time, or as fast as it is encoded where that is slower."""
    before = list(argv).index("-i")
    return (*argv[:before], "-readrate", f"{rate:.6f}", *argv[before:])


def too_short(frames: int) -> str:
    """What is to be said of a clip that is shorter than a run should be."""
    return (
        f"the clip has only {frames} pictures, and runs should have {LEAST_FRAMES}: encoders hold many of them back, so"
        " that start and end outweigh the rest"
    )


def device(plan: Mapping[str, Any]) -> Device:
    """What encodes: the driver of the GPU in software says that it is simulated."""
    found = plan["device"]
    if plan["accel"] == SOFTWARE:
        return Device(kind="software", name=f"the CPUs, by {plan['route']}")
    if found is None:  # a backend whose device is no render node
        return Device(kind="real", name=plan["route"])
    simulated = "simulated" in found["driver"].lower()
    return Device(kind="simulated" if simulated else "real", name=found["driver"], address=found["address"])
