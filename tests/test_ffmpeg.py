"""One run of ffmpeg: progress as values, failure with evidence, and no process left, however it ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.local import children, program
from transcoder.errors import FfmpegMissing, JobCancelled
from transcoder.faults import Fault, FaultClass
from transcoder.ffmpeg import REPORTING, Finished, run
from transcoder.policy import Policy
from transcoder.progress import Progress

pytestmark = pytest.mark.slow

POLICY = Policy(("/",))
ENDLESS = ("ffmpeg", "-hide_banner", "-nostdin", "-re", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=25", "-f", "null", "-")


def never() -> bool:
    return False


def finished(words: Sequence[str], policy: Policy = POLICY) -> tuple[list[Progress], Finished]:
    *reports, last = run(words, policy, never)
    assert isinstance(last, Finished)
    assert children() == []
    return [report for report in reports if isinstance(report, Progress)], last


def fault(words: Sequence[str], policy: Policy = POLICY) -> Fault:
    with pytest.raises(Fault) as caught:
        list(run(words, policy, never))
    assert children() == []
    return caught.value


def python(folder: Path, code: str) -> str:
    """A program in Python that stands in for ffmpeg: a shell would read files with every child that it starts."""
    before = "import sys, time\ndef say(*words): print(*words, sep='\\n', flush=True)\n"
    return program(folder, "ffmpeg", f'exec {shlex.quote(sys.executable)} -S -c {shlex.quote(before + code)} "$@"')


def running(pid: int) -> bool:
    """There is such a process and it is not dead already, waiting to be reaped by another."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def group(leader: int) -> list[str]:
    """What runs in a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and running(int(entry.name)):
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[2]) == leader:
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


def within(seconds: float, reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def wait_for(path: Path) -> str:
    """The text that a stub writes as its first act."""
    assert within(20, lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text()


def group_gone_within(seconds: float, leader: int) -> bool:
    """The leader is reaped by then, its descendants die a moment later; those that do not are ended here."""
    if within(seconds, lambda: not group(leader)):
        return True
    os.killpg(leader, signal.SIGKILL)
    return False


# It works


def test_a_run_gives_progress_and_at_the_end_the_frames_that_were_decoded(make_clip: MakeClip) -> None:
    clip = make_clip()
    reports, last = finished(("ffmpeg", "-hide_banner", "-nostdin", "-re", "-i", str(clip), "-f", "null", "-"))
    assert len(reports) >= 3, "a report each half second of two"
    assert [report.last for report in reports] == [False] * (len(reports) - 1) + [True]
    assert all(before.mark <= after.mark for before, after in pairwise(reports))
    assert reports[-1].frame == 50
    assert reports[-1].out_time == pytest.approx(2, abs=0.1)
    assert last.decoded[0, 0] == 50
    assert set(last.decoded) == {(0, 0), (0, 1)}
    assert any("Input #0" in line for line in last.stderr)


def test_frames_are_counted_for_every_input(make_clip: MakeClip) -> None:
    first, second = make_clip(audio=False), make_clip("testsrc2=s=64x64:r=10:d=1", audio=False)
    words = ("ffmpeg", "-hide_banner", "-i", str(first), "-i", str(second), "-map", "0", "-map", "1", "-f", "null", "-")
    assert finished(words)[1].decoded == {(0, 0): 50, (1, 0): 10}


def test_a_file_that_is_there_from_a_failed_route_is_replaced(make_clip: MakeClip, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    made.write_text("half a file")
    finished(("ffmpeg", "-hide_banner", "-nostdin", "-i", str(make_clip()), "-c", "copy", str(made)))
    assert made.stat().st_size > 1000


def test_ffmpeg_reads_nothing_from_us(tmp_path: Path) -> None:
    assert finished((program(tmp_path, "ffmpeg", "cat >&2; echo over >&2"),))[1].stderr == ("over",)


def test_ffmpeg_has_our_environment_without_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's address may hold its password; what drivers are told must reach them."""
    monkeypatch.setenv("TRANSCODER_BROKER", "redis://:secret@host:6379/0")
    passed = ("LIBVA_DRIVERS_PATH", "ONEVPL_SEARCH_PATH", "AMD_DEBUG", "MESA_LOADER_DRIVER_OVERRIDE", "PATH")
    for name in passed[:-1]:
        monkeypatch.setenv(name, f"value of {name}")
    said = finished((program(tmp_path, "ffmpeg", "env >&2"),))[1].stderr
    assert not any("TRANSCODER" in line or "secret" in line for line in said)
    assert {f"{name}={os.environ[name]}" for name in passed} <= set(said)


