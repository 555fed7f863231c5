"""The product's images and Compose files on the real engine: build the images, stand in for others, run a stack.

Images are named by what they are made of, so that one that is there is not built again, and two checkouts do not take
each other's. A stack is a Compose project of its own, with a copy of the Compose files, and goes with all it has.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tests.gpu import Device, devices
from tests.services import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = ROOT / "compose"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
CACHE = ROOT / ".cache"
FROM_OUTSIDE = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
INPUTS = (
    ".dockerignore",
    "README.md",
    "docker",
    "pyproject.toml",
    "requirements-build.lock",
    "requirements.lock",
    "transcoder",
)
"""What images are made of: what .dockerignore lets through, and itself."""

Target = Literal["software", "vaapi", "qsv"]
TARGETS: tuple[Target, ...] = ("software", "vaapi", "qsv")
MIB = 1 << 20
SOURCE, LONG = "/media/bbb.mp4", "/media/long.mp4"

REDIS = """
FROM {base}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server redis-tools >/dev/null \
 && install -d -o 999 -g 999 /data
"""
"""What the official image is to our Compose files: the programs, and a /data of the user 999."""

SIMGPU = """
FROM {base}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      ffmpeg gcc libc6-dev make pkg-config libva-dev libdrm-dev libavcodec-dev libavutil-dev libswscale-dev libvpl-dev \
      >/dev/null
"""
"""What the software GPU is built with, for the libraries of our images, and an ffmpeg to try it."""


def docker(*words: str, timeout: float = 300, stdin: bytes | None = None, check: bool = True) -> str:
    """What it says on stdout; with `check` it must end with 0."""
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, timeout=timeout, check=False)
    output, said = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert not check or done.returncode == 0, f"docker {' '.join(words[:3])} gave {done.returncode}\n{output}\n{said}"
    return output


def exists(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def base_image() -> str:
    """The base that docker/Dockerfile pins. Where it cannot be had, Debian's latest stands in for it under its name."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found
    if not exists(found[1]) and exists("debian:trixie-slim"):
        docker("tag", "debian:trixie-slim", found[1])
    return found[1]


def image(target: Target) -> str:
    """The image of a target of docker/Dockerfile, built from this tree."""
    name = f"{image_prefix()}-{target}"
    with alone("images"):
        if not exists(name):
            base_image()
            words = ["--file", str(DOCKERFILE), "--target", target, "--tag", name, *_proxies()]
            docker("build", "--quiet", *words, str(ROOT), timeout=900)
    return name


def image_prefix() -> str:
    """What the variable IMAGE of the Compose files is to be: `transcoder:test-` and the content's hash."""
    digest = hashlib.sha256()
    names = (ROOT / name for name in INPUTS)
    for path in sorted(file for name in names for file in (name.rglob("*") if name.is_dir() else [name])):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mode:o} ".encode() + path.read_bytes())
    return f"transcoder:test-{digest.hexdigest()[:16]}"


def stand_in(name: str, dockerfile: str) -> str:
    """An image made of Debian's packages instead of the one of that name, where that is not there; gives what is used.

    Its name is no other's: who deploys from the same machine gets the real one. `{base}` in the Dockerfile is the base
    of our images.
    """
    made = _stands_in(name)
    with alone("images"):
        if not exists(name) and not exists(made):
            content = dockerfile.format(base=base_image()).encode()
            docker("build", "--quiet", "--tag", made, *_proxies(), "-", stdin=content, timeout=600)
    return name if exists(name) else made


def _stands_in(name: str) -> str:
    return f"transcoder-test/{name}"


def pinned_redis() -> str:
    """The image that compose.yaml names."""
    found = re.search(r"image: (redis:\S+)", (COMPOSE / "compose.yaml").read_text())
    assert found
    return found[1]


def redis_image() -> str:
    """That, or what stands in for it."""
    return stand_in(pinned_redis(), REDIS)


def simgpu_image() -> str:
    if ready := os.environ.get("SIMGPU_READY_IMAGE"):
        return ready
    return stand_in(f"simgpu:{hashlib.sha256(SIMGPU.encode()).hexdigest()[:16]}", SIMGPU)


