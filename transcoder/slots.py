"""How much a device, or a container's CPUs, bear at a time: leases in Redis, shared by all workers that see the same.

A job costs the pixels per second that it encodes at the source's own pace, so that a 4K job weighs more than a 360p
one. A device's leases lie under the boot of its host and its address, because the iGPUs of all hosts share one address.
A lease lives on its worker's word and runs out when that is missing. Where Redis is away a running job goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from typing import Any, Final

import redis

from transcoder.errors import JobCancelled

TTL = 15.0
"""Seconds that a lease lives without a word from its worker."""

_RENEWED = TTL / 5
_LOOK = 0.3
"""Seconds in which a waiting job looks whether it was cancelled; a free slot wakes it at once."""
_KEPT = 3600
_GROUPS: Final = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup")
"""Where the group of a container lies whose quota counts, by cgroup v1 and v2."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What can be shared: its key among all hosts, its name for people, its budget in pixels per second."""

    key: str
    name: str
    budget: float


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a capacity is taken, in pixels per second, and how many jobs wait for more."""

    used: float
    budget: float
    waiting: int


def of_device(device: str, budget: float) -> Capacity:
    """A device by its address: shared by every container of this host that sees it."""
    return Capacity(f"{boot()}:{device}", device, budget)


def of_cpus(budget: float) -> Capacity:
    """The CPUs: shared by every worker that has the same quota, which is to say the same group, and the same CPUs.

    So two workers in one container share, and two containers, or two workers that are pinned to different CPUs, do not.
    """
    allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    group = next((os.stat(path).st_ino for path in _GROUPS if os.path.isdir(path)), 0)
    return Capacity(f"{boot()}:cpu:{hashlib.sha256(f'{group} {allowed}'.encode()).hexdigest()[:12]}", "cpu", budget)


class Slots:
    """The leases of one worker. Safe to share between threads."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._script = connection.register_script(_script())
        self._lock = Lock()
        self._held: dict[str, tuple[Capacity, float]] = {}
        self._owed: dict[str, Capacity] = {}
        self._renewed = 0.0

    @contextmanager
    def slot(
        self,
        capacity: Capacity,
        cost: float,
        lease: str,
        *,
        behind: float = 0.0,
        cancelled: Callable[[], bool] = lambda: False,
        waits: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Hold `cost` pixels per second of a capacity; one that costs more than there is has all of it, alone.

        Waits for it, also while Redis is away; `waits` is called once where it is not free at once. `lease` is a name
        that nobody else has. It stands in the line as if it had come `behind` seconds later.

        Raises:
            JobCancelled: it was `cancelled` while it waited.
        """
        words = {"place": capacity.key, "lease": lease, "cost": cost, "budget": capacity.budget, "behind": behind}
        self._take(capacity, words, cancelled, waits)
        with self._lock:
            self._held[lease] = (capacity, cost)
        try:
            yield
        finally:
            with self._lock:
                del self._held[lease]
            self._give_back(capacity, lease)

    def renew(self) -> None:
        """Say that the leases are still held, and give back those that could not be while Redis was away.

        To be called several times a second; it keeps its own pace.
        """
        now = monotonic()
        with self._lock:
            held = [(capacity.key, lease, cost) for lease, (capacity, cost) in self._held.items()]
            owed = dict(self._owed)
        if not (held or owed) or now - self._renewed < _RENEWED:
            return
        self._renewed = now
        with suppress(redis.RedisError, OSError):  # the next time will do
            if held:
                self._change("renew", leases=held)
            for lease, capacity in owed.items():
                self._change("release", place=capacity.key, lease=lease)
                with self._lock:
                    self._owed.pop(lease, None)

    def forget(self, beginning: str) -> None:
        """Give back the leases whose names begin so: their worker is gone, and those who wait need not wait for it."""
        with suppress(redis.RedisError, OSError):  # they run out by themselves
            self._change("forget", beginning=beginning)

    def usage(self, capacities: Sequence[Capacity]) -> Mapping[str, Usage]:
        """How much of each is taken by all who share it, by name.

        Raises:
            RedisError: Redis does not answer.
        """
        _, *found = self._change("usage", places=[one.key for one in capacities])
        return {
            one.name: Usage(float(used), one.budget, waiting)
            for one, (used, waiting) in zip(capacities, found, strict=True)
        }

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def _take(
        self,
        capacity: Capacity,
        words: Mapping[str, object],
        cancelled: Callable[[], bool],
        waits: Callable[[], None],
    ) -> None:
        lease, told = str(words["lease"]), False
        while True:
            try:
                if self._change("ask", **words) == ["yours"]:
                    return
            except (redis.RedisError, OSError):
                sleep(_LOOK)
            if not told:
                waits()
                told = True
            with suppress(redis.RedisError, OSError):
                if self._redis.blpop([f"transcoder:slots:wake:{lease}"], timeout=_LOOK):
                    return
            if cancelled():
                self._give_back(capacity, lease)
                raise JobCancelled(f"the job was cancelled while it waited for {capacity.name}")

    def _give_back(self, capacity: Capacity, lease: str) -> None:
        try:
            self._change("release", place=capacity.key, lease=lease)
        except (redis.RedisError, OSError):
            with self._lock:
                self._owed[lease] = capacity

    def _change(self, operation: str, **words: object) -> list[Any]:
        answer: list[Any] = self._script(args=[operation, json.dumps(words)])
        return answer


def boot() -> str:
    """This start of this host, which all its containers see alike."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _script() -> str:
    constants = f"local TTL, KEPT = {round(TTL)}, {_KEPT}\n"
    return constants + Path(__file__).with_name("slots.lua").read_text(encoding="utf-8")
