"""`compose up` in software: what it promises on the engine, from the first job to a kill in the middle of one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.stack import Stack, docker, stack
from transcoder import Client, JobSpec

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

SOURCE = "/media/bbb.mp4"


@pytest.fixture(scope="module")
def running(software_image: str, module_folder: Path, bbb: Path) -> Iterator[Stack]:
    with stack(module_folder, "publish") as up:
        docker("cp", str(bbb), f"{up.container()}:{SOURCE}")
        yield up


@pytest.fixture
def client(running: Stack) -> Client:
    """Outside of the containers."""
    return Client(running.broker_url)


def test_a_job_submitted_from_outside_gives_a_verified_file_in_the_volume(running: Stack, client: Client) -> None:
    job = client.submit(JobSpec(source=SOURCE, target="/media/made.mp4"))
    result = client.wait(job)
    assert result["route"] == "software"
    probe = ["exec", running.container(), "ffprobe", "-v", "error", "-count_packets", "-show_streams", "-of", "json"]
    [video, sound] = json.loads(docker(*probe, "/media/made.mp4"))["streams"]
    assert (video["codec_name"], video["nb_read_packets"], sound["codec_name"]) == ("h264", "132", "aac")
    manifest = json.loads(docker("exec", running.container(), "cat", f"/media/{job}.transcoder.json"))
    assert [file["path"] for file in manifest["result"]["outputs"]] == ["/media/made.mp4"]
