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

from transcoder.errors import FfmpegMissing, JobCancelled
from transcoder.faults import Evidence, Fault, FaultClass, classify, errors_in
from transcoder.policy import Policy
from transcoder.progress import Progress, Reader

REPORTING = ("-y", "-nostats", "-stats_period", "0.5", "-progress", "pipe:1", "-loglevel", "level+verbose")
"""Options of every run: replace what a failed route left in the scratch, report twice a second, log with levels."""

_TICK = 0.1
_REAP_LIMIT = 10.0
_HEAD, _COMPLAINTS, _TAIL, _LINE = 40, 40, 200, 500

# PDEATHSIG fires when the forking thread ends and survives exec (prctl(2)); the shell then checks that the parent did
# not die before it was set. preexec_fn would do the same and is not safe with threads.
_DYING_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


@dataclass(frozen=True, slots=True)
class Finished:
    """ffmpeg ended with exit code 0, which proves nothing yet. `decoded` maps input stream index to frames decoded."""

    stderr: tuple[str, ...]
    decoded: dict[tuple[int, int], int]


def run(words: Sequence[str], policy: Policy, cancelled: Callable[[], bool]) -> Iterator[Progress | Finished]:
    """Run ffmpeg, yielding its progress and at the end one Finished.

    `words` begin with the program. The process group is gone when this ends, however it ends.

    Raises:
        Fault: ffmpeg failed, died or stalled; with the command and its last words.
        JobCancelled: `cancelled` said so.
        FfmpegMissing: it could not be started.
    """
    argv = (words[0], *REPORTING, *words[1:])
    child = _spawn(argv)
    log = _Log()
    try:
        yield from _follow(child, log, policy, cancelled, argv)
        returncode = child.wait()
    finally:
        _end(child)
    if returncode != 0:
        if returncode in (126, 127) and not errors_in(log.lines()):  # the shell's words, not ffmpeg's
            raise _missing(words[0])
        kind, what = classify(returncode, log.lines())
        raise Fault(kind, what, Evidence(argv, returncode, log.lines()))
    yield Finished(log.lines(), log.decoded)


def _spawn(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            (*_DYING_WITH_PARENT, str(os.getpid()), *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError:
        raise _missing("setpriv") from None


def _missing(program: str) -> FfmpegMissing:
    return FfmpegMissing(
        f"{program} cannot be started",
        "Install ffmpeg (5.1 or newer) and util-linux, or point TRANSCODER_FFMPEG at ffmpeg.",
    )


def _follow(
    child: subprocess.Popen[bytes], log: _Log, policy: Policy, cancelled: Callable[[], bool], argv: Sequence[str]
) -> Iterator[Progress]:
    """Read both pipes until they close; watch for cancelling and for silence."""
    assert child.stdout
    assert child.stderr
    reader, watch = Reader(), _Watch(child.pid, policy)
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
                        watch.see(report)
                        yield report
            if cancelled():
                raise JobCancelled("the job was cancelled while encoding", "Submit it again if it is wanted after all.")
            if silence := watch.silence():
                raise Fault(FaultClass.STALLED, silence, Evidence(tuple(argv), None, log.lines()))


class _Watch:
    """Notices when nothing moves: neither frames, time nor size of the output, nor what ffmpeg has read.

    ffmpeg goes on reporting while it hangs, with frozen values. The bytes read (/proc/PID/io) also move while a
    finished mp4 is rewritten for faststart, when nothing is reported.
    """

    def __init__(self, pid: int, policy: Policy) -> None:
        self._pid, self._policy = pid, policy
        self._mark = (0, 0.0, 0)
        self._read = 0
        self._since = monotonic()

    def see(self, report: Progress) -> None:
        if report.mark != self._mark:
            self._mark, self._since = report.mark, monotonic()

    def silence(self) -> str | None:
        """What to say about the silence once it is too long; None while all is well."""
        started = self._mark > (0, 0.0, 0)
        limit = self._policy.stall_limit if started else self._policy.first_frame_limit
        if monotonic() - self._since < limit:
            return None
        before, self._read = self._read, self._bytes_read()
        if self._read != before:
            self._since = monotonic()
            return None
        return f"ffmpeg made {'no progress' if started else 'no first frame'} for {limit:g} s"

    def _bytes_read(self) -> int:
        try:
            with open(f"/proc/{self._pid}/io", "rb") as counters:
                return int(counters.readline().split()[1])
        except (OSError, ValueError, IndexError):
            return 0


_DECODED = re.compile(r"Input stream #(\d+):(\d+) \(\w+\): .*?; (\d+) frames decoded")


class _Log:
    """ffmpeg's stderr, bounded: the first lines, which say what it opened, the last, which say how it ended, and of
    those between them the first complaints. `decoded` counts frames by input and stream, from all lines.
    """

    def __init__(self) -> None:
        self.decoded: dict[tuple[int, int], int] = {}
        self._head: list[str] = []
        self._complaints: list[str] = []
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        self._rest = self._rest[:_LINE]
        for line in lines:
            self._keep(line)

    def lines(self) -> tuple[str, ...]:
        rest = [self._rest[:_LINE].decode("utf-8", "replace")] if self._rest else []
        return (*self._head, *self._complaints, *self._tail, *rest)

    def _keep(self, line: bytes) -> None:
        text = line[:_LINE].decode("utf-8", "replace")
        if "frames decoded" in text and (found := _DECODED.search(text)):
            self.decoded[int(found[1]), int(found[2])] = int(found[3])
        if len(self._head) < _HEAD:
            self._head.append(text)
        elif text:
            if len(self._tail) == _TAIL and len(self._complaints) < _COMPLAINTS:
                self._complaints += [oldest for oldest in (self._tail[0],) if errors_in((oldest,))]
            self._tail.append(text)


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
