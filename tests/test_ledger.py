"""The ledger against a real Redis: what may follow what, who holds a job, and what is refused."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import redis as redis_py
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from tests import services
from transcoder import queue
from transcoder.errors import (
    BrokerUnavailable,
    JobCancelled,
    JobUnknown,
    TargetExists,
    TokenConflict,
    TransitionRefused,
)
from transcoder.ledger import FINISHED, TRANSITIONS, Claimed, Ledger, Newer, Report, safe, targets_of
from transcoder.spec import SCHEMA, JobSpec, Output, Video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Redis]:
    with services.private_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def plain(server: services.Redis) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def ledger(server: services.Redis, plain: redis_py.Redis) -> Iterator[Ledger]:
    ledger = Ledger(server.url)
    yield ledger
    ledger.close()


def asked(target: str = "/media/out.mp4", **fields: Any) -> JobSpec:
    return JobSpec.model_validate({"source": "/media/in.mkv", "target": target, **fields})


def submit(ledger: Ledger, job_id: str, spec: JobSpec | None = None) -> str:
    spec = spec or asked(f"/media/{job_id}.mp4")
    return ledger.submit(job_id, spec, queue.message(job_id, spec.priority))


def claim(ledger: Ledger, job_id: str, owner: str = "me") -> Claimed:
    claimed = ledger.claim(job_id, owner, SCHEMA)
    assert isinstance(claimed, Claimed)
    return claimed


def state(ledger: Ledger, job_id: str) -> str:
    return ledger.record(job_id).fields["state"]


def messages(plain: redis_py.Redis) -> int:
    return sum(plain.llen(key) for key in plain.keys("transcode.*"))


def test_a_record_and_its_message_come_together(ledger: Ledger, plain: redis_py.Redis) -> None:
    assert submit(ledger, "a") == "a"
    record = ledger.record("a")
    assert record.fields["state"] == "queued"
    assert record.waiting == 1
    assert JobSpec.model_validate_json(record.fields["spec"]) == asked("/media/a.mp4")
    assert messages(plain) == 1


def test_a_submit_that_is_sent_twice_is_one_job(ledger: Ledger, plain: redis_py.Redis) -> None:
    assert submit(ledger, "a") == submit(ledger, "a")
    assert messages(plain) == 1


def test_a_job_is_claimed_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert claim(ledger, "a").fence == 1
    assert ledger.claim("a", "me", SCHEMA) is None
    assert ledger.claim("a", "another", SCHEMA) is None
    assert ledger.claim("nothing", "me", SCHEMA) is None


def test_a_claim_whose_answer_was_lost_gives_the_same_job_again(ledger: Ledger) -> None:
    submit(ledger, "a")
    words = {"id": "a", "owner": "me", "schema": SCHEMA, "claim": "once"}
    assert ledger._change("claim", **words) == ledger._change("claim", **words)
    assert ledger.record("a").fields["attempt"] == "1"


def test_a_newer_schema_is_left_as_it_is(ledger: Ledger) -> None:
    submit(ledger, "a", asked(priority=7).model_copy(update={"schema_version": SCHEMA + 1}))
    assert ledger.claim("a", "me", SCHEMA) == Newer(SCHEMA + 1, 7)
    assert state(ledger, "a") == "queued"


def test_a_post_moves_a_waiting_job_to_another_queue(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    ledger.post("a", queue.message("a", 5, SCHEMA + 1), "newer")
    assert {name: figures.depth for name, figures in ledger.figures().queues.items()} == {
        queue.queue_name(SCHEMA): 0,
        queue.queue_name(SCHEMA + 1): 1,
    }
    assert messages(plain) == 2


def test_a_job_handed_back_waits_again_and_the_old_holder_is_refused(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    first = claim(ledger, "a")
    ledger.hand_back("a", first.fence, queue.message("a", 5), "the worker ends")
    assert state(ledger, "a") == "queued"
    assert messages(plain) == 2
    second = claim(ledger, "a", "another")
    assert second.fence == first.fence + 1
    late: list[Callable[[], None]] = [
        lambda: ledger.finish(Report("a", first.fence), "published", result={}),
        lambda: ledger.hand_back("a", first.fence, queue.message("a", 5), "late"),
        lambda: ledger.still_ours("a", first.fence),
        lambda: ledger.take_targets("a", first.fence, ["/media/x.mp4"]),
    ]
    for stale in late:
        with pytest.raises(TransitionRefused, match="not this worker's any more"):
            stale()
    both = [Report("a", first.fence), Report("a", second.fence)]
    assert ledger.beat("another", both) == ["lost", "go on"]


def test_a_beat_tells_phases_and_progress_and_brings_back_a_cancellation(ledger: Ledger) -> None:
    submit(ledger, "a")
    fence = claim(ledger, "a").fence
    phases = [("probing", 2.0, ""), ("encoding", 1.0, "software")]
    assert ledger.beat("me", [Report("a", fence, phases, {"fraction": 0.5})]) == ["go on"]
    record = ledger.record("a")
    assert record.workers == 1
    assert record.fields["phase"] == "encoding"
    assert json.loads(record.fields["progress"]) == {"fraction": 0.5}
    assert [(moment.what, moment.detail) for moment in record.history] == [
        ("queued", ""),
        ("running", "me"),
        ("probing", ""),
        ("encoding", "software"),
    ]
    assert record.history[3].at - record.history[2].at == pytest.approx(1, abs=0.01)
    assert ledger.cancel("a") == "running"
    assert ledger.beat("me", [Report("a", fence)]) == ["cancelled"]
    with pytest.raises(JobCancelled):
        ledger.still_ours("a", fence)


def test_a_job_whose_worker_is_silent_is_cancelled_at_once_and_its_target_is_free(
    ledger: Ledger, plain: redis_py.Redis
) -> None:
    submit(ledger, "a", asked("/media/one.mp4"))
    held = claim(ledger, "a")
    plain.hset("transcoder:job:a", "heartbeat", str(time.time() - 60))
    assert ledger.cancel("a") == "cancelled"
    submit(ledger, "b", asked("/media/one.mp4"))
    with pytest.raises(TransitionRefused):
        ledger.still_ours("a", held.fence)


def test_a_queued_job_is_cancelled_at_once_and_its_message_comes_too_late(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert ledger.cancel("a") == "cancelled"
    assert ledger.claim("a", "me", SCHEMA) is None
    assert json.loads(ledger.record("a").fields["error"])["kind"] == "JobCancelled"


@pytest.mark.parametrize("end", sorted(FINISHED))
def test_a_finished_job_is_final(ledger: Ledger, end: str) -> None:
    submit(ledger, "a")
    fence = claim(ledger, "a").fence
    ledger.finish(Report("a", fence), end, error={"kind": "TranscoderError"})
    ledger.finish(Report("a", fence), end)  # the same word twice is no harm
    with pytest.raises(TransitionRefused, match=f"job a is {end}"):
        ledger.cancel("a")
    with pytest.raises(TransitionRefused):
        ledger.post("a", queue.message("a", 5), "again")
    assert ledger.claim("a", "me", SCHEMA) is None


def test_what_is_not_there_is_unknown(ledger: Ledger) -> None:
    for question in (ledger.record, ledger.cancel, lambda job_id: ledger.still_ours(job_id, 1)):
        with pytest.raises(JobUnknown, match="no job nothing"):
            question("nothing")


def test_the_same_token_and_spec_give_the_first_job(ledger: Ledger, plain: redis_py.Redis) -> None:
    spec = asked(token="mine", metadata={"b": "2", "a": "1"})
    same = asked(metadata={"a": "1", "b": "2"}, token="mine")
    assert submit(ledger, "a", spec) == "a"
    assert submit(ledger, "b", same) == "a"
    fence = claim(ledger, "a").fence
    ledger.finish(Report("a", fence), "failed", error={})
    assert submit(ledger, "c", spec) == "a"
    assert messages(plain) == 1


def test_a_token_used_for_another_spec_is_refused(ledger: Ledger) -> None:
    submit(ledger, "a", asked(token="mine"))
    with pytest.raises(TokenConflict, match="job a"):
        submit(ledger, "b", asked("/media/other.mp4", token="mine"))
    with pytest.raises(JobUnknown):
        ledger.record("b")


def test_two_unfinished_jobs_never_share_a_target(ledger: Ledger) -> None:
    submit(ledger, "a", asked("/media/out.mp4"))
    with pytest.raises(TargetExists, match=r"job a is writing /media/out\.mp4"):
        submit(ledger, "b", asked("/media//./out.mp4"))
    fence = claim(ledger, "a").fence
    ledger.finish(Report("a", fence), "published", result={})
    assert submit(ledger, "b", asked("/media/out.mp4")) == "b"


def test_targets_that_are_known_later_are_taken_later(ledger: Ledger) -> None:
    submit(ledger, "a", asked("/media/{height}.mp4"))
    submit(ledger, "b", asked("/media/720.mp4"))
    fence = claim(ledger, "a").fence
    with pytest.raises(TargetExists, match=r"job b is writing /media/720\.mp4"):
        ledger.take_targets("a", fence, ["/media/1080.mp4", "/media/720.mp4"])
    ledger.cancel("b")
    ledger.take_targets("a", fence, ["/media/1080.mp4", "/media/720.mp4"])
    with pytest.raises(TargetExists, match=r"job a is writing /media/1080\.mp4"):
        submit(ledger, "c", asked("/media/1080.mp4"))


def test_targets_differ_where_their_names_do() -> None:
    ladder = (Output(name="hi"), Output(name="lo", video=Video(height=360)), Output(name="sound", video=None))
    spec = asked("/media/{stem}.{name}.{ext}", outputs=ladder)
    assert targets_of(spec) == ("/media/in.hi.mp4", "/media/in.lo.mp4", "/media/in.sound.m4a")
    assert targets_of(asked("/media/{name}-{height}.{ext}", outputs=ladder)) == (
        "?/media/hi-0.mp4",
        "?/media/lo-0.mp4",
        "/media/sound-audio.m4a",
    )


def test_finished_records_expire_and_unfinished_ones_do_not(server: services.Redis, plain: redis_py.Redis) -> None:
    ledger = Ledger(server.url, retention=1)
    submit(ledger, "old", asked(token="mine"))
    ledger.finish(Report("old", claim(ledger, "old").fence), "failed", error={})
    submit(ledger, "waiting")
    time.sleep(1.2)
    with pytest.raises(JobUnknown):
        ledger.record("old")
    submit(ledger, "next", asked(token="mine"))  # its token is free again
    ledger.finish(Report("next", claim(ledger, "next").fence), "failed", error={})  # and this end prunes the indexes
    assert [record.job_id for record in ledger.jobs()] == ["next", "waiting"]
    assert plain.zcard("transcoder:jobs") == 2
    assert plain.ttl("transcoder:job:waiting") == -1
    ledger.close()


def test_jobs_are_listed_newest_first_and_by_state(ledger: Ledger) -> None:
    for job_id in "abc":
        submit(ledger, job_id)
    claim(ledger, "b")
    assert [record.job_id for record in ledger.jobs()] == ["c", "b", "a"]
    assert [record.job_id for record in ledger.jobs(limit=1)] == ["c"]
    assert [record.job_id for record in ledger.jobs("queued")] == ["c", "a"]
    figures = ledger.figures()
    assert (figures.running, figures.queues[queue.queue_name()].depth) == (1, 2)
    assert 0 < figures.queues[queue.queue_name()].oldest < 5


def test_a_full_redis_is_named_as_such(ledger: Ledger, plain: redis_py.Redis) -> None:
    plain.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(BrokerUnavailable, match="is full"):
            submit(ledger, "a")
    finally:
        plain.config_set("maxmemory", "0")
    with pytest.raises(JobUnknown):
        ledger.record("a")


def test_a_wrong_password_is_named_and_not_shown(server: services.Redis) -> None:
    url = server.url.replace("//", "//somebody:secret@")
    with pytest.raises(BrokerUnavailable, match="refuses this user or password") as refused:
        Ledger(url).figures()
    assert "secret" not in str(refused.value)
    assert safe(url + "?password=secret") == server.url


def test_a_restarted_redis_is_found_again(tmp_path: Path) -> None:
    with services.private_redis(tmp_path, appendonly=True) as server:
        ledger = Ledger(server.url)
        submit(ledger, "a")
        server.kill()
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            ledger.record("a")
        server.start()
        assert state(ledger, "a") == "queued"


class Lives(RuleBasedStateMachine):
    """Any order of changes: the ledger allows exactly what the table of transitions and the fencing number allow."""

    url = ""
    jobs = Bundle("jobs")
    fences = Bundle("fences")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self.url)
        self.ledger._redis.flushall()
        self.states: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.targets: dict[str, str] = {}

    def move(self, job_id: str, to: str, allowed: bool, change: Any) -> None:
        if allowed and to in TRANSITIONS[self.states[job_id]]:
            change()
            self.states[job_id] = to
        else:
            with pytest.raises(TransitionRefused):
                change()

    def holds(self, job_id: str, fence: int) -> bool:
        return self.states[job_id] == "running" and self.attempts[job_id] == fence

    @rule(target=jobs, name=st.sampled_from("xyz"))
    def submit(self, name: str) -> str:
        job_id, target = f"job{len(self.states)}", f"/media/{name}.mp4"
        taken = any(at == target and self.states[one] not in FINISHED for one, at in self.targets.items())
        if taken:
            with pytest.raises(TargetExists):
                submit(self.ledger, job_id, asked(target))
            return next(one for one, at in self.targets.items() if at == target)
        submit(self.ledger, job_id, asked(target))
        self.states[job_id], self.attempts[job_id], self.targets[job_id] = "queued", 0, target
        return job_id

    @rule(target=fences, job_id=jobs)
    def claim(self, job_id: str) -> tuple[str, int]:
        claimed = self.ledger.claim(job_id, "me", SCHEMA)
        assert (claimed is not None) == (self.states[job_id] == "queued")
        if isinstance(claimed, Claimed):
            self.states[job_id] = "running"
            self.attempts[job_id] += 1
            assert claimed.fence == self.attempts[job_id]
        return job_id, self.attempts[job_id]

    @rule(held=fences)
    def hand_back(self, held: tuple[str, int]) -> None:
        job_id, fence = held
        message = queue.message(job_id, 5)
        self.move(job_id, "queued", self.holds(*held), lambda: self.ledger.hand_back(job_id, fence, message, "why"))

    @rule(held=consumes(fences), end=st.sampled_from(sorted(FINISHED)))
    def finish(self, held: tuple[str, int], end: str) -> None:
        job_id, fence = held
        if self.states[job_id] == end and self.attempts[job_id] == fence:
            self.ledger.finish(Report(job_id, fence), end)  # once more
        else:
            self.move(job_id, end, self.holds(*held), lambda: self.ledger.finish(Report(job_id, fence), end))

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        if self.states[job_id] == "running":
            assert self.ledger.cancel(job_id) == "running"
        else:
            self.move(job_id, "cancelled", True, lambda: self.ledger.cancel(job_id))

    @rule(held=fences)
    def beat(self, held: tuple[str, int]) -> None:
        [verdict] = self.ledger.beat("me", [Report(*held)])
        assert (verdict == "lost") == (not self.holds(*held))

    @invariant()
    def the_record_and_every_index_agree(self) -> None:
        assert {one: state(self.ledger, one) for one in self.states} == self.states
        for name in TRANSITIONS:
            expected = {one for one, now in self.states.items() if now == name}
            assert {record.job_id for record in self.ledger.jobs(name)} == expected
        figures = self.ledger.figures()
        waiting = sum(one.depth for one in figures.queues.values())
        assert (figures.running, waiting) == tuple(list(self.states.values()).count(s) for s in ("running", "queued"))

    @invariant()
    def only_unfinished_jobs_hold_targets(self) -> None:
        held = set(self.ledger._redis.mget(self.ledger._redis.keys("transcoder:target:*") or ["none"])) - {None}
        assert held == {one for one, now in self.states.items() if now not in FINISHED}

    def teardown(self) -> None:
        self.ledger.close()


def test_the_ledger_allows_exactly_the_legal_changes(server: services.Redis) -> None:
    Lives.url = server.url
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
