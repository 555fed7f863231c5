"""What a GPU did for a process: the counters that DRM drivers show in fdinfo, read and added up as values.

Keys and units are those of docs.kernel.org/gpu/drm-usage-stats.html: i915 and amdgpu count nanoseconds an engine, xe
ticks of the GPU's clock. `drm-engine-capacity-*`, how many engines there are of a kind, does not change what was done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

XE_TICKS = 19_200_000
"""Ticks a second of an xe engine's clock where one reading is all there is: most have a crystal of 19.2 MHz."""

_SHORTEST_SPAN = 0.05
"""Seconds between two readings that are enough to measure that clock."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of each engine that worked (`video`, `video-enhance`, `enc` … in the kernel driver's words), by name, and
    the most bytes of memory that were seen. No engine: the driver counts, and its counters stood still.
    """

    engines: tuple[tuple[str, float], ...] = ()
    memory: int = 0

    @property
    def seconds(self) -> float:
        """Of all engines together."""
        return round(sum(spent for _, spent in self.engines), 6)

    def as_record(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"engines": dict(self.engines), "seconds": self.seconds, "memory_bytes": self.memory}


def from_record(record: Mapping[str, Any] | None) -> Usage | None:
    """A usage read back from its record; None for none."""
    if record is None:
        return None
    return Usage(tuple((name, float(spent)) for name, spent in record["engines"].items()), record["memory_bytes"])


@dataclass(frozen=True, slots=True)
class Client:
    """One open device of a process, as its fdinfo shows it once.

    `key` is (PCI address, number of the client): several descriptors can show the same one. `busy` is nanoseconds by
    engine; `ticks` is (busy, elapsed) by engine where the GPU's own clock counts. `memory` is in bytes. `counts` tells
    whether this driver counts engines at all.
    """

    key: tuple[str, str]
    busy: Mapping[str, int] = field(default_factory=dict)
    ticks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    memory: int = 0
    counts: bool = False


_LINE = re.compile(r"^drm-([^\s:]+):[ \t]*(\S+)(?:[ \t]+(\S+))?[ \t]*$", re.MULTILINE)
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SILENT_AT_ZERO = frozenset({"amdgpu"})
"""Drivers that count and leave out engines which did nothing (amdgpu_fdinfo.c)."""


def parse(text: str) -> Client | None:
    """One fdinfo file read; None where it is not that of a DRM device. Never raises, whatever the text."""
    lines = {key: (value, unit or None) for key, value, unit in _LINE.findall(text)}
    if not lines:
        return None
    numbers = {key: int(value) for key, (value, _) in lines.items() if _is_number(value)}
    busy = {
        key.removeprefix("engine-"): count
        for key, count in numbers.items()
        if key.startswith("engine-") and lines[key][1] == "ns"
    }
    ticks = {
        name: (count, numbers[total])
        for key, count in numbers.items()
        if (name := key.removeprefix("cycles-")) != key and (total := f"total-cycles-{name}") in numbers
    }
    sizes = {key: count * _UNITS[lines[key][1]] for key, count in numbers.items() if lines[key][1] in _UNITS}
    return Client(
        key=(lines.get("pdev", ("", None))[0], lines.get("client-id", ("", None))[0]),
        busy=busy,
        ticks={name: both for name, both in ticks.items() if name not in busy},
        memory=_memory(sizes),
        counts=bool(busy or ticks) or lines.get("driver", ("", None))[0] in _SILENT_AT_ZERO,
    )


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= 20


def _memory(sizes: Mapping[str, int]) -> int:
    """Bytes of all regions. Of each the resident ones, which older drivers call memory; else all that was allocated."""
    regions: dict[str, int] = {}
    for kind in ("total-", "memory-", "resident-"):
        for key, size in sizes.items():
            region = key.removeprefix(kind)
            if region != key and not region.startswith("cycles-"):
                regions[region] = size
    return sum(regions.values())


class Meter:
    """Adds up the readings of one process, from its start to its end.

    A counter may step backwards, and a client goes when its device is closed: the largest reading of each is kept.
    Ticks become seconds by the speed of the GPU's clock, which is measured between the first and the last reading.
    """

    def __init__(self) -> None:
        self._busy: dict[tuple[tuple[str, str], str], int] = {}
        self._ticks: dict[tuple[tuple[str, str], str], _Ticks] = {}
        self._memory = 0
        self._counts = False

    def see(self, clients: Iterable[Client], at: float) -> bool:
        """Take one reading of all clients, made at `at` seconds of any clock; whether one of them counts engines."""
        each = {client.key: client for client in clients}
        for key, client in each.items():
            for engine, busy in client.busy.items():
                self._busy[key, engine] = max(busy, self._busy.get((key, engine), 0))
            for engine, (busy, elapsed) in client.ticks.items():
                self._ticks.setdefault((key, engine), _Ticks(elapsed, at)).see(busy, elapsed, at)
        self._memory = max(self._memory, sum(client.memory for client in each.values()))
        seen = any(client.counts for client in each.values())
        self._counts |= seen
        return seen

    @property
    def mark(self) -> int:
        """What grows while an engine works: two equal marks mean that none did."""
        return sum(self._busy.values()) + sum(one.busy for one in self._ticks.values())

    def usage(self) -> Usage | None:
        """The sum so far; None where no driver counts."""
        if not self._counts:
            return None
        engines: dict[str, float] = {}
        for (_, engine), busy in self._busy.items():
            engines[engine] = engines.get(engine, 0.0) + busy / 1e9
        for (_, engine), ticks in self._ticks.items():
            engines[engine] = engines.get(engine, 0.0) + ticks.seconds
        worked = {engine: round(spent, 6) for engine, spent in sorted(engines.items())}
        return Usage(tuple((engine, spent) for engine, spent in worked.items() if spent), self._memory)


class _Ticks:
    """An engine's ticks, and its clock between the first reading and the last."""

    def __init__(self, elapsed: int, at: float) -> None:
        self.busy = 0
        self._first = self._last = (elapsed, at)

    def see(self, busy: int, elapsed: int, at: float) -> None:
        self.busy = max(busy, self.busy)
        self._last = (elapsed, at)

    @property
    def seconds(self) -> float:
        ticks, span = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return self.busy / (ticks / span if ticks > 0 and span >= _SHORTEST_SPAN else XE_TICKS)
