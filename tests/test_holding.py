"""What holds jobs up and what must not: paused queues, priorities, long waits; and many jobs at once."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
import redis as redis_py

from tests import services
from tests.test_ledger import HW, SOFTWARE, asked, claim, hard, ledger, live, messages, plain, reaped, server, submit
from tests.test_reaper import Crew, crew
from transcoder import Client, JobSpec, queue
from transcoder.errors import (
    BrokerUnavailable,
    PathRefused,
    TargetExists,
    TokenConflict,
    TranscoderError,
    TransitionRefused,
)
from transcoder.ledger import STEPS, Ledger
from transcoder.spec import SCHEMA

__all__ = ["crew", "ledger", "plain", "server"]  # the fixtures

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: services.Redis, plain: redis_py.Redis) -> Client:
    return Client(server.url, media_roots=["/media"])


def test_no_job_of_a_paused_queue_begins_until_it_is_resumed(client: Client, ledger: Ledger) -> None:
    live(ledger, "gpu", HW)
    job_id = client.submit(asked())
    client.pause("hw.h264")
    assert ledger.claim(job_id, "gpu", SCHEMA) is None
    assert ledger.reap("gpu", -1, 0, 1).paused == {HW}
    assert client.status(job_id).waiting_for == "the queue hw.h264, which is paused (`transcoder resume hw.h264`)"
    other = client.submit(asked("/media/soft.mp4", acceleration={"policy": "never"}))
    claim(ledger, other)
    client.resume("hw.h264")
    assert ledger.reap("gpu", -1, 0, 1).paused == set()
    claim(ledger, job_id)


def test_jobs_do_not_hop_out_of_a_paused_queue(client: Client, ledger: Ledger) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE)
    client.submit(asked())
    client.pause("hw.h264")
    assert ledger.tend(0) == []
    client.resume("hw.h264")
    assert len(ledger.tend(0)) == 1


def test_a_cancelled_job_is_brought_to_its_end_in_a_paused_queue_too(client: Client, ledger: Ledger) -> None:
    job_id = client.submit(asked())
    claim(ledger, job_id)
    reaped(ledger, job_id)
    client.pause("hw.h264")
    client.cancel(job_id)
    claim(ledger, job_id)


def test_a_queue_that_is_none_is_refused(client: Client) -> None:
    with pytest.raises(TranscoderError, match=r"no queue 'hw\.h265'"):
        client.pause("hw.h265")


def test_a_worker_leaves_a_paused_queue_and_comes_back(crew: Crew) -> None:
    crew.worker("first")
    crew.client.pause("software")
    time.sleep(2)  # it looks twice a second, and a question to Redis stays open for a second
    waiting = [crew.submit(f"out{number}.mp4", acceleration={"policy": "never"}) for number in range(3)]
    time.sleep(2)
    with redis_py.Redis.from_url(crew.redis.url) as plain:
        assert plain.llen(queue.message("", 5).list_key) == 3, "their messages are not taken either"
    crew.client.resume("software")
    crew.until(waiting[0], lambda status: status.state == "running")
    for job_id in waiting:
        with suppress(TransitionRefused):  # it was quicker
            crew.client.cancel(job_id)


def rises(plain: redis_py.Redis, ledger: Ledger, *job_ids: str) -> None:
    """As if these, or all, had waited for ten minutes more."""
    for job_id in job_ids or plain.zrange("transcoder:rising", 0, -1):
        plain.zadd("transcoder:rising", {str(job_id): time.time() - 601})
    ledger.tend(1e6, rise=600)


def step_of(plain: redis_py.Redis, job_id: str) -> list[int]:
    """The steps in which the job has a message."""
    return [
        step
        for step, name in enumerate(STEPS)
        for text in plain.lrange(HW + name, 0, -1)
        if json.loads(str(text))["headers"]["id"].startswith(f"{job_id}.")
    ]


def test_a_job_that_waits_long_rises_step_by_step_to_the_most_urgent(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "low", hard("low", priority=0))
    assert step_of(plain, "low") == [9]
    ledger.tend(1e6, rise=600)
    assert step_of(plain, "low") == [9], "it has just come"
    for step in range(8, -1, -1):
        rises(plain, ledger)
        assert step_of(plain, "low") == [step], "and has one message at a time"
    rises(plain, ledger)
    assert step_of(plain, "low") == [0]
    claim(ledger, "low")
    assert plain.zcard("transcoder:rising") == 0


def test_who_has_waited_longer_comes_first_in_the_step_that_it_rises_to(ledger: Ledger, plain: redis_py.Redis) -> None:
    submit(ledger, "new", hard("new", priority=5))
    submit(ledger, "longer", hard("longer", priority=4))
    rises(plain, ledger, "longer")
    texts = [str(plain.lindex(queue.message("", 5, HW).list_key, at)) for at in (-1, -2)]
    assert ['"longer.' in texts[0], '"new.' in texts[1]] == [True, True]


def test_many_jobs_rise_a_bounded_number_at_a_time(ledger: Ledger, plain: redis_py.Redis) -> None:
    for number in range(60):
        submit(ledger, f"j{number}", hard(f"j{number}", priority=0))
    rises(plain, ledger)
    assert (plain.llen(HW + STEPS[9]), plain.llen(HW + STEPS[8])) == (10, 50)


def test_many_jobs_are_submitted_at_once_and_each_for_itself(client: Client, plain: redis_py.Redis) -> None:
    specs = [asked(f"/media/{number}.mp4") for number in range(1200)]
    specs[7] = asked("/media/6.mp4")
    specs[8] = asked("/elsewhere/8.mp4")
    specs[9] = asked("/media/9.mp4", token="mine")
    specs[1199] = asked("/media/other.mp4", token="mine")
    answers = client.submit_many(specs)
    wrong = {place: type(answer) for place, answer in enumerate(answers) if not isinstance(answer, str)}
    assert wrong == {7: TargetExists, 8: PathRefused, 1199: TokenConflict}
    assert messages(plain) == 1197
    assert client.status(str(answers[1000])).spec["target"] == "/media/1000.mp4"
    assert client.submit_many([specs[9]]) == [answers[9]]


def test_a_full_redis_refuses_each_of_many_jobs_and_records_none(client: Client, plain: redis_py.Redis) -> None:
    plain.config_set("maxmemory", "1mb")
    try:
        answers = client.submit_many([asked(f"/media/{number}.mp4") for number in range(3)])
    finally:
        plain.config_set("maxmemory", "0")
    assert [type(answer) for answer in answers] == [BrokerUnavailable] * 3
    assert "is full" in str(answers[0])
    assert client.jobs() == []


def test_a_redis_that_is_away_refuses_them_all_at_once() -> None:
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        Client("redis://127.0.0.1:1/0").submit_many([asked()])


def test_a_finished_job_that_is_submitted_again_answers_with_its_manifest(crew: Crew) -> None:
    crew.worker("first")
    fields: dict[str, Any] = {"token": "mine", "outputs": [{"video": {"speed": "fast"}}]}
    job_id = crew.submit(**fields)
    first = crew.client.wait(job_id)
    assert crew.submit(**fields) == job_id
    assert crew.client.wait(crew.submit(**fields))["manifest"] == first["manifest"]
    assert JobSpec.model_validate(crew.client.status(job_id).spec).token == "mine"
