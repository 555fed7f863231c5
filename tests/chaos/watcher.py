"""Looks all the time at the folders of targets: a name appears in one step, whole, and nothing is written under it.

The kernel tells of every change (inotify(7)). What is made under a final name instead of renamed to it, or written to
after it got its name, is against the promise, and so is a file that is not whole when it appears.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_Q_OVERFLOW = 0x2, 0x80, 0x100, 0x4000
_EVENT = struct.Struct("iIII")
SCRATCH = ".transcoder-"


@dataclass
class Watcher:
    """`wrong` is what must not have been seen; `seen` are the checksums under which each name appeared."""

    folders: list[Path]
    ignore: frozenset[str] = frozenset()
    wrong: list[str] = field(default_factory=list)
    seen: dict[Path, list[str]] = field(default_factory=dict)

    def start(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._handle = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        masks = IN_MODIFY | IN_MOVED_TO | IN_CREATE
        self._watched = {
            libc.inotify_add_watch(self._handle, os.fsencode(folder), masks): folder for folder in self.folders
        }
        assert -1 not in self._watched
        self._ended = Event()
        self._thread = Thread(target=self._live, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._handle)

    def _live(self) -> None:
        while not self._ended.wait(0.002):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            data = os.read(self._handle, 1 << 20)
        except BlockingIOError:
            return
        for mask, path in self._events(data):
            if mask & IN_Q_OVERFLOW:
                self.wrong.append("the watcher was too slow: the kernel dropped events")
            elif path.name.startswith(SCRATCH) or path.name in self.ignore:
                continue
            elif mask & IN_MOVED_TO:
                self._appeared(path)
            else:
                what = "written to under its final name" if mask & IN_MODIFY else "made under its final name"
                self.wrong.append(f"{path} was {what}")

    def _events(self, data: bytes) -> Iterator[tuple[int, Path]]:
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            yield mask, self._watched.get(number, Path("?")) / os.fsdecode(name)

    def _appeared(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # taken back already
            return
        if why := broken(path.name, content):
            self.wrong.append(f"{path} appeared {why}")
        self.seen.setdefault(path, []).append(hashlib.sha256(content).hexdigest())


def broken(name: str, content: bytes) -> str | None:
    """Why a file is not whole, if it is not: a manifest is JSON, an MP4 the sum of its boxes."""
    if name.endswith(".json"):
        try:
            json.loads(content)
        except ValueError:
            return "as half a manifest"
        return None
    at, boxes = 0, []
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, at + 8)
        if size < 8:
            break
        boxes.append(kind)
        at += size
    if at == len(content) and {b"ftyp", b"moov", b"mdat"}.issubset(boxes):
        return None
    return f"not whole: {len(content)} bytes, boxes {boxes}"
