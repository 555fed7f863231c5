"""The record of every job in Redis: the truth about it. Each change happens whole or is refused.

The message on the queue only carries the job's id: it may come twice, late or never without harm, because a worker
may run a job only after it moved the record from queued to running. The record and its first message are written in
one step, so that there is neither a message without a record nor a record without a message.

The changes are in ledger.lua, which Redis runs; times are Redis' own, so that the clocks of the hosts do not matter.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from math import inf
from pathlib import Path
from posixpath import normpath
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from transcoder import placement
from transcoder.errors import (
    BrokerUnavailable,
    JobCancelled,
    JobUnknown,
    NoRoute,
    TargetExists,
    TokenConflict,
    TranscoderError,
    TransitionRefused,
)
from transcoder.machine import SOFTWARE
from transcoder.retry import Again, Before
from transcoder.spec import JobSpec

TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "published", "failed", "cancelled", "quarantined"}),
    "published": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "quarantined": frozenset(),
}
"""Every state and the states that may follow it; ledger.lua takes the law from here."""

FINISHED: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)
RETENTION = 7 * 86400.0
"""Seconds that the record of a finished job is kept; those of unfinished jobs are kept until they finish."""

KEEPALIVE: Final[Mapping[int, int]] = {
    socket.TCP_KEEPIDLE: 3,
    socket.TCP_KEEPINTVL: 1,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 5000,
}
"""A peer that is gone is noticed after 6 s of silence, and 5 s (5000 ms) after something was sent to it."""

CONNECT_TIMEOUT = 1.0
"""Seconds to wait for a connection. With ANSWER_TIMEOUT it bounds how long a submit may take when Redis is away."""
ANSWER_TIMEOUT = 2.0
"""Seconds to wait for an answer. Every change takes well under a millisecond of Redis' time."""
HEALTH_CHECK = 3
"""Seconds of idleness after which a connection is tried with PING before it is used."""

ALIVE = 10.0
"""Seconds after its last word that a worker counts as live."""
GRACE = 5.0
"""Seconds that a hardware queue is served by nobody before `prefer` jobs leave it: a worker may be restarting."""
SILENT = 3600.0
"""Seconds that a worker which left without a word is still listed."""
ASIDE = 1.0
"""Seconds before a job that came to a worker which had handed it on is offered again."""

CLEARLY = 1.5
"""How many times longer hardware must be busy with the rest than software with a job that goes there. The size of a job
tells its time to a third or so: at 1 one in a hundred mixes waits long for a job that software should not have had."""
EARLY = 3.0
"""A long job goes first once the rest of the queue would not keep a place busy for so many times its length."""
FRONT = 16
"""Long jobs that are brought to the front of a queue at a time: each is sought in a list that may be long."""
ARRANGED = 0.9
"""Seconds between two looks at the order of the queues, whichever worker has them."""

STEPS: Final = ("", *(f"\x06\x16{step}" for step in range(1, 10)))
"""What follows a queue's name in the names of its lists, the most urgent first (kombu's separator and step)."""

_HISTORY = 100
_NAMED = re.compile(r'"id": "(\w+)\.')
"""In a message: the name of the task, which begins with the job's id."""
_PAGE = 500
"""Messages that are read at a time."""
_AT_ONCE = 50
"""Jobs that one change moves at most: Redis does nothing else meanwhile."""


@dataclass(frozen=True, slots=True)
class Message:
    """A job's message for a queue: the Redis list is the queue's name and `step`, `text` the envelope with the id.

    The ledger puts another queue's name into the envelope where the job goes there.
    """

    queue: str
    step: str
    text: str

    @property
    def list_key(self) -> str:
        """The Redis list that it lies in."""
        return self.queue + self.step


@dataclass(frozen=True, slots=True)
class Claimed:
    """The job, which waited in `queue`, is this worker's now.

    `spec` is JSON; `fence` is the number of the attempt, which every change shows. `left` are the targets that an
    earlier attempt may have begun to publish, `lost` is how many workers the job has lost, and `before` what failed.
    """

    spec: str
    fence: int
    queue: str
    left: tuple[str, ...] = ()
    lost: int = 0
    before: Before = field(default_factory=Before)


@dataclass(frozen=True, slots=True)
class Newer:
    """The job, which waits in `queue`, is of a newer schema than this worker reads; nothing was changed."""

    schema: int
    queue: str


