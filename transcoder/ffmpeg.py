"""Run one command: progress comes out as values, failure as a Fault with evidence, and ffmpeg dies with its parent."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from transcoder import fdinfo
from transcoder.children import dying_with_parent, start
from transcoder.errors import FfmpegMissing, JobCancelled
from transcoder.faults import Evidence, Fault, FaultClass, classify, errors_in
from transcoder.policy import Policy
from transcoder.progress import Progress, Reader
from transcoder.usage import Meter, Usage
from transcoder.vitals import Vitals, family, stopped, vitals, waits

REPORTING = ("-y", "-nostats", "-stats_period", "0.5", "-progress", "pipe:1", "-loglevel", "level+verbose")
"""Options of every run: replace what a failed route left in the scratch, report twice a second, log with levels."""

_TICK = 0.1
_REAP_LIMIT = 10.0
_HEAD, _FIRST_COMPLAINTS, _MEASUREMENTS, _TAIL, _LINE = 40, 80, 1000, 200, 500

_PATIENCE, _PATIENCE_ON_DEVICE = 5, 2
"""How many limits of silence a process is given that works and gets nowhere: in software by its CPU time, on a device
by its engines; and by its CPU time alone on a device whose engines stand still, which may be a driver that spins."""

_WORKS = 0.05
"""The share of a CPU from which a process is taken to work: waiting and reporting cost ffmpeg less than a hundredth."""

_PAUSE = 1.0
"""Seconds between two looks that mean that we stood still ourselves, as in a container that was paused."""


@dataclass(frozen=True, slots=True)
class Finished:
    """ffmpeg ended with exit code 0, which proves nothing yet. `decoded` maps input stream index to frames decoded.

    `device` is the one that it was to use, None for the CPU, and `usage` what that did for it; None where its driver
    counts nothing, or where the counters stood still when they were last read and nobody saw them at the end.
    """

    stderr: tuple[str, ...]
    decoded: dict[tuple[int, int], int]
    device: str | None = None
    usage: Usage | None = None


def run(
    words: Sequence[str], policy: Policy, cancelled: Callable[[], bool], *, device: str | None = None
) -> Iterator[Progress | Finished]:
    """Run ffmpeg, yielding its progress and at the end one Finished.

    `words` begin with the program. With `device`, the name of the GPU that they use, its counters are read as well.
    The process group is gone when this ends, however it ends.

    Raises:
        Fault: ffmpeg failed, died or stalled; with the command and its last words.
        JobCancelled: `cancelled` said so.
        FfmpegMissing: it could not be started.
    """
    argv = (words[0], *REPORTING, "-max_alloc", str(policy.max_alloc), *words[1:])
    child = _spawn(argv, policy)
    log, gpu = _Log(), _Gpu(device, policy.proc, child.pid) if device else None
    try:
        yield from _follow(child, log, gpu, policy, cancelled, argv)
        returncode = child.wait()
    finally:
        _end(child)
    if returncode != 0:
        if returncode in (126, 127) and not errors_in(log.lines()):  # the shell's words, not ffmpeg's
            raise _missing(words[0])
        kind, what = classify(returncode, log.lines())
        raise Fault(kind, what, Evidence(argv, returncode, log.lines()))
    yield Finished(log.lines(), log.decoded, device, gpu.usage() if gpu else None)


def _spawn(argv: Sequence[str], policy: Policy) -> subprocess.Popen[bytes]:
    # the shell counts files in blocks of 512 bytes; only soft limits, so that their signals are told from others
    limits = f"ulimit -S -t {max(1, round(policy.cpu_limit))}; ulimit -S -f {policy.max_file >> 9};"
    try:
        return start(dying_with_parent(argv, limits, before=f"nice -n {policy.nice}"))
    except OSError:
        raise _missing("setpriv") from None


def _missing(program: str) -> FfmpegMissing:
    return FfmpegMissing(
        f"{program} cannot be started",
        "Install ffmpeg (5.1 or newer) and util-linux, or point TRANSCODER_FFMPEG at ffmpeg.",
    )


def _follow(
    child: subprocess.Popen[bytes],
    log: _Log,
    gpu: _Gpu | None,
    policy: Policy,
    cancelled: Callable[[], bool],
    argv: Sequence[str],
) -> Iterator[Progress]:
    """Read both pipes until they close; watch for cancelling and for silence."""
    assert child.stdout
    assert child.stderr
    reader, watch, began = Reader(), _Watch(child.pid, policy, gpu), monotonic()
    with selectors.DefaultSelector() as pipes:
        pipes.register(child.stdout, selectors.EVENT_READ)
        pipes.register(child.stderr, selectors.EVENT_READ)
        while pipes.get_map():
            for key, _ in pipes.select(_TICK):
                data = os.read(key.fd, 65536)
                if not data:
                    pipes.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    log.feed(data)
                else:
                    for report in reader.feed(data):
                        if gpu:  # first of all: after its last report ffmpeg closes the device
                            gpu.read(last=report.last)
                        watch.see(report)
                        yield report
            if gpu:
                gpu.read_when_due()
            if cancelled():
                raise JobCancelled("the job was cancelled while encoding", "Submit it again if it is wanted after all.")
            if monotonic() - began > policy.wall_limit:
                told = f"ffmpeg ran for {policy.wall_limit:g} s, longer than any job may"
                raise Fault(FaultClass.LIMIT, told, Evidence(tuple(argv), None, log.lines()))
            if silence := watch.silence():
                raise Fault(*silence, Evidence(tuple(argv), None, log.lines()))


class _Gpu:
    """Reads the GPU's counters of a process while it runs: they vanish when it closes the device or ends.

    That is ten times a second, so that a short job is caught too, and at ffmpeg's last report, which it prints before
    it closes its devices. A reading costs some 0.3 ms.
    """

    def __init__(self, device: str, proc: str, process: int) -> None:
        self.device = device
        self._proc, self._process = proc, process
        self._meter = Meter()
        self._next = 0.0
        self._whole = False

    def read_when_due(self) -> None:
        if monotonic() >= self._next:
            self.read()

    def read(self, *, last: bool = False) -> None:
        now = monotonic()
        self._next = now + _TICK
        there = self._meter.see(fdinfo.clients(self._proc, family(self._process)), now)
        self._whole |= last and there

    @property
    def mark(self) -> int:
        """What grows while an engine works."""
        return self._meter.mark

    @property
    def counts(self) -> bool:
        """The driver has counters and they were seen."""
        return self._meter.usage() is not None

    def usage(self) -> Usage | None:
        """What the engines did. That they did nothing is only known when they were read at the end."""
        found = self._meter.usage()
        return found if found and (found.seconds or self._whole) else None


@dataclass(frozen=True, slots=True)
class _Look:
    """What a process had done at a moment: signs of life, and of its GPU's engines."""

    at: float
    vitals: Vitals
    engines: int

    def works(self, before: _Look) -> bool:
        """Whether the CPU worked since then."""
        return self.vitals.cpu - before.vitals.cpu >= max(0.02, _WORKS * (self.at - before.at))


