"""Which signals end a worker in order."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

Hear = Callable[[int, FrameType | None], object]


def on_end(hear: Hear) -> None:
    """Call `hear` at each of them, in the main thread, from now on.

    SIGHUP is that of a terminal that is closed. Who ignores it from the start (nohup) shall outlive the terminal.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hear)
