"""The software GPU as a device of the kernel: what modes, groups and the device cgroup do to containers that use it.

The containers are of an image made here, or of the one that SIMGPU_READY_IMAGE names: with ffmpeg, and all that the
driver is built with.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.stack import docker, simgpu_image
from tests.gpu import Device, DeviceMachine, devices

USER = 12_345
HARDENED = ["--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
WIDTH, HEIGHT, RATE = 320, 192, 50  # RATE pictures a second and engine
OPEN = "sysopen(F, $ARGV[0], 2) ? print 'open' : print grep { $!{$_} } qw(EACCES EPERM ENOENT ENXIO)"
Start = Callable[..., str]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def image() -> str:
    return simgpu_image()


@pytest.fixture
def machine(device_machine: DeviceMachine) -> DeviceMachine:
    return device_machine


@pytest.fixture
def start(image: str) -> Iterator[Start]:
    """Starts a container that has next to no rights; gives its id."""
    started: list[str] = []

    def run(*words: str, command: list[str], group: int | None = None) -> str:
        user = ["--user", f"{USER}:{USER}", *([] if group is None else ["--group-add", str(group)])]
        container = docker("run", "--detach", *HARDENED, *user, *words, image, *command).strip()
        started.append(container)
        return container

    yield run
    for container in started:
        docker("rm", "--force", container)


def group_of(device: Device) -> int:
    return device.node.stat().st_gid


def result(container: str) -> tuple[int, str]:
    """Its exit code and all that it said."""
    code = int(docker("wait", container))
    said = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    return code, said.stdout + said.stderr


def encode(device: Device, pictures: int, size: str = f"{WIDTH}x{HEIGHT}") -> list[str]:
    source = ["-f", "lavfi", "-i", f"color=gray:s={size}:r=25", "-frames:v", str(pictures)]
    encoder = ["-vf", "format=nv12,hwupload", "-c:v", "h264_vaapi", "-rc_mode", "CQP", "-f", "null", "-"]
    return ["ffmpeg", "-v", "level+verbose", "-nostdin", "-init_hw_device", f"vaapi=va:{device.path}",
            "-filter_hw_device", "va", *source, *encoder]  # fmt: skip


def counters(device: Device, name: str) -> list[int]:
    return [int(client[name].split()[0]) for client in device.clients() if name in client]


def until(true: Callable[[], object], what: str, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.05)


def opened(start: Start, path: str, *words: str, group: int | None = None) -> str:
    return result(start(*words, command=["perl", "-MErrno", "-e", OPEN, path], group=group))[1]


class TestRights:
    def test_who_is_in_the_group_opens_it(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add()
        assert opened(start, device.path, *device.docker(), group=group_of(device)) == "open"

    def test_who_is_not_in_the_group_may_not(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add()
        assert opened(start, device.path, *device.docker()) == "EACCES"
        assert opened(start, device.path, *device.docker(), group=group_of(device) + 1) == "EACCES"

    def test_everybody_opens_one_that_is_open_to_all(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add()
        device.protect(0o666, 0)
        assert opened(start, device.path, *device.docker()) == "open"

    def test_a_device_that_is_not_granted_is_not_there(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add()
        assert opened(start, device.path, *device.docker(granted=False), group=group_of(device)) == "ENOENT"

    def test_a_node_without_the_cgroups_leave_is_refused(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add()
        bound = [*device.docker(granted=False), "-v", f"{device.node}:{device.path}"]
        assert opened(start, device.path, *bound, group=group_of(device)) == "EPERM"
        ruled = [*bound, "--device-cgroup-rule", "c 7:128 rmw"]
        assert opened(start, device.path, *ruled, group=group_of(device)) == "open"

    @pytest.mark.parametrize("why", ["group", "absent", "cgroup"])
    def test_ffmpeg_says_the_same_whatever_the_reason(self, machine: DeviceMachine, start: Start, why: str) -> None:
        device = machine.add()
        words = device.docker(granted=why == "group")
        words += ["-v", f"{device.node}:{device.path}"] if why == "cgroup" else []
        group = None if why == "group" else group_of(device)
        code, said = result(start(*words, command=encode(device, 1), group=group))
        assert f"No VA display found for device {device.path}." in said
        assert code == 234


class TestUse:
    def test_ffmpeg_encodes_in_a_container_that_may_nothing_else(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add(vendor="A GPU of the kernel")
        code, said = result(start(*device.docker(), command=encode(device, 25), group=group_of(device)))
        assert code == 0, said
        assert "VAAPI driver: A GPU of the kernel." in said
        assert "25 frames encoded" in said
        assert "simgpu_shim" not in said

    def test_the_second_device_is_another(self, machine: DeviceMachine, start: Start) -> None:
        several = [machine.add("renderD128", vendor="First"), machine.add("renderD129", vendor="Second")]
        for device, name in zip(several, ("First", "Second"), strict=True):
            code, said = result(start(*devices(several), command=encode(device, 2), group=group_of(device)))
            assert code == 0, said
            assert f"VAAPI driver: {name}." in said

    def test_a_container_given_one_of_two_has_no_other(self, machine: DeviceMachine, start: Start) -> None:
        first, second = machine.add("renderD128"), machine.add("renderD129")
        assert opened(start, first.path, *second.docker(), group=group_of(first)) == "ENOENT"
        assert opened(start, second.path, *second.docker(), group=group_of(first)) == "open"

    def test_sysfs_tells_what_the_device_is(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add(kernel_driver="amdgpu", pdev="0000:0b:00.0")
        entry = "/simgpu/sys/class/drm/renderD128/device"
        show = f"cat {entry}/vendor {entry}/device; readlink -f {entry} {entry}/driver"
        _, said = result(start(*device.docker(), command=["sh", "-c", show]))
        assert said.split() == [
            "0x1002", "0x164e", "/simgpu/sys/devices/pci0000:00/0000:0b:00.0", "/simgpu/sys/bus/pci/drivers/amdgpu"
        ]  # fmt: skip

    def test_counters_show_a_container_its_own_processes(
        self, machine: DeviceMachine, start: Start, tmp_path: Path
    ) -> None:
        device = machine.add(encode_rate=WIDTH * HEIGHT * RATE)
        own, containers = [tmp_path / "first", tmp_path / "second"], []
        for proc in own:
            proc.mkdir()
            proc.chmod(0o777)
            words = device.docker(proc=proc)
            containers.append(start(*words, command=encode(device, 100_000), group=group_of(device)))
        until(lambda: len(list(device.clients())) == 2 and min(counters(device, "drm-engine-video")) > 0, "two clients")
        for proc in own:
            (process,) = proc.iterdir()
            assert process.name == "1"  # both are: of two namespaces
            (fd,) = (process / "fd").iterdir()
            assert str(fd.readlink()) == device.path
            assert (process / "fdinfo" / fd.name).is_symlink()
        docker("kill", containers[1])
        docker("wait", containers[1])
        docker("exec", containers[0], *encode(device, 1))  # clears away what the dead process left
        assert len(device.clients()) == 1
        (process,) = own[0].iterdir()  # which had the same numbers as the one that lives
        assert len(list((process / "fdinfo").iterdir())) == 1


class TestSharing:
    @pytest.mark.parametrize(("engines", "count"), [(1, 1), (1, 2), (2, 2)])
    def test_containers_wait_for_the_engines(
        self, machine: DeviceMachine, start: Start, engines: int, count: int
    ) -> None:
        device = machine.add(engines=engines, encode_rate=WIDTH * HEIGHT * RATE)
        for _ in range(count):
            start(*device.docker(), command=encode(device, 100_000), group=group_of(device))
        busy = "drm-engine-video"
        until(lambda: len(counters(device, busy)) == count and min(counters(device, busy)) > 0, "work of all")
        for _ in range(6):  # again when the machine had no time for us
            before, began = counters(device, busy), time.monotonic()
            time.sleep(2)
            shares = [(b - a) / (time.monotonic() - began) / 1e9
                      for a, b in zip(before, counters(device, busy), strict=True)]  # fmt: skip
            if sum(shares) == pytest.approx(engines, rel=0.15):
                break
        assert sum(shares) == pytest.approx(engines, rel=0.15)
        for share in shares:
            assert share == pytest.approx(engines / count, rel=0.3)

    def test_sessions_are_those_of_all_containers(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add(max_sessions=1, encode_rate=WIDTH * HEIGHT * RATE)
        words, group = device.docker(), group_of(device)
        holder = start(*words, command=encode(device, 100_000), group=group)
        until(lambda: counters(device, "simgpu-sessions") == [1], "a session")
        code, said = result(start(*words, command=encode(device, 5), group=group))
        assert "Failed to create encode pipeline context: 2 (resource allocation failed)." in said
        assert code == 251
        docker("kill", holder)
        docker("wait", holder)
        code, said = result(start(*words, command=encode(device, 5), group=group))
        assert code == 0, said

    def test_memory_is_that_of_all_containers(self, machine: DeviceMachine, start: Start) -> None:
        device = machine.add(encode_rate=WIDTH * HEIGHT * RATE)
        words, group = device.docker(), group_of(device)
        start(*words, command=encode(device, 100_000), group=group)
        until(lambda: any(counters(device, "drm-engine-video")), "work")
        used = counters(device, "drm-total-system0")[0] // 1024
        device.configure(memory=used + 2, encode_rate=WIDTH * HEIGHT * RATE)
        code, said = result(start(*words, command=encode(device, 5, "1280x720"), group=group))
        assert "Failed to create surface: 2 (resource allocation failed)." in said
        assert code == 244
