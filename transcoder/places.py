"""Celery's pool of threads, with a bell: a place that becomes free is filled at once."""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any

from celery.concurrency.thread import TaskPool


class Places(TaskPool):
    """One thread a job.

    A worker that takes only what it has places for stops asking Redis while all are taken, and its event loop sleeps
    for up to a second before it looks again: with jobs of 10 ms each, that second is the time a job takes. The end of
    a job wakes the loop through a file descriptor.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        """Run a task in a free thread; the bell rings after all that Celery does at its end."""
        taken = super().on_apply(*args, **kwargs)
        taken.f.add_done_callback(self._ring)
        return taken

    def register_with_event_loop(self, loop: Any) -> None:
        """Called again after each reconnect, which clears the loop."""
        loop.add_reader(self._bell, os.eventfd_read, self._bell)

    def _ring(self, _: Future[Any]) -> None:
        os.eventfd_write(self._bell, 1)
