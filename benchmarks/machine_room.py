"""What is said about the machine, and how memory is read."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def environment(folder: Path) -> dict[str, object]:
    """What a reader needs in order to judge the figures."""
    return {
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ffmpeg": _first_line("ffmpeg", "-version"),
        "redis": _first_line("redis-server", "--version"),
        "packages": {name: version(name) for name in ("celery", "kombu", "redis", "pydantic", "prometheus-client")},
        "commit": _first_line("git", "rev-parse", "HEAD"),
        "file_system": _first_line("stat", "-f", "-c", "%T", str(folder)),
        "load_before": round(os.getloadavg()[0], 2),
    }


def resident(*pids: int) -> int:
    """Bytes of resident memory of some processes; one that has ended counts nothing.

    Not the proportional set size: that of an ffmpeg falls by a third while another ffmpeg runs anywhere on the machine.
    Worker and ffmpeg share little more than libc, which is counted twice.
    """
    return sum(_resident(pid) for pid in pids)


def family(pid: int) -> list[int]:
    """A process and all that it started, and these started."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children", encoding="ascii") as children:
                    found += [int(child) for child in children.read().split()]
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return done.stdout.split("\n", 1)[0]
