"""A worker inside a cell: the product's whole path, beside cells that run ffmpeg alone.

The container has no network; what the worker says to Redis goes through a port of its own loopback to the socket in the
folder that all cells share.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from transcoder.children import dying_with_parent
from transcoder.vitals import family

_PERIOD = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")
_KEPT = ("TRANSCODER_DRI", "TRANSCODER_SYSFS", "TRANSCODER_PROC")
_PIECE = 65536

Json = dict[str, Any]


class Working:
    """A worker that runs until its agent ends. `asked` has `stacks`, `redis` (the socket), `database` and `roots`."""

    def __init__(self, folder: str, asked: Json) -> None:
        settings = {
            "BROKER_URL": f"redis://127.0.0.1:{forwarded(asked['redis'])}/{asked['database']}",
            "MEDIA_ROOTS": asked["roots"],
            "METRICS_PORT": "0",
            "THREADS": "1",  # as the cells have it that run ffmpeg alone
            "SOFTWARE_BUDGET": "1e12",  # how many run at a time is the cell's to say
            "DEVICE_BUDGET": "1e12",
        }
        kept = {name: text for name, text in os.environ.items() if not name.startswith("TRANSCODER_") or name in _KEPT}
        environment = {**kept, **{f"TRANSCODER_{name}": text for name, text in settings.items()}}
        words = [sys.executable, "-m", "transcoder", "worker", "--concurrency", str(asked["stacks"])]
        with open(f"{folder}/worker.log", "ab") as log:
            self._process = subprocess.Popen(
                dying_with_parent(words),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._pss = 0
        self._before = (0.0, 0.0)
        self._watched = threading.Event()

    def watch(self) -> None:
        """From now on its use of CPU and memory counts."""
        self._before, self._pss = _cpu(self.pid), 0
        self._watched.clear()
        threading.Thread(target=self._weigh, daemon=True).start()

    def used(self) -> Json:
        """Seconds of the CPU since then, of the worker and of what it has run, and the most memory of all together."""
        self._watched.set()
        user, system = _cpu(self.pid)
        return {"cpu_user": user - self._before[0], "cpu_system": system - self._before[1], "pss": self._pss}

    def _weigh(self) -> None:
        while not self._watched.wait(_PERIOD):
            self._pss = max(self._pss, sum(map(pss, family(self.pid))))


def pss(process: int) -> int:
    """Bytes of memory that are its own, with its share of what others have mapped too; 0 where it is gone."""
    with suppress(OSError, ValueError), open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu(process: int) -> tuple[float, float]:
    """Seconds of user and system time, of the process and of the children that it has waited for (proc(5))."""
    with suppress(OSError), open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
        user, system, of_children, system_of_children = map(int, file.read().rpartition(")")[2].split()[11:15])
        return (user + of_children) / _TICKS, (system + system_of_children) / _TICKS
    return 0.0, 0.0


def forwarded(path: str) -> int:
    """A port of the loopback that leads to a socket of the file system, until this process ends."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(server, path), daemon=True).start()
    return int(server.getsockname()[1])


def _accept(server: socket.socket, path: str) -> None:
    while True:
        here, _ = server.accept()
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = socket.socket(socket.AF_UNIX)
        try:
            there.connect(path)
        except OSError:
            here.close()
            continue
        for one, other in ((here, there), (there, here)):
            threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        for data in _pieces(source):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _pieces(source: socket.socket) -> Iterator[bytes]:
    while data := source.recv(_PIECE):
        yield data
