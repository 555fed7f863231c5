"""The reaper: takes jobs from workers that are gone, never from those that live, and finds jobs without a message."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import redis as redis_py
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests import services
from tests.conftest import MakeClip
from tests.local import program
from tests.test_ledger import claim, ledger, messages, plain, server, submit
from transcoder import Client, JobSpec, Status, queue, reaper
from transcoder.errors import TransitionRefused, WorkersLost
from transcoder.ledger import Claimed, Ledger, Report, TakenBack, Told
from transcoder.placement import queue_name
from transcoder.reaper import GAP, PERIOD, Reaper
from transcoder.spec import SCHEMA

__all__ = ["ledger", "plain", "server"]  # the fixtures

pytestmark = pytest.mark.slow

LEASE = 3.0
HW, SOFTWARE = queue_name("hw.h264"), queue_name("software")


@dataclass
class Watch:
    """A reaper whose clock the test turns."""

    ledger: Ledger
    owner: str = "reaper"
    now: float = 1000.0
    taken: list[TakenBack] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.reaper = Reaper(
            self.ledger, self.owner, LEASE, self.taken.append, self._count_sent, clock=lambda: self.now
        )

    def _count_sent(self, jobs: int) -> None:
        self.sent += jobs

    def look(self, seconds: float = PERIOD) -> list[str]:
        """Look every PERIOD for so long. Gives the jobs that were taken back meanwhile."""
        before = len(self.taken)
        for _ in range(round(seconds / PERIOD)):
            self.now += PERIOD
            self.reaper.look()
        return [job.job_id for job in self.taken[before:]]


@pytest.fixture
def watch(ledger: Ledger) -> Watch:
    return Watch(ledger)


def beats(ledger: Ledger, owner: str, *held: tuple[str, int], queues: tuple[str, ...] = ()) -> list[str]:
    return ledger.beat(owner, [Report(*one) for one in held], Told(name=owner, queues=queues))


def test_a_job_whose_worker_falls_silent_waits_again_after_a_lease(ledger: Ledger, watch: Watch) -> None:
    submit(ledger, "a")
    held = claim(ledger, "a", "dead")
    assert watch.look(LEASE) == []
    assert watch.look(2 * PERIOD) == ["a"]
    record = ledger.record("a")
    assert (record.fields["state"], record.fields["lost"]) == ("queued", "1")
    assert record.history[-1].detail == "worker dead is not heard of any more"
    assert watch.taken == [TakenBack("a", held.fence, "dead", 1)]
    with pytest.raises(TransitionRefused):
        ledger.still_ours("a", held.fence)
    assert beats(ledger, "dead", ("a", held.fence)) == ["lost"]
    assert claim(ledger, "a", "another").fence == held.fence + 1


def test_a_job_that_was_taken_back_comes_before_those_that_have_not_begun(
    ledger: Ledger, watch: Watch, plain: redis_py.Redis
) -> None:
    submit(ledger, "a")
    plain.rpop(queue.message("", 5, HW).list_key)
    claim(ledger, "a", "dead")
    submit(ledger, "later")
    watch.look(LEASE + 2 * PERIOD)
    assert '"a.' in str(plain.rpop(queue.message("", 5, HW).list_key))


def test_a_job_of_which_a_word_comes_now_and_then_is_never_taken(ledger: Ledger, watch: Watch) -> None:
    submit(ledger, "a")
    held = claim(ledger, "a", "slow")
    for _ in range(8):
        assert watch.look(LEASE - PERIOD) == []
        assert beats(ledger, "slow", ("a", held.fence)) == ["go on"]


def test_a_worker_that_lives_and_has_forgotten_a_job_loses_it(ledger: Ledger, watch: Watch) -> None:
    submit(ledger, "a")
    claim(ledger, "a", "forgetful")
    taken = []
    for _ in range(8):
        beats(ledger, "forgetful", queues=(HW,))
        taken += watch.look()
    assert taken == ["a"]
    assert ledger.record("a").serving == 1, "it still serves"


def test_a_worker_that_lost_its_jobs_serves_nothing_until_it_is_heard_again(ledger: Ledger, watch: Watch) -> None:
    beats(ledger, "dead", queues=(HW,))
    submit(ledger, "a")
    held = claim(ledger, "a", "dead")
    beats(ledger, "dead", ("a", held.fence), queues=(HW,))
    assert watch.look(LEASE + 2 * PERIOD) == ["a"]
    assert ledger.record("a").serving == 0
    beats(ledger, "dead", queues=(HW,))
    assert ledger.record("a").serving == 1


def test_a_running_job_that_nobody_counted_is_watched_too(ledger: Ledger, watch: Watch, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    submit(ledger, "b")
    claim(ledger, "a", "an older version")
    held = claim(ledger, "b", "lives")
    plain.zrem("transcoder:heartbeats", "a")
    plain.zadd("transcoder:heartbeats", {"gone": 1, "long gone": 1})
    taken = []
    for _ in range(8):
        taken += watch.look()
        beats(ledger, "lives", ("b", held.fence))
    assert taken == ["a"]
    assert plain.zrange("transcoder:heartbeats", 0, -1) == ["b"]


def test_after_an_outage_a_whole_lease_passes_before_anything_is_taken(tmp_path: Path) -> None:
    with services.private_redis(tmp_path, appendonly=True) as redis:
        ledger = Ledger(redis.url)
        watch = Watch(ledger)
        submit(ledger, "a")
        held = claim(ledger, "a", "cut off")
        watch.look(LEASE - PERIOD)
        redis.kill()
        watch.look(PERIOD)
        redis.start()
        assert watch.look(LEASE) == [], "it was kept from speaking"
        beats(ledger, "cut off", ("a", held.fence))
        assert watch.look(LEASE) == []
        assert watch.look(2 * PERIOD) == ["a"]


def test_a_reaper_that_stood_still_itself_forgets_what_it_saw(ledger: Ledger, watch: Watch) -> None:
    submit(ledger, "a")
    claim(ledger, "a", "paused with the reaper")
    watch.look(LEASE - PERIOD)
    watch.now += GAP + LEASE
    assert watch.look(LEASE) == []
    assert watch.look(2 * PERIOD) == ["a"]


def test_a_redis_that_lost_its_count_is_begun_with_anew(ledger: Ledger, watch: Watch, plain: redis_py.Redis) -> None:
    for _ in range(100):
        beats(ledger, "me")
    watch.look(LEASE + 2 * PERIOD)
    plain.flushall()
    submit(ledger, "a")
    claim(ledger, "a", "me")
    assert watch.look(LEASE) == []


def test_only_one_acts_at_a_time_and_another_at_once_when_that_one_is_gone(ledger: Ledger) -> None:
    first, second = Watch(ledger, "first"), Watch(ledger, "second")
    submit(ledger, "a")
    claim(ledger, "a", "dead")
    for _ in range(20):
        first.look()
        second.look()
        if first.taken:
            break
    assert [job.job_id for job in first.taken] == ["a"]
    claim(ledger, "a", "dead too")
    for _ in range(round(LEASE / PERIOD) + 2):
        assert second.look() == [], "the first still has the word"
    time.sleep(reaper.ACTING + 0.1)
    assert second.look() == ["a"], "it looked all the time"


def test_a_job_without_a_message_gets_one_and_only_it(ledger: Ledger, watch: Watch, plain: redis_py.Redis) -> None:
    for number in range(600):  # more than a page
        submit(ledger, f"j{number}")
    key = queue.message("", 5, HW).list_key
    lost = [text for text in plain.lrange(key, 0, -1) if '"j7.' in text or '"j599.' in text]
    for text in lost:
        plain.lrem(key, 1, str(text))
    watch.look(LEASE)
    assert watch.sent == 0, "it may just have been taken by a worker"
    watch.look(2 * PERIOD)
    assert watch.sent == 2
    assert {str(text).split('"id": "')[1].partition(".")[0] for text in plain.lrange(key, -2, -1)} == {"j599", "j7"}
    watch.look(3 * LEASE)
    assert (watch.sent, messages(plain)) == (2, 600), "a long queue is not multiplied"


def test_a_message_that_comes_and_goes_is_not_missed(ledger: Ledger, watch: Watch, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    key = queue.message("", 5, HW).list_key
    for _ in range(20):
        text = plain.rpop(key)
        watch.look(LEASE - PERIOD)
        plain.rpush(key, str(text))
        watch.look()
    assert (watch.sent, messages(plain)) == (0, 1)


def test_what_is_no_message_of_ours_is_no_hindrance(ledger: Ledger, watch: Watch, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    submit(ledger, "b")
    plain.delete(queue.message("", 5, HW).list_key)
    plain.lpush(HW, "not JSON at all")
    watch.look(LEASE + 2 * PERIOD)
    assert watch.sent == 2


class Reapers(RuleBasedStateMachine):
    """Workers beat or fall silent, reapers look, clocks run: no job is taken that was heard of within the lease."""

    url = ""
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self.url)
        self.ledger._redis.flushall()
        self.now = 1000.0
        self.taken: list[TakenBack] = []
        self.reapers = [
            Reaper(self.ledger, name, LEASE, self.taken.append, clock=lambda: self.now) for name in ("one", "two")
        ]
        self.heard: dict[str, float] = {}
        self.held: dict[str, tuple[str, int]] = {}
        self.looked: dict[int, list[float]] = {0: [], 1: []}

    @rule(owner=st.sampled_from("xyz"))
    def take(self, owner: str) -> None:
        job_id = f"j{next(self.numbers)}"
        submit(self.ledger, job_id)
        self.held[job_id] = (owner, claim(self.ledger, job_id, owner).fence)
        self.heard[job_id] = self.now

    @rule(owner=st.sampled_from("xyz"))
    def beat(self, owner: str) -> None:
        mine = [(job_id, fence) for job_id, (by, fence) in self.held.items() if by == owner]
        assert set(beats(self.ledger, owner, *mine)) <= {"go on"}
        self.heard |= {job_id: self.now for job_id, _ in mine}

    @rule(seconds=st.sampled_from([0.1, PERIOD, PERIOD, PERIOD, GAP + 0.1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=st.sampled_from([0, 1]))
    def look(self, which: int) -> None:
        before = len(self.taken)
        self.reapers[which].look()
        self.looked[which].append(self.now)
        for job in self.taken[before:]:
            assert self.now - self.heard[job.job_id] >= LEASE
            assert self.held.pop(job.job_id) == (job.owner, job.fence)
            assert claim(self.ledger, job.job_id, "w").fence == job.fence + 1
            self.ledger.finish(Report(job.job_id, job.fence + 1), "failed", error={})

    @precondition(lambda self: self.held)
    @rule()
    def steady_looks_find_the_dead(self) -> None:
        self.ledger._redis.delete("transcoder:reaper")
        for _ in range(round(LEASE / PERIOD) + 3):
            self.time_passes(PERIOD)
            self.look(0)
        assert not self.held

    @invariant()
    def what_is_held_runs(self) -> None:
        assert {record.job_id for record in self.ledger.jobs("running")} == set(self.held)
        assert set(self.ledger._redis.zrange("transcoder:heartbeats", 0, -1)) == set(self.held)

    def teardown(self) -> None:
        self.ledger.close()


def test_no_job_is_taken_that_was_heard_of_within_the_lease(server: services.Redis) -> None:
    Reapers.url = server.url
    run_state_machine_as_test(
        Reapers,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )


def test_of_many_claims_at_once_one_wins(server: services.Redis, ledger: Ledger) -> None:
    submit(ledger, "a")
    won: list[object] = []
    begin = threading.Barrier(8)

    def race(owner: str) -> None:
        mine = Ledger(server.url)
        begin.wait()
        won.append(mine.claim("a", owner, SCHEMA))
        mine.close()

    threads = [threading.Thread(target=race, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in won if isinstance(one, Claimed)]) == 1
    assert won.count(None) == 7


# Real workers

STEADY = """
case " $* " in *" libx264 "*)
  for word; do shift; [ "$word" = -i ] && set -- "$@" -readrate 1.5; set -- "$@" "$word"; done;;
