"""What `transcoder compose` writes, in every topology: Compose takes it, starts it, and a job runs on the GPU."""

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import MakeClip
from tests.containers.stack import Stack, docker, image_prefix, stack, until, with_gpus
from tests.containers.test_doctor import QUICK, SOURCE
from tests.gpu import DeviceMachine, devices
from transcoder.__main__ import main
from transcoder.client import Client
from transcoder.spec import read

pytestmark = [pytest.mark.engine, pytest.mark.gpu, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def base(vaapi_image: str, software_image: str, module_folder: Path, make_clip: MakeClip) -> Iterator[Stack]:
    """The stack of compose.yaml, to which the tests add what they write."""
    with stack(module_folder, "publish") as up:
        docker("cp", str(make_clip(audio=False)), f"{up.container()}:{SOURCE}")
        yield up


@pytest.fixture
def machine(simgpu_driver: Path, tmp_path: Path) -> DeviceMachine:
    return DeviceMachine(tmp_path / "machine", simgpu_driver)


def written(monkeypatch: pytest.MonkeyPatch, machine: DeviceMachine, *words: str) -> str:
    """What the command prints on the host."""
    monkeypatch.setenv("TRANSCODER_DRI", str(machine.nodes))
    monkeypatch.setenv("TRANSCODER_SYSFS", str(machine.sysfs))
    monkeypatch.setattr(sys, "argv", ["transcoder", "compose", *words])
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main()
    return said.getvalue()


class Added:
    """The services of an overlay, beside those of the stack."""

    def __init__(self, up: Stack, text: str, machine: DeviceMachine) -> None:
        self.up = up
        self.services: dict[str, Any] = yaml.safe_load(text)["services"]
        gpus = [machine.add(node.name, QUICK) for node in sorted(machine.nodes.glob("renderD*"))]
        (up.folder / "compose.gpus.yaml").write_text(text)
        up.files[-1:] = ["compose.gpus.yaml", "override.json"]
        up.override(with_gpus(dict.fromkeys(self.services, gpus)))

    def __enter__(self) -> "Added":
        self.up.compose("config", "--quiet")
        self.up.up(*self.services)
        return self

    def __exit__(self, *_: object) -> None:
        self.up.compose("rm", "--stop", "--force", *self.services)
        self.up.files[-2:] = ["override.json"]
        self.up.override({})

    def nodes(self) -> dict[str, list[str]]:
        """What each container has in /dev/dri, by its service, sorted."""
        return {
            name: sorted(" ".join(docker("exec", one, "ls", "/dev/dri").split()) for one in self.up.containers(name))
            for name in self.services
        }

    def working(self) -> Counter[tuple[str, bool]]:
        """How many workers serve hardware on each device, and whether software, too."""
        live = [one for one in Client(self.up.broker_url).workers() if one.live and one.told.device]
        return Counter((str(one.told.device), "software" in " ".join(one.told.queues)) for one in live)

    def transcode(self, device: str) -> str:
        """The route of a job that requires this device, which a worker may still be trying."""
        until(lambda: any(device == one for one, _ in self.working()), f"a worker for {device}", within=120)
        client, accel = Client(self.up.broker_url), {"policy": "require", "device": device}
        asked = {"source": SOURCE, "target": "/media/made.mp4", "overwrite": True, "acceleration": accel}
        result = client.wait(client.submit(read(asked)))
        assert result["device"] == device
        return str(result["route"])


def test_shared_gives_the_worker_that_is_there_the_gpu(
    base: Stack, machine: DeviceMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine.add("renderD128", QUICK)
    machine.add("renderD129", QUICK)
    text = written(monkeypatch, machine, "--topology", "shared", "--stacks", "2")
    with Added(base, text, machine) as added:
        assert added.nodes() == {"worker": ["renderD128"]}
        assert added.transcode(first.address) == "vaapi-encode"
        assert added.working() == {(first.address, True): 1}


def test_per_gpu_gives_each_a_container_that_sees_no_other(
    base: Stack, machine: DeviceMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [machine.add(name, QUICK) for name in ("renderD128", "renderD129")]
    with Added(base, written(monkeypatch, machine, "--stacks", "2"), machine) as added:
        assert added.nodes() == {"worker-gpu0": ["renderD128"], "worker-gpu1": ["renderD129"]}
        assert [added.transcode(one.address) for one in gpus] == ["vaapi-encode"] * 2
        assert added.working() == {(one.address, False): 1 for one in gpus}


def test_per_stack_gives_each_stack_a_container_and_they_share_the_gpu(
    base: Stack, machine: DeviceMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = machine.add("renderD128", QUICK)
    text = written(monkeypatch, machine, "--topology", "per-stack", "--stacks", "2")
    with Added(base, text, machine) as added:
        assert added.nodes() == {"worker-gpu0": ["renderD128", "renderD128"]}
        assert added.transcode(only.address) == "vaapi-encode"
        assert added.working() == {(only.address, False): 2}


def test_a_container_that_sees_the_nodes_writes_what_the_host_would(
    software_image: str, machine: DeviceMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [machine.add(name, QUICK) for name in ("renderD128", "renderD129")]
    volume = ["--volume", f"{machine.nodes}:/dev/dri:ro"]
    said = docker("run", "--rm", *devices(several, granted=False), *volume, software_image, "compose")
    assert yaml.safe_load(said) == yaml.safe_load(
        written(monkeypatch, machine).replace(f"{machine.nodes}/", "/dev/dri/")
    )


def test_qsv_takes_the_image_with_its_runtime(machine: DeviceMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add("renderD128", kernel_driver="i915")
    (worker,) = yaml.safe_load(written(monkeypatch, machine, "--api", "qsv"))["services"].values()
    assert worker["image"].replace("${IMAGE:-transcoder:0.1.0}", image_prefix()) == f"{image_prefix()}-qsv"