def test_what_is_preloaded_reaches_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    assert "LD_PRELOAD=libm.so.6" in finished((program(tmp_path, "ffmpeg", "env >&2"),))[1].stderr


def test_success_may_have_said_nothing(tmp_path: Path) -> None:
    assert finished((program(tmp_path, "ffmpeg", "exit 0"),)) == ([], Finished((), {}))


# It fails


ENDINGS = {
    "nothing is known": ("exit 1", 1, FaultClass.UNKNOWN, "ffmpeg ended with exit code 1 and said nothing"),
    "its last words": ("echo '[error] alas' >&2; exit 1", 1, FaultClass.UNKNOWN, "alas"),
    "a full disk by its text": (
        "echo '[out#0 @ 0x55] [error] Error writing trailer: No space left on device' >&2; exit 1",
        1,
        FaultClass.OUTPUT,
        "Error writing trailer: No space left on device",
    ),
    "a full disk by its code": ("exit 228", 228, FaultClass.OUTPUT, None),
    "out of memory by its code": ("exit 244", 244, FaultClass.TRANSIENT, None),
    "bad data by its code": ("exit 183", 183, FaultClass.INPUT, None),
    "a crash": ("kill -SEGV $$", -signal.SIGSEGV, FaultClass.CRASHED, "ffmpeg died of signal 11"),
    "a kill by someone else": ("kill -KILL $$", -signal.SIGKILL, FaultClass.CRASHED, "ffmpeg died of signal 9"),
    "a code of the shell's with words of ffmpeg's": (
        "echo '[fatal] Invalid data found when processing input' >&2; exit 127",
        127,
        FaultClass.INPUT,
        "Invalid data found when processing input",
    ),
}


@pytest.mark.parametrize(("script", "code", "kind", "what"), ENDINGS.values(), ids=ENDINGS)
def test_an_exit_code_becomes_a_fault_with_evidence(
    tmp_path: Path, script: str, code: int, kind: FaultClass, what: str | None
) -> None:
    stub = program(tmp_path, "ffmpeg", f"echo first words >&2; {script}")
    found = fault((stub, "-i", "a b"))
    assert found.kind is kind
    assert what in (None, found.what)
    assert found.evidence.argv == (stub, *REPORTING, "-max_alloc", str(POLICY.max_alloc), "-i", "a b")
    assert found.evidence.returncode == code
    assert found.evidence.stderr[0] == "first words"


