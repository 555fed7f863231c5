"""Room on file systems: what running jobs may still write is reserved in Redis, by all workers that see the same one.

A file system is known by its host's boot and its device number. What a job has written already is no longer reserved,
since it is no longer free. A reservation lives on its worker's word and runs out when that is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from typing import Any

import redis

from transcoder.errors import JobCancelled
from transcoder.slots import boot

TTL = 15.0
"""Seconds that a reservation lives without a word from its worker."""

_RENEWED = TTL / 5
_AGAIN = 0.3
_KEPT = 3600


class Short(Exception):
    """A file system has too little room for a job, now. Sizes in bytes; `reserved` is what others may still write."""

    def __init__(self, folder: str, need: int, free: int, reserved: int) -> None:
        told = f"the job may need {_size(need)} in {folder!r}, where {_size(max(0, free - reserved))} are to be had"
        super().__init__(f"{told} ({_size(free)} free, {_size(reserved)} reserved by running jobs)")


class Space:
    """The reservations of one worker. Safe to share between threads."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._script = connection.register_script(_script())
        self._lock = Lock()
        self._held: dict[str, tuple[str, str, int]] = {}
        self._renewed = 0.0

    @contextmanager
    def room(
        self, folder: str, need: int, lease: str, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Hold so many bytes of the file system of `folder`, which they are going to be written to.

        Waits while Redis is away. `lease` is a name that nobody else has.

        Raises:
            Short: there is too little room.
            JobCancelled: it was `cancelled` while Redis was away.
        """
        place = f"{boot()}:{os.stat(folder).st_dev}"
        self._reserve(place, folder, need, lease, cancelled)
        with self._lock:
            self._held[lease] = (place, folder, need)
        try:
            yield
        finally:
            with self._lock:
                del self._held[lease]
            with suppress(redis.RedisError, OSError):  # it runs out by itself
                self._change("release", place=place, lease=lease)

    def renew(self) -> None:
        """Say what is still to be written; to be called several times a second, it keeps its own pace."""
        now = monotonic()
        with self._lock:
            held = list(self._held.items())
        if held and now - self._renewed >= _RENEWED:
            self._renewed = now
            leases = [(place, lease, max(0, need - _written(folder))) for lease, (place, folder, need) in held]
            with suppress(redis.RedisError, OSError):  # the next time will do
                self._change("renew", leases=leases)

    def _reserve(self, place: str, folder: str, need: int, lease: str, cancelled: Callable[[], bool]) -> None:
        while True:
            state = os.statvfs(folder)
            free = state.f_bavail * state.f_frsize
            try:
                answer = self._change("reserve", place=place, lease=lease, need=need, free=free)
            except (redis.RedisError, OSError):
                if cancelled():
                    raise JobCancelled("the job was cancelled while Redis was away") from None
                sleep(_AGAIN)
                continue
            if answer[0] == "short":
                raise Short(folder, need, free, int(answer[1]))
            return

    def _change(self, operation: str, **words: object) -> list[Any]:
        answer: list[Any] = self._script(args=[operation, json.dumps(words)])
        return answer


def _written(folder: str) -> int:
    """Bytes on disk of the files in a folder; those in folders of it do not count."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except OSError:  # gone by now
        return 0


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _script() -> str:
    return f"local TTL, KEPT = {round(TTL)}, {_KEPT}\n" + Path(__file__).with_name("space.lua").read_text(
        encoding="utf-8"
    )
