"""The worker: a real one on a real Redis with a real ffmpeg, and its parts where a moment must be held still."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from tests import services
from tests.conftest import MakeClip
from transcoder import Client, JobSpec, Status, queue, worker
from transcoder.errors import FfmpegMissing, InputMissing, JobCancelled, TransitionRefused
from transcoder.events import Event, Probing
from transcoder.ledger import Claimed, Ledger, Report
from transcoder.machine import Build, Machine
from transcoder.metrics import Metrics
from transcoder.policy import Policy
from transcoder.spec import SCHEMA

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
    # sent to the queue of a schema that it has not
    Ledger(site.redis.url).submit("aaaabbbbccccdddd", newer, queue.message("aaaabbbbccccdddd", 5, SCHEMA))
    assert site.end(site.submit(short)).state == "published"
    time.sleep(0.2)
    status = site.client.status("aaaabbbbccccdddd")
    assert (status.state, status.attempts) == ("queued", 0)
    assert "queue transcode.schema2" in str(status.waiting_for)
    with redis_py.Redis.from_url(site.redis.url) as plain:
        assert plain.llen(queue.message("", 5, SCHEMA + 1).list_key) == 1


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


def test_a_worker_without_ffmpeg_ends_and_keeps_no_job(redis: services.Redis, short: Path, tmp_path: Path) -> None:
    client = Client(redis.url)
    job_id = client.submit(JobSpec(source=str(short), target=str(tmp_path / "out.mp4")))
    ended = started_alone(redis, TRANSCODER_MEDIA_ROOTS="/", TRANSCODER_FFMPEG="/no/ffmpeg")
    assert ended.returncode == 10, ended.stderr
    assert "/no/ffmpeg is not to be found" in ended.stderr
    assert client.status(job_id).state == "queued"
    with redis_py.Redis.from_url(redis.url) as plain:
        assert plain.llen(queue.message("", 5).list_key) == 1


def test_a_worker_that_learns_late_that_it_cannot_work_takes_no_job_twice(
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
    assert (status.state, status.attempts) == ("queued", 1)
    with redis_py.Redis.from_url(redis.url) as plain:
        assert plain.llen(queue.message("", 5).list_key) == 1


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


@dataclass
class Parts:
    """A worker's parts on a real ledger; nothing beats unless a test lets it."""

    ledger: Ledger
    heart: worker.Heart
    equipped: "Future[worker.Equipment]"
    worker: worker.Worker

    def submit(self, job_id: str = "a", **fields: Any) -> None:
        spec = JobSpec.model_validate({"source": "/media/in.mkv", "target": f"/media/{job_id}.mp4", **fields})
        self.ledger.submit(job_id, spec, queue.message(job_id, spec.priority))

    def fields(self, job_id: str = "a") -> dict[str, str]:
        return dict(self.ledger.record(job_id).fields)


@pytest.fixture
def parts(redis: services.Redis) -> Iterator[Parts]:
    ledger = Ledger(redis.url)
    heart = worker.Heart(ledger, "me")
    equipped: Future[worker.Equipment] = Future()
    machine = Machine(Build("7.1", (7, 1), frozenset()), frozenset(), 1)
    equipped.set_result(worker.Equipment(machine, Metrics("0", "7.1"), lambda: None))
    yield Parts(ledger, heart, equipped, worker.Worker(ledger, heart, equipped, Policy(("/media",))))
    ledger.close()


def test_a_bug_fails_the_job_and_not_the_worker(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(worker, "transcode", buggy)
    parts.submit()
    parts.worker.run("a")
    assert parts.fields()["state"] == "failed"
    assert '"kind": "unexpected"' in parts.fields()["error"]
    assert "ZeroDivisionError: oh" in parts.fields()["error"]


def test_a_job_that_was_taken_away_is_left_to_its_new_owner(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken_away(*words: Any) -> None:
        parts.ledger.hand_back("a", 1, queue.message("a", 5), "as if this worker were dead")
        assert isinstance(parts.ledger.claim("a", "another", SCHEMA), Claimed)
        permit = words[-1]
        parts.heart.start()
        while not permit.cancelled():
            time.sleep(0.01)
        permit.still_ours()

    monkeypatch.setattr(worker, "transcode", taken_away)
    parts.submit()
    parts.worker.run("a")
    parts.heart.stop()
    assert (parts.fields()["state"], parts.fields()["owner"], parts.fields()["attempt"]) == ("running", "another", "2")


def test_a_target_that_another_job_has_is_refused_before_encoding(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "transcode", lambda *words: words[-1].may_write(["/media/b.mp4"]))
    parts.submit("a")
    parts.submit("b")
    parts.worker.run("a")
    assert '"kind": "TargetExists"' in parts.fields()["error"]


def test_a_worker_that_cannot_work_hands_its_job_back(parts: Parts) -> None:
    broken: Future[worker.Equipment] = Future()
    broken.set_exception(FfmpegMissing("there is no ffmpeg"))
    parts.submit()
    worker.Worker(parts.ledger, parts.heart, broken, Policy(("/media",))).run("a")
    assert parts.fields()["state"] == "queued"
    assert parts.ledger.record("a").history[-1].detail == "the worker cannot work: there is no ffmpeg"


def test_a_job_asks_redis_nothing_while_it_runs(parts: Parts, redis: services.Redis) -> None:
    parts.submit()
    assert isinstance(parts.ledger.claim("a", "me", SCHEMA), Claimed)
    held = worker.Held(parts.ledger, "a", 1, parts.heart.wake)
    redis.kill()
    started = time.monotonic()
    events: list[Event] = [Probing("/media/in.mkv")] * 100
    for event in events:
        held.listen(event)
        assert not held.cancelled()
    assert time.monotonic() - started < 0.1


def test_what_redis_did_not_hear_is_told_again(parts: Parts, tmp_path: Path) -> None:
    parts.submit()
    parts.ledger.claim("a", "me", SCHEMA)
    held = worker.Held(parts.ledger, "a", 1, parts.heart.wake)
    held.listen(Probing("/media/in.mkv"))
    lost = held.report()  # and the beat failed
    held.finish("failed", error={})
    assert len(lost.phases) == 1
    assert [moment.what for moment in parts.ledger.record("a").history] == ["queued", "running", "probing", "failed"]


def test_a_wait_for_redis_ends_with_the_job(redis: services.Redis) -> None:
    ledger = Ledger(redis.url)
    held = worker.Held(ledger, "a", 1, lambda: None)
    redis.kill()
    threading.Timer(0.3, held.must_stop).start()
    with pytest.raises(JobCancelled, match="while Redis was away"):
        held.still_ours()


def test_the_end_of_a_job_is_told_once_redis_is_back(tmp_path: Path) -> None:
    with services.private_redis(tmp_path, appendonly=True) as redis:
        ledger = Ledger(redis.url)
        spec = JobSpec(source="/media/in.mkv", target="/media/out.mp4")
        ledger.submit("a", spec, queue.message("a", 5))
        ledger.claim("a", "me", SCHEMA)
        redis.kill()
        ending = threading.Thread(target=lambda: worker.Held(ledger, "a", 1, lambda: None).finish("published"))
        ending.start()
        time.sleep(0.3)
        redis.start()  # from here: the kernel ends it with the thread that started it
        ending.join(10)
        assert ledger.record("a").fields["state"] == "published"
        with pytest.raises(TransitionRefused):
            ledger.finish(Report("a", 1), "failed")