def _proxies() -> list[str]:
    # names that every engine knows: they go into no environment and no history
    return [word for name in FROM_OUTSIDE if name in os.environ for word in ("--build-arg", name)]


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Tests run in several processes; one builds, the others wait for it."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Stack:
    """A Compose project made of the product's files `compose.yaml` and `compose.OVERLAY.yaml`.

    `prepare` makes its .env, with the GPU that it finds in `sysfs` and the variable DRI; `variables` are added to it.
    `override` is a further file as a value, for what only tests need. Health is asked every second.
    """

    def __init__(
        self,
        folder: Path,
        *overlays: str,
        variables: Mapping[str, str] | None = None,
        override: Mapping[str, Any] | None = None,
        sysfs: Path = Path("/nowhere"),
    ) -> None:
        self.folder = folder / "compose"
        shutil.copytree(COMPOSE, self.folder, ignore=shutil.ignore_patterns("secrets", ".env"))
        self.project = f"transcoder-test-{os.getpid()}-{free_port()}"
        self.port = free_port()
        self.files = ["compose.yaml", *(f"compose.{overlay}.yaml" for overlay in overlays), "override.json"]
        told = {"IMAGE": image_prefix(), "PUBLISH": f"127.0.0.1:{self.port}", **(variables or {})}
        places = {"DRI": told.get("DRI", "/nowhere"), "SYSFS": str(sysfs), "PATH": os.environ["PATH"]}
        subprocess.run([self.folder / "prepare"], env=places, capture_output=True, check=True)
        with (self.folder / ".env").open("a") as env:  # after what `prepare` found: the last line counts
            env.writelines(f"{name}={value}\n" for name, value in told.items())
        redis_image()
        self.override(override or {})

    def override(self, override: Mapping[str, Any]) -> None:
        """Put that in the place of the further file; what runs is changed by the next `up`."""
        file = self.folder / "override.json"
        file.write_text(json.dumps(override))
        services = dict(override.get("services", {}))
        for name, service in json.loads(self.compose("config", "--format", "json"))["services"].items():
            services[name] = {**services.get(name, {}), "healthcheck": {"interval": "1s"}}
            if not exists(service["image"]) and exists(_stands_in(service["image"])):
                services[name]["image"] = _stands_in(service["image"])
        file.write_text(json.dumps({**override, "services": services}))

    def compose(self, *words: str, timeout: float = 120, check: bool = True) -> str:
        files = [word for file in self.files for word in ("--file", str(self.folder / file))]
        return docker("compose", "--project-name", self.project, *files, *words, timeout=timeout, check=check)

    def up(self, *services: str, timeout: float = 120) -> None:
        """Start, and wait until all say that they are healthy."""
        try:
            self.compose("up", "--detach", "--wait", "--no-build", *services, timeout=timeout)
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{self.logs()}") from None

    def down(self) -> None:
        """Remove all of it; what runs is killed."""
        self.compose("kill", check=False)
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "0")

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "100", check=False)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", service).split()

    def container(self, service: str = "worker") -> str:
        [only] = self.containers(service)
        return only

    def transcoder(self, *words: str, service: str = "worker", check: bool = True, timeout: float = 120) -> str:
        """What `transcoder` says in the service's container."""
        return docker("exec", self.container(service), "transcoder", *words, check=check, timeout=timeout)

    def metrics(self, service: str = "worker", path: str = "/metrics") -> str:
        """What the worker serves on its port, which is published nowhere."""
        ask = f"from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9464{path}').read().decode())"
        return docker("exec", self.container(service), "/opt/transcoder/bin/python", "-c", ask)

    def bring(self, clip: Path, *, times: int) -> None:
        """The clip as SOURCE in the worker's volume, and as LONG so many times over."""
        docker("cp", str(clip), f"{self.container()}:{SOURCE}")
        longer = ["ffmpeg", "-v", "error", "-stream_loop", str(times - 1), "-i", SOURCE, "-c", "copy", LONG]
        docker("exec", self.container(), *longer)

    def secrets(self) -> list[str]:
        """What nobody may see: the password for Redis, and its hash."""
        password = (self.folder / "secrets" / "broker_url").read_text().split(":")[2].partition("@")[0]
        return [password, hashlib.sha256(password.encode()).hexdigest()]

    @property
    def broker_url(self) -> str:
        """For clients outside, with the overlay `publish`."""
        inside = (self.folder / "secrets" / "broker_url").read_text().strip()
        return inside.replace("@redis:6379", f"@127.0.0.1:{self.port}")


@contextlib.contextmanager
def stack(folder: Path, *overlays: str, **more: Any) -> Iterator[Stack]:
    """A stack that is up; when the test has ended it is gone."""
    made = Stack(folder, *overlays, **more)
    try:
        made.up()
        yield made
    finally:
        made.down()


def with_gpus(services: Mapping[str, Sequence[Device]], *, vpl: bool = False) -> dict[str, Any]:
    """An override that puts the software GPU's driver into the containers of services, as a real one is in the image.

    It maps no node and gives no group: that is what the Compose files are for. DRI is to be the machine's `nodes`.
    `vpl` adds its oneVPL runtime.
    """
    return {"services": {name: _simgpu(several, vpl) for name, several in services.items()}}


def _simgpu(several: Sequence[Device], vpl: bool) -> dict[str, Any]:
    words = devices(several, granted=False)
    words += ["-e", "ONEVPL_PRIORITY_PATH=/simgpu/drivers"] if vpl else []
    options = list(zip(words[::2], words[1::2], strict=True))
    return {
        "volumes": [value for option, value in options if option == "-v"],
        "tmpfs": [value for option, value in options if option == "--tmpfs"],
        "environment": dict(value.split("=", 1) for option, value in options if option == "-e"),
    }


def inspect(name: str) -> dict[str, Any]:
    [found] = json.loads(docker("inspect", name))
    assert isinstance(found, dict)
    return found


def until(true: Callable[[], object], what: str, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.1)
