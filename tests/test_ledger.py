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
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests import services
from transcoder import queue
from transcoder.errors import (
    BrokerUnavailable,
    JobCancelled,
    JobUnknown,
    NoRoute,
    TargetExists,
    TokenConflict,
    TransitionRefused,
)
from transcoder.ledger import (
    ALIVE,
    FINISHED,
    TRANSITIONS,
    Claimed,
    Hop,
    Ledger,
    Newer,
    Place,
    Report,
    Told,
    safe,
    targets_of,
)
from transcoder.placement import queue_name
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


def send(ledger: Ledger, job_id: str, priority: int, policy: str) -> None:
    submit(ledger, job_id, asked(f"/media/{job_id}.mp4", priority=priority, acceleration={"policy": policy}))


def test_a_free_place_takes_the_most_urgent_job_and_hardware_before_software(ledger: Ledger) -> None:
    live(ledger, "me", HW, SOFTWARE)
    for job_id, priority, policy in [
        *(("d", 5, "never"), ("b", 5, "prefer"), ("c", 5, "prefer")),
        *(("e", 0, "prefer"), ("a", 9, "never"), ("f", 0, "never")),
    ]:
        send(ledger, job_id, priority, policy)
    order = []
    while taken := ledger.take_next(Place("me", [HW, SOFTWARE], SCHEMA)):
        job_id, claimed = taken
        assert isinstance(claimed, Claimed)
        assert (claimed.fence, state(ledger, job_id)) == (1, "running")
        order.append(job_id)
    assert order == list("abcdef")


def test_a_free_place_takes_nothing_of_other_queues(ledger: Ledger, plain: redis_py.Redis) -> None:
    send(ledger, "a", 5, "never")
    assert ledger.take_next(Place("me", [HW], SCHEMA)) is None
    assert (state(ledger, "a"), messages(plain)) == ("queued", 1)


def test_a_free_place_passes_over_messages_that_name_no_job_to_be_done(ledger: Ledger, plain: redis_py.Redis) -> None:
    for job_id in "abcd":
        send(ledger, job_id, 5, "never")
    claim(ledger, "a", "another")
    ledger.cancel("b")
    plain.rpush(SOFTWARE, "no message at all")
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA)) == ("c", Claimed(asked_json(ledger, "c"), 1, SOFTWARE))
    assert messages(plain) == 1


def asked_json(ledger: Ledger, job_id: str) -> str:
    return ledger.record(job_id).fields["spec"]


def test_a_free_place_looks_at_a_bounded_number_of_messages(ledger: Ledger, plain: redis_py.Redis) -> None:
    plain.lpush(SOFTWARE, *["nothing"] * 60)
    send(ledger, "a", 5, "never")
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA)) is None
    assert messages(plain) == 11
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA))


def test_a_free_place_whose_answer_was_lost_gets_the_same_job_again(ledger: Ledger, plain: redis_py.Redis) -> None:
    send(ledger, "a", 5, "never")
    send(ledger, "b", 5, "never")
    place = Place("me", [SOFTWARE], SCHEMA)
    assert ledger.take_next(place) == ledger.take_next(place)
    assert (state(ledger, "a"), state(ledger, "b"), messages(plain)) == ("running", "queued", 1)
    [key] = plain.keys("transcoder:claim:*")
    assert 0 < plain.ttl(key) <= 60, "what was answered is not kept for ever"


def test_what_went_back_meanwhile_is_no_longer_the_repeated_questions(ledger: Ledger) -> None:
    send(ledger, "a", 5, "never")
    place = Place("me", [SOFTWARE], SCHEMA)
    assert ledger.take_next(place)
    ledger.hand_back("a", 1, "so")
    assert ledger.take_next(place) == ("a", None)
    assert state(ledger, "a") == "queued"


def test_a_claim_that_is_repeated_under_its_word_gives_the_same_job(ledger: Ledger) -> None:
    submit(ledger, "a")
    first = ledger.claim("a", "me", SCHEMA, "word")
    assert first
    assert ledger.claim("a", "me", SCHEMA, "word") == first
    assert ledger.claim("a", "me", SCHEMA, "another") is None


