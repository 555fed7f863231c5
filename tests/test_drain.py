"""The orderly end: what can finish finishes, what cannot is another worker's, and the worker ends with 0 in time."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import services
from tests.conftest import MakeClip
from tests.test_reaper import Crew, a_crew, crew
from transcoder.drain import Drain

__all__ = ["crew"]  # the fixture

pytestmark = pytest.mark.slow


@dataclass
class Job:
    """A job that needs so many seconds; it ends when it is given back."""

    needs: float
    began: float = field(default_factory=time.monotonic)
    given_back: float | None = None

    def fits(self, seconds: float) -> bool:
        return self.needs - (time.monotonic() - self.began) <= seconds

    def give_back(self, why: str) -> None:
        self.given_back = self.given_back or time.monotonic() - self.began


def drained(*jobs: Job, grace: float, again_after: float | None = None) -> float:
    """Drain until the time is over. Gives how long that took."""
    drain = Drain(grace, lambda: jobs)
    drain.start()
    began = time.monotonic()
    drain.told()
    if again_after is not None:
        threading.Timer(again_after, drain.told).start()
    assert drain.over.wait(10)
    took = time.monotonic() - began
    time.sleep(0.1)
    return took


def test_what_fits_is_let_be_and_what_does_not_is_given_back_at_once() -> None:
    short, long = Job(0.5), Job(60)
    assert drained(short, long, grace=1) == pytest.approx(1, abs=0.5)
    assert (long.given_back or 9) < 0.5
    assert (short.given_back or 0) >= 1, "at the end all are"


def test_the_second_word_gives_back_now() -> None:
    job = Job(1)
    assert drained(job, grace=30, again_after=0.2) < 3
    assert job.given_back is not None


def test_a_job_that_comes_late_is_given_back_too() -> None:
    jobs: list[Job] = []
    drain = Drain(0.1, lambda: jobs)
    drain.start()
    drain.told()
    assert drain.over.wait(5)
    jobs.append(Job(0))
    deadline = time.monotonic() + 5
    while jobs[0].given_back is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_that_does_not_fit_goes_to_another_worker_and_is_no_loss(crew: Crew) -> None:
    first = crew.worker("first", TRANSCODER_GRACE="2")
    job_id = crew.submit()
    crew.encoding_on("first", job_id)
    crew.worker("second")
    asked = time.monotonic()
    assert first.stop() == 0, first.log()
    assert time.monotonic() - asked < 12, "2 s of grace and 2 s to end"
    assert not [line for line in crew.ffmpegs() if f"{job_id}-1" in line]
    status = crew.end(job_id)
    assert (status.state, status.attempts) == ("published", 2)
    words = [moment.detail for moment in status.history if moment.what == "queued"]
    assert words[-1].startswith("its worker ends in")
    assert words[-1].endswith("it needs longer")
    assert "not heard of" not in str(status.history)
    assert crew.client._ledger.record(job_id).fields.get("lost") is None
    assert crew.scratch() == []


def test_a_second_signal_hands_back_at_once(crew: Crew) -> None:
    first = crew.worker("first", TRANSCODER_GRACE="100")
    job_id = crew.submit()
    crew.encoding_on("first", job_id)
    os.kill(first.pid, signal.SIGTERM)
    time.sleep(1)
    assert first.running
    assert crew.client.status(job_id).phase == "encoding"
    os.kill(first.pid, signal.SIGTERM)
    assert first.process is not None
    assert first.process.wait(10) == 0, first.log()
    assert crew.client.status(job_id).state == "queued"
    assert (crew.scratch(), crew.ffmpegs()) == ([], [])


MOMENTS = [
    *((signal.SIGTERM, after) for after in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.1)),
    *((sign, after) for sign in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP) for after in (0.0, 0.4)),
]


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("sign", "after"), MOMENTS)
def test_a_worker_that_is_told_to_end_while_it_starts_ends_in_order(
    crew: Crew, sign: signal.Signals, after: float
) -> None:
    worker = services.Worker(crew.redis.url, crew.folder / "starting", [crew.folder], concurrency=1, settings={})
    services.Service.start(worker)  # nobody waits for it
    assert worker.process is not None
    try:
        while not hears(worker.pid, signal.SIGTERM):  # the last; Python itself hears SIGINT from its start
            time.sleep(0.002)
        time.sleep(after)
        os.kill(worker.pid, sign)
        assert worker.process.wait(10) == 0, worker.log()
        assert "Traceback" not in worker.log()
        assert crew.client.workers() == []
    finally:
        worker.kill()


@pytest.mark.usefixtures("terminal")
def test_a_worker_whose_terminal_is_closed_drains_and_does_not_start_anew(crew: Crew) -> None:
    ours, its = os.openpty()
    buffered = {"PYTHONUNBUFFERED": ""}  # as outside of tests: then Python writes once more at its end
    worker = services.Worker(crew.redis.url, crew.folder / "worker", [crew.folder], concurrency=1, settings=buffered)
    with subprocess.Popen(
        ["setsid", "--ctty", *worker.command], env=worker.environment, stdin=its, stdout=its, stderr=its
    ) as worker.process:
        os.close(its)
        try:
            worker.wait_until(worker.healthy, "the worker")
            os.close(ours)
            assert worker.process.wait(10) == 0
            assert crew.client.workers() == []
        finally:
            worker.kill()


def test_a_worker_that_was_started_with_nohup_outlives_its_terminal(crew: Crew) -> None:
    worker = services.Worker(crew.redis.url, crew.folder / "worker", [crew.folder], concurrency=1, settings={})
    worker.command = ["nohup", *worker.command]
    try:
        worker.start()
        os.kill(worker.pid, signal.SIGHUP)
        time.sleep(1)
        assert worker.healthy()
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_worker_that_drains_is_told_apart_by_its_health_and_sigterm_comes_through(crew: Crew) -> None:
    first = crew.worker("first", TRANSCODER_GRACE="100")
    job_id = crew.submit()
    crew.encoding_on("first", job_id)
    os.kill(first.pid, signal.SIGHUP)
    deadline = time.monotonic() + 10
    while first.healthy():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert crew.client.status(job_id).phase == "encoding"
    os.kill(first.pid, signal.SIGTERM)
    assert first.process is not None
    assert first.process.wait(10) == 0, first.log()
    assert crew.client.status(job_id).state == "queued"


def test_whoever_asks_a_worker_where_it_stands_is_answered_and_it_goes_on(crew: Crew) -> None:
    worker = crew.worker("only")
    os.kill(worker.pid, signal.SIGUSR1)
    worker.wait_until(lambda: "Current thread" in worker.log(), "the stack")
    assert worker.healthy()


def test_all_that_a_worker_writes_on_stdout_is_json(tmp_path: Path, make_clip: MakeClip) -> None:
    source = make_clip("testsrc2=s=160x120:r=25:d=0.4", audio=False)
    with (
        services.private_redis(tmp_path / "redis", appendonly=True) as redis,
        a_crew(redis, tmp_path, source) as crew,
    ):
        worker = crew.worker("only", TRANSCODER_LOG_FORMAT="json")
        redis.kill()
        worker.wait_until(lambda: "Cannot connect" in worker.log(), "the consumer's complaint")
        redis.start()
        crew.end(crew.submit())
        assert worker.stop() == 0
        lines = [json.loads(line) for line in worker.log().splitlines()]
        assert {"published", "draining"} <= {line["event"] for line in lines}
        assert not [line["message"] for line in lines if "\n" in line["message"]]


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for that signal."""
    caught = re.search(r"SigCgt:\t(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def test_a_worker_ends_in_its_grace_time_while_redis_is_away(tmp_path: Path, make_clip: MakeClip) -> None:
    source = make_clip("testsrc2=s=160x120:r=25:d=6", audio=False)
    with (
        services.private_redis(tmp_path / "redis", appendonly=True) as redis,
        a_crew(redis, tmp_path, source) as crew,
    ):
        first = crew.worker("first", TRANSCODER_GRACE="2")
        job_id = crew.submit()
        crew.encoding_on("first", job_id)
        redis.kill()
        time.sleep(1)
        os.kill(first.pid, signal.SIGTERM)
        assert first.process is not None
        assert first.process.wait(18) == 0, first.log()
        assert '"event": "left"' in first.log()
        assert '"event": "handed_on"' not in first.log(), "Redis heard of nothing"
        assert (crew.scratch(), crew.ffmpegs()) == ([], [])
        redis.start()
        crew.worker("second")
        assert crew.end(job_id).state == "published"