Following: TypeAlias = tuple[str, Claimed | Newer | None]
"""The id of a job that a place has taken, and what `claim` would have given for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place of the worker `owner` that has become free: what it takes jobs from, in the order of preference.

    `schema` is the newest that it reads. `word` is this question's own, as a claim's: the repetition gets the same job.
    """

    owner: str
    queues: Sequence[str]
    schema: int
    word: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker says of itself. `queues` are those that it takes jobs from, `device` the id of its device.

    `serves` is hardware, software or both; `places` how many jobs it runs at a time. `left_alone` are the codecs that
    it does not encode on its device for now, because they failed.
    """

    name: str = ""
    device: str | None = None
    node: str | None = None
    serves: str = "both"
    queues: tuple[str, ...] = ()
    places: int = 0
    left_alone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """A worker as it was last heard of, so many seconds ago, with so many jobs."""

    owner: str
    told: Told
    running: int
    ago: float

    @property
    def live(self) -> bool:
        """Whether jobs are given to it."""
        return self.ago < ALIVE


@dataclass(frozen=True, slots=True)
class Hop:
    """A job that went from a hardware queue to software; `why` is waited, unserved or sooner."""

    job_id: str
    queue: str
    why: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A job that waits again because its worker is not heard of any more: the `lost`th that it lost."""

    job_id: str
    fence: int
    owner: str
    lost: int


@dataclass(frozen=True, slots=True)
class Look:
    """How far the count of signs of life is, and which queues are paused; for the one that acts, what it did and met.

    `short` are the queues that have fewer messages than waiting jobs at this moment.
    """

    count: int
    paused: frozenset[str] = frozenset()
    acts: bool = False
    taken_back: tuple[TakenBack, ...] = ()
    short: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker tells of one running job: phases begun since the last report, as (phase, seconds ago, detail).

    `effort` is what it encodes in all, in pixels, where that is news.
    """

    job_id: str
    fence: int
    phases: Sequence[tuple[str, float, str]] = ()
    progress: Mapping[str, object] | None = None
    effort: int | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of a job's history. `at` is Unix time in seconds; `what` a state or a phase."""

    at: float
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is known of a job. `fields` are Redis' texts.

    Asked for one by one it has its history too, how many jobs wait in its queue, how many workers live and how many
    of them serve that queue, in how many seconds it goes to software (None: it does not), and whether it is paused.
    """

    job_id: str
    fields: Mapping[str, str]
    history: tuple[Moment, ...] = ()
    waiting: int | None = None
    workers: int | None = None
    serving: int | None = None
    hop: float | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How many jobs wait in one queue, for how many seconds the oldest has, and how many live workers serve it."""

    depth: int
    oldest: float
    workers: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The whole queue at a glance: running jobs, workers heard of in the last 10 s, and what waits by queue.

    `stuck` are the running jobs whose worker was not heard of in that time.
    """

    running: int
    stuck: int
    workers: int
    queues: Mapping[str, QueueFigures] = field(default_factory=dict)


def step(priority: int) -> int:
    """A priority, 9 the most urgent, as kombu's Redis transport counts: 0 the most urgent."""
    return len(STEPS) - 1 - priority


