"""The worker: a real one on a real Redis with a real ffmpeg, and its parts where a moment must be held still."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from tests import services
from tests.conftest import MakeClip
from transcoder import Client, JobSpec, Status, placement, queue, worker
from transcoder.breaker import Rules
from transcoder.capacity import Budgets
from transcoder.command import Command, Route
from transcoder.errors import (
    BrokerUnavailable,
    InputMissing,
    JobCancelled,
    NoRoute,
    NoRouteWorked,
    TranscoderError,
    TransitionRefused,
)
from transcoder.events import Event, FellBack, Probing, Published, Timings
from transcoder.faults import FaultClass
from transcoder.heart import Heart
from transcoder.held import Equipment, Held, Share
from transcoder.ledger import Claimed, Following, Ledger, Place, Report, Told, connect
from transcoder.machine import Ability, Build, Device, Machine
from transcoder.manifest import Attempt
from transcoder.metrics import Metrics
from transcoder.placement import Serves, queue_name
from transcoder.policy import Policy
from transcoder.slots import Slots
from transcoder.space import Space
from transcoder.spec import SCHEMA
from transcoder.station import Post, Station

pytestmark = pytest.mark.slow

LONG = "testsrc2=s=640x360:r=25:d=50"
SLOW = {"outputs": [{"video": {"speed": "quality"}}]}


@dataclass
class Site:
    """A Redis, a worker with two places, and a client."""

    redis: services.Redis
    worker: services.Worker
    client: Client
    folder: Path
    made: int = 0

    def spec(self, source: Path, **fields: Any) -> JobSpec:
        self.made += 1
        target = str(self.folder / f"out{self.made}.mp4")
        return JobSpec.model_validate({"source": str(source), "target": target, **fields})

    def submit(self, source: Path, **fields: Any) -> str:
        return self.client.submit(self.spec(source, **fields))

    def until(self, job_id: str, true: Callable[[Status], bool], within: float = 30) -> Status:
        deadline = time.monotonic() + within
        while not true(status := self.client.status(job_id)):
            assert time.monotonic() < deadline, f"{status}\n{self.worker.log()}"
            time.sleep(0.02)
        return status

    def end(self, job_id: str) -> Status:
        return self.until(job_id, lambda status: status.is_finished)

    def encoding(self, job_id: str) -> Status:
        return self.until(job_id, lambda status: status.phase == "encoding")


@contextmanager
def a_site(folder: Path, roots: list[Path], *, appendonly: bool = False) -> Iterator[Site]:
    with (
        services.private_redis(folder / "redis", appendonly=appendonly) as redis,
        services.worker(redis.url, folder / "worker", [folder, *roots]) as worker,
    ):
        yield Site(redis, worker, Client(redis.url), folder)


@pytest.fixture(scope="module")
def short(make_clip: MakeClip) -> Path:
    return make_clip("testsrc2=s=160x120:r=25:d=0.4", audio=False)


@pytest.fixture(scope="module")
def long(make_clip: MakeClip) -> Path:
    """Takes ten seconds and more when it is encoded slowly."""
    return make_clip(LONG, audio=False, extra=["-preset", "ultrafast"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, short: Path) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("site"), [short.parent]) as site:
        yield site


def ffmpegs(site: Site) -> list[str]:
    """The command lines of the ffmpegs of the site's worker."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:  # ended in between
            continue
        if b"ffmpeg" in line and os.fsencode(site.folder) in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def test_a_job_goes_from_the_queue_to_its_file(site: Site, short: Path) -> None:
    seen = list(site.client.watch(site.submit(short)))
    phases = list(dict.fromkeys(status.phase for status in seen))
    assert phases == ["queued", "probing", "encoding", "verifying", "publishing", "published"]
    result = seen[-1].result
    assert result is not None
    assert Path(result["outputs"][0]["path"]).exists()
    assert seen[-1].attempts == 1
    assert "transcoder_jobs_total{" in site.worker.metrics()


def test_a_wrong_job_fails_with_an_error_that_the_client_can_raise(site: Site) -> None:
    job_id = site.submit(site.folder / "nothing.mp4")
    with pytest.raises(InputMissing, match=r"nothing\.mp4"):
        site.client.wait(job_id)
    assert site.client.status(job_id).state == "failed"


