"""The overlays with GPUs, on software GPUs that are devices of the kernel: mapped, opened by group, used.

The containers are those of compose/: no root, a root that is read-only, no capability. The node comes by `devices` and
the leave to open it by `group_add`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeClip
from tests.containers import stack
from tests.containers.stack import Stack, docker, until, with_gpus
from tests.gpu import DEVICE_GROUP, Device, DeviceMachine
from transcoder import Client, JobSpec, capacity
from transcoder.capacity import CapacityFile, Measurement
from transcoder.errors import NoRoute

pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

FIRST, SECOND = "0000:00:02.0", "0000:03:00.0"
SIMPLE: dict[str, object] = {
    "rc": "CQP",
    "encode": "h264",
    "decode": "h264",
    "ten_bit": False,
    "vpl": False,
    "rate": 10_000_000,
}
"""Little to try, and engines that take their time: two seconds for the clip."""
REQUIRE: dict[str, Any] = {"acceleration": {"policy": "require"}}
STREAM = 640 * 360 * 25
"""Pixels per second of a job of the clip."""
COUNTED = re.compile(r'^transcoder_gpu_engine_seconds_total\{device="(\S+)",engine="\S+"\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def clip(make_clip: MakeClip) -> Path:
    return make_clip("testsrc2=s=640x360:r=25:d=3")


class Site:
    """A stack with GPUs, a folder of the host for its media, and a client outside."""

    def __init__(self, running: Stack, media: Path) -> None:
        self.stack = running
        self.media = media
        self.client = Client(running.broker_url)
        self.made = 0

    def submit(self, **fields: Any) -> str:
        self.made += 1
        return self.client.submit(JobSpec(source="/media/clip.mp4", target=f"/media/made{self.made}.mp4", **fields))

    def devices_served(self) -> list[str]:
        """By the workers whose GPU has been tried, in order."""
        heard = [one.told for one in self.client.workers()]
        return sorted(told.device for told in heard if told.device and any("hw" in queue for queue in told.queues))

    def engine_seconds(self, service: str = "worker") -> dict[str, float]:
        """By device, as the service's worker counts them; several engines are summed up."""
        counted: dict[str, float] = {}
        for device, seconds in COUNTED.findall(self.stack.metrics(service)):
            counted[device] = counted.get(device, 0) + float(seconds)
        return counted


@contextmanager
def site(
    folder: Path,
    clip: Path,
    machine: DeviceMachine,
    services: Mapping[str, Sequence[Device]],
    *overlays: str,
    vpl: bool = False,
    **variables: str,
) -> Iterator[Site]:
    media = folder / "media"
    media.mkdir()
    shutil.copyfile(clip, media / "clip.mp4")
    os.chown(media, *map(int, variables.get("RUN_AS", "1000:1000").split(":")))
    told = {"DRI": str(machine.nodes), "MEDIA": str(media), **variables}
    override = with_gpus(services, vpl=vpl)
    with stack.stack(folder, *overlays, "publish", variables=told, override=override, sysfs=machine.sysfs) as running:
        made = Site(running, media)
        expected = {device.address for several in services.values() for device in several}
        if "RENDER_GID" not in variables:
            until(lambda: expected <= set(made.devices_served()), f"{expected} are served", 60)
        yield made