def connect(url: str) -> redis.Redis:
    """A client that fails soon and clearly. Nothing is sent before it is used.

    One repetition covers a connection that Redis closed while it was idle; the changes bear being sent twice. A
    timeout is not repeated, so that the worst case stays CONNECT_TIMEOUT + ANSWER_TIMEOUT.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=ANSWER_TIMEOUT,
        socket_keepalive=True,
        socket_keepalive_options=dict(KEEPALIVE),
        health_check_interval=HEALTH_CHECK,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


def targets_of(spec: JobSpec) -> tuple[str, ...]:
    """What a job is going to write, as far as it is known at submit: two unfinished jobs never share one of these.

    A {height} is known only after the source was looked at; it stays open, in a form that no path has.
    """
    return tuple(
        dict.fromkeys(_target(spec, output.video is not None, index) for index, output in enumerate(spec.outputs))
    )


def _target(spec: JobSpec, has_picture: bool, index: int) -> str:
    output = spec.outputs[index]
    path = normpath(spec.target_of(output, 0 if has_picture else None))
    return f"?{path}" if has_picture and path != normpath(spec.target_of(output, 1)) else path


class Ledger:
    """The records, over one Redis. Safe to share between threads.

    Every method raises BrokerUnavailable when Redis does not answer or refuses to write.
    """

    def __init__(self, url: str, retention: float = RETENTION) -> None:
        self.url = url
        self._redis = connect(url)
        self._script = self._redis.register_script(_script(retention))

    def submit(self, job_id: str, spec: JobSpec, message: Message) -> str:
        """Record a job and put its message on a queue, chosen by what lives at that moment.

        Under `require` it is the hardware queue that the job needs, or a refusal; under `prefer` that queue while it
        is served, else software where that is served; under `never`, and for what needs no device, software.

        Gives the job's id: an older one for a token used before.

        Raises:
            NoRoute: acceleration is required and no live worker has the ability.
            TokenConflict: the token was used before with another spec.
            TargetExists: another unfinished job writes one of the targets.
        """
        answer = self._change("submit", **_submission(job_id, spec, message))
        accepted = _accepted(spec, answer)
        if isinstance(accepted, TranscoderError):
            raise accepted
        return accepted

    def submit_many(self, jobs: Sequence[tuple[str, JobSpec, Message]]) -> list[str | TranscoderError]:
        """Submit each for itself, many in one question to Redis. Gives for each its id, or why it was refused.

        Where Redis goes away in between, some are recorded and nobody says which: with tokens they can all be submitted
        once more.
        """
        return [accepted for at in range(0, len(jobs), _PAGE) for accepted in self._submit_page(jobs[at : at + _PAGE])]

    def claim(self, job_id: str, owner: str, schema: int, word: str | None = None) -> Claimed | Newer | None:
        """Take a queued job for `owner`, who reads specs up to `schema`. None where there is nothing to do.

        That is so for a message that comes twice or late, for a job that was cancelled or is gone, and for one that
        this worker has handed on. `word` is the claim's own: when the answer is lost on the way, a repetition under the
        same is still this claim.
        """
        words = {"owner": owner, "schema": schema, "claim": word or secrets.token_hex(8)}
        return _claimed(self._change("claim", id=job_id, **words))

    def take_next(self, place: Place) -> Following | None:
        """Take the job that a free place would get from its queues at this moment, with its message; None for none.

        The most urgent comes first, and among equals that of the queue named first.
        """
        return _following(self._change("take_next", **_place(place)))

    def beat(self, owner: str, reports: Sequence[Report], told: Told = Told()) -> list[str]:
        """Say that `owner` lives, what it serves and how its jobs are.

        Gives for each report 'go on', or 'cancelled' or 'lost'.
        """
        jobs = [_reported(report) for report in reports]
        words = {"told": json.dumps(asdict(told)), "queues": told.queues, "places": told.places}
        _, *verdicts = self._change("beat", owner=owner, jobs=jobs, **words)
        return verdicts

    def workers(self) -> list[Heard]:
        """Every worker that was heard of lately, the latest first."""
        _, *found = self._change("workers")
        return [Heard(owner, _told(text), int(running), float(ago)) for owner, text, running, ago in found]

    def pause(self, queue: str) -> None:
        """No job of that queue begins from now on; those that run go on."""
        self._change("pause", queue=queue)

    def resume(self, queue: str) -> None:
        """The jobs of that queue may begin again."""
        self._change("resume", queue=queue)

    def tend(self, prefer_wait: float, rise: float = inf, slower: float | None = None) -> list[Hop]:
        """Let `prefer` jobs that waited so many seconds for hardware go to software; send again what was laid aside.

        Jobs that are known in size go when they end sooner there, taking `slower` times as long, and the longest come
        first as soon as they would end last; with None for it size plays no part.

        What waited for `rise` seconds since it was last sent becomes one step more urgent.

        Any worker may do that at any time; the changes are atomic and bounded. Gives the jobs that went.
        """
        words = _given({"wait": prefer_wait, "rise": min(rise, 366 * 86400.0), "slower": slower})
        _, *hops = self._change("tend", **words)
        return [Hop(*hop) for hop in hops]

    def unweighed(self, queues: Sequence[str], after: float) -> tuple[str, str] | None:
        """The next job of these queues that has waited so many seconds and is not known in size, and its spec as JSON.

        No job is given a second time, whoever asks.
        """
        match self._change("unweighed", queues=list(queues), after=after):
            case ["ok", job_id, spec]:
                return str(job_id), str(spec)
            case _:
                return None

    def weigh(self, job_id: str, effort: int) -> None:
        """Note how many pixels a queued job encodes in all. What was noted first counts.

        Raises:
            TransitionRefused: the job is not queued.
        """
        # as a text: Lua would write a large number with an exponent
        self._held(job_id, self._change("weigh", id=job_id, effort=str(effort)))

    def reap(self, owner: str, dead: int, seen: int, lease: float) -> Look:
        """Take back the jobs of which no sign of life came since the count of these was `dead`, if nobody else does.

        Nothing is done where the count is lower than `seen`, which is how far it was at the last look. Who does it is
        the only one for `lease` seconds. A bounded number of jobs is taken back at a time.
        """
        match self._change("reap", owner=owner, dead=dead, seen=seen, lease=round(lease * 1000)):
            case [_, count, paused, 1, jobs, short]:
                taken_back = (TakenBack(job_id, int(fence), was, lost) for job_id, fence, was, lost in jobs)
                return Look(count, frozenset(paused), True, tuple(taken_back), tuple(short))
            case [_, count, paused, *_]:
                return Look(count, frozenset(paused))
            case answer:
                raise AssertionError(answer)

    def send_again(self, queue: str) -> list[str]:
        """Send a message for each job that waits in that queue and has none. Gives the jobs.

        A job whose message was just taken and is not claimed yet gets another one, which then comes too late.
        """
        waiting = self._ask(lambda: self._redis.zrange(f"transcoder:waiting:{queue}", 0, -1))
        named = {job_id for step in STEPS for job_id in self._named(queue + step)}
        # each goes before those sent earlier, so that the oldest comes last
        missing = [job_id for job_id in reversed(waiting) if job_id not in named]
        pages = [missing[at : at + _AT_ONCE] for at in range(0, len(missing), _AT_ONCE)]
        return [job_id for ids in pages for job_id in self._change("send_again", queue=queue, ids=ids)[1:]]

    def leave(self, owner: str) -> None:
        """`owner` works no longer."""
        self._change("leave", owner=owner)

    def still_ours(self, job_id: str, fence: int) -> None:
        """Check that the job runs under this fencing number and nobody cancelled it.

        Raises:
            TransitionRefused: it does not.
            JobCancelled: somebody did.
        """
        if self._held(job_id, self._change("hold", id=job_id, fence=str(fence))) == ["cancelled"]:
            raise _cancelled(job_id)

    def take_targets(self, job_id: str, fence: int, paths: Sequence[str]) -> None:
        """Keep other jobs off these paths until the job is finished.

        Raises:
            TargetExists: another unfinished job has one of them.
            TransitionRefused: the job is not this worker's any more.
        """
        targets = [normpath(path) for path in paths]
        words = {"targets": [_digest(target) for target in targets], "paths": json.dumps(list(paths))}
        answer = self._held(job_id, self._change("take_targets", id=job_id, fence=str(fence), **words))
        if answer[0] == "taken":
            raise _taken(targets, answer)

    def fenced(self, job_id: str, fence: int) -> None:
        """Note that earlier attempts at the job cannot publish anything any more.

        Raises:
            TransitionRefused: the job is not this worker's any more.
            JobCancelled: it was cancelled.
        """
        if self._held(job_id, self._change("fenced", id=job_id, fence=str(fence))) == ["cancelled"]:
            raise _cancelled(job_id)

    def finish(
        self,
        report: Report,
        state: str,
        result: Mapping[str, object] | None = None,
        error: Mapping[str, object] | None = None,
        place: Place | None = None,
    ) -> Following | None:
        """End a running job: published with its result, or failed or cancelled with the error. Frees its targets.

        With the place that it leaves, in the same step, that takes its next job.

        Raises:
            TransitionRefused: the job is not this worker's any more.
        """
        ending = _given({"result": result, "error": error})
        texts = {name: json.dumps(value, default=str) for name, value in ending.items()}
        words = _given({"state": state, "place": place and _place(place)})
        return _following(self._held(report.job_id, self._change("finish", **words, **texts, **_reported(report))))

    def hand_back(self, job_id: str, fence: int, why: str) -> None:
        """Put a running job back on its queue, for any worker.

        Raises:
            TransitionRefused: the job is not this worker's any more.
        """
        self._held(job_id, self._change("hand_back", id=job_id, fence=str(fence), why=why))

    def put_off(self, report: Report, again: Again, crashes: int, why: str, queue: str | None = None) -> None:
        """Let a running job wait, for any worker, until it is tried again; `crashes` of ffmpeg are added to its count.

        It waits in the queue that it came from, or in `queue`.

        Raises:
            TransitionRefused: the job is not this worker's any more.
        """
        words = {
            "seconds": again.seconds,
            "careful": again.careful,
            "held": again.held,
            "crashes": crashes,
            "why": why,
            "queue": queue,
        }
        self._held(report.job_id, self._change("put_off", **_given(words), **_reported(report)))

    def hand_on(
        self, job_id: str, fence: int, queues: Sequence[str], why: str, *, once: bool = False
    ) -> str | list[Told]:
        """Put a running job on the first of these queues that a live worker serves which has not handed it on itself.

        Its holder never gets it back, so that no job goes in circles. Gives the queue; or, where there is no such
        worker, what those say of themselves that live: then nothing was changed. What is handed on `once` is so only
        the first time that this is asked for the job.

        Raises:
            TransitionRefused: the job is not this worker's any more.
        """
        asked = self._change("hand_on", id=job_id, fence=str(fence), queues=list(queues), why=why, once=once)
        answer = self._held(job_id, asked)
        return str(answer[1]) if answer[0] == "ok" else [_told(text) for text in answer[1:]]

    def post(self, job_id: str, queue: str, why: str) -> None:
        """Send a queued job's message again, perhaps to another queue.

        Raises:
            TransitionRefused: the job is not queued.
        """
        self._held(job_id, self._change("post", id=job_id, queue=queue, why=why))

    def cancel(self, job_id: str) -> str:
        """Cancel a job: queued, at once; running, when its worker hears of it. Gives its state now.

        One that was taken from a silent worker stays queued until another worker has taken away what that one left.

        Raises:
            TransitionRefused: it is finished.
        """
        error = _cancelled(job_id).as_record()
        return str(self._held(job_id, self._change("cancel", id=job_id, error=json.dumps(error)))[1])

    def record(self, job_id: str) -> Record:
        """All that is known of a job.

        Raises:
            JobUnknown: there is no record; finished ones are kept for a limited time.
        """
        _, flat, history, *counts, hop, paused = self._held(job_id, self._change("record", id=job_id))
        moments = tuple(Moment(*json.loads(line)) for line in history)
        waiting, workers, serving = counts
        seconds = float(hop) if hop else None
        return Record(job_id, _pairs(flat), moments, waiting, workers, serving, seconds, bool(paused))

    def jobs(self, state: str | None = None, limit: int = 50) -> list[Record]:
        """The newest jobs, or the newest in a state, without their histories."""
        _, *found = self._change("jobs", limit=limit, **({"state": state} if state else {}))
        return [Record(job_id, _pairs(flat)) for job_id, flat in zip(found[::2], found[1::2], strict=True)]

    def figures(self) -> Figures:
        """Running, stuck and waiting jobs, live workers, and how it stands with every queue."""
        _, running, stuck, workers, *queues = self._change("figures")
        rows = zip(queues[::4], queues[1::4], queues[2::4], queues[3::4], strict=True)
        waiting = {name: QueueFigures(depth, float(oldest), serving) for name, depth, oldest, serving in rows}
        return Figures(running, stuck, workers, waiting)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def _submit_page(self, jobs: Sequence[tuple[str, JobSpec, Message]]) -> list[str | TranscoderError]:
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                words = json.dumps(_submission(*job), ensure_ascii=False)
                self._script(args=["submit", words], client=pipe)
            answers = self._ask(partial(pipe.execute, raise_on_error=False))
        return [
            _unavailable(self.url, answer) if isinstance(answer, redis.RedisError) else _accepted(spec, answer)
            for (_, spec, _), answer in zip(jobs, answers, strict=True)
        ]

    def _named(self, key: str) -> Iterator[str]:
        """The jobs that the messages of a list name. Read from where messages are added, so that none is missed."""
        for start in count(0, _PAGE):
            page = self._ask(partial(self._redis.lrange, key, start, start + _PAGE - 1))
            yield from (found[1] for text in page if (found := _NAMED.search(text)))
            if len(page) < _PAGE:
                return

    def _change(self, operation: str, **words: object) -> list[Any]:
        return self._ask(lambda: self._script(args=[operation, json.dumps(words, ensure_ascii=False)]))

    def _ask(self, question: Callable[[], Any]) -> list[Any]:
        try:
            answer: list[Any] = question()
        except (redis.RedisError, OSError) as refused:
            if _is_a_bug(refused):
                raise
            raise _unavailable(self.url, refused) from refused
        return answer

    def _held(self, job_id: str, answer: list[Any]) -> list[Any]:
        match answer:
            case ["unknown"]:
                raise JobUnknown(f"there is no job {job_id}", "`transcoder jobs` lists those there are.")
            case ["refused", state]:
                raise TransitionRefused(f"job {job_id} is {state}", _STATES.get(state, ""))
            case ["refused", state, attempt]:
                raise TransitionRefused(
                    f"job {job_id} is not this worker's any more: it is {state}, attempt {attempt}",
                    "Nothing to do: what became of it is in its record.",
                )
            case _:
                return answer


_STATES = dict.fromkeys(
    FINISHED, "It is finished, and that is final: `transcoder retry` makes a new job of what failed."
)


def _cancelled(job_id: str) -> JobCancelled:
    return JobCancelled(f"job {job_id} was cancelled", f"`transcoder retry {job_id}` if it is wanted after all.")


def safe(url: str) -> str:
    """The address without its password, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _script(retention: float) -> str:
    ways = ", ".join(
        f"{state} = {{{', '.join(f'{following} = true' for following in sorted(states))}}}"
        for state, states in TRANSITIONS.items()
    )
    constants = (
        f"local LEGAL = {{{ways}}}\n"
        f"local RETENTION, HISTORY, AT_ONCE = {max(1, round(retention))}, {_HISTORY}, {_AT_ONCE}\n"
        f"local ALIVE, GRACE, SILENT, ASIDE = {ALIVE}, {GRACE}, {round(SILENT)}, {ASIDE}\n"
        f"local CLEARLY, EARLY, FRONT, ARRANGED = {CLEARLY}, {EARLY}, {FRONT}, {ARRANGED}\n"
        f"local REPEATED = {round(10 * (CONNECT_TIMEOUT + ANSWER_TIMEOUT))}\n"
        f"local STEPS = {{{', '.join(map(_quoted, STEPS))}}}\n"
    )
    return constants + Path(__file__).with_name("ledger.lua").read_text(encoding="utf-8")


