"""The queue as Celery sees it: our message is its own, the most urgent comes first, a free place is filled at once."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from tests import services
from transcoder import ledger, queue
from transcoder.placement import QUEUES, queue_name

VARYING = ("id", "root_id", "correlation_id", "reply_to", "origin", "delivery_tag")
"""What differs from message to message, or is for results, which there are none of."""

NAPS = """
import os, sys, time
from transcoder import ledger, queue

def begun(what):
    os.write(1, f"begun {what}\\n".encode())  # in one piece, among threads

def run(job_id):
    begun(job_id)
    time.sleep(float(sys.argv[2]))

def served():
    return open(sys.argv[3]).read().split() if sys.argv[3:] else [queue.DEFAULT]

ready = lambda: begun("ready")
sys.exit(queue.consume(sys.argv[1], run, name="naps", concurrency=2, ready=ready, served=served))
"""


@contextmanager
def naps(url: str, seconds: float, out: Path, *served: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real Celery worker with two places whose jobs sleep; it takes from the queues that the file `served` names."""
    with out.open("wb") as file:
        words = [sys.executable, "-c", NAPS, url, str(seconds), *map(str, served)]
        process = subprocess.Popen(words, stdout=file, stderr=file)
    try:
        until(lambda: "ready" in begun(out))
        yield process
    finally:
        process.kill()
        process.wait()


def begun(out: Path) -> list[str]:
    return [line.split()[1] for line in out.read_text().splitlines() if line.startswith("begun ")]