def test_prepare_and_up_are_all_that_a_host_with_a_gpu_needs(
    vaapi_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpu = device_machine.add("renderD128", SIMPLE)
    with site(tmp_path, clip, device_machine, {"worker": [gpu]}, "gpu") as running:
        result = running.client.wait(running.submit())
        assert (result["route"], result["device"], result["on_gpu"]) == ("vaapi", FIRST, True)
        assert result["gpu"]["seconds"] > 0
        assert running.engine_seconds()[FIRST] > 0
        assert (running.media / "made1.mp4").stat().st_uid == 1000
        groups = docker("exec", running.stack.container(), "id", "-G").split()
        assert groups == ["1000", str(DEVICE_GROUP)]
        up = ["docker", "compose", "config", "--images"]  # as a user would call it: `prepare` has named the files
        named = subprocess.run(up, cwd=running.stack.folder, capture_output=True, text=True, check=True)
        assert set(named.stdout.split()) == {vaapi_image, stack.pinned_redis()}


def test_a_mapped_gpu_transcodes_by_qsv_in_the_qsv_image(
    qsv_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpu = device_machine.add("renderD128", {**SIMPLE, "vpl": True})
    with site(tmp_path, clip, device_machine, {"worker": [gpu]}, "qsv", vpl=True) as running:
        result = running.client.wait(running.submit(acceleration={"policy": "require", "apis": ["qsv"]}))
        assert (result["route"], result["device"], result["on_gpu"]) == ("qsv", FIRST, True)
        assert running.engine_seconds()[FIRST] > 0


def test_without_the_group_the_worker_serves_in_software_and_refuses_what_requires_a_gpu(
    vaapi_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpu = device_machine.add("renderD128", SIMPLE)
    with site(tmp_path, clip, device_machine, {"worker": [gpu]}, "gpu", RENDER_GID="65534") as running:
        until(running.client.workers, "the worker was heard of")
        assert running.client.wait(running.submit())["route"] == "software"
        assert running.devices_served() == []
        with pytest.raises(NoRoute):
            running.submit(**REQUIRE)


def test_each_worker_of_per_gpu_sees_and_uses_its_own_gpu_only(
    software_image: str, vaapi_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpus = [device_machine.add(name, SIMPLE) for name in ("renderD128", "renderD129")]
    both = {"worker-gpu0": gpus, "worker-gpu1": gpus}  # drivers and sysfs of both, as on a host; no node yet
    with site(tmp_path, clip, device_machine, both, "per-gpu") as running:
        jobs = [running.submit(**REQUIRE) for _ in range(4)]
        assert {running.client.wait(job)["device"] for job in jobs} == {FIRST, SECOND}
        for number, (gpu, address) in enumerate(zip(gpus, (FIRST, SECOND), strict=True)):
            service = f"worker-gpu{number}"
            seen = docker("exec", running.stack.container(service), "ls", "/dev/dri").split()
            assert seen == [gpu.node.name]
            assert set(running.engine_seconds(service)) == {address}
        assert running.client.wait(running.submit(acceleration={"policy": "never"}))["route"] == "software"


def test_containers_of_one_stack_each_share_the_gpu(
    vaapi_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpu = device_machine.add("renderD128", SIMPLE)
    with site(tmp_path, clip, device_machine, {"worker": [gpu]}, "gpu", "stack-each", STACKS="2") as running:
        until(lambda: running.devices_served() == [FIRST, FIRST], "both containers serve the GPU")
        jobs = [running.submit(**REQUIRE) for _ in range(2)]
        results = [running.client.wait(job) for job in jobs]
        assert {result["device"] for result in results} == {FIRST}
        assert all(result["on_gpu"] for result in results)
        assert len({running.client.status(job).owner for job in jobs}) == 2


def test_two_containers_never_ask_a_gpu_for_more_sessions_than_it_has(
    vaapi_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpu = device_machine.add("renderD128", SIMPLE)
    one = Measurement(pixels_per_second=STREAM + 1, streams=1, workload="360p25", measured="now")
    (tmp_path / "capacity.json").write_text(capacity.text(CapacityFile(devices={FIRST: one})))
    overlays, path = ("gpu", "stack-each", "capacity"), str(tmp_path / "capacity.json")
    with site(tmp_path, clip, device_machine, {"worker": [gpu]}, *overlays, STACKS="2", CAPACITY=path) as running:
        until(lambda: running.devices_served() == [FIRST, FIRST], "both containers serve the GPU")
        gpu.configure({**SIMPLE, "max_sessions": 1})
        jobs = [running.submit(**REQUIRE) for _ in range(4)]
        assert [running.client.wait(job)["tried"] for job in jobs] == [[]] * 4, "no session was refused"
        histories = [running.client.status(job) for job in jobs]
        assert len({status.owner for status in histories}) == 2
        assert any("waiting" in [moment.what for moment in status.history] for status in histories)


def test_one_container_of_several_stacks_runs_them_at_the_same_time_on_its_gpu(
    vaapi_image: str, device_machine: DeviceMachine, tmp_path: Path, clip: Path
) -> None:
    gpu = device_machine.add("renderD128", SIMPLE)
    with site(
        tmp_path, clip, device_machine, {"worker": [gpu]}, "gpu", "stacks", STACKS="2", RUN_AS="4321:8765"
    ) as running:
        jobs = [running.submit(**REQUIRE) for _ in range(2)]
        until(lambda: len(running.client.jobs("running")) == 2, "both jobs run")
        assert {running.client.wait(job)["device"] for job in jobs} == {FIRST}
        assert len(running.client.workers()) == 1
        made = (running.media / "made1.mp4").stat()
        assert (made.st_uid, made.st_gid) == (4321, 8765), "any user will do"