class _Watch:
    """Notices when nothing moves for too long, and tells why.

    ffmpeg goes on reporting while it hangs, with frozen values: frames, time and size of the output are what counts,
    and the bytes that ffmpeg reads, which also move while a finished mp4 is rewritten for faststart and nothing is
    reported. Where these stand still the process is looked at twice in each limit:

    - Its CPU time or the GPU's engines move: it is slow. It is given up to `_PATIENCE` limits, since something that
      runs round in circles moves as well; but `_PATIENCE_ON_DEVICE` where the engines of its GPU stand still.
    - A thread waits inside a system call for a file: the storage does not answer, and nobody else is to blame.
    - It was stopped by a signal: neither is to blame.
    - Otherwise it hangs; on a device, the device does.
    """

    def __init__(self, process: int, policy: Policy, gpu: _Gpu | None) -> None:
        self._process, self._policy, self._gpu = process, policy, gpu
        self._mark = (0, 0.0, 0)
        self._since = self._looked = monotonic()
        self._before: _Look | None = None

    def see(self, report: Progress) -> None:
        if report.mark != self._mark:
            self._mark = report.mark
            self._moved(monotonic())

    def silence(self) -> tuple[FaultClass, str] | None:
        """The fault, in its class and a sentence, once the silence is too long; None while all is well."""
        now = monotonic()
        if now - self._looked > _PAUSE:
            self._since += now - self._looked
        self._looked = now
        limit = self._limit
        if now - self._since < limit / 2:
            return None
        if self._before is None:
            self._before = self._look(now)
        if now - self._before.at < limit / 2:
            return None
        before, self._before = self._before, self._look(now)
        if self._before.vitals.read != before.vitals.read:
            self._moved(now)
            return None
        patience = self._patience(before, self._before)
        if now - self._since < limit * patience:
            return None
        return self._verdict(limit * patience, engines_work=self._before.engines != before.engines)

    @property
    def _started(self) -> bool:
        return self._mark > (0, 0.0, 0)

    @property
    def _limit(self) -> float:
        return self._policy.stall_limit if self._started else self._policy.first_frame_limit

    def _moved(self, now: float) -> None:
        self._since, self._before = now, None

    def _look(self, now: float) -> _Look:
        return _Look(now, vitals(family(self._process)), self._gpu.mark if self._gpu else 0)

    def _patience(self, before: _Look, after: _Look) -> int:
        if after.engines != before.engines:
            return _PATIENCE
        if after.works(before):
            return _PATIENCE_ON_DEVICE if self._gpu and self._gpu.counts else _PATIENCE
        return 1

    def _verdict(self, limit: float, *, engines_work: bool) -> tuple[FaultClass, str]:
        nothing = f"ffmpeg made {'no progress' if self._started else 'no first frame'} for {limit:g} s"
        if wait := waits(family(self._process)):
            way = "does not deliver" if wait.what == "read" else "does not take what is written"
            return FaultClass.BLOCKED, f"{nothing}: it waits for {wait.path}, which {way}"
        if stopped(self._process):
            return FaultClass.TRANSIENT, f"{nothing}: it was stopped by a signal"
        if self._gpu is None:
            return FaultClass.STALLED, nothing
        hangs = f"the GPU {self._gpu.device} hangs: {nothing}"
        if engines_work:
            return FaultClass.STALLED, f"{hangs}, though its engines work"
        counters = "its engines stand still" if self._gpu.counts else "no counter tells what it does"
        return FaultClass.STALLED, f"{hangs}, and {counters}"


