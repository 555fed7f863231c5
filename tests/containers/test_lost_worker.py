"""Two workers in containers: what one loses, killed or drained, the other finishes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import stack
from tests.containers.stack import LONG, Stack, docker, inspect, until
from transcoder import Client, JobSpec, Status

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

STOP_GRACE = 10


@pytest.fixture(scope="module")
def running(software_image: str, module_folder: Path, bbb: Path) -> Iterator[Stack]:
    brief = {"TRANSCODER_GRACE": f"{STOP_GRACE - 2}s", "STOP_GRACE": f"{STOP_GRACE}s"}
    with stack.stack(module_folder, "publish", variables=brief) as up:
        up.bring(bbb, times=12)
        yield up


@pytest.fixture
def client(running: Stack) -> Client:
    return Client(running.broker_url)


@pytest.fixture
def job(running: Stack, client: Client) -> str:
    """A job of a minute of source that one of two workers encodes."""
    running.compose("up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
    until(lambda: sum(one.live for one in client.workers()) >= 2, "both are heard of")
    target = f"/media/made-{time.monotonic_ns()}.mp4"
    job = client.submit(JobSpec(source=LONG, target=target))
    until(lambda: (now := client.status(job).progress) and now.frame, "the job is being encoded", 60)
    return job


def holder(running: Stack, status: Status) -> str:
    """The container whose worker has the job."""
    [found] = [one for one in running.containers("worker") if inspect(one)["Config"]["Hostname"] in str(status.owner)]
    return found


def files(running: Stack, container: str) -> set[str]:
    return set(docker("exec", container, "ls", "-A", "/media").split())


def ends_on_the_other(running: Stack, client: Client, job: str, first: str) -> None:
    until(lambda: client.status(job).is_finished, "the other finishes it", 240)
    status = client.status(job)
    assert (status.state, status.attempts) == ("published", 2)
    other = holder(running, status)
    assert other != first
    assert not [name for name in files(running, other) if name.startswith(".transcoder")], "no scratch is left"
    assert Path(status.spec["target"]).name in files(running, other)


def test_a_job_whose_container_is_killed_is_finished_by_another(running: Stack, client: Client, job: str) -> None:
    first = holder(running, client.status(job))
    docker("kill", first)
    killed = time.monotonic()
    until(lambda: client.status(job).attempts == 2, "another has begun it")
    assert time.monotonic() - killed < 15, "5 s are promised"
    ends_on_the_other(running, client, job, first)


def test_a_drained_container_ends_in_its_grace_time_and_another_finishes_its_job(
    running: Stack, client: Client, job: str
) -> None:
    first = holder(running, client.status(job))
    asked = time.monotonic()
    docker("stop", first)  # it waits for stop_grace_period, and then kills
    assert time.monotonic() - asked < STOP_GRACE + 2
    assert inspect(first)["State"]["ExitCode"] == 0, "it was not killed"
    ends_on_the_other(running, client, job, first)