def _quoted(text: str) -> str:
    """A string of Lua, which counts bytes in decimals."""
    return '"' + "".join(f"\\{byte:03}" for byte in text.encode()) + '"'


def nowhere(spec: JobSpec, live: Sequence[Told]) -> NoRoute:
    """The refusal of a job that requires what no live worker has: what is missing, and what there is."""
    needed, having = placement.needs(spec), sorted({placement.short(queue) for told in live for queue in told.queues})
    workers = f"{len(live)} live worker{'' if len(live) == 1 else 's'}"
    offer = f"the {workers} serve{'s' if len(live) == 1 else ''} {', '.join(having) or 'nothing'}"
    return NoRoute(
        f"acceleration is required and no live worker serves {needed}: {offer if live else 'no worker is running'}",
        "`transcoder workers` lists the workers, and `transcoder devices` on a worker's machine what its devices can "
        "do and why not more. Or submit with --accel prefer.",
    )


def _submission(job_id: str, spec: JobSpec, message: Message) -> dict[str, object]:
    needed = placement.needs(spec)
    return {
        "id": job_id,
        "spec": spec.model_dump_json(by_alias=True),
        "schema": spec.schema_version,
        "priority": spec.priority,
        "source": spec.source,
        "target": spec.target,
        "profile": spec.profile,
        "targets": [_digest(target) for target in targets_of(spec)],
        "policy": spec.acceleration.policy,
        "software": placement.queue_name(SOFTWARE, spec.schema_version),
        "message": message.text,
        "step": message.step,
        **({"hardware": placement.queue_name(needed, spec.schema_version)} if needed != SOFTWARE else {}),
        **(_token(spec) if spec.token else {}),
    }