_DECODED = re.compile(r"Input stream #(\d+):(\d+) \(\w+\): .*?; (\d+) frames decoded")


class _Log:
    """ffmpeg's stderr, bounded: of complaints, measurements and the rest, each for itself, the first and the last.

    The first lines say what it opened, the last how it ended, and no chatter can hide a complaint or what a filter has
    measured. `decoded` counts frames by input and stream, from all lines.
    """

    def __init__(self) -> None:
        self.decoded: dict[tuple[int, int], int] = {}
        self._lines, self._complaints, self._measured = _Ends(_HEAD), _Ends(_FIRST_COMPLAINTS), _Ends(_MEASUREMENTS)
        self._number = 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        self._rest = self._rest[:_LINE]
        for line in lines:
            self._keep(line)

    def lines(self) -> tuple[str, ...]:
        """What is kept, in the order in which it was said."""
        rest = [self._rest[:_LINE].decode("utf-8", "replace")] if self._rest else []
        kept = [*self._lines.kept(), *self._complaints.kept(), *self._measured.kept()]
        return (*(line for _, line in sorted(kept)), *rest)

    def _keep(self, line: bytes) -> None:
        text = line[:_LINE].decode("utf-8", "replace")
        if "frames decoded" in text and (found := _DECODED.search(text)):
            self.decoded[int(found[1]), int(found[2])] = int(found[3])
        if text:
            self._number += 1
            self._like(text).keep(self._number, text)

    def _like(self, text: str) -> _Ends:
        if errors_in((text,)):
            return self._complaints
        return self._measured if " SSIM " in text else self._lines


class _Ends:
    """The first `head` lines and the last of those after them, numbered."""

    def __init__(self, head: int) -> None:
        self._head: list[tuple[int, str]] = []
        self._most = head
        self._tail: deque[tuple[int, str]] = deque(maxlen=_TAIL)

    def keep(self, number: int, text: str) -> None:
        (self._head if len(self._head) < self._most else self._tail).append((number, text))

    def kept(self) -> list[tuple[int, str]]:
        return [*self._head, *self._tail]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the whole group and reap; never wait for ever for a process that sits in a driver."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            child.kill()
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()
    try:
        child.wait(timeout=_REAP_LIMIT)
    except subprocess.TimeoutExpired:
        raise Fault(
            FaultClass.HARDWARE, f"ffmpeg (process {child.pid}) does not die: it is stuck inside the kernel"
        ) from None