def test_a_doubled_message_runs_once(site: Site, short: Path) -> None:
    job_id = site.submit(short)
    message = queue.message(job_id, 5)
    with redis_py.Redis.from_url(site.redis.url) as plain:
        for _ in range(3):
            plain.lpush(message.list_key, message.text)
    assert site.end(job_id).state == "published"
    with redis_py.Redis.from_url(site.redis.url) as plain:  # and one that is very late
        plain.lpush(message.list_key, message.text)
    site.end(site.submit(short))
    assert [moment.what for moment in site.client.status(job_id).history].count("running") == 1


def test_a_message_without_a_record_does_nothing(site: Site, short: Path) -> None:
    message = queue.message("0123456789abcdef", 9)
    with redis_py.Redis.from_url(site.redis.url) as plain:
        plain.lpush(message.list_key, message.text)
    assert site.end(site.submit(short)).state == "published"
    assert "0123456789abcdef" not in site.worker.log()


def test_the_most_urgent_job_overtakes_the_others(site: Site, short: Path, long: Path) -> None:
    busy = [site.submit(long, **SLOW) for _ in range(2)]
    for job_id in busy:
        site.encoding(job_id)
    waiting = [site.submit(short, priority=0) for _ in range(3)]
    urgent = site.submit(short, priority=9)
    for job_id in busy:
        site.client.cancel(job_id)
    started = {job_id: site.end(job_id).started for job_id in (urgent, *waiting)}
    assert min(started, key=lambda job_id: started[job_id] or 0) == urgent


def test_a_cancelled_job_stops_within_a_second_and_frees_its_place(site: Site, short: Path, long: Path) -> None:
    busy = [site.submit(long, **SLOW) for _ in range(2)]
    for job_id in busy:
        site.encoding(job_id)
    next_one = site.submit(short)
    assert len(ffmpegs(site)) == 2
    asked = time.monotonic()
    assert site.client.cancel(busy[0]) == "running"
    assert site.end(busy[0]).state == "cancelled"
    site.until(next_one, lambda status: status.state != "queued")
    assert time.monotonic() - asked < 1
    assert not [line for line in ffmpegs(site) if busy[0] in line]
    with pytest.raises(JobCancelled):
        site.client.wait(busy[0])
    site.client.cancel(busy[1])
    assert site.end(next_one).state == "published"
    assert site.end(busy[1]).state == "cancelled"
    assert not list(site.folder.glob(".*"))


def test_a_job_of_a_newer_schema_is_passed_on_and_left_alone(site: Site, short: Path) -> None:
    newer = site.spec(short).model_copy(update={"schema_version": SCHEMA + 1})
    message = queue.message("aaaabbbbccccdddd", 5)
    Ledger(site.redis.url).submit("aaaabbbbccccdddd", newer, message)
    with redis_py.Redis.from_url(site.redis.url) as plain:  # and it comes to a worker that cannot read it
        plain.lpush(message.list_key, message.text)
    assert site.end(site.submit(short)).state == "published"
    time.sleep(0.2)
    status = site.client.status("aaaabbbbccccdddd")
    assert (status.state, status.attempts) == ("queued", 0)
    assert "a worker that serves hw.h264 (schema 2)" in str(status.waiting_for)
    with redis_py.Redis.from_url(site.redis.url) as plain:
        assert plain.llen(queue.message("", 5, queue_name("hw.h264", SCHEMA + 1)).list_key) == 2


def test_a_redis_that_is_killed_ends_neither_job_nor_worker(tmp_path: Path, make_clip: MakeClip, short: Path) -> None:
    source = make_clip("testsrc2=s=640x360:r=25:d=8", audio=False, extra=["-preset", "ultrafast"])
    with a_site(tmp_path, [source.parent], appendonly=True) as site:
        job_id = site.submit(source, **SLOW)
        site.until(job_id, lambda status: status.progress is not None)
        site.redis.kill()
        deadline = time.monotonic() + 30
        while ffmpegs(site) or site.worker.healthy():  # it encodes to its end meanwhile
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert site.worker.running
        assert not (tmp_path / "out1.mp4").exists(), "published without asking whether the job is still ours"
        site.redis.start()
        assert site.end(job_id).state == "published"
        assert site.client.status(job_id).attempts == 1
        assert site.end(site.submit(short)).state == "published"
        assert site.worker.healthy()
        assert site.worker.log().count("running jobs go on") == 1


