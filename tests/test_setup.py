"""`tests/setup.sh` on machines that lack something: a PATH with only what is named, and stand-ins that write down."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

SETUP = Path(__file__).with_name("setup.sh")
COMPLETE = ("ffmpeg", "ffprobe", "redis-server", "setpriv", "python3")
TOOLS = ("chmod", "mktemp", "rm", "tail", "tee")

pytestmark = pytest.mark.slow

Setup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Runs the script where only these programs are; `stand_ins` gives a shell script for each further one."""

    def run(*programs: str, **stand_ins: str) -> "subprocess.CompletedProcess[str]":
        path = tmp_path / "bin"
        path.mkdir()
        for tool in TOOLS:
            (path / tool).symlink_to(which(tool) or tool)
        for name, script in {**dict.fromkeys(programs, "exit 0"), **stand_ins}.items():
            (path / name.replace("_", "-")).write_text(f"#!/bin/sh\n{script}\n")
            (path / name.replace("_", "-")).chmod(0o755)
        environment = {"PATH": str(path), "VENV": str(tmp_path / "none"), "RECORD": str(tmp_path / "record")}
        return subprocess.run(["/bin/sh", SETUP], env=environment, capture_output=True, text=True, check=False)

    return run


def test_nothing_is_said_where_nothing_is_missing(setup: Setup) -> None:
    done = setup(*COMPLETE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_missing_is_said_and_then_installed_through_sudo(setup: Setup, tmp_path: Path) -> None:
    sudo = 'echo "$@" >>"$RECORD"; [ "$1" != tee ] || while read -r _; do :; done'
    done = setup("setpriv", "python3", "apt-get", id="echo 1000", sudo=sudo)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "setup: installing with apt: ffmpeg redis-server\n"
    record = (tmp_path / "record").read_text()
    assert "apt-get install -y -qq --no-install-recommends ffmpeg redis-server" in record


def test_a_user_who_may_not_install_is_told_the_command(setup: Setup) -> None:
    done = setup("ffmpeg", "ffprobe", "setpriv", "python3", "apt-get", id="echo 1000")
    assert done.returncode == 1
    assert "apt-get update && apt-get install redis-server" in done.stderr


def test_a_system_without_apt_is_told_the_packages(setup: Setup) -> None:
    done = setup("ffmpeg", "ffprobe", "setpriv", "python3")
    assert done.returncode == 1
    assert "missing: redis-server" in done.stderr


def test_a_python_without_venv_needs_its_package(setup: Setup) -> None:
    python = 'case "$*" in *ensurepip*) exit 1;; *print*) echo python3-venv;; esac'
    done = setup("ffmpeg", "ffprobe", "redis-server", "setpriv", python3=python)
    assert "missing: python3-venv" in done.stderr


def test_a_python_that_is_too_old_is_named(setup: Setup) -> None:
    python = 'case "$1" in -c) exit 1;; -V) echo Python 3.9.2;; esac'
    done = setup("ffmpeg", "ffprobe", "redis-server", "setpriv", python3=python)
    assert done.returncode == 1
    assert "Python 3.9.2" in done.stderr


def test_apt_that_fails_shows_why(setup: Setup) -> None:
    done = setup(
        "ffmpeg", "ffprobe", "setpriv", "python3", "apt-get", id="echo 1000", sudo="echo no network; [ $1 != apt-get ]"
    )
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert "apt could not install: redis-server" in done.stderr
