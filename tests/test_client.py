"""The client against a real Redis; the worker's part is played by its ledger, so that every moment can be looked at."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import services
from transcoder import Client, JobSpec
from transcoder.client import Progress, Status
from transcoder.errors import (
    BrokerUnavailable,
    InputMissing,
    JobCancelled,
    JobUnknown,
    NoRoute,
    PathRefused,
    SettingsError,
    TargetExists,
    TokenConflict,
    TranscoderError,
    TransitionRefused,
)
from transcoder.ledger import Claimed, Ledger, Report, Told
from transcoder.placement import queue_name
from transcoder.spec import SCHEMA

SPEC = JobSpec(source="/media/in.mkv", target="/media/out.mp4")
PROGRESS = {"fraction": 0.5, "fps": 50.0, "speed": 2.0, "eta_seconds": 1.0, "frame": 25, "out_time": 1.0}


@pytest.fixture
def client(redis: services.Redis) -> Iterator[Client]:
    client = Client(redis.url)
    yield client
    client.close()


@pytest.fixture
def ledger(redis: services.Redis) -> Iterator[Ledger]:
    ledger = Ledger(redis.url)
    yield ledger
    ledger.close()


def claim(ledger: Ledger, job_id: str) -> int:
    claimed = ledger.claim(job_id, "me", SCHEMA)
    assert isinstance(claimed, Claimed)
    return claimed.fence


def phases(seen: list[Status]) -> list[str]:
    return [status.phase for status in seen]


def test_a_job_has_an_id_of_16_hex_characters(client: Client) -> None:
    job_id = client.submit(SPEC)
    assert len(job_id) == 16
    assert int(job_id, 16) >= 0


def test_the_status_of_a_waiting_job_says_what_it_waits_for(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    status = client.status(job_id)
    assert (status.id, status.state, status.phase, status.attempts) == (job_id, "queued", "queued", 0)
    assert JobSpec.model_validate(status.spec) == SPEC
    assert abs(status.created - time.time()) < 5
    assert status.queue == "hw.h264"
    assert status.waiting_for == "a worker that serves hw.h264 or software: no worker is running"
    ledger.beat("somebody", [], Told(queues=(queue_name("hw.av1"),)))
    assert client.status(job_id).waiting_for == "a worker that serves hw.h264 or software: none of 1 live worker does"
    for name in ("somebody", "another"):
        ledger.beat(name, [], Told(queues=(queue_name("hw.h264"),)))
    client.submit(SPEC.model_copy(update={"target": "/media/other.mp4"}))
    waiting_for = "a free place on a worker that serves hw.h264 (2 live, 1 other waiting)"
    assert client.status(job_id).waiting_for == waiting_for
    ledger.tend(42)
    ledger.beat("third", [], Told(queues=(queue_name("software"),)))
    assert client.status(job_id).waiting_for in [f"{waiting_for}; goes to software in {n} s" for n in (41, 42)]


def test_the_status_of_a_job_that_waits_for_a_slot_says_of_which_device(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    ledger.beat("me", [Report(job_id, claim(ledger, job_id), [("waiting", 0.0, "a slot on 0000:00:02.0")])])
    status = client.status(job_id)
    assert (status.state, status.phase) == ("running", "waiting")
    assert status.waiting_for == "a slot on 0000:00:02.0, which has all the work that it can bear"


def test_a_job_that_requires_what_nobody_has_is_refused_at_once_with_the_reason(client: Client, ledger: Ledger) -> None:
    spec = JobSpec.model_validate({**SPEC.model_dump(), "acceleration": {"policy": "require"}})
    with pytest.raises(NoRoute, match=r"no live worker serves hw\.h264: no worker is running"):
        client.submit(spec)
    ledger.beat("somebody", [], Told(queues=(queue_name("hw.av1"), queue_name("software"))))
    with pytest.raises(NoRoute, match=r"the 1 live worker serves hw\.av1, software") as refused:
        client.submit(spec)
    assert "transcoder workers" in refused.value.next_step
    assert "transcoder devices" in refused.value.next_step
    assert client.jobs() == []
    ledger.beat("gpu", [], Told(queues=(queue_name("hw.h264"),)))
    assert client.status(client.submit(spec)).queue == "hw.h264"


def test_the_workers_are_listed_with_what_they_serve(client: Client, ledger: Ledger) -> None:
    assert client.workers() == []
    told = Told("gpu1", "0000:00:02.0", "/dev/dri/renderD128", "hardware", (queue_name("hw.h264"),), 2, ("hevc",))
    job_id = client.submit(SPEC)
    ledger.beat("gpu1-1", [Report(job_id, claim(ledger, job_id))], told)
    [heard] = client.workers()
    assert (heard.owner, heard.told, heard.running, heard.live) == ("gpu1-1", told, 1, True)
    assert 0 <= heard.ago < 5
    ledger.leave("gpu1-1")
    assert client.workers() == []


def test_the_status_of_a_running_job_shows_its_progress(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    fence = claim(ledger, job_id)
    assert client.status(job_id).phase == "probing"
    ledger.beat("me", [Report(job_id, fence, [("encoding", 0.0, "software")], PROGRESS)])
    status = client.status(job_id)
    assert (status.state, status.phase, status.owner, status.attempts) == ("running", "encoding", "me", 1)
    assert status.progress == Progress(0.5, 50.0, 2.0, 1.0, 25, 1.0)
    assert status.started is not None
    assert status.waiting_for is None
    assert status.finished is None


def test_waiting_gives_the_result(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    fence = claim(ledger, job_id)
    end = threading.Timer(0.1, lambda: ledger.finish(Report(job_id, fence), "published", result={"route": "software"}))
    end.start()
    assert client.wait(job_id, every=0.02) == {"route": "software"}
    status = client.status(job_id)
    assert (status.state, status.phase) == ("published", "published")
    assert status.finished is not None


def test_waiting_raises_the_error_that_the_worker_met(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    met = InputMissing("there is no /media/in.mkv", "Put it there.", {"path": "/media/in.mkv"})
    ledger.finish(Report(job_id, claim(ledger, job_id)), "failed", error=met.as_record())
    with pytest.raises(InputMissing, match="there is no") as raised:
        client.wait(job_id)
    assert raised.value.as_record() == met.as_record()


def test_waiting_for_a_cancelled_job_says_so(client: Client) -> None:
    job_id = client.submit(SPEC)
    assert client.cancel(job_id) == "cancelled"
    with pytest.raises(JobCancelled, match="was cancelled"):
        client.wait(job_id)


def test_watching_leaves_no_phase_out(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    seen = client.watch(job_id, every=0.01)
    first = next(seen)
    fence = claim(ledger, job_id)
    passed = [("probing", 0.4, ""), ("encoding", 0.3, "software"), ("verifying", 0.1, ""), ("publishing", 0.0, "")]
    ledger.beat("me", [Report(job_id, fence, passed, PROGRESS)])
    running = [next(seen) for _ in range(4)]
    ledger.finish(Report(job_id, fence), "published", result={})
    assert phases([first, *running, *seen]) == [
        "queued",
        "probing",
        "encoding",
        "verifying",
        "publishing",
        "published",
    ]


def test_a_short_job_is_watched_whole_after_the_fact(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    passed = [("probing", 0.4, ""), ("encoding", 0.3, "software"), ("verifying", 0.1, ""), ("publishing", 0.0, "")]
    ledger.finish(Report(job_id, claim(ledger, job_id), passed, PROGRESS), "published", result={})
    seen = list(client.watch(job_id))
    assert phases(seen) == ["queued", "probing", "encoding", "verifying", "publishing", "published"]
    assert [status.is_finished for status in seen] == [False] * 5 + [True]
    assert [status.history[-1].what for status in seen] == phases(seen), "none knows what came after it"


def test_who_watches_bears_with_a_redis_that_is_restarted(tmp_path: Path) -> None:
    with services.private_redis(tmp_path / "redis", appendonly=True) as server:
        client = Client(server.url)
        seen = client.watch(client.submit(SPEC), every=0.01)
        first = next(seen)
        server.kill()
        with ThreadPoolExecutor(1) as beside:
            rest = beside.submit(lambda: phases(list(seen)))
            time.sleep(1.5)
            server.start()  # in this thread: the server dies with the one that starts it
            client.cancel(first.id)
            assert rest.result(30) == ["cancelled"]
        client.close()


def test_who_watches_learns_that_the_job_goes_on_where_redis_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transcoder.client.PATIENCE", 0.1)
    with services.private_redis(tmp_path / "redis") as server:
        client = Client(server.url)
        seen = client.watch(client.submit(SPEC), every=0.01)
        first = next(seen)
        server.kill()
        with pytest.raises(BrokerUnavailable) as away:
            next(seen)
        assert f"{first.id} was accepted and goes on: `transcoder watch {first.id}`" in away.value.next_step
        client.close()


def test_watching_says_nothing_while_nothing_happens(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    fence = claim(ledger, job_id)
    threading.Timer(0.3, lambda: ledger.finish(Report(job_id, fence), "failed", error={})).start()
    assert phases(list(client.watch(job_id, every=0.01))) == ["queued", "probing", "failed"]


def test_the_same_token_gives_the_same_job(client: Client) -> None:
    spec = SPEC.model_copy(update={"token": "mine"})
    assert client.submit(spec) == client.submit(spec)
    assert len(client.jobs()) == 1
    with pytest.raises(TokenConflict):
        client.submit(spec.model_copy(update={"priority": 9}))


def test_two_jobs_for_one_target_are_refused_at_submit(client: Client) -> None:
    first = client.submit(SPEC)
    with pytest.raises(TargetExists, match=f"job {first} is writing"):
        client.submit(SPEC)
    client.cancel(first)
    client.submit(SPEC)


def test_cancelling_knows_three_cases(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(SPEC)
    fence = claim(ledger, job_id)
    assert client.cancel(job_id) == "running"
    assert client.status(job_id).cancel_asked
    ledger.finish(Report(job_id, fence), "cancelled", error=JobCancelled("so").as_record())
    with pytest.raises(TransitionRefused, match="is cancelled"):
        client.cancel(job_id)
    with pytest.raises(JobUnknown):
        client.cancel("0123456789abcdef")


def test_jobs_are_listed_newest_first(client: Client) -> None:
    made = [client.submit(SPEC.model_copy(update={"target": f"/media/{n}.mp4"})) for n in range(3)]
    client.cancel(made[1])
    assert [status.id for status in client.jobs()] == made[::-1]
    assert [status.id for status in client.jobs(limit=2)] == made[:0:-1]
    assert [status.id for status in client.jobs("cancelled")] == [made[1]]
    with pytest.raises(TranscoderError, match="there is no state 'done'"):
        client.jobs("done")


def test_paths_outside_the_roots_are_refused_at_submit(redis: services.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSCODER_BROKER_URL", redis.url)
    monkeypatch.setenv("TRANSCODER_MEDIA_ROOTS", "/media")
    client = Client.from_settings()
    client.submit(SPEC)
    for field in ("source", "target"):
        with pytest.raises(PathRefused, match="outside the media roots"):
            client.submit(SPEC.model_copy(update={field: "/etc/passwd"}))


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSCODER_BROKER_URL", "amqp://localhost")
    with pytest.raises(SettingsError, match="TRANSCODER_BROKER_URL"):
        Client.from_settings()


def test_a_broker_that_is_down_is_a_clear_error_at_once() -> None:
    client = Client(f"redis://somebody:secret@127.0.0.1:{services.free_port()}/0")
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"Redis at redis://127\.0\.0\.1:\d+/0 does not answer") as refused:
        client.submit(SPEC)
    assert time.monotonic() - started < 1
    assert "secret" not in str(refused.value)


def test_a_broker_that_stands_still_is_noticed_within_three_seconds(redis: services.Redis, client: Client) -> None:
    client.submit(SPEC)
    os.kill(redis.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="does not answer in time"):
        client.submit(SPEC)
    assert time.monotonic() - started < 3
