"""What every test may ask for, and what no test may do: skip in CI, or see the user's settings."""

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests import clips, gpu, services

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
STARTS_PROCESSES = frozenset({"bbb", "gpus", "make_clip", "redis", "worker"})


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not STARTS_PROCESSES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if "built_gpu" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
    leave_out_qsv(config, items)
    # The longest first, beside which all others run: what begins last would end alone. Whoever has it is given a second
    # file at once, which waits for its end: a short one.
    longest, short = "test_fresh_machine", "test_devices.py"
    items.sort(key=lambda item: (longest not in item.nodeid, "test_chaos" not in item.nodeid, short not in item.nodeid))


def leave_out_qsv(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of QSV are for an ffmpeg that has it, 6.0 or newer; `make test-all` runs them in a container too."""
    kept = [item for item in items if not item.get_closest_marker("vpl")]
    if len(kept) < len(items) and "--enable-libvpl" not in build_options():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("vpl")])
        items[:] = kept


def build_options() -> str:
    command = ["ffmpeg", "-hide_banner", "-buildconf"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except FileNotFoundError:
        return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test needs root; `make test` leaves it out", pytrace=False)
    if item.get_closest_marker("engine") and (why := engine_missing()):
        pytest.fail(f"this test needs a container engine; `make test` leaves it out. {why}", pytrace=False)


def engine_missing() -> str:
    try:
        engine = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return str(error)
    return engine.stderr.strip() if engine.returncode else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return refuse_skip(report)


def refuse_skip(report: Report) -> Report:
    """In CI what cannot run fails: a skip there would pass for a test."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may skip: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TRANSCODER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def terminal() -> Iterator[None]:
    """As started from a terminal that may be closed, even where the tests were not (nohup)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def bbb() -> Path:
    """Big Buck Bunny: 1280x720, 25 fps, 132 frames, H.264 and AAC."""
    return clips.clip("bigbuckbunny.mp4")


@pytest.fixture(scope="session")
def built_gpu() -> Path:
    """The driver of the software GPU, compiled."""
    return gpu.build(gpu.SOURCES.parent.parent / ".cache" / "simgpu")


@pytest.fixture
def gpus(built_gpu: Path, tmp_path: Path) -> gpu.Machine:
    """A machine that has no GPU until the test adds some, in software."""
    return gpu.Machine(tmp_path / "machine", built_gpu)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[services.Redis]:
    with services.private_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def worker(redis: services.Redis, tmp_path: Path) -> Iterator[services.Worker]:
    """A worker on the test's own Redis, which may read the clips and write below `tmp_path`."""
    with services.worker(redis.url, tmp_path / "worker", [tmp_path, clips.FOLDER]) as process:
        yield process


class MakeClip(Protocol):
    """Makes a small clip with ffmpeg from a lavfi source, once a session for the same words."""

    def __call__(
        self,
        source: str = "testsrc2=s=320x180:r=25:d=2",
        *,
        audio: bool | str = True,
        vcodec: str = "libx264",
        container: str = "mp4",
        pix_fmt: str = "yuv420p",
        extra: Sequence[str] = (),
    ) -> Path: ...


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> MakeClip:
    folder = tmp_path_factory.mktemp("clips")

    def make(
        source: str = "testsrc2=s=320x180:r=25:d=2",
        *,
        audio: bool | str = True,
        vcodec: str = "libx264",
        container: str = "mp4",
        pix_fmt: str = "yuv420p",
        extra: Sequence[str] = (),
    ) -> Path:
        sound = "sine=frequency=440:sample_rate=48000" if audio is True else audio
        words = ["-f", "lavfi", "-i", source]
        if sound:
            words += ["-f", "lavfi", "-i", sound, "-shortest"]
            # ffmpeg 7's sound may run ahead of -shortest by seconds while the machine is busy
            lengths = re.findall(r"[:=]d=([\d.]+)", source)
            words += ["-t", lengths[0]] if len(lengths) == 1 else []
        words += ["-c:v", vcodec, "-pix_fmt", pix_fmt, *extra]
        path = folder / f"{hashlib.sha256(repr(words).encode()).hexdigest()[:16]}.{container}"
        if not path.exists():
            unfinished = path.with_name(f"unfinished.{container}")
            command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *words, str(unfinished)]
            subprocess.run(command, check=True, timeout=60)
            unfinished.rename(path)
        return path

    return make