def _accepted(spec: JobSpec, answer: Sequence[Any]) -> str | TranscoderError:
    """The id of the job, or the refusal."""
    match answer:
        case ["ok", first]:
            return str(first)
        case ["conflict", first]:
            return TokenConflict(
                f"the token {spec.token!r} was used before, for job {first} with another spec",
                "Take a new token, or submit the first spec again.",
            )
        case ["nowhere", *live]:
            return nowhere(spec, [_told(text) for text in live])
        case _:
            return _taken(targets_of(spec), answer)


def _told(text: str) -> Told:
    """What a worker of any version says of itself, as far as this version knows the words."""
    words = {name: value for name, value in json.loads(text).items() if name in Told.__dataclass_fields__}
    lists = {name: tuple(value) for name, value in words.items() if isinstance(value, list)}
    return Told(**{**words, **lists})


def _reported(report: Report) -> dict[str, object]:
    told: dict[str, object] = {"id": report.job_id, "fence": str(report.fence), "phases": list(report.phases)}
    progress = None if report.progress is None else json.dumps(report.progress)
    return told | _given({"progress": progress, "effort": None if report.effort is None else str(report.effort)})


def _given(words: Mapping[str, object]) -> dict[str, object]:
    """Without what is None, which Lua would not take for nothing."""
    return {name: value for name, value in words.items() if value is not None}


