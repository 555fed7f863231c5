"""How a worker tells the benchmark when a job began: a datagram with the job's id and the monotonic clock.

The receiver blocks in the kernel: nobody polls while a latency is measured.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

VARIABLE = "BARE_STAMPS"


def stamp(job_id: str, at: int) -> None:
    """Tell that a job began `at` so many nanoseconds of the monotonic clock, which all processes share."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{job_id} {at}".encode(), os.environ[VARIABLE])


class Stamps:
    """The receiving end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def wait_for(self, job_id: str, patience: float = 20.0) -> int:
        """When this job began; others that come meanwhile are passed over."""
        while True:
            name, at = self.next(patience)
            if name == job_id:
                return at

    def next(self, patience: float = 20.0) -> tuple[str, int]:
        """The next job that began, whichever it is, and when.

        Raises:
            TimeoutError: none did for so many seconds.
        """
        self._socket.settimeout(patience)
        name, at = self._socket.recv(256).decode().split()
        return name, int(at)

    def close(self) -> None:
        self._socket.close()
        os.unlink(self.path)
