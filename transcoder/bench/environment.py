"""The machine as who compares results wants to know it, and how busy it was meanwhile."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Final

from transcoder.bench.result import Environment
from transcoder.version import __version__

OTHERS: Final = 0.1
"""The share of the CPUs that other programs may have in the middle of all runs without a word."""


def environment(engine: str, image: str) -> Environment:
    """This machine; what an agent knows (ffmpeg, driver) is added later."""
    return Environment(
        host=socket.gethostname(),
        cpu=_field("/proc/cpuinfo", "model name") or platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory=int(_field("/proc/meminfo", "MemTotal").partition(" ")[0] or 0) * 1024,
        kernel=platform.release(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        cgroup="v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1",
        engine=engine,
        image=image,
        transcoder=__version__,
    )


@dataclass(frozen=True, slots=True)
class Ticks:
    """What the CPUs have done since boot, in ticks of all of them: all of it, nothing, taken by a hypervisor."""

    total: int
    idle: int
    steal: int

    def busy(self, since: Ticks) -> float:
        """The share that worked since then, from 0 to 1; stolen time is no work of ours, and was not idle either."""
        return 1 - (self.idle - since.idle) / max(1, self.total - since.total)

    def stolen(self, since: Ticks) -> float:
        """The share that the hypervisor took."""
        return (self.steal - since.steal) / max(1, self.total - since.total)


def ticks() -> Ticks:
    """Now (proc(5): user nice system idle iowait irq softirq steal; guests count as users)."""
    fields = [int(word) for word in _read("/proc/stat").split("\n", 1)[0].split()[1:9]] or [0] * 8
    return Ticks(sum(fields), fields[3] + fields[4], fields[7])


def of_others(before: Ticks, after: Ticks, took: float, ours: float) -> float:
    """The share of the machine's CPUs that other programs had in `took` seconds, in which we had `ours` of one CPU."""
    return max(0.0, after.busy(before) - ours / (max(took, 1e-3) * (os.cpu_count() or 1)))


def crowded(shares: Sequence[float]) -> str:
    """What is to be said of the shares that other programs had of the CPUs, run by run; empty for nothing."""
    share = median(shares) if shares else 0.0
    return f"other programs had {share:.0%} of the CPUs meanwhile" if share > OTHERS else ""


def _field(path: str, name: str) -> str:
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