def _place(place: Place) -> dict[str, object]:
    return {"owner": place.owner, "queues": list(place.queues), "schema": place.schema, "claim": place.word}


def _following(answer: Sequence[Any]) -> Following | None:
    match answer:
        case ["ok", job_id, found]:
            return str(job_id), _claimed(found)
        case _:
            return None


def _claimed(answer: Sequence[Any]) -> Claimed | Newer | None:
    match answer:
        case ["ok", spec, attempt, waited_in, paths, lost, put_off, crashes, careful]:
            before = Before(int(put_off), int(crashes), bool(int(careful)))
            return Claimed(spec, int(attempt), str(waited_in), tuple(json.loads(paths)), int(lost), before)
        case ["newer", newer, waits_in]:
            return Newer(int(newer), str(waits_in))
        case _:
            return None


def _token(spec: JobSpec) -> dict[str, str]:
    # without defaults, so that a new field in a later version does not make it another spec
    asked = json.dumps(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return {"token": _digest(spec.token or ""), "digest": _digest(asked)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _taken(targets: Sequence[str], answer: Sequence[Any]) -> TargetExists:
    _, place, other = answer
    return TargetExists(
        f"job {other} is writing {targets[int(place) - 1].removeprefix('?')}",
        "Wait for it or cancel it, or choose another target.",
    )


def _is_a_bug(refused: Exception) -> bool:
    """An error of the script itself: it would be the same the next time. Redis' own refusals begin with a code."""
    return type(refused) is redis.ResponseError and not re.match(r"[A-Z]{2,} ", str(refused))


def _unavailable(url: str, refused: Exception) -> BrokerUnavailable:
    """What is wrong with Redis, in words that say what to mend."""
    if "DB index" in str(refused):
        which = "The number at the end of TRANSCODER_BROKER_URL is to be lower than Redis' `databases`."
        return BrokerUnavailable(f"Redis at {safe(url)} has no such database: {refused}", which)
    what, next_step = next(words for kind, words in _TROUBLES if isinstance(refused, kind))
    return BrokerUnavailable(f"Redis at {safe(url)} {what.format(refused)}", next_step)


_CHECK = "Check that it runs and that TRANSCODER_BROKER_URL names it (redis-cli ping)."
_LOGIN = ("refuses this user or password", "Check user and password in TRANSCODER_BROKER_URL.")
_TROUBLES: Final[Sequence[tuple[type[Exception], tuple[str, str]]]] = (
    (redis.OutOfMemoryError, ("is full and writes nothing more", "Give it more memory (maxmemory).")),
    (redis.AuthenticationError, _LOGIN),
    (redis.exceptions.AuthorizationError, _LOGIN),
    (redis.exceptions.NoPermissionError, _LOGIN),
    (redis.BusyLoadingError, ("is still loading its data", "Try again in a moment.")),
    (redis.ReadOnlyError, ("is a replica and writes nothing", "Name the primary in TRANSCODER_BROKER_URL.")),
    (redis.TimeoutError, ("does not answer in time", _CHECK)),
    (redis.ConnectionError, ("does not answer: {}", _CHECK)),
    (OSError, ("does not answer: {}", _CHECK)),
    (Exception, ("refuses: {}", "Look at its log.")),
)
