"""What the kernel tells of a running process and its children: whether they work, and whether a file makes them wait.

Everything is read from /proc as the same user, and what cannot be read (hidepid, a hardened kernel) counts as nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

_TICKS = os.sysconf("SC_CLK_TCK")

_READS, _WRITES = (
    # read pread64 readv preadv preadv2 · write pwrite64 writev pwritev pwritev2 fsync fdatasync (asm/unistd_64.h)
    ({0, 17, 19, 295, 327}, {1, 18, 20, 296, 328, 74, 75})
    if platform.machine() == "x86_64"
    else ({63, 67, 65, 69, 286}, {64, 68, 66, 70, 287, 82, 83})  # asm-generic/unistd.h: arm64, riscv64
)


@dataclass(frozen=True, slots=True)
class Vitals:
    """Signs of life since the start: seconds of CPU time, bytes read by system calls."""

    cpu: float = 0.0
    read: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """A file that a process waits for inside a system call: it does not deliver (read) or does not take (write)."""

    path: str
    what: Literal["read", "write"]


def family(process: int) -> list[int]:
    """A process and what descends from it, as far as started by first threads: a wrapper script has ffmpeg as child."""
    found = [process]
    for parent in found:  # which grows meanwhile
        found += [int(word) for word in _read(f"/proc/{parent}/task/{parent}/children").split() if word.isdigit()]
    return found


def vitals(processes: Sequence[int]) -> Vitals:
    """The sums over these processes."""
    return Vitals(sum(map(_cpu, processes)), sum(map(_bytes_read, processes)))


def stopped(process: int) -> bool:
    """It was stopped by a signal or a debugger: it cannot run, whatever it would do."""
    return _read(f"/proc/{process}/stat").rpartition(")")[2].split()[:1] in (["T"], ["t"])


def waits(processes: Sequence[int]) -> Wait | None:
    """The first file that a thread of these processes waits for at this moment; None where there is none to be seen."""
    return next((wait for process in processes for wait in _waits(process)), None)


def _waits(process: int) -> Iterator[Wait]:
    for thread in _list(f"/proc/{process}/task"):
        # the number and the arguments in hexadecimal; a thread that runs has the word `running` instead
        words = _read(f"/proc/{process}/task/{thread}/syscall").split()
        if len(words) < 2 or not words[0].isdigit() or int(words[0]) not in _READS | _WRITES:
            continue
        path = _link(f"/proc/{process}/fd/{int(words[1], 16)}")
        # pipes and sockets have no path; devices that block are not files
        if path.startswith("/") and not path.startswith(("/dev/", "/proc/", "/sys/")):
            yield Wait(path, "read" if int(words[0]) in _READS else "write")


def _cpu(process: int) -> float:
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0


def _bytes_read(process: int) -> int:
    words = _read(f"/proc/{process}/io").split()
    return int(words[1]) if len(words) > 1 else 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