def test_a_free_place_leaves_the_messages_of_a_paused_queue_alone(ledger: Ledger, plain: redis_py.Redis) -> None:
    send(ledger, "a", 5, "never")
    ledger.pause(SOFTWARE)
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA)) is None
    assert messages(plain) == 1
    ledger.resume(SOFTWARE)
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA))


def test_jobs_whose_messages_were_lost_keep_their_order(ledger: Ledger, plain: redis_py.Redis) -> None:
    for job_id in "abc":
        send(ledger, job_id, 5, "never")
    plain.delete(queue.message("", 5).list_key)
    assert sorted(ledger.send_again(SOFTWARE)) == list("abc")
    taken = [ledger.take_next(Place("me", [SOFTWARE], SCHEMA)) for _ in "abc"]
    assert [found and found[0] for found in taken] == list("abc")


def test_the_place_of_a_job_that_ends_takes_the_next_one_in_the_same_step(ledger: Ledger) -> None:
    for job_id in "ab":
        send(ledger, job_id, 5, "never")
    place = Place("me", [SOFTWARE], SCHEMA)
    first = ledger.take_next(place)
    assert first
    assert first[0] == "a"
    second = Place("me", [SOFTWARE], SCHEMA)
    followed = ledger.finish(Report("a", 1), "published", result={}, place=second)
    assert followed == ("b", Claimed(asked_json(ledger, "b"), 1, SOFTWARE))
    assert ledger.finish(Report("a", 1), "published", result={}, place=second) == followed, "where the answer was lost"
    assert (state(ledger, "a"), state(ledger, "b")) == ("published", "running")
    assert ledger.finish(Report("b", 1), "failed", error={}, place=Place("me", [SOFTWARE], SCHEMA)) is None


def test_the_place_of_a_job_that_was_taken_away_gets_none_with_the_refusal(ledger: Ledger) -> None:
    for job_id in "ab":
        send(ledger, job_id, 5, "never")
    ledger.hand_back("a", claim(ledger, "a").fence, "so")
    with pytest.raises(TransitionRefused):
        ledger.finish(Report("a", 1), "published", result={}, place=Place("me", [SOFTWARE], SCHEMA))
    assert state(ledger, "b") == "queued"


def test_a_free_place_is_told_of_a_newer_schema(ledger: Ledger) -> None:
    newer = asked(acceleration={"policy": "never"}).model_copy(update={"schema_version": SCHEMA + 1})
    submit(ledger, "a", newer)
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA)) is None
    ledger._redis.lpush(SOFTWARE, queue.message("a", 5).text)
    assert ledger.take_next(Place("me", [SOFTWARE], SCHEMA)) == (
        "a",
        Newer(SCHEMA + 1, queue_name("software", SCHEMA + 1)),
    )
    assert state(ledger, "a") == "queued"


def test_a_newer_schema_is_left_as_it_is(ledger: Ledger) -> None:
    submit(ledger, "a", asked(priority=7).model_copy(update={"schema_version": SCHEMA + 1}))
    assert ledger.claim("a", "me", SCHEMA) == Newer(SCHEMA + 1, queue_name("hw.h264", SCHEMA + 1))
    assert state(ledger, "a") == "queued"


