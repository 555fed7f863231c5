"""Run a short program to its end: with a kill timer, in a process group of its own, gone when its parent is gone."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep

_MOST = 1 << 20
_REAP_LIMIT = 5.0
_TICK = 0.002


def dying_with_parent(words: Sequence[str], limits: str = "", before: str = "") -> tuple[str, ...]:
    """The words of a program that shall not outlive the thread that starts it.

    `limits` are commands of the shell that stand before it, `before` a program that starts it.
    """
    # PDEATHSIG fires when the forking thread ends and survives exec (prctl(2)); the shell then checks that the parent
    # did not die before it was set. preexec_fn would do the same and is not safe with threads. Where memory is short
    # the program shall be killed and not the worker: everybody may raise its score (proc(5)).
    shell = (
        f'{{ echo 1000 > /proc/self/oom_score_adj; }} 2> /dev/null; {limits} [ "$PPID" = "$0" ] && exec {before} "$@"'
    )
    return ("setpriv", "--pdeathsig", "KILL", "sh", "-c", shell, str(os.getpid()), *words)


def tied(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a program that runs for moments and ends with the thread that starts it, at the price of no shell.

    A parent that dies in the millisecond before it takes hold is missed: then it runs to its own end.
    """
    return ("setpriv", "--pdeathsig", "KILL", *words)


def offered_first(pid: int) -> None:
    """Where memory is short that process shall be killed, and not the worker (proc(5))."""
    with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program that reads files of strangers: a group of its own, pipes for its words, none of our settings.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )


def environment() -> dict[str, str]:
    """Ours without our own settings: TRANSCODER_BROKER may hold a password, and ffmpeg reads files of strangers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRANSCODER_")}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit code (negative for a signal; None: killed at the limit), and its last words.

    Of each of both streams the first mebibyte is kept.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes

    @property
    def lines(self) -> tuple[str, ...]:
        """What it wrote on stderr."""
        return tuple(self.stderr.decode("utf-8", "replace").splitlines())


def run(words: Sequence[str], limit: float, descriptors: Sequence[int] = ()) -> Ended:
    """Run it for `limit` seconds at most; `descriptors` are open in it too. Its whole group is gone afterwards.

    Raises:
        OSError: setpriv (of util-linux) cannot be started. A program that cannot be is the exit code 126 or 127.
    """
    child = subprocess.Popen(
        dying_with_parent(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=descriptors,
    )
    try:
        in_time, kept = _follow(child, monotonic() + limit)
    finally:
        # before it is waited for: a zombie keeps the number of its group from being taken anew
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        _close(child)
    with suppress(subprocess.TimeoutExpired):  # it sits in a driver and does not die: it is left to the kernel
        returncode = child.wait(_REAP_LIMIT)
        return Ended(returncode if in_time else None, *kept)
    return Ended(None, *kept)


def _follow(child: subprocess.Popen[bytes], deadline: float) -> tuple[bool, tuple[bytes, bytes]]:
    """Whether it ended by itself before the deadline, and what it wrote."""
    assert child.stdout
    assert child.stderr
    kept = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as pipes:
        for pipe in kept:
            pipes.register(pipe, selectors.EVENT_READ)
        while pipes.get_map() and (left := deadline - monotonic()) > 0:
            for key, _ in pipes.select(left):
                data = os.read(key.fd, 65536)
                if not data:
                    pipes.unregister(key.fileobj)
                kept[key.fd].extend(data[: _MOST - len(kept[key.fd])])
    stdout, stderr = kept.values()
    return _ends(child.pid, deadline), (bytes(stdout), bytes(stderr))


def _ends(pid: int, deadline: float) -> bool:
    """Wait for a child that has closed its streams, which is within a millisecond of its end."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if monotonic() > deadline:
            return False
        sleep(_TICK)
    return True


def _close(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()
