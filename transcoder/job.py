"""The whole story of a job, top to bottom. For *what* happens, read this; for *how*, the modules it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from time import monotonic, sleep
from typing import Protocol

from transcoder import ffmpeg, manifest, publish
from transcoder.appetite import bytes_for
from transcoder.command import Command
from transcoder.errors import InputRefused, InputUnreadable, NoRouteWorked, TargetUnwritable, TranscoderError
from transcoder.events import (
    Advanced,
    Emit,
    FellBack,
    OutputFacts,
    Planned,
    Probing,
    Published,
    Publishing,
    Started,
    Timings,
    Tried,
    Verifying,
)
from transcoder.faults import Fault, FaultClass, last_words, stage
from transcoder.machine import SOFTWARE, Machine
from transcoder.manifest import Attempt
from transcoder.media import Media
from transcoder.plan import Plan, following, plan
from transcoder.policy import Policy
from transcoder.probe import Fingerprint, fingerprint, probe
from transcoder.progress import Progress
from transcoder.scratch import Scratch, scratch
from transcoder.spec import JobSpec
from transcoder.targets import refuse_targets, unwritable
from transcoder.verify import Verified, verify

SHORTAGE_PAUSE = 1.0
"""Seconds before a device that was short of memory or sessions is asked again."""

STDERR_KEPT = 60
"""Lines of ffmpeg's log that go into the evidence of a failed job."""


class Permit(Protocol):
    """The one seam to the queue: without a broker the answer is always yes."""

    def cancelled(self) -> bool:
        """Whether the job was cancelled or taken away. Asked several times a second."""
        ...

    def slot(self, command: Command) -> AbstractContextManager[None]:
        """A place on the device (or the CPUs) that the command needs, waited for and given back at the end.

        Raises:
            JobCancelled: it was cancelled while it waited.
        """
        ...

    def fenced(self) -> None:
        """Told by a later attempt that the earlier ones can publish nothing any more; asked whether it may go on.

        Raises:
            JobCancelled: it was cancelled.
            WorkersLost: too many workers were lost with it.
        """
        ...

    def may_write(self, targets: Sequence[str]) -> None:
        """Claim the final paths for this job, once they are known.

        Raises:
            TargetExists: another unfinished job has one of them.
        """
        ...

    def room(self, folder: str, need: int) -> AbstractContextManager[None]:
        """So many bytes of the file system where `folder` lies, for what is going to be written there.

        It may raise what its own side understands where there is too little: then the job is held back.
        """
        ...

    def still_ours(self) -> None:
        """Asked at the last moment before publishing.

        Raises:
            TransitionRefused: the job belongs to another worker by now.
            JobCancelled: it was cancelled.
        """
        ...


def transcode(
    spec: JobSpec, attempt: Attempt, machine: Machine, policy: Policy, emit: Emit, permit: Permit
) -> Published:
    """Make the outputs of `spec`, verified, or raise the TranscoderError that says why not. Leaves nothing half done.

    Raises:
        TranscoderError: any of its kinds; which one says what the caller can do.
    """
    clock = Clock()
    if attempt.number > 1:
        if whole := attempt.left and publish.recover(attempt.job_id, attempt.number, attempt.left, policy):
            return _announce(manifest.published(whole), emit)
        permit.fenced()
    emit(Probing(spec.source))
    before, source = fingerprint(spec.source, policy), probe(spec.source, policy, permit.cancelled)
    allowed = machine if policy.hardware_decode else machine.decoding_in_software()
    planned = plan(spec, source, allowed, policy.max_pixels)
    emit(Planned(source, planned.commands, planned.left_out))

    if whole := publish.recover(attempt.job_id, attempt.number, planned.targets, policy):
        return _announce(manifest.published(whole), emit)
    refuse_targets(planned.targets, spec.source, policy, overwrite=spec.overwrite)
    permit.may_write(planned.targets)
    clock.lap("probe")

    tried: list[Tried] = []
    command: Command | None = planned.commands[0]
    need = bytes_for(source, planned.rungs)
    with (
        scratch(attempt.job_id, attempt.number, planned.targets, planned.extensions) as held,
        permit.room(held.folder, need),
    ):
        while command:
            try:
                with permit.slot(command):
                    clock.lap("wait")
                    emit(Started(command.route))
                    finished = _encode(command, held, source, policy, emit, permit)
                clock.lap("encode")
                emit(Verifying(command.route))
                good = verify(planned, command.route, held.paths, finished, policy, permit.cancelled)
                clock.lap("verify")
            except Fault as fault:
                held.still_there()
                tried.append(Tried(command.route.name, fault.kind.value, fault.what, clock.lap("lost")))
                emit(FellBack(command.route, fault.kind, fault.what, tried[-1].lost))
                again = sum(one.route == command.route.name for one in tried)
                next_command = following(planned.commands, command, fault.kind, stage(fault), again)
                if next_command is None:
                    raise _conclusion(spec, command, fault, tried) from fault
                if next_command is command:
                    sleep(SHORTAGE_PAUSE)
                command = next_command
            else:
                emit(Publishing(command.route))
                refuse_changed(spec.source, before, policy)
                outputs = _weighed(planned, good, held, permit)
                clock.lap("publish")
                result = Published(
                    route=command.route,
                    outputs=outputs,
                    manifest=publish.manifest_path(attempt.job_id, planned.targets, policy),
                    timings=clock.timings(good.decode),
                    tried=tuple(tried),
                    warnings=(*planned.left_out, *good.warnings),
                    gpu=finished.usage,
                )
                permit.still_ours()
                promised = manifest.compose(
                    spec, attempt, result, fingerprint=asdict(before), argv=command.argv(), build=machine.build.version
                )
                publish.put(held, promised, policy, overwrite=spec.overwrite)
                clock.lap("publish")
                return _announce(replace(result, timings=clock.timings(good.decode)), emit)
    raise AssertionError("a plan has a command, and each returns, raises or names another")