def test_a_post_moves_a_waiting_job_to_another_queue(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    ledger.post("a", queue_name("hw.av1"), "so")
    depths = {name: figures.depth for name, figures in ledger.figures().queues.items()}
    assert depths == {queue_name("hw.h264"): 0, queue_name("hw.av1"): 1}
    assert messages(plain) == 2
    moved = json.loads(str(plain.rpop(queue.message("", 5, queue_name("hw.av1")).list_key)))
    assert moved["properties"]["delivery_info"]["routing_key"] == queue_name("hw.av1")


def test_a_job_handed_back_waits_again_and_the_old_holder_is_refused(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "a")
    first = claim(ledger, "a")
    ledger.hand_back("a", first.fence, "the worker ends")
    assert state(ledger, "a") == "queued"
    assert messages(plain) == 2
    second = claim(ledger, "a", "another")
    assert second.fence == first.fence + 1
    late: list[Callable[[], object]] = [
        lambda: ledger.finish(Report("a", first.fence), "published", result={}),
        lambda: ledger.hand_back("a", first.fence, "late"),
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


def reaped(ledger: Ledger, *job_ids: str) -> None:
    """As if nothing had been heard of their workers for a lease."""
    look = ledger.reap("reaper", ledger.reap("reaper", -1, 0, 10).count, 0, 10)
    assert [job.job_id for job in look.taken_back] == list(job_ids)


def test_a_job_of_a_silent_worker_is_cancelled_by_the_next_one_and_not_before(
    ledger: Ledger, plain: redis_py.Redis
) -> None:
    live(ledger, "gpu", HW)
    submit(ledger, "a", asked("/media/one.mp4"))
    ledger.leave("gpu")
    live(ledger, "cpu", SOFTWARE)
    held = claim(ledger, "a")
    ledger.take_targets("a", held.fence, ["/media/one.mp4"])
    reaped(ledger, "a")
    assert ledger.cancel("a") == "queued", "its worker may still wake up and publish"
    assert plain.llen(queue.message("", 5, SOFTWARE).list_key) == 1, "who lives can end it, whatever it serves"
    with pytest.raises(TargetExists):
        submit(ledger, "b", asked("/media/one.mp4"))
    next_one = claim(ledger, "a", "another")
    assert (next_one.left, next_one.lost) == (("/media/one.mp4",), 1)
    with pytest.raises(JobCancelled):
        ledger.fenced("a", next_one.fence)
    ledger.hand_back("a", next_one.fence, "it ends as well")
    assert state(ledger, "a") == "cancelled"
    assert json.loads(ledger.record("a").fields["error"])["kind"] == "JobCancelled"
    submit(ledger, "b", asked("/media/one.mp4"))
    with pytest.raises(TransitionRefused):
        ledger.still_ours("a", held.fence)


def test_a_job_whose_earlier_attempts_are_fenced_is_cancelled_at_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    claim(ledger, "a")
    reaped(ledger, "a")
    held = claim(ledger, "a", "another")
    ledger.fenced("a", held.fence)
    ledger.hand_back("a", held.fence, "the worker ends")
    assert ledger.cancel("a") == "cancelled"


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
        ledger.post("a", queue_name("software"), "again")
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


def test_the_index_of_a_state_that_no_job_comes_to_any_more_is_pruned_too(
    server: services.Redis, plain: redis_py.Redis
) -> None:
    ledger = Ledger(server.url, retention=1)
    submit(ledger, "old")
    ledger.cancel("old")
    time.sleep(1.2)
    ledger.tend(60)
    assert plain.zcard("transcoder:jobs") == 0
    assert plain.zcard("transcoder:state:cancelled") == 0
    ledger.close()


def test_jobs_are_listed_newest_first_and_by_state(ledger: Ledger) -> None:
    for job_id in "abc":
        submit(ledger, job_id)
    claim(ledger, "b")
    assert [record.job_id for record in ledger.jobs()] == ["c", "b", "a"]
    assert [record.job_id for record in ledger.jobs(limit=1)] == ["c"]
    assert [record.job_id for record in ledger.jobs("queued")] == ["c", "a"]
    figures = ledger.figures()
    assert (figures.running, figures.queues[queue_name("hw.h264")].depth) == (1, 2)
    assert 0 < figures.queues[queue_name("hw.h264")].oldest < 5


def test_a_running_job_is_stuck_when_its_worker_is_silent(ledger: Ledger, plain: redis_py.Redis) -> None:
    for job_id in "abc":
        submit(ledger, job_id)
    claim(ledger, "a")
    claim(ledger, "b")
    assert (ledger.figures().running, ledger.figures().stuck) == (2, 0)
    silent = float(plain.hget("transcoder:job:a", "heartbeat") or 0) - ALIVE
    plain.hset("transcoder:job:a", "heartbeat", str(silent))
    assert (ledger.figures().running, ledger.figures().stuck) == (2, 1)


def test_the_workers_of_a_queue_are_those_that_live(ledger: Ledger) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "both", HW, SOFTWARE)
    figures = ledger.figures()
    assert figures.workers == 2
    assert {name: queue.workers for name, queue in figures.queues.items()} == {HW: 2, SOFTWARE: 1}
    ledger.leave("both")
    assert {name: queue.workers for name, queue in ledger.figures().queues.items()} == {HW: 1, SOFTWARE: 0}


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


HW, HEVC10, SOFTWARE = (queue_name(name) for name in ("hw.h264", "hw.hevc10", "software"))


def live(ledger: Ledger, owner: str, *queues: str) -> None:
    ledger.beat(owner, [], Told(name=owner, queues=queues, places=1))


def silence(plain: redis_py.Redis, owner: str, seconds: float = 60) -> None:
    """As if nothing had been heard of the worker for so long."""
    for key in ["transcoder:workers", *plain.keys("transcoder:serving:*")]:
        plain.zadd(str(key), {owner: time.time() - seconds}, xx=True)
    for name in plain.hkeys("transcoder:served"):
        plain.hset("transcoder:served", str(name), str(time.time() - seconds))


def waits_in(ledger: Ledger, job_id: str) -> str:
    return ledger.record(job_id).fields["queue"]


def hard(job_id: str, policy: str = "prefer", **fields: Any) -> JobSpec:
    return asked(f"/media/{job_id}.mp4", acceleration={"policy": policy}, **fields)


def test_a_job_that_prefers_hardware_goes_where_somebody_is(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "nobody", hard("nobody"))
    live(ledger, "cpu", SOFTWARE)
    submit(ledger, "cpu", hard("cpu"))
    live(ledger, "gpu", HW)
    submit(ledger, "gpu", hard("gpu"))
    submit(ledger, "never", hard("never", "never"))
    where = {job_id: waits_in(ledger, job_id) for job_id in ("nobody", "cpu", "gpu", "never")}
    assert where == {"nobody": HW, "cpu": SOFTWARE, "gpu": HW, "never": SOFTWARE}
    assert plain.llen(queue.message("", 5, SOFTWARE).list_key) == 2
    silence(plain, "gpu", 10.5)
    submit(ledger, "late", hard("late"))
    assert waits_in(ledger, "late") == SOFTWARE


def test_what_is_required_waits_for_it_or_is_refused_and_leaves_nothing(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "cpu", SOFTWARE)
    with pytest.raises(NoRoute, match=r"no live worker serves hw\.h264"):
        submit(ledger, "a", hard("a", "require", token="mine"))
    assert ledger.jobs() == []
    assert messages(plain) == 0
    live(ledger, "gpu", HW)
    submit(ledger, "a", hard("a", "require", token="mine"))
    ledger.leave("gpu")
    ledger.tend(0)
    assert waits_in(ledger, "a") == HW, "it was accepted, so it waits"
    assert submit(ledger, "b", hard("a", "require", token="mine")) == "a", "and its token still names it"


def test_jobs_that_waited_long_enough_go_to_software_where_that_is_served(ledger: Ledger) -> None:
    live(ledger, "gpu", HW)
    submit(ledger, "first", hard("first", "require"))
    submit(ledger, "a", hard("a"))
    assert ledger.tend(0) == [], "nobody serves software"
    live(ledger, "cpu", SOFTWARE)
    assert ledger.tend(30) == []
    assert ledger.record("a").hop == pytest.approx(30, abs=2)
    assert ledger.tend(0) == [Hop("a", HW, "waited")]
    assert ledger.tend(0) == []
    assert (waits_in(ledger, "a"), waits_in(ledger, "first")) == (SOFTWARE, HW)
    assert ledger.record("a").history[-1].detail == "goes to software: no free place on hardware"
    assert ledger.figures().queues[HW].depth == ledger.figures().queues[SOFTWARE].depth == 1
    # the old message is still there: who takes it takes the job, and the other comes too late
    assert claim(ledger, "a", "gpu").fence == 1
    assert ledger.claim("a", "cpu", SCHEMA) is None


def test_a_queue_that_nobody_serves_is_left_after_a_moment(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE)
    submit(ledger, "a", hard("a"))
    ledger.leave("gpu")
    assert ledger.tend(60) == [], "it may be restarting"
    for key in ("transcoder:waiting:", "transcoder:prefer:"):
        plain.zadd(f"{key}{HW}", {"a": time.time() - 6})
    assert ledger.tend(60) == []
    plain.hset("transcoder:served", HW, str(time.time() - 6))
    assert ledger.tend(60) == [Hop("a", HW, "unserved")]


def test_messages_of_jobs_that_wait_no_more_are_taken_off_where_no_worker_comes(
    ledger: Ledger, plain: redis_py.Redis
) -> None:
    for job_id in ("gone", "waits"):
        submit(ledger, job_id)
    ledger.cancel("gone")
    ledger.tend(60)
    assert messages(plain) == 2, "one of them waits"
    ledger.cancel("waits")
    ledger.tend(60)
    assert messages(plain) == 0
    ledger.beat("gpu", [], Told(queues=(queue_name("hw.h264"),)))
    submit(ledger, "third")
    ledger.cancel("third")
    ledger.tend(60)
    assert messages(plain) == 1, "its worker takes it off"


def test_many_jobs_hop_a_bounded_number_at_a_time(ledger: Ledger) -> None:
    live(ledger, "gpu", HW)
    for number in range(60):
        submit(ledger, str(number), hard(str(number)))
    live(ledger, "cpu", SOFTWARE)
    assert [len(ledger.tend(0)) for _ in range(3)] == [50, 10, 0]


def test_a_job_is_handed_on_to_another_worker_and_never_comes_back(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "one", HW)
    live(ledger, "two", HW)
    submit(ledger, "a", hard("a", "require", priority=5))
    submit(ledger, "later", hard("later", "require"))
    assert ledger.hand_on("a", claim(ledger, "a", "one").fence, [HEVC10, HW], "its device failed") == HW
    record = ledger.record("a")
    assert (record.fields["state"], record.history[-1].detail) == ("queued", "its device failed")
    next_one = json.loads(str(plain.lindex(queue.message("", 5, HW).list_key, -1)))
    assert next_one["headers"]["id"].startswith("a."), "it has waited before, so it comes before the others"
    while plain.rpop(queue.message("", 5, HW).list_key):
        pass

    assert ledger.claim("a", "one", SCHEMA) is None
    assert messages(plain) == 0
    plain.zadd("transcoder:aside", {"a": time.time() - 1})
    ledger.tend(60)
    assert messages(plain) == 1, "what its own worker took by mistake is offered again"
    held = claim(ledger, "a", "two")
    left = ledger.hand_on("a", held.fence, [HEVC10, HW], "nor here")
    assert isinstance(left, list)
    assert {told.name for told in left} == {"one", "two"}, "nobody is left, and nothing changed"
    ledger.still_ours("a", held.fence)
    ledger.finish(Report("a", held.fence), "failed", error={})


def test_a_job_is_handed_on_to_live_workers_only(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "one", HW)
    live(ledger, "two", HW)
    live(ledger, "cpu", SOFTWARE)
    submit(ledger, "a", hard("a"))
    silence(plain, "two")
    assert ledger.hand_on("a", claim(ledger, "a", "one").fence, [HW, SOFTWARE], "so") == SOFTWARE
    assert ledger.tend(0) == [], "it is in software already"


def test_a_job_that_was_handed_on_to_a_worker_that_is_gone_is_taken_by_who_is_left(
    ledger: Ledger, plain: redis_py.Redis
) -> None:
    live(ledger, "one", HW)
    live(ledger, "two", HW)
    submit(ledger, "a", hard("a", "require"))
    ledger.hand_on("a", claim(ledger, "a", "one").fence, [HW], "its device failed")
    assert ledger.claim("a", "one", SCHEMA) is None
    silence(plain, "two")
    held = claim(ledger, "a", "one")
    assert isinstance(ledger.hand_on("a", held.fence, [HW], "once more"), list), "and it can end as failed"


def test_a_worker_that_leaves_a_queue_is_no_longer_counted_there(ledger: Ledger) -> None:
    submit(ledger, "a", hard("a"))
    live(ledger, "gpu", HW, SOFTWARE)
    assert (ledger.record("a").serving, ledger.record("a").workers) == (1, 1)
    live(ledger, "gpu", SOFTWARE)
    assert (ledger.record("a").serving, ledger.record("a").workers) == (0, 1)
    live(ledger, "gpu", HW)
    ledger.leave("gpu")
    assert (ledger.record("a").serving, ledger.record("a").workers) == (0, 0)


def test_words_of_a_newer_worker_that_are_not_known_here_are_passed_over(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    told = json.loads(str(plain.hget("transcoder:worker:gpu", "told")))
    plain.hset("transcoder:worker:gpu", "told", json.dumps(told | {"mood": "good"}))
    assert ledger.workers()[0].told == Told(name="gpu", queues=(HW,), places=1)


def test_the_history_of_a_job_keeps_its_last_lines(ledger: Ledger) -> None:
    submit(ledger, "a")
    fence = claim(ledger, "a").fence
    for number in range(120):
        ledger.beat("me", [Report("a", fence, [(f"phase {number}", 0.0, "")])])
    assert [moment.what for moment in ledger.record("a").history] == [f"phase {number}" for number in range(20, 120)]


def test_nothing_is_kept_of_a_finished_job_but_its_record(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "one", HW)
    live(ledger, "two", HW)
    submit(ledger, "a", hard("a"))
    ledger.hand_on("a", claim(ledger, "a", "one").fence, [HW], "so")
    ledger.claim("a", "one", SCHEMA)
    ledger.finish(Report("a", claim(ledger, "a", "two").fence), "published", result={})
    assert not plain.exists("transcoder:message:a", f"transcoder:prefer:{HW}", f"transcoder:waiting:{HW}")
    assert plain.zcard("transcoder:aside") == 0
    assert "tried" not in ledger.record("a").fields


OWNERS = st.sampled_from(["one", "two", "three"])


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
        self.owners: dict[str, str] = {}
        self.tried: dict[str, set[str]] = {}
        self.serving: dict[str, tuple[str, ...]] = {}
        self.to_be_cancelled: set[str] = set()
        self.unfenced: set[str] = set()
        self.efforts: dict[str, int] = {}

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
        self.tried[job_id] = set()
        return job_id

    @rule(owner=OWNERS, queues=st.sets(st.sampled_from([HW, SOFTWARE])))
    def serve(self, owner: str, queues: set[str]) -> None:
        live(self.ledger, owner, *queues)
        self.serving[owner] = tuple(queues)

    @rule()
    def tend(self) -> None:
        served = {name for names in self.serving.values() for name in names}
        waiting = {one for one, now in self.states.items() if now == "queued" and waits_in(self.ledger, one) == HW}
        hopped = {hop.job_id for hop in self.ledger.tend(0)}
        assert hopped == (waiting if SOFTWARE in served else set())

    @rule()
    def tend_by_effort(self) -> None:
        self.ledger._redis.delete("transcoder:arranged")
        served = {name for names in self.serving.values() for name in names}
        waiting = {one for one, now in self.states.items() if now == "queued" and waits_in(self.ledger, one) == HW}
        hopped = self.ledger.tend(1e6, slower=1.0)
        assert len(hopped) <= len(self.serving), "no more than there can be places"
        assert {hop.job_id for hop in hopped} <= (waiting & set(self.efforts) if SOFTWARE in served else set())

    @rule(job_id=jobs, effort=st.integers(1, 2**60))
    def weigh(self, job_id: str, effort: int) -> None:
        if self.states[job_id] != "queued":
            with pytest.raises(TransitionRefused):
                self.ledger.weigh(job_id, effort)
            return
        self.ledger.weigh(job_id, effort)
        self.efforts.setdefault(job_id, effort)

    @invariant()
    def what_waits_is_counted_by_its_effort(self) -> None:
        waiting = [one for one, now in self.states.items() if now == "queued" and one in self.efforts]
        for name in (HW, SOFTWARE):
            here = {one for one in waiting if waits_in(self.ledger, one) == name}
            assert set(self.ledger._redis.zrange(f"transcoder:effort:{name}", 0, -1)) == here
            assert set(self.ledger._redis.zrange(f"transcoder:movable:{name}", 0, -1)) == (
                here if name == HW else set()
            )
            backlog = int(self.ledger._redis.hget("transcoder:backlog", name) or 0)
            assert backlog == sum(self.efforts[one] for one in here)

    @rule(held=fences, queues=st.permutations([HW, SOFTWARE]))
    def hand_on(self, held: tuple[str, int], queues: list[str]) -> None:
        job_id, fence = held
        if not self.holds(*held):
            with pytest.raises(TransitionRefused):
                self.ledger.hand_on(job_id, fence, queues, "why")
            return
        self.tried[job_id].add(self.owners[job_id])
        others = [names for owner, names in self.serving.items() if owner not in self.tried[job_id]]
        expected = next((name for name in queues if any(name in names for names in others)), None)
        answer = self.ledger.hand_on(job_id, fence, queues, "why")
        assert (answer if isinstance(answer, str) else None) == expected
        if expected:
            self.states[job_id] = "queued"
            assert waits_in(self.ledger, job_id) == expected

    @rule(target=fences, job_id=jobs, owner=OWNERS)
    def claim(self, job_id: str, owner: str) -> tuple[str, int]:
        claimed = self.ledger.claim(job_id, owner, SCHEMA)
        free = self.states[job_id] == "queued" and not self.is_for_another(job_id, owner)
        assert (claimed is not None) == free, "no worker gets back what it handed on, while another may take it"
        if isinstance(claimed, Claimed):
            self.begin(job_id, owner, claimed)
        return job_id, self.attempts[job_id]

    def begin(self, job_id: str, owner: str, claimed: Claimed) -> None:
        self.states[job_id] = "running"
        self.attempts[job_id] += 1
        self.owners[job_id] = owner
        assert claimed.fence == self.attempts[job_id]

    @rule(target=fences, owner=OWNERS, queues=st.permutations([HW, SOFTWARE]), both=st.booleans())
    def take_next(self, owner: str, queues: list[str], both: bool) -> Any:
        queues = queues if both else queues[:1]
        free = {one for one, now in self.states.items() if now == "queued" and not self.is_for_another(one, owner)}
        taken = self.ledger.take_next(Place(owner, queues, SCHEMA))
        if taken is None:
            assert not free & {one for name in queues for one in self.ledger._named(name)}
            return multiple()
        job_id, claimed = taken
        assert job_id in free
        assert isinstance(claimed, Claimed)
        self.begin(job_id, owner, claimed)
        return job_id, self.attempts[job_id]

    def is_for_another(self, job_id: str, owner: str) -> bool:
        """It was handed on by `owner`, and somebody serves its queue who has not."""
        queue, tried = waits_in(self.ledger, job_id), self.tried[job_id]
        return owner in tried and any(queue in names for one, names in self.serving.items() if one not in tried)

    @rule(held=fences)
    def hand_back(self, held: tuple[str, int]) -> None:
        job_id, fence = held
        to = "cancelled" if job_id in self.to_be_cancelled else "queued"
        self.move(job_id, to, self.holds(*held), lambda: self.ledger.hand_back(job_id, fence, "why"))

    @rule()
    def all_workers_are_lost(self) -> None:
        running = [job_id for job_id, now in self.states.items() if now == "running"]
        look = self.ledger.reap("reaper", self.ledger.reap("reaper", -1, 0, 10).count, 0, 10)
        assert sorted(job.job_id for job in look.taken_back) == sorted(running)
        assert {job.job_id: job.owner for job in look.taken_back} == {one: self.owners[one] for one in running}
        self.states |= dict.fromkeys(running, "queued")
        self.unfenced |= set(running)
        for job_id in running:
            self.serving.pop(self.owners[job_id], None)

    @rule(held=fences)
    def fence(self, held: tuple[str, int]) -> None:
        if not self.holds(*held):
            with pytest.raises(TransitionRefused):
                self.ledger.fenced(*held)
            return
        self.unfenced.discard(held[0])
        if held[0] in self.to_be_cancelled:
            with pytest.raises(JobCancelled):
                self.ledger.fenced(*held)
        else:
            self.ledger.fenced(*held)

    @rule(held=consumes(fences), end=st.sampled_from(sorted(FINISHED)))
    def finish(self, held: tuple[str, int], end: str) -> None:
        job_id, fence = held
        if self.states[job_id] == end and self.attempts[job_id] == fence:
            self.ledger.finish(Report(job_id, fence), end)  # once more
        else:
            self.move(job_id, end, self.holds(*held), lambda: self.ledger.finish(Report(job_id, fence), end))

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        now = self.states[job_id]
        if now == "running" or (now == "queued" and job_id in self.unfenced):
            assert self.ledger.cancel(job_id) == now
            self.to_be_cancelled.add(job_id)
        else:
            self.move(job_id, "cancelled", True, lambda: self.ledger.cancel(job_id))

    @rule(held=fences)
    def beat(self, held: tuple[str, int]) -> None:
        [verdict] = self.ledger.beat("another", [Report(*held)])
        asked_to = "cancelled" if held[0] in self.to_be_cancelled else "go on"
        assert verdict == (asked_to if self.holds(*held) else "lost")

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