def test_ffmpeg_itself_says_that_the_input_is_bad(tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(bytes(5000))
    found = fault(("ffmpeg", "-hide_banner", "-nostdin", "-i", str(source), "-f", "null", "-"))
    assert found.kind is FaultClass.INPUT
    assert found.evidence.returncode != 0
    assert any("Invalid data found" in line for line in found.evidence.stderr)


@pytest.mark.parametrize("how", ["nowhere", "not executable", "a folder"])
def test_a_program_that_cannot_be_started_is_missing(tmp_path: Path, how: str) -> None:
    path = tmp_path / "ffmpeg"
    if how == "not executable":
        path.write_text("#!/bin/sh\n")
    elif how == "a folder":
        path.mkdir()
    with pytest.raises(FfmpegMissing, match=str(path)) as caught:
        list(run((str(path),), POLICY, never))
    assert "TRANSCODER_FFMPEG" in caught.value.next_step
    assert children() == []


# It is ended


# A leader that ignores SIGTERM and has a child that does so too, both with the pipes open.
STUBBORN = "trap '' TERM; (sleep 1000) & echo $$ > {pid}; while :; do sleep 1000; done"


def test_cancelling_takes_the_whole_group_down_at_once(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stub = program(tmp_path, "ffmpeg", STUBBORN.format(pid=shlex.quote(str(pid))))
    cancelled = threading.Event()
    asked = 0.0

    def cancel() -> None:
        nonlocal asked
        wait_for(pid)
        time.sleep(0.2)
        asked = time.monotonic()
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(JobCancelled, match="cancelled while encoding"):
        list(run((stub,), POLICY, cancelled.is_set))
    assert time.monotonic() - asked < 1
    canceller.join()
    assert group_gone_within(1, int(pid.read_text()))
    assert children() == []


def test_a_run_that_its_caller_abandons_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    say = "printf 'frame=1\\nprogress=continue\\n';"
    stub = program(tmp_path, "ffmpeg", f"{say} {STUBBORN.format(pid=shlex.quote(str(pid)))}")
    steps = run((stub,), POLICY, never)
    assert next(steps) == Progress(frame=1)
    leader = int(wait_for(pid))
    assert len(group(leader)) >= 2
    assert isinstance(steps, Iterator)
    steps.close()  # type: ignore[attr-defined]
    assert group_gone_within(1, leader)
    assert children() == []


def test_a_real_run_that_its_caller_abandons_leaves_no_process() -> None:
    steps = run(ENDLESS, POLICY, never)
    assert isinstance(next(steps), Progress)
    del steps
    assert children() == []


def test_a_listener_that_fails_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in run(ENDLESS, POLICY, lambda: bool(1 / 0)):
            pass
    assert children() == []


PARENT = """
import sys
from transcoder import ffmpeg
from transcoder.policy import Policy
for step in ffmpeg.run(sys.argv[1:], Policy(("/",)), lambda: False):
    print(step, flush=True)
"""


def test_ffmpeg_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stub = program(tmp_path, "ffmpeg", f'echo $$ > {shlex.quote(str(pid))}; exec ffmpeg "$@"')
    here = str(Path(__file__).parent.parent)
    words = [sys.executable, "-c", PARENT, stub, *ENDLESS[1:]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": here}) as parent:
        assert parent.stdout
        assert parent.stdout.readline().startswith(b"Progress(")
        child = int(wait_for(pid))
        assert running(child)
        parent.send_signal(signal.SIGKILL)
        assert group_gone_within(2, child)


# It stands still


BEATING = "for frame in ({frames}):\n say(f'frame={{frame}}', f'out_time_us={{frame * 40000}}', 'progress=continue')\n"
FROZEN = "while True:\n time.sleep(0.1)\n say('frame={frame}', 'out_time_us={time}', 'progress=continue')\n"
LIMIT = 0.5


def stalled(stub: str, policy: Policy) -> tuple[Fault, float]:
    """How a run ends, and how many seconds after its first report."""
    steps = run((stub,), policy, never)
    next(steps)
    began = time.monotonic()
    with pytest.raises(Fault) as caught:
        list(steps)
    assert children() == []
    return caught.value, time.monotonic() - began


def test_a_program_that_never_makes_a_frame_is_found(tmp_path: Path) -> None:
    stub = python(tmp_path, FROZEN.format(frame=0, time="N/A"))
    found, after = stalled(stub, Policy(("/",), first_frame_limit=LIMIT, stall_limit=60))
    assert (found.kind, found.what) == (FaultClass.STALLED, "ffmpeg made no first frame for 0.5 s")
    assert found.evidence.argv == (stub, *REPORTING, "-max_alloc", str(POLICY.max_alloc))
    assert found.evidence.returncode is None
    assert after < 3 * LIMIT


def test_a_program_that_stops_after_some_frames_is_found(tmp_path: Path) -> None:
    stub = python(tmp_path, BEATING.format(frames="1, 2, 3") + FROZEN.format(frame=3, time=120000))
    found, after = stalled(stub, Policy(("/",), first_frame_limit=60, stall_limit=LIMIT))
    assert (found.kind, found.what) == (FaultClass.STALLED, "ffmpeg made no progress for 0.5 s")
    assert LIMIT - 0.1 < after < 3 * LIMIT


def test_a_program_that_falls_silent_is_found(tmp_path: Path) -> None:
    stub = python(tmp_path, BEATING.format(frames="1, 2, 3") + "time.sleep(1000)")
    found, after = stalled(stub, Policy(("/",), first_frame_limit=60, stall_limit=LIMIT))
    assert found.kind is FaultClass.STALLED
    assert after < 3 * LIMIT


def test_chatter_is_no_progress(tmp_path: Path) -> None:
    noise = "while True:\n time.sleep(0.05)\n print('[info] busy', file=sys.stderr, flush=True)\n"
    stub = python(tmp_path, BEATING.format(frames="1, 2, 3") + noise)
    found, after = stalled(stub, Policy(("/",), first_frame_limit=60, stall_limit=LIMIT))
    assert found.kind is FaultClass.STALLED
    assert found.evidence.stderr[-1] == "[info] busy"
    assert after < 3 * LIMIT


def test_a_program_that_still_reads_is_let_be(tmp_path: Path) -> None:
    reading = (
        "zero = open('/dev/zero', 'rb', buffering=0)\n"
        "for _ in range(40):\n time.sleep(0.05)\n zero.read(1)\n say('frame=1', 'progress=continue')\n"
    )
    stub = python(tmp_path, BEATING.format(frames="1,") + reading)
    reports, _ = finished((stub,), Policy(("/",), first_frame_limit=LIMIT, stall_limit=LIMIT))
    assert {report.frame for report in reports} == {1}
    assert len(reports) == 41


def test_a_program_that_is_slow_and_moves_is_let_be(tmp_path: Path) -> None:
    moving = "for frame in range(1, 9):\n time.sleep(0.2)\n say(f'frame={frame}', 'progress=continue')\n"
    reports, _ = finished((python(tmp_path, moving),), Policy(("/",), first_frame_limit=5, stall_limit=1))
    assert [report.frame for report in reports] == list(range(1, 9))


def test_a_program_that_computes_is_given_more_time_but_not_for_ever(tmp_path: Path) -> None:
    stub = python(tmp_path, BEATING.format(frames="1, 2") + "while True: pass")
    found, after = stalled(stub, Policy(("/",), first_frame_limit=60, stall_limit=LIMIT))
    assert (found.kind, found.what) == (FaultClass.STALLED, "ffmpeg made no progress for 2.5 s")
    assert 2.2 < after < 6


def test_a_program_that_computes_and_comes_to_an_end_is_let_be(tmp_path: Path) -> None:
    busy = "end = time.monotonic() + 1.6\nwhile time.monotonic() < end: pass\nsay('frame=3', 'progress=end')\n"
    reports, _ = finished(
        (python(tmp_path, BEATING.format(frames="1, 2") + busy),),
        Policy(("/",), first_frame_limit=5, stall_limit=LIMIT),
    )
    assert reports[-1].frame == 3


def test_a_caller_that_takes_its_time_makes_no_silence(tmp_path: Path) -> None:
    """Nor does a pause of the container, which is the same to us: we did not look."""
    stub = python(tmp_path, "say('frame=1', 'progress=continue')\ntime.sleep(4.4)\nsay('frame=2', 'progress=end')\n")
    steps = run((stub,), Policy(("/",), first_frame_limit=2, stall_limit=2), never)
    assert next(steps) == Progress(frame=1)
    time.sleep(3)
    assert [step.frame for step in steps if isinstance(step, Progress)] == [2]


def test_a_source_that_does_not_deliver_is_told_from_a_hang(make_clip: MakeClip, tmp_path: Path) -> None:
    fifo, clip = tmp_path / "source.ts", make_clip(container="ts").read_bytes()
    os.mkfifo(fifo)
    words = ("ffmpeg", "-hide_banner", "-nostdin", "-i", str(fifo), "-f", "null", "-")
    with fifo.open("r+b", 0) as writer:  # open to the end, so that there is no end
        feed = threading.Thread(target=writer.write, args=(clip[: len(clip) // 2],))
        feed.start()
        began = time.monotonic()
        found = fault(words, Policy(("/",), first_frame_limit=1, stall_limit=1))
        feed.join()
    assert found.kind is FaultClass.BLOCKED
    assert found.what.endswith(f"for 1 s: it waits for {fifo}, which does not deliver")
    assert time.monotonic() - began < 5


def test_a_target_that_takes_nothing_is_told_from_a_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "target.mkv"
    os.mkfifo(fifo)
    words = (
        "ffmpeg",
        "-hide_banner",
        "-nostdin",
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=320x180",
        "-f",
        "matroska",
        str(fifo),
    )
    with fifo.open("r+b", 0):
        found = fault(words, Policy(("/",), first_frame_limit=1, stall_limit=1))
    assert found.kind is FaultClass.BLOCKED
    assert found.what.endswith(f"it waits for {fifo}, which does not take what is written")


def test_a_program_that_was_stopped_may_be_tried_again(tmp_path: Path) -> None:
    stub = python(tmp_path, BEATING.format(frames="1, 2") + "import os\nos.kill(os.getpid(), 19)\n")
    found, after = stalled(stub, Policy(("/",), first_frame_limit=60, stall_limit=LIMIT))
    assert (found.kind, found.what) == (
        FaultClass.TRANSIENT,
        "ffmpeg made no progress for 0.5 s: it was stopped by a signal",
    )
    assert after < 3 * LIMIT


# It talks too much


NOISE = {
    "many lines": "yes '[info] noise, noise and once more noise' | head -c 50000000 >&2; echo >&2",
    "long lines": "yes $(head -c 9000 /dev/zero | tr '\\0' x) | head -c 50000000 >&2; echo >&2",
    "one line": "head -c 50000000 /dev/zero | tr '\\0' x >&2; echo >&2",
    "carriage returns": "yes 'frame=  100 fps= 25 size=    1024kB' | head -c 50000000 | tr '\\n' '\\r' >&2; echo >&2",
    "empty lines": "yes '' | head -c 50000000 >&2",
    "bytes that are no text": "head -c 50000000 /dev/urandom >&2; echo >&2",
}


@pytest.mark.parametrize("script", NOISE.values(), ids=NOISE)
def test_noise_on_stderr_keeps_memory_bounded(tmp_path: Path, script: str) -> None:
    stub = program(tmp_path, "ffmpeg", f"echo 'the first line' >&2; {script}; echo 'the last line' >&2")
    tracemalloc.start()
    try:
        _, last = finished((stub,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert len(last.stderr) <= 241
    assert all(len(line) <= 500 for line in last.stderr)
    assert last.stderr[0] == "the first line"
    assert last.stderr[-1] == "the last line"


def test_noise_on_stdout_keeps_memory_bounded(tmp_path: Path) -> None:
    stub = program(tmp_path, "ffmpeg", "head -c 50000000 /dev/zero; printf '\\nframe=7\\nprogress=end\\n'")
    tracemalloc.start()
    try:
        reports, _ = finished((stub,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert reports == [Progress(frame=7, last=True)]


def test_few_lines_are_kept_in_order_with_one_that_has_no_end(tmp_path: Path) -> None:
    stub = program(tmp_path, "ffmpeg", "seq 1 100 >&2; printf 'no end' >&2")
    assert finished((stub,))[1].stderr == (*map(str, range(1, 101)), "no end")


def test_of_many_lines_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    stderr = finished((program(tmp_path, "ffmpeg", "seq 1 1000 >&2"),))[1].stderr
    assert stderr == (*map(str, range(1, 41)), *map(str, range(801, 1001)))


def test_no_chatter_hides_a_complaint_a_measurement_or_a_count(tmp_path: Path) -> None:
    count = "[verbose]   Input stream #3:1 (video): 5 packets read (9 bytes); 5 frames decoded; "
    complaint = "[h264 @ 0x5] [error] error while decoding MB 3 4"
    measured = "[ssim@m0o1 @ 0x5] [info] SSIM Y:0.99 (21.8) All:0.99 (21.8)"
    script = f"{{ seq 1 300; echo '{count}'; echo '{complaint}'; echo '{measured}'; seq 1 1000; }} >&2"
    _, last = finished((program(tmp_path, "ffmpeg", script),))
    assert last.decoded == {(3, 1): 5}
    assert last.stderr.count(complaint) == 1
    assert last.stderr.count(measured) == 1


def test_of_many_complaints_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    stderr = finished((program(tmp_path, "ffmpeg", "seq -f '[error] %g' 1 1000 >&2"),))[1].stderr
    assert stderr == tuple(f"[error] {number}" for number in (*range(1, 81), *range(801, 1001)))


def test_many_complaints_and_much_chatter_do_not_hide_each_other(tmp_path: Path) -> None:
    script = "{ seq -f '[error] %g' 1 300; seq 1 300; seq -f '[error] %g' 301 400; seq 301 1000; } >&2"
    stderr = finished((program(tmp_path, "ffmpeg", script),))[1].stderr
    complaints = [line for line in stderr if line.startswith("[error]")]
    assert complaints == [f"[error] {number}" for number in (*range(1, 81), *range(201, 401))]
    assert [line for line in stderr if line not in complaints] == [*map(str, range(1, 41)), *map(str, range(801, 1001))]
    assert stderr.index("[error] 300") < stderr.index("1") < stderr.index("[error] 301"), "in the order of saying"