class Clock:
    """Where the time goes: laps in seconds, summed by name."""

    def __init__(self) -> None:
        self._began = self._last = monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> float:
        """End a lap; returns its seconds."""
        now = monotonic()
        spent, self._last = now - self._last, now
        self.laps[name] = self.laps.get(name, 0.0) + spent
        return round(spent, 3)

    def timings(self, decode: float) -> Timings:
        """All laps so far; `decode` is the part of verifying that decoded, in seconds."""
        part = {name: round(self.laps.get(name, 0.0), 4) for name in ("probe", "encode", "verify", "publish")}
        return Timings(**part, decode=round(decode, 4), total=round(monotonic() - self._began, 4))


def refuse_changed(source: str, before: Fingerprint, policy: Policy) -> None:
    """The source is what it was when it was probed.

    Raises:
        InputUnreadable: it was changed or still grows.
    """
    if fingerprint(source, policy) != before:
        raise InputUnreadable(
            f"the source {source!r} changed while it was encoded", "Submit it again once it is written to the end."
        )


def _encode(
    command: Command, held: Scratch, source: Media, policy: Policy, emit: Emit, permit: Permit
) -> ffmpeg.Finished:
    """Run ffmpeg to its end, which is 100 % whatever the header said of the duration."""
    last = Progress()
    words = command.argv(policy.ffmpeg, held.paths)
    for step in ffmpeg.run(words, policy, permit.cancelled, device=command.route.device):
        if isinstance(step, ffmpeg.Finished):
            emit(Advanced(command.route, last, 1.0, 0.0))
            return step
        last = step
        emit(Advanced(command.route, step, step.fraction(source.duration), step.eta(source.duration)))
    raise AssertionError("a run ends with Finished or raises")


def _weighed(planned: Plan, good: Verified, held: Scratch, permit: Permit) -> tuple[OutputFacts, ...]:
    """The verified outputs with their sizes and checksums.

    Raises:
        TransitionRefused: a later attempt took the job over.
        TargetUnwritable: the file system does not let them be read.
    """
    try:
        return tuple(
            manifest.output(rung, facts, os.path.getsize(path), publish.sha256(path, permit.cancelled))
            for rung, facts, path in zip(planned.rungs, good.facts, held.paths, strict=True)
        )
    except OSError as error:
        held.still_there()
        raise unwritable(held.targets[0], error) from None


def _announce(result: Published, emit: Emit) -> Published:
    emit(result)
    return result


def _conclusion(spec: JobSpec, command: Command, fault: Fault, tried: list[Tried]) -> TranscoderError:
    """The error that a job ends with, from the fault that ended it."""
    ended_well = not fault.evidence.argv  # it was refused for what it made
    evidence = {
        "fault": fault.kind.value,
        "tried": [asdict(one) for one in tried],
        "argv": list(command.argv() if ended_well else fault.evidence.argv),
        "returncode": 0 if ended_well else fault.evidence.returncode,
        "stderr": list(last_words(fault.evidence.stderr, STDERR_KEPT)),
    }
    match fault.kind:
        case FaultClass.INPUT:
            hint = "Bring a whole copy, or allow --salvage to publish what can be read."
            if command.route.api != SOFTWARE:
                hint += " Software, which may read it, was not asked: acceleration is required."
            return InputUnreadable(f"the source {spec.source!r} is damaged or cut short: {fault.what}", hint, evidence)
        case FaultClass.BLOCKED:
            hint = "Look at the storage, and submit again once it answers."
            what = f"the storage of {spec.source!r} or of its target does not answer: {fault.what}"
            return InputUnreadable(what, hint, evidence)
        case FaultClass.LIMIT:
            hint = "Raise TRANSCODER_WALL_LIMIT, _CPU_LIMIT or _MAX_FILE on the workers, or ask for less."
            what = f"the source {spec.source!r} takes more than is allowed: {fault.what}"
            return InputRefused(what, hint, evidence)
        case FaultClass.OUTPUT:
            hint = "Make room or repair the volume, then submit again."
            return TargetUnwritable(f"the target {spec.target!r} cannot be written: {fault.what}", hint, evidence)
        case _:
            routes = ", ".join(f"{one.route}: {one.what}" for one in tried)
            hint = "--json shows the command and ffmpeg's last words, to repeat it by pasting."
            return NoRouteWorked(f"no route gave a verified output of {spec.source!r} ({routes})", hint, evidence)
