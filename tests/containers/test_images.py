"""The three targets of docker/Dockerfile: each has what it is for, and says what it is."""

import re

import pytest

from tests.containers import stack
from tests.containers.stack import TARGETS, Target, docker, inspect
from transcoder import __version__

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

DRIVERS: dict[Target, set[str]] = {
    "software": set(),
    "vaapi": {"iHD_drv_video.so", "radeonsi_drv_video.so"},
    "qsv": {"iHD_drv_video.so"},
}
LOAD = """
import ctypes, pathlib
for folder, pattern in (("dri", "*_drv_video.so"), (".", "libmfx-gen.so.1.2*"), (".", "libavdevice.so.61")):
    for file in pathlib.Path("/usr/lib/x86_64-linux-gnu", folder).glob(pattern):
        ctypes.CDLL(str(file))
        print(file.name)
"""


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    stack.image(request.param)
    chosen: Target = request.param
    return chosen


def run(target: Target, *words: str, entrypoint: str | None = None) -> str:
    options = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    options += ["--entrypoint", entrypoint] if entrypoint else []
    return docker("run", *options, stack.image(target), *words)


def test_its_drivers_are_those_it_is_for_and_all_that_they_need_is_there(target: Target) -> None:
    loaded = set(run(target, "-c", LOAD, entrypoint="/opt/transcoder/bin/python").split())
    drivers = {name for name in loaded if "_drv_" in name}
    assert drivers == DRIVERS[target] or (target == "vaapi" and drivers > DRIVERS[target])  # Mesa has others, too
    assert any("libmfx-gen" in name for name in loaded) == (target == "qsv")
    assert "libavdevice.so.61" in loaded


def test_it_lists_the_packages_that_it_has(target: Target) -> None:
    listed = run(target, "/usr/share/transcoder/packages", entrypoint="cat")
    assert listed == run(target, "-W", "-f", "${Package} ${Version} ${Architecture}\n", entrypoint="dpkg-query")
    [(major, minor)] = re.findall(r"^ffmpeg \d+:(\d+)\.(\d+)", listed, re.MULTILINE)
    assert (int(major), int(minor)) >= (7, 1)


def test_it_is_the_command_and_nobody_in_particular(target: Target) -> None:
    config = inspect(stack.image(target))["Config"]
    assert run(target, "--version") == f"transcoder {__version__}\n"
    assert config["Entrypoint"] == ["tini", "--", "transcoder"]
    assert config["Cmd"] == ["worker"]
    assert config["User"] == "1000:1000"
    assert config["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    assert not config.get("Volumes"), "no volume without a name"


def test_its_labels_say_what_it_is(target: Target) -> None:
    labels = inspect(stack.image(target))["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.base.name"] == stack.base_image()


def test_nothing_but_settings_that_are_the_same_everywhere_is_baked_in(target: Target) -> None:
    variables = dict(line.split("=", 1) for line in inspect(stack.image(target))["Config"]["Env"])
    settings = {name: value for name, value in variables.items() if name.startswith("TRANSCODER_")}
    assert settings == {"TRANSCODER_LOG_FORMAT": "json", "TRANSCODER_MEDIA_ROOTS": "/media"}
