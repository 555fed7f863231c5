"""ffmpeg on the software GPU: what the engines did is told, a hang is found, and each failure gets its class."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.gpu import VAAPI, Gpu, Machine, transcode
from tests.local import children, program
from tests.test_simgpu import MODERN, UPLOAD
from transcoder.faults import Fault, FaultClass, blames_device, harm, stage
from transcoder.ffmpeg import Finished, run
from transcoder.policy import Policy

LIMIT = 2.0  # seconds; below that a busy machine's ffmpeg may not even have begun
ENCODER = ("-c:v", "h264_vaapi", "-rc_mode", "CBR", "-b:v", "1M")
NAME = "0000:00:02.0"
WIDTH, HEIGHT = 320, 192
PIXELS = WIDTH * HEIGHT


@pytest.fixture
def add(gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gpu]:
    """Adds a device that the ffmpeg of this process finds."""
    for name, value in gpus.environment.items():
        monkeypatch.setenv(name, value)
    return gpus.add


@pytest.fixture(scope="session")
def small(make_clip: MakeClip) -> Path:
    return make_clip(f"testsrc2=s={WIDTH}x{HEIGHT}:r=25:d=2", audio=False, extra=("-bf", "2"))


def policy(device: Gpu) -> Policy:
    return Policy(("/",), first_frame_limit=LIMIT, stall_limit=LIMIT, proc=str(device.proc))


def never() -> bool:
    return False


def chain(name: str, source: Path, target: Path) -> Sequence[str | Path]:
    match name:
        case "up":
            return transcode(source, target, UPLOAD, *ENCODER, hardware=False)
        case "full":
            return transcode(source, target, "scale_vaapi=w=160:h=-2:format=nv12", *ENCODER)
        case "either":  # where the device does not decode, software does
            return transcode(source, target, "format=nv12|vaapi,hwupload,scale_vaapi=w=160:h=-2", *ENCODER)
        case "low":
            return (*transcode(source, target, UPLOAD, *ENCODER, hardware=False)[:-1], "-low_power", "1", target)
        case "ten":
            return transcode(source, target, "format=p010,hwupload", "-c:v", "hevc_vaapi", hardware=False)
        case _:
            return (*VAAPI, "-i", source, "-an", "-vf", "hwdownload,format=nv12", "-c:v", "libx264", target)


def finished(device: Gpu, *words: str | Path, rules: Policy | None = None, limit: float = 30) -> Finished:
    rules = replace(rules or policy(device), first_frame_limit=limit, stall_limit=limit)
    *_, last = run(device.command(*words), rules, never, device=NAME)
    assert isinstance(last, Finished)
    assert children() == []
    return last


def fault(device: Gpu, *words: str | Path, limit: float = LIMIT) -> tuple[Fault, float]:
    """How it fails, and how many seconds after the last progress."""
    rules = replace(policy(device), first_frame_limit=limit, stall_limit=limit)
    moved, mark = time.monotonic(), (0, 0.0, 0)
    try:
        for step in run(device.command(*words), rules, never, device=NAME):
            if not isinstance(step, Finished) and step.mark != mark:
                moved, mark = time.monotonic(), step.mark
    except Fault as found:
        assert children() == []
        return found, time.monotonic() - moved
    pytest.fail("it did not fail")


# What the engines did


def test_the_engines_seconds_and_the_memory_of_a_run_are_told(
    add: Callable[..., Gpu], small: Path, tmp_path: Path
) -> None:
    device = add(encode_rate=PIXELS * 50)
    done = finished(device, *chain("up", small, tmp_path / "out.mp4"))
    assert done.device == NAME
    assert done.usage
    assert dict(done.usage.engines) == {"video": pytest.approx(1.0, rel=0.25)}, "50 pictures at 50 a second"
    assert PIXELS < done.usage.memory < 100 << 20


def test_each_kind_of_engine_is_told(add: Callable[..., Gpu], small: Path, tmp_path: Path) -> None:
    device = add(rate=PIXELS * 100)
    done = finished(device, *chain("full", small, tmp_path / "out.mp4"))
    assert done.usage
    assert set(dict(done.usage.engines)) == {"video", "video-enhance"}


def test_a_run_of_a_moment_is_told_too(add: Callable[..., Gpu], tmp_path: Path) -> None:
    device = add(rate=PIXELS * 1000)
    words = (
        "-f",
        "lavfi",
        "-i",
        f"color=s={WIDTH}x{HEIGHT}:r=25:d=0.12",
        "-vf",
        UPLOAD,
        *ENCODER,
        tmp_path / "out.mp4",
    )
    done = finished(device, *words)
    assert done.usage
    assert 0 < done.usage.seconds < 0.1


def test_engines_that_stood_still_are_told_from_engines_that_nobody_counted(
    add: Callable[..., Gpu], small: Path, tmp_path: Path
) -> None:
    device = add()  # which takes no time for its work
    words = chain("up", small, tmp_path / "out.mp4")
    still = finished(device, *words).usage
    assert still
    assert (still.engines, still.seconds) == ((), 0)
    assert still.memory > PIXELS
    nowhere = replace(policy(device), proc=str(tmp_path / "nowhere"))
    assert finished(device, *words, rules=nowhere).usage is None
    assert finished(device, *words, rules=Policy(("/",))).usage is None, "/proc knows nothing of this device"


def test_ffmpeg_behind_a_wrapper_is_found(add: Callable[..., Gpu], small: Path, tmp_path: Path) -> None:
    device = add(encode_rate=PIXELS * 50)
    wrapper = program(tmp_path, "ffmpeg", 'ffmpeg "$@"; exit $?')
    _, *words = device.command(*chain("up", small, tmp_path / "out.mp4"))
    *_, last = run((wrapper, *words), policy(device), never, device=NAME)
    assert isinstance(last, Finished)
    assert last.usage
    assert last.usage.seconds > 0.5


def test_a_run_in_software_reads_no_counters(add: Callable[..., Gpu], small: Path, tmp_path: Path) -> None:
    device = add(encode_rate=PIXELS * 200)
    *_, last = run(device.command(*chain("up", small, tmp_path / "out.mp4")), policy(device), never)
    assert isinstance(last, Finished)
    assert (last.device, last.usage) == (None, None)


# It hangs, or only seems to


HANGS = {
    "at an encode": ({"fault.encode": "hang at 10"}, "full"),
    "at the first encode": ({"fault.encode": "hang"}, "up"),
    "at a decode": ({"fault.decode": "hang at 10"}, "full"),
    "in a filter": ({"fault.process": "hang at 5"}, "full"),
    "at a sync": ({"fault.sync": "hang at 20"}, "full"),
    "while it is opened": ({"fault.init": "hang"}, "up"),
}


@pytest.mark.parametrize(("config", "how"), HANGS.values(), ids=HANGS)
def test_a_gpu_that_hangs_is_named_in_time_and_nothing_is_left(
    add: Callable[..., Gpu], small: Path, tmp_path: Path, config: dict[str, object], how: str
) -> None:
    device = add("renderD128", {"rate": PIXELS * 200, **config})
    found, after = fault(device, *chain(how, small, tmp_path / "out.mp4"))
    assert found.kind is FaultClass.STALLED
    assert found.what.startswith(f"the GPU {NAME} hangs: ffmpeg made no ")
    if "init" not in str(config):
        assert found.what.endswith("its engines stand still")
    assert after < 3 * LIMIT
    assert blames_device(found.kind, "vaapi")
    assert stage(found) is None


def test_a_slow_gpu_is_let_be(add: Callable[..., Gpu], small: Path, tmp_path: Path) -> None:
    device = add("renderD128", {"fault.encode": f"slow {int(LIMIT * 200)} at 30"})
    began = time.monotonic()
    assert finished(device, *chain("up", small, tmp_path / "out.mp4"), limit=LIMIT).decoded == {(0, 0): 50}
    assert time.monotonic() - began > 3 * LIMIT, "the case is there"


@pytest.fixture(scope="session")
def plain(make_clip: MakeClip) -> Path:
    """So small a file that it is read at once: reading on is progress."""
    return make_clip(f"color=s={WIDTH}x{HEIGHT}:r=25:d=4", audio=False)


def dropping(source: Path, frames: int) -> list[str | Path]:
    """Decodes on the device, and gets no picture out of the first so many."""
    late = f"select=gte(n\\,{frames}),hwdownload,format=nv12"
    return [*VAAPI, "-i", source, "-an", "-vf", late, "-c:v", "rawvideo", "-f", "null", "-"]


def test_engines_that_work_without_progress_are_given_more_time(add: Callable[..., Gpu], plain: Path) -> None:
    device = add(decode_rate=PIXELS * 10)
    began = time.monotonic()
    assert finished(device, *dropping(plain, 75), limit=LIMIT).decoded == {(0, 0): 100}
    assert time.monotonic() - began > 3 * LIMIT, "the case is there"


def test_engines_that_work_for_ever_without_progress_are_given_up(add: Callable[..., Gpu], plain: Path) -> None:
    found, after = fault(add(decode_rate=PIXELS * 5), *dropping(plain, 95))
    assert found.kind is FaultClass.STALLED
    assert found.what.endswith(f"for {5 * LIMIT:g} s, though its engines work")
    assert 4 * LIMIT < after < 8 * LIMIT


def test_a_driver_that_spins_is_found(add: Callable[..., Gpu], small: Path, tmp_path: Path) -> None:
    device = add("renderD128", {"rate": PIXELS * 200, "fault.encode": "hang at 10"})
    spinning = shlex.quote("while :; do :; done")
    wrapper = program(tmp_path, "ffmpeg", f'sh -c {spinning} & exec ffmpeg "$@"')
    _, *words = device.command(*chain("up", small, tmp_path / "out.mp4"))
    began = time.monotonic()
    with pytest.raises(Fault, match="its engines stand still") as caught:
        list(run((wrapper, *words), policy(device), never, device=NAME))
    assert caught.value.kind is FaultClass.STALLED
    assert 1.5 * LIMIT < time.monotonic() - began < 4 * LIMIT


def test_a_source_that_does_not_deliver_is_not_the_gpus_fault(
    add: Callable[..., Gpu], make_clip: MakeClip, tmp_path: Path
) -> None:
    device = add(rate=PIXELS * 200)
    source = make_clip(f"testsrc2=s={WIDTH}x{HEIGHT}:r=25:d=4", audio=False, container="ts", extra=("-b:v", "8M"))
    fifo = tmp_path / "source.ts"
    os.mkfifo(fifo)
    half = source.read_bytes()[: source.stat().st_size // 2]
    with fifo.open("r+b", 0) as writer:  # open to the end, so that there is no end
        feed = threading.Thread(target=writer.write, args=(half,))
        feed.start()
        found, after = fault(device, *chain("full", fifo, tmp_path / "out.mp4"))
        feed.join()
    assert found.kind is FaultClass.BLOCKED
    assert str(fifo) in found.what
    assert after < 3 * LIMIT
    assert not blames_device(found.kind, "vaapi")


def test_an_ffmpeg_that_was_stopped_is_not_the_gpus_fault(add: Callable[..., Gpu], small: Path, tmp_path: Path) -> None:
    device = add(rate=PIXELS * 20)
    steps = run(device.command(*chain("up", small, tmp_path / "out.mp4")), policy(device), never, device=NAME)
    next(steps)
    (pid,) = [int(client["simgpu-pid"]) for client in device.clients()]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Fault, match="stopped by a signal") as caught:
        list(steps)
    assert caught.value.kind is FaultClass.TRANSIENT
    assert children() == []


# It fails


Case = tuple[dict[str, object], str, FaultClass, str | None]
FAILS: list[Case] = [
    ({"fault.init": "status 18"}, "up", FaultClass.CONFIG, "device"),
    ({"fault.init": "status 2"}, "up", FaultClass.CONFIG, "device"),
    ({"broken": True}, "full", FaultClass.CONFIG, "device"),
    ({"encode": "none", "decode": "none"}, "up", FaultClass.CAPABILITY, "encode"),
    ({}, "low", FaultClass.CAPABILITY, "encode"),
    ({"rc": "CQP"}, "up", FaultClass.CAPABILITY, "encode"),
    ({"max_width": 256}, "up", FaultClass.CAPABILITY, "encode"),
    ({"ten_bit": False}, "ten", FaultClass.CAPABILITY, "device"),
    ({"vpp": False}, "full", FaultClass.CAPABILITY, "filter"),
    ({"decode": "none"}, "full", FaultClass.CAPABILITY, "decode"),
    ({"decode": "none"}, "down", FaultClass.CAPABILITY, "decode"),
    ({"fault.config.encode": "status 1"}, "full", FaultClass.HARDWARE, "encode"),
    ({"fault.config.encode": "status 2"}, "full", FaultClass.TRANSIENT, "encode"),
    ({"fault.config.encode": "status 12"}, "full", FaultClass.CAPABILITY, "encode"),
    ({"fault.config.decode": "status 1"}, "full", FaultClass.HARDWARE, "decode"),
    ({"fault.config.process": "status 1"}, "full", FaultClass.HARDWARE, "filter"),
    ({"fault.context.encode": "status 2"}, "full", FaultClass.TRANSIENT, "encode"),
    ({"fault.context.encode": "status 34"}, "full", FaultClass.TRANSIENT, "encode"),
    ({"fault.context.encode": "status 19"}, "full", FaultClass.CAPABILITY, "encode"),
    ({"fault.context.process": "status 2"}, "full", FaultClass.TRANSIENT, "filter"),
    ({"fault.context.process": "status 1"}, "full", FaultClass.HARDWARE, "filter"),
    ({"fault.context.decode": "status 34"}, "full", FaultClass.TRANSIENT, "decode"),
    ({"fault.context.decode": "status 19"}, "full", FaultClass.CAPABILITY, "decode"),
    ({"fault.surface": "status 2"}, "up", FaultClass.TRANSIENT, "device"),
    ({"fault.surface": "status 2"}, "full", FaultClass.TRANSIENT, "decode"),
    ({"fault.surface": "status 1"}, "up", FaultClass.HARDWARE, "device"),
    ({"fault.buffer": "status 2 at 30"}, "up", FaultClass.HARDWARE, "encode"),
    ({"fault.image": "status 1 at 5"}, "up", FaultClass.HARDWARE, "device"),
    ({"fault.image": "status 1 at 5"}, "down", FaultClass.HARDWARE, "decode"),
    ({"fault.encode": "status 24 at 10"}, "full", FaultClass.HARDWARE, "encode"),
    ({"fault.encode": "status 24 at 10 once"}, "up", FaultClass.HARDWARE, "encode"),
    ({"fault.sync.encode": "status 1 at 5"}, "up", FaultClass.HARDWARE, "encode"),
    ({"sync_buffer": False, "fault.sync": "status 1 at 20"}, "up", FaultClass.HARDWARE, None),
    ({"fault.sync.surface": "status 34 at 5"}, "up", FaultClass.HARDWARE, "device"),
    ({"fault.sync.surface": "status 34 at 5"}, "down", FaultClass.HARDWARE, "decode"),
    ({"fault.map.encode": "status 1 at 5"}, "up", FaultClass.HARDWARE, "encode"),
    ({"fault.process": "status 1 at 5"}, "full", FaultClass.HARDWARE, "filter"),
    ({"fault.encode": "vanish at 10"}, "up", FaultClass.HARDWARE, "encode"),
    ({"fault.encode": "segfault at 10"}, "full", FaultClass.CRASHED, None),
    ({"fault.init": "segfault"}, "up", FaultClass.CRASHED, None),
]


def named(case: Case | tuple[dict[str, object], str]) -> str:
    return " ".join((*(f"{key} {value}" for key, value in case[0].items()), case[1]))


@pytest.mark.parametrize("case", FAILS, ids=named)
def test_what_ffmpeg_really_says_of_a_failure_gives_its_class_and_stage(
    add: Callable[..., Gpu], small: Path, tmp_path: Path, case: Case
) -> None:
    config, how, kind, where = case
    found, _ = fault(add("renderD128", config), *chain(how, small, tmp_path / "out.mp4"), limit=30)
    assert found.kind is kind, found.what
    if where:
        assert stage(found) == where, found.what


@pytest.mark.parametrize(
    "case",
    [
        ({"fault.decode": "status 23 at 10"}, "full"),
        ({"fault.decode": "status 23 at 10 once"}, "full"),
        ({"fault.decode": "status 23 at 10"}, "either"),
        ({"fault.decode": "vanish at 40"}, "down"),
    ],
    ids=named,
)
def test_a_decoder_that_fails_is_found_whatever_the_exit_code(
    add: Callable[..., Gpu], small: Path, tmp_path: Path, case: tuple[dict[str, object], str]
) -> None:
    device = add("renderD128", case[0])
    try:
        found = harm(finished(device, *chain(case[1], small, tmp_path / "out.mp4")).stderr)
        assert found
    except Fault as told:
        assert not MODERN or "vanish" in str(case[0]), "the newer ffmpeg ends with success"
        found = told.kind, told.what
    assert found[0] is FaultClass.HARDWARE
    assert found[1].startswith("Failed to end picture decode issue: ")
    assert stage(Fault(*found)) == "decode"


@pytest.mark.parametrize(
    "config",
    [{}, {"decode": "none"}, {"fault.config.decode": "status 1"}, {"fault.context.decode": "status 34"}],
    ids=str,
)
def test_decoding_in_software_instead_is_no_harm(
    add: Callable[..., Gpu], small: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    device = add("renderD128", config)
    done = finished(device, *chain("either", small, tmp_path / "out.mp4"))
    assert done.decoded == {(0, 0): 50}
    assert harm(done.stderr) is None


@pytest.mark.parametrize("how", ["green", "truncate at 10", "drop at 10"])
def test_a_device_that_says_nothing_of_its_failure_is_left_to_the_verification(
    add: Callable[..., Gpu], small: Path, tmp_path: Path, how: str
) -> None:
    device = add("renderD128", {"fault.encode": how})
    assert harm(finished(device, *chain("up", small, tmp_path / "out.mp4")).stderr) is None