def test_sigterm_lets_the_running_job_end(tmp_path: Path, make_clip: MakeClip) -> None:
    source = make_clip()
    with a_site(tmp_path, [source.parent]) as site:
        job_id = site.submit(source)
        site.encoding(job_id)
        assert site.worker.stop() == 0
        status = site.client.status(job_id)
        assert status.state == "published", site.worker.log()
        assert Ledger(site.redis.url).figures().workers == 0


def started_alone(redis: services.Redis, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRANSCODER_BROKER_URL": redis.url, "TRANSCODER_METRICS_PORT": "0", **settings}
    command = [sys.executable, "-m", "transcoder", "worker"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)


def test_a_worker_without_media_roots_refuses_to_start(redis: services.Redis) -> None:
    ended = started_alone(redis)
    assert ended.returncode == 18
    assert "TRANSCODER_MEDIA_ROOTS is not set" in ended.stderr


def test_a_worker_whose_media_are_not_there_refuses_to_start_and_takes_no_job(
    redis: services.Redis, short: Path, tmp_path: Path
) -> None:
    client = Client(redis.url)
    job_id = client.submit(JobSpec(source=str(short), target=str(tmp_path / "out.mp4")))
    ended = started_alone(redis, TRANSCODER_MEDIA_ROOTS=f"{tmp_path}:/no/media")
    assert ended.returncode == 18
    assert "the media root '/no/media' cannot be used: No such file or directory" in ended.stderr
    assert client.status(job_id).state == "queued"


def test_a_worker_without_ffmpeg_ends_and_keeps_no_job(redis: services.Redis, short: Path, tmp_path: Path) -> None:
    client = Client(redis.url)
    job_id = client.submit(JobSpec(source=str(short), target=str(tmp_path / "out.mp4")))
    ended = started_alone(redis, TRANSCODER_MEDIA_ROOTS="/", TRANSCODER_FFMPEG="/no/ffmpeg")
    assert ended.returncode == 10, ended.stderr
    assert "/no/ffmpeg is not to be found" in ended.stderr
    assert client.status(job_id).state == "queued"
    with redis_py.Redis.from_url(redis.url) as plain:
        assert plain.llen(queue.message("", 5, queue_name("hw.h264")).list_key) == 1


def test_a_worker_that_learns_late_that_it_cannot_work_takes_no_job(
    redis: services.Redis, short: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nsleep 3\nexit 1\n")
    slow.chmod(0o755)
    client = Client(redis.url)
    job_id = client.submit(JobSpec(source=str(short), target=str(tmp_path / "out.mp4")))
    ended = started_alone(redis, TRANSCODER_MEDIA_ROOTS="/", TRANSCODER_FFMPEG=str(slow))
    assert ended.returncode == 10, ended.stderr
    status = client.status(job_id)
    assert (status.state, status.attempts) == ("queued", 0)
    with redis_py.Redis.from_url(redis.url) as plain:
        assert plain.llen(queue.message("", 5, queue_name("hw.h264")).list_key) == 1


def test_a_worker_for_hardware_where_there_is_none_ends_and_says_so(redis: services.Redis) -> None:
    ended = started_alone(redis, TRANSCODER_MEDIA_ROOTS="/", TRANSCODER_SERVES="hardware", TRANSCODER_DEVICE="/dev/no")
    assert ended.returncode == 12, ended.stderr
    assert "no encoder was proved on the device /dev/no: there is no such device" in ended.stderr


def test_a_worker_whose_port_is_taken_says_which(redis: services.Redis) -> None:
    port = str(redis.port)
    ended = started_alone(redis, TRANSCODER_MEDIA_ROOTS="/", TRANSCODER_METRICS_PORT=port)
    assert ended.returncode == 18
    assert f"cannot open port {port}" in ended.stderr


def test_a_worker_brings_nothing_of_the_command_line() -> None:
    code = (
        "import sys, transcoder.worker, transcoder.places\n"
        "sys.exit(bool({'typer', 'rich', 'transcoder.cli'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Parts of the worker, with a job of our own in the place of the real one


NOTHING = Machine(Build("7.1", (7, 1), frozenset()), frozenset(), 1)


@dataclass
class Parts:
    """A worker's parts on a real ledger; nothing beats unless a test lets it."""

    ledger: Ledger
    heart: Heart
    equipped: "Future[Equipment]"
    worker: worker.Worker

    def submit(self, job_id: str = "a", **fields: Any) -> None:
        spec = JobSpec.model_validate({"source": "/media/in.mkv", "target": f"/media/{job_id}.mp4", **fields})
        self.ledger.submit(job_id, spec, queue.message(job_id, spec.priority))

    def fields(self, job_id: str = "a") -> dict[str, str]:
        return dict(self.ledger.record(job_id).fields)

    @classmethod
    def on(cls, redis: services.Redis, machine: Machine = NOTHING, serves: Serves = "software") -> "Parts":
        ledger = Ledger(redis.url)
        heart = Heart(ledger, "me")
        equipped: Future[Equipment] = Future()
        station = Station(Post("me", None, serves, 1), Policy(("/media",)), Rules())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("transcoder.station.survey_devices", lambda *_: machine)
            station.open(machine)
            station.look_closer(machine, None)
        share = Share(Slots(connect(redis.url)), Budgets(1, 1, 1, 1, 1), Space(connect(redis.url)))
        equipped.set_result(Equipment(station, share, Metrics("0", "7.1")))
        return cls(ledger, heart, equipped, worker.Worker(ledger, heart, equipped, Policy(("/media",))))

    def holds(self, job_id: str = "a") -> Held:
        """A job that was submitted and claimed."""
        self.submit(job_id)
        claimed = self.ledger.claim(job_id, "me", SCHEMA)
        assert isinstance(claimed, Claimed)
        return Held(self.ledger, job_id, claimed, self.heart.wake, self.equipped.result())


@pytest.fixture
def parts(redis: services.Redis) -> Iterator[Parts]:
    parts = Parts.on(redis)
    yield parts
    parts.ledger.close()


def test_a_bug_fails_the_job_and_not_the_worker(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(worker, "transcode", buggy)
    parts.submit()
    parts.worker.run("a")
    assert parts.fields()["state"] == "failed"
    assert '"kind": "unexpected"' in parts.fields()["error"]
    assert "ZeroDivisionError: oh" in parts.fields()["error"]


def noted(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that a worker whose place serves software has done, each in no time."""
    done: list[str] = []

    def make(_: object, attempt: Attempt, *__: object) -> Published:
        done.append(attempt.job_id)
        return Published(Route("software", "software"), (), "", Timings())

    monkeypatch.setattr(worker, "transcode", make)
    words = (parts.ledger, parts.heart, parts.equipped, Policy(("/media",)))
    parts.worker = worker.Worker(*words, served=lambda: [queue.DEFAULT])
    return done


def test_a_place_goes_from_job_to_job_while_any_waits(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    done = noted(parts, monkeypatch)
    for job_id, priority in (("a", 5), ("b", 5), ("c", 9)):
        parts.submit(job_id, priority=priority, acceleration={"policy": "never"})
    asked: list[Place] = []
    take_next = parts.ledger.take_next

    def counted(place: Place) -> Following | None:
        asked.append(place)
        return take_next(place)

    monkeypatch.setattr(parts.ledger, "take_next", counted)
    parts.worker.run("a")
    assert done == ["a", "c", "b"]
    assert not asked, "each came with the end of the one before"
    assert {parts.fields(job_id)["state"] for job_id in done} == {"published"}


def test_a_place_takes_no_other_job_once_its_worker_is_told_to_end(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = noted(parts, monkeypatch)
    monkeypatch.setattr(queue, "leaving", lambda: bool(done))
    for job_id in "ab":
        parts.submit(job_id, acceleration={"policy": "never"})
    parts.worker.run("a")
    assert (done, parts.fields("b")["state"]) == (["a"], "queued")


@pytest.mark.parametrize("answers_lost", [1, 2])
def test_a_place_asks_twice_for_its_next_job_and_leaves_it_to_celery_then(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, answers_lost: int
) -> None:
    done, take_next = noted(parts, monkeypatch), parts.ledger.take_next
    lost: list[object] = []

    def asked(place: Place) -> Following | None:
        answer = take_next(place)
        if len(lost) < answers_lost:
            lost.append(answer)
            raise BrokerUnavailable("the answer does not come")
        return answer

    monkeypatch.setattr(parts.ledger, "take_next", asked)
    parts.submit("a", acceleration={"policy": "never"})
    parts.worker.run("a message that names no job")
    assert done == (["a"] if answers_lost == 1 else [])
    assert parts.fields("a")["attempt"] == "1"


def test_the_end_of_a_job_that_waited_for_redis_brings_no_other_to_a_worker_that_was_told_to_end(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, finish, told = noted(parts, monkeypatch), parts.ledger.finish, threading.Event()

    def away_once(*words: Any, **more: Any) -> Any:
        if told.is_set():
            return finish(*words, **more)
        told.set()
        raise BrokerUnavailable("away")

    monkeypatch.setattr(parts.ledger, "finish", away_once)
    monkeypatch.setattr(queue, "leaving", told.is_set)
    for job_id in "ab":
        parts.submit(job_id, acceleration={"policy": "never"})
    parts.worker.run("a")
    assert (done, parts.fields("a")["state"], parts.fields("b")["state"]) == (["a"], "published", "queued")


def test_a_bug_in_what_is_told_of_a_job_costs_the_next_one_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = noted(parts, monkeypatch)
    monkeypatch.setattr(worker.Worker, "_transcode", after_which_a_listener_fails(worker.Worker._transcode))
    for job_id in "ab":
        parts.submit(job_id, acceleration={"policy": "never"})
    parts.worker.run("a")
    assert done == ["a", "b"]


def after_which_a_listener_fails(work: Any) -> Any:
    def transcode(*words: Any) -> None:
        work(*words)
        raise ZeroDivisionError("oh")

    return transcode


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """The events in the log, with their levels."""
    return [(str(vars(record).get("event")), record.levelname) for record in caplog.records]


@pytest.mark.parametrize("told_by", ["heart", "ledger"])
def test_a_job_that_was_taken_away_is_left_to_its_new_owner(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told_by: str
) -> None:
    def taken_away(*words: Any) -> None:
        parts.ledger.hand_back("a", 1, "as if this worker were dead")
        assert isinstance(parts.ledger.claim("a", "another", SCHEMA), Claimed)
        permit = words[-1]
        parts.heart.start()
        while not permit.cancelled():
            time.sleep(0.01)
        if told_by == "heart":
            raise JobCancelled("ffmpeg was ended")
        permit.still_ours()

    caplog.set_level("INFO")
    monkeypatch.setattr(worker, "transcode", taken_away)
    parts.submit()
    parts.worker.run("a")
    parts.heart.stop()
    assert [(event, level) for event, level in told(caplog) if event in {"lost", "failed"}] == [("lost", "WARNING")]
    registry = parts.equipped.result().metrics.registry
    assert registry.get_sample_value("transcoder_job_seconds_count", {"result": "lost"}) == 1
    assert registry.get_sample_value("transcoder_job_seconds_count", {"result": "failed"}) == 0
    assert registry.get_sample_value("transcoder_active_jobs") == 0
    assert (parts.fields()["state"], parts.fields()["owner"], parts.fields()["attempt"]) == ("running", "another", "2")


@pytest.mark.parametrize("wrong", [InputMissing("gone"), JobCancelled("stopped"), ZeroDivisionError("a bug")])
def test_a_failure_that_the_record_refuses_is_another_workers_and_not_told_as_one(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: Exception
) -> None:
    def fails_late(*_: Any) -> None:
        parts.ledger.hand_back("a", 1, "as if this worker were dead")
        raise wrong

    caplog.set_level("INFO")
    monkeypatch.setattr(worker, "transcode", fails_late)
    parts.submit()
    parts.worker.run("a")
    assert parts.fields()["state"] == "queued"
    assert {"lost", "failed", "cancelled"} & {event for event, _ in told(caplog)} == {"lost"}


def test_a_target_that_another_job_has_is_refused_before_encoding(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "transcode", lambda *words: words[-1].may_write(["/media/b.mp4"]))
    parts.submit("a")
    parts.submit("b")
    parts.worker.run("a")
    assert '"kind": "TargetExists"' in parts.fields()["error"]


GPU = Device("0000:00:02.0", "/dev/dri/renderD128")
WITH_GPU = replace(NOTHING, devices=(GPU,), abilities=frozenset({Ability("vaapi", "hevc", 8, "hevc_vaapi", GPU.id)}))
HEVC: dict[str, Any] = {"outputs": [{"video": {"codec": "hevc"}}]}


def encodes(api: str, fault: FaultClass | None = None, then: TranscoderError | None = None) -> Callable[..., Published]:
    """A job.transcode that tries one command, after a fault of the device where one is given, and raises at the end."""

    def transcode(*words: Any) -> Published:
        emit, permit = words[-2:]
        if fault:
            emit(FellBack(Route("vaapi", "vaapi", GPU.id, codecs=frozenset({"hevc"})), fault, "oh", 1.0))
        if then:
            raise then
        route = Route(api, api, GPU.id if api == "vaapi" else None)
        with permit.slot(Command(route, "", "/media/in.mkv", (), cost=1.0)):
            return Published(route, (), "", Timings())

    return transcode


def test_a_job_stands_in_the_line_for_a_slot_by_its_priority(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    stood: list[float] = []

    @contextmanager
    def slot(*_: object, behind: float, **__: object) -> Iterator[None]:
        stood.append(behind)
        yield

    monkeypatch.setattr(Slots, "slot", slot)
    for priority in (9, 5, 0):
        held = parts.holds(f"job{priority}")
        held.asked = JobSpec(source="/media/in.mkv", target="/media/out.mp4", priority=priority)
        with held.slot(Command(Route("software", "software"), "", "/media/in.mkv", (), cost=1.0)):
            pass
    assert stood == [0, 2400, 5400]


def serve(parts: Parts, owner: str, *queues: str) -> None:
    parts.ledger.beat(owner, [], Told(name=owner, queues=tuple(map(queue_name, queues))))


def went(parts: Parts) -> tuple[str, str]:
    """What became of the job, and the queue that it was last in."""
    fields = parts.fields()
    return fields["state"], placement.short(fields["queue"])


Case = tuple[Serves, FaultClass | None, tuple[str, ...], tuple[str, str]]
CASES: dict[str, Case] = {
    "a device that lacks the ability leaves it to one that may have it": (
        *("both", None, ("hw.hevc10", "software")),
        ("queued", "hw.hevc10"),
    ),
    "where there is no other, a worker that serves both does it in software": (
        *("both", None, ("software",)),
        ("published", "hw.hevc"),
    ),
    "a worker for hardware leaves software to those that serve it": (
        *("hardware", None, ("software",)),
        ("queued", "software"),
    ),
    "and after a fault too, without asking another device": (
        *("hardware", FaultClass.HARDWARE, ("hw.hevc", "software")),
        ("queued", "software"),
    ),
    "and does it itself where nobody else does": (
        *("hardware", FaultClass.HARDWARE, ("hw.hevc",)),
        ("published", "hw.hevc"),
    ),
    "after a fault a worker that serves both goes on in software": (
        *("both", FaultClass.HARDWARE, ("hw.hevc", "software")),
        ("published", "hw.hevc"),
    ),
}


@pytest.mark.parametrize(("serves", "fault", "others", "end"), CASES.values(), ids=CASES)
def test_a_job_that_does_not_suit_goes_on_by_its_policy(
    redis: services.Redis,
    monkeypatch: pytest.MonkeyPatch,
    serves: Serves,
    fault: FaultClass | None,
    others: tuple[str, ...],
    end: tuple[str, str],
) -> None:
    parts = Parts.on(redis, WITH_GPU, serves)
    monkeypatch.setattr(worker, "transcode", encodes("software", fault))
    serve(parts, "me", "hw.hevc")
    serve(parts, "other", *others)
    parts.submit(**HEVC)
    parts.worker.run("a")
    assert went(parts) == end


def test_a_job_that_hopped_to_software_is_not_sent_back_to_hardware(
    redis: services.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts.on(redis)
    monkeypatch.setattr(worker, "transcode", encodes("software"))
    serve(parts, "gpu", "hw.hevc")
    serve(parts, "me", "software")
    parts.submit(**HEVC)
    assert len(parts.ledger.tend(0)) == 1
    parts.worker.run("a")
    assert went(parts) == ("published", "software")


@pytest.mark.parametrize(("policy", "devices"), [("prefer", ()), ("require", (GPU,))])
def test_what_killed_ffmpeg_twice_is_tried_in_software_only_where_that_may_be(
    redis: services.Redis, monkeypatch: pytest.MonkeyPatch, policy: str, devices: tuple[Device, ...]
) -> None:
    parts, tried_on = Parts.on(redis, WITH_GPU, "both"), []

    def crashes(*words: Any) -> Published:
        tried_on.append(words[2].devices)
        words[-2](FellBack(Route("vaapi", "vaapi", GPU.id), FaultClass.CRASHED, "oh", 1.0))
        words[-2](FellBack(Route("software", "software"), FaultClass.CRASHED, "oh", 1.0))
        raise NoRouteWorked("ffmpeg died", evidence={"fault": "crashed"})

    monkeypatch.setattr(worker, "transcode", crashes)
    serve(parts, "me", "hw.hevc", "software")
    parts.submit(acceleration={"policy": policy}, **HEVC)
    parts.worker.run("a")
    with redis_py.Redis.from_url(redis.url) as plain:
        plain.zadd("transcoder:later", {"a": 0})
    parts.ledger.tend(1e6)
    assert went(parts) == ("queued", "software" if policy == "prefer" else "hw.hevc")
    parts.worker.run("a")
    assert tried_on == [(GPU,), devices]
    assert parts.fields()["state"] == "quarantined"
    assert "died 4 times" in parts.fields()["error"]
    assert ("in software too" in parts.fields()["error"]) == (policy == "prefer")


NO_ROUTE, NONE_WORKED = NoRoute("this machine offers none"), NoRouteWorked("all failed")


@pytest.mark.parametrize(
    ("error", "fault", "others", "end"),
    [
        pytest.param(NO_ROUTE, None, ("hw.hevc10",), ("queued", "hw.hevc10"), id="the ability is elsewhere"),
        pytest.param(NO_ROUTE, None, ("software",), ("failed", "hw.hevc"), id="the ability is nowhere"),
        pytest.param(NONE_WORKED, FaultClass.HARDWARE, ("hw.hevc",), ("queued", "hw.hevc"), id="the device failed"),
        pytest.param(NONE_WORKED, FaultClass.INPUT, ("hw.hevc",), ("failed", "hw.hevc"), id="the device did not"),
    ],
)
def test_a_job_that_requires_hardware_goes_to_another_device_or_fails(
    redis: services.Redis,
    monkeypatch: pytest.MonkeyPatch,
    error: TranscoderError,
    fault: FaultClass | None,
    others: tuple[str, ...],
    end: tuple[str, str],
) -> None:
    parts = Parts.on(redis, WITH_GPU, "both")
    monkeypatch.setattr(worker, "transcode", encodes("vaapi", fault, error))
    serve(parts, "me", "hw.hevc")
    serve(parts, "other", *others)
    parts.submit(acceleration={"policy": "require"}, **HEVC)
    parts.worker.run("a")
    assert went(parts) == end
    if end[0] == "failed":
        assert type(error).__name__ in parts.fields()["error"]


UNSEEN = InputMissing("the source '/media/in.mkv' cannot be used", "Mount it.", of_this_host=True)


@pytest.mark.parametrize(
    ("error", "policy", "others", "end"),
    [
        pytest.param(UNSEEN, "prefer", ("hw.h264", "software"), ("queued", "hw.h264"), id="another may see it"),
        pytest.param(UNSEEN, "prefer", ("software",), ("queued", "software"), id="if only one for software"),
        pytest.param(UNSEEN, "require", ("software",), ("failed", "hw.h264"), id="which shall not have it"),
        pytest.param(UNSEEN, "prefer", (), ("failed", "hw.h264"), id="there is no other"),
        pytest.param(InputMissing("it is empty"), "prefer", ("hw.h264",), ("failed", "hw.h264"), id="all see the same"),
    ],
)
def test_a_job_whose_files_this_host_does_not_see_goes_to_another_worker_or_fails(
    parts: Parts,
    monkeypatch: pytest.MonkeyPatch,
    error: TranscoderError,
    policy: str,
    others: tuple[str, ...],
    end: tuple[str, str],
) -> None:
    monkeypatch.setattr(worker, "transcode", encodes("software", then=error))
    serve(parts, "me", "hw.h264", "software")
    serve(parts, "other", *others)
    parts.submit(acceleration={"policy": policy})
    parts.worker.run("a")
    assert went(parts) == end


def test_a_job_whose_files_two_workers_do_not_see_fails_though_a_third_lives(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "transcode", encodes("software", then=UNSEEN))
    for owner in ("me", "other", "third"):
        serve(parts, owner, "hw.h264")
    parts.submit()
    parts.worker.run("a")
    parts.worker.run("a")
    assert (went(parts)[0], parts.fields()["attempt"]) == ("queued", "1"), "it does not get back what it handed on"
    parts.heart.owner = "other"
    parts.worker.run("a")
    assert (went(parts)[0], parts.fields()["attempt"]) == ("failed", "2")
    assert "InputMissing" in parts.fields()["error"]


def test_a_worker_that_has_lost_its_media_gives_the_job_back(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "transcode", encodes("software", then=UNSEEN))
    gone = worker.Worker(
        *(parts.ledger, parts.heart, parts.equipped, Policy(("/media",))), media_gone=lambda: "the media root is gone"
    )
    parts.submit()
    gone.run("a")
    assert went(parts) == ("queued", "hw.h264")
    assert parts.ledger.record("a").history[-1].detail == "the media root is gone"


def test_a_job_asks_redis_nothing_while_it_runs(parts: Parts, redis: services.Redis) -> None:
    held = parts.holds()
    redis.kill()
    started = time.monotonic()
    events: list[Event] = [Probing("/media/in.mkv")] * 100
    for event in events:
        held.listen(event)
        assert not held.cancelled()
    assert time.monotonic() - started < 0.1


def test_what_redis_did_not_hear_is_told_again(parts: Parts, tmp_path: Path) -> None:
    held = parts.holds()
    held.listen(Probing("/media/in.mkv"))
    lost = held.report()  # and the beat failed
    held.finish("failed", error={})
    assert len(lost.phases) == 1
    assert [moment.what for moment in parts.ledger.record("a").history] == ["queued", "running", "probing", "failed"]


def test_a_wait_for_redis_ends_with_the_job(parts: Parts, redis: services.Redis) -> None:
    held = parts.holds()
    redis.kill()
    threading.Timer(0.3, held.must_stop, ["cancelled"]).start()
    with pytest.raises(JobCancelled, match="while Redis was away"):
        held.still_ours()


def test_a_worker_that_ends_while_redis_is_away_leaves_the_end_of_its_job_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()
    with services.private_redis(tmp_path, appendonly=True) as redis:
        parts = Parts.on(redis)
        ends = worker.Worker(parts.ledger, parts.heart, parts.equipped, Policy(("/media",)), over=over)

        def publishes(*_: Any) -> Published:
            redis.kill()
            over.set()
            return Published(Route("software", "software"), (), "", Timings())

        monkeypatch.setattr(worker, "transcode", publishes)
        parts.submit()
        ends.run("a")
        redis.start()
        assert parts.fields()["state"] == "running"
        assert "met a bug" not in caplog.text


def test_the_end_of_a_job_is_told_once_redis_is_back(tmp_path: Path) -> None:
    with services.private_redis(tmp_path, appendonly=True) as redis:
        parts = Parts.on(redis)
        ledger, held = parts.ledger, parts.holds()
        redis.kill()
        ending = threading.Thread(target=lambda: held.finish("published"))
        ending.start()
        time.sleep(0.3)
        redis.start()  # from here: the kernel ends it with the thread that started it
        ending.join(10)
        assert ledger.record("a").fields["state"] == "published"
        with pytest.raises(TransitionRefused):
            ledger.finish(Report("a", 1), "failed")
