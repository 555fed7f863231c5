"""`compose up` in software: what it promises on the engine, from the first job to a kill in the middle of one."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.containers import stack
from tests.containers.stack import LONG, SOURCE, Stack, docker, inspect, until
from transcoder import Client, JobSpec

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def running(software_image: str, module_folder: Path, bbb: Path) -> Iterator[Stack]:
    with stack.stack(module_folder, "publish") as up:
        up.bring(bbb, times=3)
        yield up


@pytest.fixture
def client(running: Stack) -> Client:
    """Outside of the containers."""
    return Client(running.broker_url)


@pytest.fixture
def encoding(running: Stack, client: Client) -> Iterator[tuple[str, str]]:
    """A job that is being encoded, for seconds to come, and its target; afterwards the worker runs again."""
    target = f"/media/made-{time.monotonic_ns()}.mp4"
    job = client.submit(JobSpec(source=LONG, target=target))
    until(lambda: (now := client.status(job).progress) and now.frame, "the job is being encoded")
    yield job, target
    running.compose("up", "--detach", "--wait", "--no-build")


def in_volume(running: Stack) -> set[str]:
    """The names in the media volume, whether the worker runs or not."""
    words = ["--rm", "--network", "none", "--volumes-from", running.container(), "--entrypoint", "ls"]
    return set(docker("run", *words, stack.image("software"), "-A", "/media").split())


def test_a_job_submitted_from_outside_gives_a_verified_file_in_the_volume(running: Stack, client: Client) -> None:
    job = client.submit(JobSpec(source=SOURCE, target="/media/made.mp4"))
    result = client.wait(job)
    assert (result["route"], result["verified"]) == ("software", True)
    probe = ["exec", running.container(), "ffprobe", "-v", "error", "-count_packets", "-show_streams", "-of", "json"]
    [video, sound] = json.loads(docker(*probe, "/media/made.mp4"))["streams"]
    assert (video["codec_name"], video["nb_read_packets"], sound["codec_name"]) == ("h264", "132", "aac")
    manifest = json.loads(docker("exec", running.container(), "cat", f"/media/{job}.transcoder.json"))
    assert [file["path"] for file in manifest["result"]["outputs"]] == ["/media/made.mp4"]
    assert in_volume(running) == {"bbb.mp4", "long.mp4", "made.mp4", f"{job}.transcoder.json"}


def test_a_file_that_is_copied_in_is_transcoded_by_a_command_in_the_container(running: Stack, bbb: Path) -> None:
    running.compose("cp", str(bbb), "worker:/media/copied.mp4")
    words = ["submit", "/media/copied.mp4", "/media/sound.m4a", "--profile", "audio-aac", "--wait"]
    running.compose("exec", "--no-TTY", "worker", "transcoder", *words)
    running.compose("cp", "worker:/media/sound.m4a", str(running.folder / "sound.m4a"))
    assert (running.folder / "sound.m4a").stat().st_size > 10_000


def test_the_worker_has_no_rights_and_writes_nowhere_but_to_its_volume_and_its_memory(running: Stack) -> None:
    look = "id -u; ulimit -n; grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/1/status"
    uid, files, *rights = docker("exec", running.container(), "sh", "-c", look).splitlines()
    assert (uid, files) == ("1000", "8192")
    assert {name: int(value, 16) for name, value in (line.split() for line in rights)} == {
        "CapEff:": 0,
        "CapBnd:": 0,
        "NoNewPrivs:": 1,
    }
    places = "/ /etc /opt/transcoder /home /run /var/tmp /media /tmp"
    tried = f"for place in {places}; do touch $place/x 2>/dev/null && echo $place; done; rm /media/x"
    assert docker("exec", running.container(), "sh", "-c", tried).split() == ["/media", "/tmp"]


def test_a_new_volume_belongs_to_the_worker(running: Stack) -> None:
    assert docker("exec", running.container(), "stat", "-c", "%u:%g", "/media").strip() == "1000:1000"


def test_what_others_leave_behind_is_reaped(running: Stack) -> None:
    docker("exec", running.container(), "sh", "-c", "sleep 0.1 & exit")
    zombies = "grep -l '^State:.Z' /proc/[0-9]*/status; grep -l '^sleep' /proc/[0-9]*/comm"
    until(lambda: not docker("exec", running.container(), "sh", "-c", zombies, check=False), "nothing is left", 10)


def test_every_line_of_the_log_is_json_on_stdout(running: Stack) -> None:
    said = subprocess.run(["docker", "logs", running.container()], capture_output=True, text=True, check=True)
    assert said.stderr == ""
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert "serves" in {line["event"] for line in lines}


def test_a_worker_that_hangs_is_unhealthy(running: Stack) -> None:
    signal = "kill -{} $(grep -l '^transcoder' /proc/[0-9]*/comm | cut -d / -f 3)"
    check = ["docker", "exec", running.container(), "healthcheck"]
    try:
        docker("exec", running.container(), "sh", "-c", signal.format("STOP"))
        ill = subprocess.run(check, capture_output=True, text=True, check=False)
    finally:
        docker("exec", running.container(), "sh", "-c", signal.format("CONT"))
    assert (ill.returncode, ill.stderr.strip()) == (1, "port 9464 of the worker does not answer: timed out")
    subprocess.run(check, check=True)


class TestRedis:
    def test_it_forgets_nothing_to_make_room_and_writes_down_everything(self, running: Stack) -> None:
        with redis.Redis.from_url(running.broker_url, decode_responses=True) as server:
            assert server.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert server.config_get("appendonly") == {"appendonly": "yes"}
            assert int(server.config_get("maxmemory")["maxmemory"]) == 256 * stack.MIB

    def test_nobody_without_the_password_gets_in(self, running: Stack) -> None:
        with redis.Redis(port=running.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.keys()
        with redis.Redis(port=running.port, username="health", password="none") as health:
            assert health.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                health.keys()

    def test_a_killed_redis_has_every_job_when_it_is_back(self, running: Stack, client: Client) -> None:
        job = client.submit(JobSpec(source=SOURCE, target="/media/kept.mp4"))
        client.wait(job)
        docker("kill", running.container("redis"))
        running.compose("up", "--detach", "--wait", "--no-build")
        assert client.status(job).state == "published"

    def test_its_network_has_no_way_out(self, running: Stack) -> None:
        [network] = inspect(running.container())["NetworkSettings"]["Networks"]
        assert inspect(network)["Internal"]


class TestSecrets:
    def test_environment_history_and_inspect_hold_none(self, running: Stack) -> None:
        shown = [docker("history", "--no-trunc", image) for image in (stack.image("software"), stack.redis_image())]
        shown += [docker("image", "inspect", stack.image("software"))]
        for service in ("redis", "worker"):
            container = running.container(service)
            shown += [docker("inspect", container), docker("logs", container), docker("top", container, "-ef")]
            shown += [
                docker("exec", container, "sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline", check=False)
            ]
        shown += [running.compose("config")]
        for secret in running.secrets():
            assert all(secret not in text for text in shown)

    def test_the_image_keeps_no_address_of_the_builders_proxy(self, software_image: str) -> None:
        shown = docker("history", "--no-trunc", software_image) + docker("image", "inspect", software_image)
        assert "proxy" not in shown.lower()
        for name in stack.FROM_OUTSIDE:
            assert (os.environ.get(name) or "no proxy") not in shown

    def test_others_on_the_host_do_not_get_to_the_password(self, running: Stack) -> None:
        assert (running.folder / "secrets").stat().st_mode & 0o777 == 0o700


class TestEnd:
    def test_stop_lets_the_job_end_and_gives_0(self, running: Stack, client: Client, encoding: tuple[str, str]) -> None:
        job, target = encoding
        docker("stop", "--time", "120", running.container())
        assert client.status(job).state == "published"
        assert inspect(running.container())["State"]["ExitCode"] == 0
        assert Path(target).name in in_volume(running)

    def test_the_engine_waits_longer_than_the_worker_needs(self, running: Stack) -> None:
        told = inspect(running.container())["Config"]
        assert "TRANSCODER_GRACE=10m" in told["Env"]
        assert told["StopTimeout"] == 11 * 60

    def test_kill_leaves_nothing_half_published(
        self, running: Stack, client: Client, encoding: tuple[str, str]
    ) -> None:
        job, target = encoding
        before = in_volume(running)
        docker("kill", running.container())
        assert client.status(job).state == "running"
        left = in_volume(running)
        assert not {Path(target).name, f"{job}.transcoder.json"} & left
        assert left == before
        assert {name for name in left if job in name} == {f".transcoder-{job}-1"}, "only its scratch is there"
