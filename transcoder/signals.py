"""Signals that end a program in order: a worker for good, a verb while it is at work."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

Hear = Callable[[int, FrameType | None], object]


def on_end(hear: Hear) -> None:
    """Call `hear` at each of them, in the main thread, from now on.

    SIGHUP is that of a terminal that is closed. Who ignores it from the start (nohup) shall outlive the terminal.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hear)


@contextmanager
def heard(numbers: Sequence[signal.Signals], hear: Hear) -> Iterator[None]:
    """Call `hear` at each of these inside of the block."""
    before = [signal.signal(number, hear) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
