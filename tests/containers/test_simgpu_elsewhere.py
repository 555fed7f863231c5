"""The tests of the software GPU where ffmpeg and libva are others: in a container of debian:trixie-slim (7.1, 2.22).

SIMGPU_IMAGES="debian:bookworm-slim ubuntu:24.04" adds others.
"""

import os
from collections.abc import Iterator

import pytest

from tests import clips
from tests.containers.test_fresh_machine import FROM_OUTSIDE, ROOT, archive, docker

IMAGES = ("debian:trixie-slim", *os.environ.get("SIMGPU_IMAGES", "").split())
PACKAGES = """
    ffmpeg vainfo gcc libc6-dev make pkg-config libva-dev libdrm-dev libavcodec-dev libavutil-dev libswscale-dev
    python3-pytest python3-pytest-timeout
"""

pytestmark = [pytest.mark.engine, pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(params=IMAGES)
def container(request: pytest.FixtureRequest) -> Iterator[str]:
    environment = [word for name in FROM_OUTSIDE if name in os.environ for word in ("--env", name)]
    # It ends by itself, should nobody be left to end it.
    name = docker("run", "--detach", "--init", "--rm", *environment, request.param, "sleep", "1500").strip()
    try:
        yield name
    finally:
        docker("rm", "--force", name)


def test_everything_holds_there_too(container: str) -> None:
    install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {' '.join(PACKAGES.split())}"
    docker(
        "exec", "--env", "DEBIAN_FRONTEND=noninteractive", container, "sh", "-c", f"{install} >/dev/null", timeout=600
    )
    docker("exec", container, "mkdir", "/checkout")
    names = ["pyproject.toml", *(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.*"))]
    names += [
        str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "simgpu" / "Makefile", clips.clip(clips.NAMES[2]))
    ]
    docker(
        "exec", "--interactive", container, "tar", "--no-same-owner", "-x", "-C", "/checkout", stdin=archive(names)
    )  # fmt: skip
    tests = "cd /checkout && python3 -m pytest -q tests/test_simgpu.py"
    print(docker("exec", container, "sh", "-c", tests, timeout=900))