def until(true: Any, within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(url: str, job_id: str, priority: int = 5, to: str = queue.DEFAULT) -> None:
    message = queue.message(job_id, priority, to)
    with redis_py.Redis.from_url(url) as client:
        client.lpush(message.list_key, message.text)


def plain(text: str) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(text)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    for part in ("headers", "properties"):
        message[part] = {name: value for name, value in message[part].items() if name not in VARYING}
    return message


@pytest.mark.parametrize("priority", range(10))
def test_our_message_is_the_one_that_celery_would_send(redis: services.Redis, priority: int) -> None:
    ours = queue.message("0123456789abcdef", priority)
    app = queue.app_for(redis.url)
    app.send_task(
        queue.TASK, args=("0123456789abcdef",), queue=ours.queue, priority=ledger.step(priority), ignore_result=True
    )
    with redis_py.Redis.from_url(redis.url, decode_responses=True) as client:
        theirs = client.rpop(ours.list_key)
    assert isinstance(theirs, str)
    assert plain(ours.text) == plain(theirs)


def test_every_message_has_a_name_of_its_own() -> None:
    first, second = (json.loads(queue.message("a", 5).text) for _ in range(2))
    assert first["headers"]["id"] != second["headers"]["id"]
    assert first["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]


def test_nine_is_the_most_urgent_and_redis_counts_the_other_way() -> None:
    assert [ledger.step(priority) for priority in (0, 5, 9)] == [9, 4, 0]


def test_a_message_goes_to_its_queue_and_its_priority() -> None:
    assert queue.message("a", 9, "some.queue").list_key == "some.queue"
    assert queue.message("a", 5).list_key == f"{queue.DEFAULT}\x06\x164"


def test_celery_keeps_no_results_and_takes_only_json() -> None:
    app = queue.app_for("redis://127.0.0.1:1/0")
    assert type(app.backend).__name__ == "DisabledBackend"
    assert app.conf.task_ignore_result
    assert app.conf.accept_content == ["json"]


def test_the_names_and_the_message_come_without_celery() -> None:
    code = "import sys; from transcoder import queue; queue.message('a', 5); sys.exit('celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_next_place_goes_to_the_most_urgent_job(redis: services.Redis, tmp_path: Path) -> None:
    with naps(redis.url, 0.5, tmp_path / "out") as worker:
        for number in range(6):
            send(redis.url, f"low{number}", 0)
        until(lambda: len(begun(tmp_path / "out")) == 3)
        with redis_py.Redis.from_url(redis.url) as client:
            assert client.llen(queue.message("", 0).list_key) == 4, "a worker holds no more than it has places for"
        send(redis.url, "urgent", 9)
        until(lambda: len(begun(tmp_path / "out")) == 5)
        assert "urgent" in begun(tmp_path / "out")[3:5]
        worker.terminate()
        assert worker.wait(10) == 0


def test_a_free_place_is_filled_at_once(redis: services.Redis, tmp_path: Path) -> None:
    with naps(redis.url, 0.01, tmp_path / "out"):
        started = time.monotonic()
        for number in range(40):
            send(redis.url, str(number))
        until(lambda: len(begun(tmp_path / "out")) == 41)
        # 0.2 s of naps; without the bell each pair of them waits for up to a second
        assert time.monotonic() - started < 3


def test_what_is_no_job_is_passed_over(redis: services.Redis, tmp_path: Path) -> None:
    with naps(redis.url, 0, tmp_path / "out"):
        strange = json.loads(queue.message("a", 5).text)
        strange["headers"]["task"] = "os.system"
        with redis_py.Redis.from_url(redis.url) as client:
            client.lpush(queue.DEFAULT, json.dumps(strange))
        send(redis.url, "good")
        until(lambda: "good" in begun(tmp_path / "out"))


def test_queues_are_taken_up_and_left_while_the_worker_runs(redis: services.Redis, tmp_path: Path) -> None:
    hardware, software = queue_name("hw.h264"), queue_name("software")
    served, out = tmp_path / "served", tmp_path / "out"

    def serve(*names: str) -> None:
        (tmp_path / "draft").write_text(" ".join(names))
        (tmp_path / "draft").rename(served)

    serve()
    with naps(redis.url, 0, out, served):
        send(redis.url, "soft", to=software)
        time.sleep(1.5)
        assert begun(out) == ["ready"], "nothing is served yet"
        serve(software)
        until(lambda: "soft" in begun(out))
        send(redis.url, "hard", to=hardware)
        serve(hardware, software)
        until(lambda: "hard" in begun(out))
        serve(hardware)
        time.sleep(1.5)
        send(redis.url, "left", to=software)
        send(redis.url, "hard2", to=hardware)
        until(lambda: "hard2" in begun(out))
        time.sleep(0.5)
        assert "left" not in begun(out)


def test_no_message_is_lost_when_its_queue_is_left_at_that_moment(redis: services.Redis, tmp_path: Path) -> None:
    served, out = tmp_path / "served", tmp_path / "out"
    served.write_text(queue.DEFAULT)
    with naps(redis.url, 0, out, served):
        time.sleep(0.1)
        served.write_text("")  # the worker's last question to Redis stays open for a second
        send(redis.url, "late")
        until(lambda: "late" in begun(out))


def test_hardware_comes_before_software_and_priority_before_both(redis: services.Redis, tmp_path: Path) -> None:
    served, out = tmp_path / "served", tmp_path / "out"
    served.write_text(" ".join(map(queue_name, QUEUES)))
    for name, priority in (("software", 5), ("hw.h264", 5), ("hw.av1", 5), ("software", 6)):
        send(redis.url, f"{name}/{priority}", priority, queue_name(name))
    with naps(redis.url, 0.2, out, served):
        until(lambda: len(begun(out)) == 5)
    order = [job for job in begun(out) if job != "ready"]
    assert (set(order[:2]), set(order[2:])) == ({"software/6", "hw.av1/5"}, {"hw.h264/5", "software/5"})


CONSUMER_DIES = """
import os, sys, time
from transcoder import ledger, queue

def run(job_id):
    os.write(1, b"begun\\n")
    while not queue.leaving():
        time.sleep(0.01)

def served():
    if os.path.exists(sys.argv[2]):
        raise ZeroDivisionError("oh")
    return [queue.DEFAULT]

sys.exit(queue.consume(sys.argv[1], run, name="dies", concurrency=2, ready=lambda: None, served=served))
"""


def test_a_worker_whose_consumer_dies_ends_though_its_places_would_go_on(redis: services.Redis, tmp_path: Path) -> None:
    words = [sys.executable, "-c", CONSUMER_DIES, redis.url, str(tmp_path / "now")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        send(redis.url, "one")
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        (tmp_path / "now").touch()
        assert process.wait(20) == 1


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
@pytest.mark.usefixtures("terminal")
def test_a_signal_ends_the_worker_in_order_and_loses_no_message(
    redis: services.Redis, tmp_path: Path, sign: signal.Signals
) -> None:
    done: list[str] = []
    for turn in range(3):
        out = tmp_path / f"out{turn}"
        with naps(redis.url, 0.02, out) as worker:
            for number in range(10):
                send(redis.url, f"{turn}.{number}")
            until(lambda out=out: len(begun(out)) > 2)
            os.kill(worker.pid, sign)
            assert worker.wait(10) == 0
            done += [word for word in begun(out) if "." in word]
    with redis_py.Redis.from_url(redis.url) as client:
        left = client.llen(queue.message("", 5).list_key)
    assert len(set(done)) == len(done)
    assert len(done) + int(left) == 30
