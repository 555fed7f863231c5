"""The README's two commands on a fresh machine: a container with git, make, python3 and a user who may use sudo.

debian:trixie-slim is always tried; FRESH_IMAGES="debian:bookworm-slim ubuntu:24.04" adds others.
"""

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = ("debian:trixie-slim", *os.environ.get("FRESH_IMAGES", "").split())
CHECKOUT = "/home/user/a checkout"  # with a space: people have them
FROM_OUTSIDE = ("CI", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
PREPARE = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends git make python3 sudo >/dev/null 2>&1
useradd --create-home --shell /bin/bash user || useradd --create-home user
echo 'user ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/user
"""

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(2300)]


class Machine:
    """A container that stands for a machine on which nothing was done yet."""

    def __init__(self, image: str) -> None:
        # It ends by itself, should nobody be left to end it.
        self.container = docker("run", "--detach", "--init", "--rm", image, "sleep", "3600").strip()

    def run(self, user: str, command: str, timeout: float) -> str:
        environment = [word for name in FROM_OUTSIDE if name in os.environ for word in ("--env", name)]
        return docker("exec", "--user", user, *environment, self.container, "bash", "-ec", command, timeout=timeout)

    def copy_checkout(self) -> None:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        self.run("user", f"mkdir '{CHECKOUT}'", 30)
        docker(
            "exec", "--interactive", "--user", "user", self.container,
            "tar", "--no-same-owner", "-x", "-C", CHECKOUT, stdin=archive(names.split("\0")),
        )  # fmt: skip

    def make(self, target: str, timeout: float) -> str:
        return self.run("user", f"cd '{CHECKOUT}' && make {target} 2>&1", timeout)

    def processes(self) -> set[str]:
        return set(self.run("root", "cat /proc/[0-9]*/comm", 30).split())

    def remove(self) -> None:
        docker("rm", "--force", self.container)


def archive(names: Iterable[str]) -> bytes:
    """Those files of the checkout that exist."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in filter(None, names):
            if (ROOT / name).exists():
                tar.add(ROOT / name, name)
    return content.getvalue()


def docker(*words: str, timeout: float = 300, stdin: bytes | None = None) -> str:
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, timeout=timeout, check=False)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"docker {words[0]} gave {done.returncode}\n{output}\n{done.stderr.decode()}"
    return output


@pytest.fixture(scope="module", params=IMAGES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    fresh = Machine(request.param)
    try:
        fresh.run("root", PREPARE, 300)
        fresh.copy_checkout()
        yield fresh
    finally:
        fresh.remove()


def test_make_demo_works_and_leaves_only_its_files(machine: Machine) -> None:
    first = machine.make("demo", timeout=600)
    assert "✔" in first
    assert f"The files are in {CHECKOUT}/demo-output" in first
    started = time.monotonic()
    machine.make("demo", timeout=120)
    assert time.monotonic() - started < 60
    assert machine.processes().isdisjoint({"redis-server", "ffmpeg", "python", "python3"})


def test_make_test_passes_every_test(machine: Machine) -> None:
    output = machine.make("test", timeout=2000)
    assert " passed" in output
    assert " skipped" not in output
