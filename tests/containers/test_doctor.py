"""What is left out of a Compose file: the worker serves in software, the doctor names it, and its line mends it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import MakeClip
from tests.containers.stack import Stack, docker, image_prefix, inspect, stack, until, with_gpus
from tests.gpu import DEVICE_GROUP, Device, DeviceMachine
from transcoder import Client
from transcoder.errors import NoRoute
from transcoder.spec import read

pytestmark = [pytest.mark.engine, pytest.mark.gpu, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

SOURCE = "/media/clip.mp4"
QUICK = {
    "kernel_driver": "amdgpu",
    "decode": "none",
    "encode": "h264 hevc",
    "ten_bit": False,
    "vpp": False,
    "rc": "CQP",
}
"""GPUs that take few trials."""

Service = dict[str, Any]


@dataclass
class Host:
    """Two GPUs, and a stack whose Redis runs and whose worker is what a test makes of it."""

    stack: Stack
    first: Device
    second: Device

    def service(self, *kept: Device, target: str = "vaapi", group: bool = True, driver: bool = True) -> Service:
        """The worker with these devices mapped, and what of the rest is not left out."""
        made: Service = with_gpus({"worker": [self.first, self.second]})["services"]["worker"]
        if not driver:
            made["environment"] = {
                name: value for name, value in made["environment"].items() if not name.startswith("LIBVA_")
            }
        made |= {"image": f"{image_prefix()}-{target}", "devices": [f"{one.node}:{one.path}" for one in kept]}
        return made | ({"group_add": [str(DEVICE_GROUP)]} if group else {})

    def up(self, worker: Service) -> None:
        """Start the worker anew, as this."""
        self.stack.override({"services": {"worker": worker}})
        self.stack.up("worker")

    def doctor(self) -> list[dict[str, str]]:
        """What the doctor finds in the worker's container, but what is well."""
        return ill(self.stack.transcoder("doctor", "--json", check=False))

    def doctor_beside(self, worker: Service) -> list[dict[str, str]]:
        """The same in a container of its own, where no worker is needed."""
        self.stack.override({"services": {"worker": worker}})
        return ill(self.stack.compose("run", "--rm", "-T", "--no-deps", "worker", "doctor", "--json", check=False))

    def applied(self, line: str) -> Service:
        """What the doctor's line says, as a part of the service. /dev/dri of this host is elsewhere."""
        found = yaml.safe_load(line.removeprefix("in Compose, ").partition(";")[0])
        if "devices" in found:
            found["devices"] = [one.replace("/dev/dri", str(self.first.node.parent), 1) for one in found["devices"]]
        assert isinstance(found, dict)
        return found

    def serves_hardware(self) -> bool:
        """Whether the worker has tried the first GPU and serves it: it is healthy before, with software."""
        return any(
            one.live and one.told.device == self.first.address for one in Client(self.stack.broker_url).workers()
        )

    def transcode(self, target: str, policy: str = "prefer") -> Mapping[str, Any]:
        """The result of a job submitted from outside."""
        client = Client(self.stack.broker_url)
        asked = read({"source": SOURCE, "target": target, "overwrite": True, "acceleration": {"policy": policy}})
        return client.wait(client.submit(asked))


def ill(said: str) -> list[dict[str, str]]:
    return [one for one in json.loads(said)["findings"] if one["level"] in ("warning", "failure")]


@pytest.fixture(scope="module")
def host(
    vaapi_image: str, software_image: str, simgpu_driver: Path, module_folder: Path, make_clip: MakeClip
) -> Iterator[Host]:
    machine = DeviceMachine(module_folder / "machine", simgpu_driver)
    first, second = (machine.add(name, QUICK) for name in ("renderD128", "renderD129"))
    with stack(module_folder, "publish", variables={"DRI": str(machine.nodes)}) as up:
        docker("cp", str(make_clip(audio=False)), f"{up.container()}:{SOURCE}")
        yield Host(up, first, second)


def left_out(host: Host, what: str) -> tuple[Service, str, Service]:
    """The worker without it, the finding that names it, and what is to be changed besides the doctor's line."""
    match what:
        case "group":
            return host.service(host.first, group=False), "gpu-group", {}
        case "device":
            return host.service(), "gpu-unmapped", {}
        case "node":
            wrong = host.service(host.second)
            wrong["environment"]["TRANSCODER_DEVICE"] = host.first.address
            return wrong, "gpu-unmapped", {}
        case "driver":  # the image with the drivers has no driver of this GPU: the test brings that
            return (
                host.service(host.first, target="software", driver=False),
                "va-driver-missing",
                host.service(host.first),
            )
    raise AssertionError(what)


@pytest.mark.parametrize("what", ["group", "device", "node", "driver"])
def test_without_it_software_serves_and_the_doctors_line_brings_the_gpu_back(host: Host, what: str) -> None:
    worker, kind, besides = left_out(host, what)
    host.up(worker)
    assert host.transcode(f"/media/{what}.mp4")["route"] == "software"
    with pytest.raises(NoRoute):
        host.transcode(f"/media/{what}.mp4", "require")
    [found] = [one for one in host.doctor() if one["kind"] == kind and host.first.path == one["about"]]
    if what == "driver":
        assert "run the image with the drivers, transcoder:<version>-vaapi" in found["mend"]
    else:
        worker |= host.applied(found["mend"])
    host.up(worker | besides)
    until(host.serves_hardware, "the GPU back in use", within=120)
    assert host.doctor() == []
    made = host.transcode(f"/media/{what}.mp4", "require")
    assert made["route"].startswith("vaapi")
    assert made["device"] == host.first.address


def test_a_node_without_the_cgroups_leave_is_told_from_one_without_a_group(host: Host) -> None:
    bound = host.service()
    bound["volumes"].append(f"{host.first.node}:{host.first.path}")
    [found] = [one for one in host.doctor_beside(bound) if one["kind"] == "gpu-cgroup"]
    assert host.doctor_beside(host.service() | host.applied(found["mend"])) == []


def test_the_default_group_of_our_file_is_told_by_the_number_that_stands_in_its_place(host: Host) -> None:
    default = host.service(host.first) | {"group_add": ["65534"]}
    [found] = [one for one in host.doctor_beside(default) if one["kind"] == "gpu-group-wrong"]
    assert found["mend"].startswith(f'in Compose, group_add: ["{DEVICE_GROUP}"]; RENDER_GID={DEVICE_GROUP} in .env')


def test_a_worker_for_hardware_alone_refuses_to_start_and_says_which_line_is_missing(host: Host) -> None:
    only = host.service(host.first, group=False)
    only |= {"restart": "no"}
    only["environment"]["TRANSCODER_SERVES"] = "hardware"
    host.stack.override({"services": {"worker": only}})
    host.stack.compose("up", "--detach", "--no-build", "worker")
    container = host.stack.container()
    until(lambda: not inspect(container)["State"]["Running"], "the end of the worker", within=120)
    assert inspect(container)["State"]["ExitCode"] == NoRoute.exit_code
    assert f'group_add: ["{DEVICE_GROUP}"]' in host.stack.logs()
