"""What of docker/ and compose/ can be read without an engine: versions that agree, and the script for a new host."""

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from transcoder import __version__

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE_FILES = sorted((ROOT / "compose").glob("compose*.yaml"))


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_images_are_named_by_the_version() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE
    named = [name for file in COMPOSE_FILES for name in re.findall(r"IMAGE:-transcoder:([^}]+)\}", file.read_text())]
    assert set(named) == {__version__}


def test_what_builds_the_wheel_is_what_builds_it_here() -> None:
    assert pins("requirements-build.lock").items() <= pins("requirements-dev.lock").items()


def test_the_base_is_pinned_to_a_day() -> None:
    assert re.search(r"^ARG BASE_IMAGE=debian:trixie-20\d{6}-slim$", DOCKERFILE, re.MULTILINE)


def test_no_image_is_whatever_is_newest() -> None:
    names = [name for file in COMPOSE_FILES for name in re.findall(r"^ +image: (\S+)$", file.read_text(), re.MULTILINE)]
    assert names
    assert all(re.search(r":.*\d+\.\d+\.\d+", name) for name in names), names


class Host:
    """A copy of compose/ on a host whose GPUs are files."""

    def __init__(self, folder: Path) -> None:
        self.compose = folder / "a clone" / "compose"  # with a space: people have them
        self.dri = folder / "dri"
        self.dri.mkdir()
        self.sysfs = folder / "sys"
        shutil.copytree(ROOT / "compose", self.compose, ignore=shutil.ignore_patterns("secrets", ".env"))

    def gpu(self, name: str, vendor: str) -> None:
        (self.dri / name).touch()
        device = self.sysfs / "class" / "drm" / name / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")

    def prepare(self) -> str:
        places = {"PATH": "/usr/bin:/bin", "DRI": str(self.dri), "SYSFS": str(self.sysfs)}
        command = [str(self.compose / "prepare")]
        return subprocess.run(command, env=places, cwd="/", capture_output=True, text=True, check=True).stdout

    @property
    def secrets(self) -> dict[str, str]:
        return {file.name: file.read_text() for file in (self.compose / "secrets").iterdir()}

    @property
    def env(self) -> str:
        return (self.compose / ".env").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class TestPrepare:
    def test_it_makes_a_password_that_no_other_host_has(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "another").mkdir()
        other = Host(tmp_path / "another")
        assert all(one.prepare() for one in (host, other))
        found = re.fullmatch(r"redis://:([0-9a-f]{48})@redis:6379/0\n", host.secrets["broker_url"])
        assert found
        assert found[1] not in other.secrets["broker_url"]
        assert found[1] not in host.secrets["redis_acl"], "Redis is told a hash"

    def test_containers_may_read_it_and_others_on_the_host_may_not(self, host: Host) -> None:
        host.prepare()
        folder = host.compose / "secrets"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}

    def test_it_says_nothing_secret(self, host: Host) -> None:
        said = host.prepare()
        assert host.secrets["broker_url"].split(":")[2].partition("@")[0] not in said

    def test_a_second_time_it_changes_nothing(self, host: Host) -> None:
        host.prepare()
        before = host.secrets, host.env
        host.gpu("renderD128", "0x8086")
        host.prepare()
        assert (host.secrets, host.env) == before

    def test_without_a_gpu_the_worker_is_left_to_software(self, host: Host) -> None:
        host.gpu("renderD128", "0x10de")
        assert "found no GPU of Intel or AMD" in host.prepare()
        assert host.env == "COMPOSE_FILE=compose.yaml\n"

    @pytest.mark.parametrize("vendor", ["0x8086", "0x1002"], ids=["Intel", "AMD"])
    def test_the_first_gpu_that_it_can_use_and_the_number_of_its_group_go_into_env(
        self, host: Host, vendor: str
    ) -> None:
        host.gpu("renderD128", "0x1af4")
        host.gpu("renderD129", vendor)
        host.gpu("renderD130", vendor)
        host.prepare()
        group = (host.dri / "renderD129").stat().st_gid
        assert host.env.splitlines() == [
            "COMPOSE_FILE=compose.yaml:compose.gpu.yaml",
            "RENDER_NODE=renderD129",
            f"RENDER_GID={group}",
            f"DRI={host.dri}",  # since it is not where Compose looks by itself
        ]
