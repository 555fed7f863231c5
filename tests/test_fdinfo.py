"""The counters of a process's open devices are found, in /proc and in what stands in for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.gpu import Machine
from tests.test_usage import AMDGPU, I915, XE
from transcoder.fdinfo import clients
from transcoder.usage import parse


def process(proc: Path, pid: int, *open_files: tuple[str, str]) -> None:
    """A process in the shape of /proc, with (path, fdinfo) for each descriptor."""
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True)
    for number, (path, text) in enumerate(open_files):
        (proc / str(pid) / "fd" / str(number)).symlink_to(path)
        (proc / str(pid) / "fdinfo" / str(number)).write_text(text)


FILE = ("/media/a.mp4", "pos:\t0\nflags:\t0100000\nmnt_id:\t26\n")


def test_the_open_devices_of_all_processes_are_read(tmp_path: Path) -> None:
    process(tmp_path, 10, ("/dev/dri/renderD128", I915), FILE, ("pipe:[123]", "drm-driver: trap\n"))
    process(tmp_path, 11, ("/dev/dri/renderD129", XE), ("/dev/dri/renderD130", AMDGPU))
    process(tmp_path, 12, ("/dev/dri/renderD128", I915.replace("42", "43")))
    found = clients(str(tmp_path), [10, 11, 99])
    assert sorted(found, key=lambda one: one.key) == [parse(I915), parse(XE), parse(AMDGPU)]


def test_what_cannot_be_read_counts_as_nothing(tmp_path: Path) -> None:
    assert clients(str(tmp_path), [1]) == []
    process(tmp_path, 10, ("/dev/dri/renderD128", I915))
    (tmp_path / "10" / "fdinfo" / "0").unlink()
    assert clients(str(tmp_path), [10]) == []


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    process(tmp_path, 10, ("/dev/dri/renderD128", I915))
    path = tmp_path / "10" / "fdinfo" / "0"
    path.write_bytes(b"\xff\xfe\0" + path.read_bytes() + b"drm-engine-\x80: 5 ns\n")
    (found,) = clients(str(tmp_path), [10])
    assert found.busy["video"] == 2_000_000_000


def test_a_process_without_a_device_has_no_clients() -> None:
    assert clients("/proc", [os.getpid()]) == []


@pytest.mark.slow
def test_the_software_gpu_shows_its_counters_like_a_driver(gpus: Machine) -> None:
    device = gpus.add(encode_rate=64 * 64 * 50)
    encoded = ("-vf", "format=nv12,hwupload", "-c:v", "h264_vaapi", "-f", "null", "-")
    running = device.start("-f", "lavfi", "-i", "color=s=64x64:r=25", *encoded)
    try:
        found = clients(str(device.proc), [running.pid])
        deadline = time.monotonic() + 20
        while not found or not found[0].busy["video"]:
            assert running.poll() is None
            assert time.monotonic() < deadline
            found = clients(str(device.proc), [running.pid])
        assert found[0].key == ("0000:00:02.0", "1")
        assert found[0].memory > 0
    finally:
        running.kill()
        running.communicate()