esac
exec ffmpeg "$@"
"""
"""ffmpeg that encodes at the same pace on every machine, so that a test finds a job where it expects it."""


@dataclass
class Crew:
    """Workers by name, on one Redis, and a client. A job takes eight seconds."""

    redis: services.Redis
    folder: Path
    source: Path
    stack: ExitStack
    client: Client
    workers: dict[str, services.Worker] = field(default_factory=dict)

    def worker(self, name: str, *, concurrency: int = 1, **env: Any) -> services.Worker:
        roots = [self.folder, self.source.parent]
        env = {"TRANSCODER_FFMPEG": program(self.folder, "ffmpeg-steady", STEADY), **env}
        started = services.worker(
            self.redis.url, self.folder / name, roots, "--name", name, concurrency=concurrency, **env
        )
        self.workers[name] = self.stack.enter_context(started)
        return self.workers[name]

    def submit(self, target: str = "out.mp4", **fields: Any) -> str:
        outputs = [{"video": {"speed": "quality"}}]
        words = {"source": str(self.source), "target": str(self.folder / target), "outputs": outputs, **fields}
        return self.client.submit(JobSpec.model_validate(words))

    def until(self, job_id: str, true: Any, within: float = 40) -> Status:
        deadline = time.monotonic() + within
        while not true(status := self.client.status(job_id)):
            logs = "\n".join(worker.log() for worker in self.workers.values())
            assert time.monotonic() < deadline, f"{status}\n{logs}"
            time.sleep(0.02)
        return status

    def encoding_on(self, name: str, job_id: str) -> Status:
        return self.until(
            job_id, lambda status: status.phase == "encoding" and (status.owner or "").startswith(f"{name}-")
        )

    def end(self, job_id: str) -> Status:
        return self.until(job_id, lambda status: status.is_finished)

    def ffmpegs(self) -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if b"ffmpeg" in line and os.fsencode(self.folder) in line:
                found.append(line.replace(b"\0", b" ").decode())
        return found

    def scratch(self) -> list[str]:
        return [path.name for path in self.folder.glob(".transcoder*")]


@contextmanager
def a_crew(redis: services.Redis, folder: Path, source: Path) -> Iterator[Crew]:
    with ExitStack() as stack:
        yield Crew(redis, folder, source, stack, Client(redis.url))


@pytest.fixture
def crew(redis: services.Redis, tmp_path: Path, make_clip: MakeClip) -> Iterator[Crew]:
    source = make_clip("testsrc2=s=640x360:r=25:d=12", audio=False, extra=["-preset", "ultrafast"])
    with a_crew(redis, tmp_path, source) as crew:
        yield crew


def test_the_job_of_a_killed_worker_is_started_again_by_another_within_seconds(crew: Crew) -> None:
    whole: dict[str, Any] = {"TRANSCODER_SOFTWARE_BUDGET": "1000000"}  # the job takes all of it, and then the next one
    first = crew.worker("first", **whole)
    job_id = crew.submit()
    crew.encoding_on("first", job_id)
    crew.worker("second", **whole)
    first.kill()
    killed = time.monotonic()
    crew.encoding_on("second", job_id)
    took = time.monotonic() - killed
    assert took < 15, "5 s are promised"
    print(f"restarted after {took:.1f} s")
    status = crew.end(job_id)
    assert (status.state, status.attempts) == ("published", 2)
    assert "waiting" not in [moment.what for moment in status.history], "for a slot that the dead one held"
    assert crew.scratch() == []
    assert "transcoder_reaped_jobs_total 1.0" in crew.workers["second"].metrics()


def test_a_stopped_worker_that_wakes_up_late_publishes_nothing_and_stops_its_ffmpeg(crew: Crew) -> None:
    first = crew.worker("first")
    job_id = crew.submit()
    crew.encoding_on("first", job_id)
    os.kill(first.pid, signal.SIGSTOP)
    crew.worker("second")
    crew.encoding_on("second", job_id)
    assert [name for name in crew.scratch() if name.endswith("-1")] == [], "its folder was taken away"
    os.kill(first.pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while [line for line in crew.ffmpegs() if f"{job_id}-1" in line]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (crew.end(job_id).state, crew.client.status(job_id).attempts) == ("published", 2)
    assert '"event": "lost"' in first.log()
    assert '"event": "failed"' not in first.log()
    assert crew.scratch() == []


def test_a_job_that_lost_too_many_workers_fails_and_says_so(crew: Crew) -> None:
    job_id = crew.submit()
    crew.worker("first", TRANSCODER_LOST_WORKERS="1")
    crew.encoding_on("first", job_id)
    crew.workers["first"].kill()
    crew.worker("second", TRANSCODER_LOST_WORKERS="1")
    with pytest.raises(WorkersLost, match="lost 1 worker"):
        crew.client.wait(job_id)
    assert crew.scratch() == []
    assert not (crew.folder / "out.mp4").exists()


def test_a_cancelled_job_of_a_killed_worker_leaves_nothing_behind(crew: Crew) -> None:
    first = crew.worker("first")
    job_id = crew.submit()
    crew.encoding_on("first", job_id)
    first.kill()
    assert crew.client.cancel(job_id) == "running"
    assert crew.scratch() != []
    crew.worker("second")
    assert crew.end(job_id).state == "cancelled"
    assert crew.scratch() == []


def test_a_message_that_is_lost_on_its_way_is_sent_again(crew: Crew, make_clip: MakeClip) -> None:
    job_id = crew.submit()
    with redis_py.Redis.from_url(crew.redis.url) as plain:
        assert plain.delete(queue.message("", 5, HW).list_key) == 1
    crew.worker("first")
    crew.encoding_on("first", job_id)
    crew.client.cancel(job_id)
    assert "sent_again" in crew.workers["first"].log()
