"""Clears up after a benchmark, however that ends: a process of its own, which waits for the end of its stdin.

`python -m transcoder.bench.janitor PROGRAM BENCHMARK PATH…`: PROGRAM is the container engine's, or empty. A word on
stdin before it ends says that the agents were ended in order; without it they may still be ending.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from transcoder.bench.engines import LABEL
from transcoder.children import run

PREFIX = "transcoder-bench-"
LOCK = "alive"

_QUIET = 2.0
"""Seconds without anything to remove after which nobody makes more: a `docker run` may be on its way."""
_PATIENCE = 60.0
_PAUSE = 0.2
_ENGINE_LIMIT = 20.0
_YOUNG = 60.0


def clear(program: str, benchmark: str, paths: Sequence[str], *, quiet: float) -> None:
    """Remove a benchmark's containers and paths, until nothing has come up anew for `quiet` seconds."""
    until, last = time.monotonic() + _PATIENCE, time.monotonic()
    while True:
        if _remove_containers(program, benchmark) | _remove(paths):
            last = time.monotonic()
        elif time.monotonic() - last >= quiet:
            return
        if time.monotonic() > until:
            return
        time.sleep(_PAUSE if quiet else 0)


def sweep(program: str, places: Iterable[str]) -> None:
    """Clear up after benchmarks whose janitor was killed too: nobody has their lock."""
    paths: dict[str, list[str]] = {benchmark: [] for benchmark in _labelled(program)}
    for place in places:
        for path in glob.glob(f"{glob.escape(place)}/{PREFIX}*"):
            if os.path.isdir(path) and not os.path.islink(path) and os.geteuid() in (0, os.stat(path).st_uid):
                benchmark = os.path.basename(path).removeprefix(PREFIX).partition("-")[0]
                paths.setdefault(benchmark, []).append(path)
    for benchmark, found in paths.items():
        if not _alive(found):
            clear(program, benchmark, found, quiet=0)


def _alive(folders: Sequence[str]) -> bool:
    """Whether the benchmark runs that these are of: its lock is held, or it has just begun and has none yet."""
    for folder in folders:
        try:
            with open(f"{folder}/{LOCK}", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        return False
    return any(_young(folder) for folder in folders)


def _young(folder: str) -> bool:
    with suppress(OSError):
        return time.time() - os.stat(folder).st_mtime < _YOUNG
    return False


def _remove_containers(program: str, benchmark: str) -> bool:
    if not program:
        return False
    found = _list(program, f"{LABEL}={benchmark}", "{{.ID}}")
    if found:
        run((program, "rm", "--force", "--volumes", *found), _ENGINE_LIMIT)
    return bool(found)


def _labelled(program: str) -> set[str]:
    """The benchmarks that have containers."""
    return set(_list(program, LABEL, f'{{{{.Label "{LABEL}"}}}}')) if program else set()


def _list(program: str, label: str, what: str) -> list[str]:
    with suppress(OSError):
        ended = run((program, "ps", "--all", "--filter", f"label={label}", "--format", what), _ENGINE_LIMIT)
        return ended.stdout.decode("utf-8", "replace").split() if ended.returncode == 0 else []
    return []


def _remove(paths: Sequence[str]) -> bool:
    """Whether there was anything."""
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)  # the rest goes the next time: somebody still writes
        else:
            with suppress(OSError):
                os.unlink(path)
    return bool(there)


def main() -> None:
    """Wait for the end of stdin, and clear up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal that closes ends the benchmark, and then this
    program, benchmark, *paths = sys.argv[1:]
    in_order = bool(sys.stdin.buffer.read())
    clear(program, benchmark, paths, quiet=0.0 if in_order else _QUIET)


if __name__ == "__main__":
    main()
