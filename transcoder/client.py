"""Submit, watch, list and cancel jobs. Needs Redis, not ffmpeg: the files are looked at by the worker."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transcoder import placement, queue, settings
from transcoder.errors import (
    BrokerUnavailable,
    PathRefused,
    SpecError,
    TargetExists,
    TranscoderError,
    TransitionRefused,
    error_named,
)
from transcoder.ledger import FINISHED, TRANSITIONS, Heard, Ledger, Moment, Record
from transcoder.machine import SOFTWARE
from transcoder.roots import refuse_outside
from transcoder.spec import JobSpec

PATIENCE = 60.0
"""Seconds that who watches a job bears with a Redis that does not answer: the job goes on meanwhile."""

PHASES = ("queued", "probing", "waiting", "encoding", "verifying", "publishing")
"""The phases that a job goes through on its way, in order; after them it has one of the states of a finished job.

It waits only where its device, or the CPUs, have all the work that they can bear.
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the encoding is; None where it is not known. `fraction` is from 0 to 1, `speed` in times real time."""

    fraction: float | None = None
    fps: float | None = None
    speed: float | None = None
    eta_seconds: float | None = None
    frame: int | None = None
    out_time: float | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """A job as it stood at one moment. Times are Unix times in seconds, None for what has not happened.

    `state` is queued, running, published, failed, cancelled or quarantined; `phase` is one of PHASES, or the state of a
    finished job. `spec` is what was asked, as JSON values. `result` is there once it is published, `error` once it
    ended otherwise. `attempts` counts how often a worker took it. `queue` is the one that it waits in or was taken
    from, `waiting_for` says why it does not run yet.
    """

    id: str
    state: str
    phase: str
    spec: Mapping[str, Any]
    created: float
    started: float | None = None
    finished: float | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    attempts: int = 0
    owner: str | None = None
    queue: str | None = None
    waiting_for: str | None = None
    cancel_asked: bool = False
    history: tuple[Moment, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether this is the end."""
        return self.state in FINISHED


class Client:
    """Jobs on one broker. Safe to share between threads; opens a connection when it is first used.

    Every method raises BrokerUnavailable when Redis does not answer, within three seconds.
    """

    def __init__(self, broker_url: str, media_roots: Sequence[str] | None = None, *, retention: float | None = None):
        self._ledger = Ledger(broker_url) if retention is None else Ledger(broker_url, retention)
        self._roots = media_roots

    @classmethod
    def from_settings(cls) -> Client:
        """With the environment's TRANSCODER_BROKER_URL and, where they are set, its TRANSCODER_MEDIA_ROOTS."""
        chosen = settings.read()
        return cls(chosen.broker_url, chosen.media_roots, retention=chosen.retention)

    def submit(self, spec: JobSpec) -> str:
        """Put a job on the queue and give its id. For a token that was used before it is the first job's id.

        Raises:
            PathRefused: source or target lies outside the media roots, where this client knows them.
            TargetExists: another unfinished job writes one of the targets.
            TokenConflict: the token was used before with another spec.
            NoRoute: acceleration is required and no live worker has the ability.
        """
        if error := self._refusal(spec):
            raise error
        job_id = secrets.token_hex(8)
        return self._ledger.submit(job_id, spec, queue.message(job_id, spec.priority))

    def submit_many(self, specs: Sequence[JobSpec]) -> list[str | TranscoderError]:
        """Put many jobs on their queues, hundreds in one question. Gives for each its id, or why it was refused.

        One that is refused does not keep the others. Where Redis goes away in between (BrokerUnavailable) some may be
        recorded: with tokens they can all be submitted once more.
        """
        refused = {place: error for place, spec in enumerate(specs) if (error := self._refusal(spec))}
        jobs = []
        for place, spec in enumerate(specs):
            if place not in refused:
                job_id = secrets.token_hex(8)
                jobs.append((job_id, spec, queue.message(job_id, spec.priority)))
        accepted = iter(self._ledger.submit_many(jobs))
        return [refused[place] if place in refused else next(accepted) for place in range(len(specs))]

    def pause(self, queue: str) -> None:
        """Let no job of a queue (hw.h264, software, …) begin from now on. Those that run go on."""
        self._ledger.pause(_known(queue))

    def resume(self, queue: str) -> None:
        """Let the jobs of a paused queue begin again."""
        self._ledger.resume(_known(queue))

    def status(self, job_id: str) -> Status:
        """A job as it stands.

        Raises:
            JobUnknown: there is no record of it.
        """
        return _status(self._ledger.record(job_id))

    def watch(self, job_id: str, every: float = 0.2) -> Iterator[Status]:
        """A job's status whenever it changed, asked for `every` so many seconds, until it is finished.

        A phase that passed between two questions is not left out. Once the job was seen, a Redis that goes away is
        waited for, for PATIENCE seconds.

        Raises:
            JobUnknown: there is no record of it.
        """
        seen = 0
        last: Status | None = None
        while last is None or not last.is_finished:
            now = self.status(job_id) if last is None else self._status_again(job_id)
            if now != last:
                yield from _passed(now, seen)
                yield now
            seen, last = len(now.history), now
            if not now.is_finished:
                time.sleep(every)

    def wait(self, job_id: str, every: float = 0.2) -> dict[str, Any]:
        """Wait until the job is published and give its result; like `watch` it bears with Redis.

        Raises:
            TranscoderError: the job's own error, of the class it had on the worker.
            JobUnknown: there is no record of it.
        """
        now = self.status(job_id)
        while not now.is_finished:
            time.sleep(every)
            now = self._status_again(job_id)
        if now.result is None:
            raise error_of(now)
        return now.result

    def cancel(self, job_id: str) -> str:
        """Cancel a job: a queued one at once, a running one within a second. Gives 'cancelled' or 'running'.

        Raises:
            TransitionRefused: it is finished.
            JobUnknown: there is no record of it.
        """
        return self._ledger.cancel(job_id)

    def retry(self, job_id: str) -> str:
        """Submit a job that failed, was cancelled or rests in quarantine once more, as a new job. Gives its id.

        Raises:
            TransitionRefused: it is not finished, or it is published.
            JobUnknown: there is no record of it.
        """
        now = self.status(job_id)
        if now.state in ("published", "queued", "running"):
            raise TransitionRefused(f"job {job_id} is {now.state}", "Only what ended without an output is tried again.")
        # a token names its first job
        return self.submit(JobSpec.model_validate({**now.spec, "token": None}))

    def jobs(self, state: str | None = None, limit: int = 50) -> list[Status]:
        """The newest jobs first, all or those in one state."""
        if state is not None and state not in TRANSITIONS:
            raise SpecError(f"there is no state {state!r}", f"The states are {', '.join(TRANSITIONS)}.")
        return [_status(record) for record in self._ledger.jobs(state, limit)]

    def workers(self) -> list[Heard]:
        """The workers that were heard of lately, the latest first: what each serves, and how long ago it spoke."""
        return self._ledger.workers()

    def close(self) -> None:
        """Give the connections back."""
        self._ledger.close()

    def _status_again(self, job_id: str) -> Status:
        """The status of a job that was seen before; waits while Redis is away."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.status(job_id)
            except BrokerUnavailable as away:
                if time.monotonic() > deadline:
                    goes_on = f"Job {job_id} was accepted and goes on: `transcoder watch {job_id}` once Redis answers."
                    raise BrokerUnavailable(away.what, goes_on) from away
                time.sleep(0.5)

    def _refusal(self, spec: JobSpec) -> TranscoderError | None:
        """Why a job is refused before anybody is asked."""
        try:
            for path in (spec.source, spec.target) if self._roots else ():
                refuse_outside(path, self._roots or ())
        except PathRefused as refused:
            return refused
        if spec.target == spec.source:
            return TargetExists(f"the target {spec.target!r} is the source itself", "Name another target.")
        return None


def _known(name: str) -> str:
    """The queue's name on the broker."""
    if name not in placement.QUEUES:
        raise SpecError(f"there is no queue {name!r}", f"The queues are {', '.join(placement.QUEUES)}.")
    return placement.queue_name(name)


def error_of(status: Status) -> TranscoderError:
    """The error of a job that failed or was cancelled, as the exception it was on the worker."""
    told = status.error or {}
    kind = error_named(str(told.get("kind", "")))
    what = str(told.get("what") or f"job {status.id} is {status.state}")
    return kind(what, str(told.get("next_step", "")), told.get("evidence") or {})


def _status(record: Record) -> Status:
    fields = record.fields
    state = fields["state"]
    return Status(
        id=record.job_id,
        state=state,
        phase=fields.get("phase", "probing") if state == "running" else state,
        spec=json.loads(fields["spec"]),
        created=float(fields["created"]),
        started=_maybe(float, fields.get("started")),
        finished=_maybe(float, fields.get("finished")),
        progress=_maybe(lambda text: Progress(**json.loads(text)), fields.get("progress")),
        result=_maybe(json.loads, fields.get("result")),
        error=_maybe(json.loads, fields.get("error")),
        attempts=int(fields["attempt"]),
        owner=fields.get("owner"),
        queue=placement.short(fields["queue"]),
        waiting_for=_waiting_for(record),
        cancel_asked="cancel" in fields,
        history=record.history,
    )


def _maybe(read: Callable[[str], Any], text: str | None) -> Any:
    return None if text is None else read(text)


def _waiting_for(record: Record) -> str | None:
    fields = record.fields
    if fields["state"] == "running" and fields.get("phase") == "waiting":
        return f"{fields.get('detail') or 'a slot'}, which has all the work that it can bear"
    return _queued_for(record) if fields["state"] == "queued" else None


def _queued_for(record: Record) -> str:
    ability = placement.short(record.fields["queue"])
    if again := record.fields.get("again"):
        return f"its next try, in {max(0.0, float(again) - time.time()):.0f} s"
    if record.paused:
        return f"the queue {ability}, which is paused (`transcoder resume {ability}`)"
    if record.waiting is None:
        return f"a worker that serves {ability}"
    others = _count(record.waiting - 1, "other")
    hop = "" if record.hop is None else f"; goes to {SOFTWARE} in {record.hop:.0f} s"
    if record.serving:
        return f"a free place on a worker that serves {ability} ({record.serving} live, {others} waiting){hop}"
    none = f"none of {_count(record.workers, 'live worker')} does" if record.workers else "no worker is running"
    software = f" or {SOFTWARE}" if record.fields.get("policy") == "prefer" and ability != SOFTWARE else ""
    return f"a worker that serves {ability}{software}: {none}{hop}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _passed(now: Status, seen: int) -> Iterator[Status]:
    """What happened between two looks: the phases of the history that are not shown by the last of them."""
    passed = [place for place in range(seen, len(now.history)) if now.history[place].what in PHASES]
    if passed and now.history[passed[-1]].what == now.phase:
        passed = passed[:-1]
    for place in passed:
        phase, then = now.history[place].what, now.history[: place + 1]
        state = "queued" if phase == "queued" else "running"
        yield replace(
            now, state=state, phase=phase, history=then, progress=None, result=None, error=None, finished=None
        )
