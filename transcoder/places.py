"""Celery's parts, amended: a bell for the pool of threads, a consumer that looks for Redis more often, no signals."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from celery.apps.worker import Worker
from celery.concurrency.thread import TaskPool
from celery.worker import state
from celery.worker.consumer import Consumer

from transcoder import bell

RECONNECT = 1.0
"""Seconds between two attempts to reach a Redis that is away."""

_TOLD_EVERY = 60


class Program(Worker):
    """Leaves the signals alone, which are ours.

    Celery's own handlers write plain text on stdout, among the lines of the log; SIGHUP starts the program anew, and
    SIGINT and SIGQUIT cancel what runs, which a pool of threads cannot.
    """

    def install_platform_tweaks(self, worker: Any) -> None:
        """Celery sets its handlers here."""

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """However it came to this, no place takes another job from now on."""
        _leave(exitcode)
        super().stop(in_sighandler, exitcode)

    def terminate(self, in_sighandler: bool = False) -> None:
        """As `stop`."""
        _leave(None)
        super().terminate(in_sighandler)


def _leave(exitcode: int | None) -> None:
    """Celery sets this at a signal, and not where its consumer dies of an error."""
    told: object = state.should_stop  # an exit code, 0 among them
    if told is None or told is False:
        state.should_stop = exitcode or 0  # type: ignore[assignment] # its stub knows only the value at first


class Patient(Consumer):
    """Looks for Redis every second and says so once a minute.

    Celery's own intervals grow to 30 s, for which a Redis that is back would wait for its workers.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """Wait until the broker answers."""
        conn.ensure_connection = partial(_ensure, conn.ensure_connection)
        return super().ensure_connected(conn)


def _ensure(ensure: Callable[..., Any], failed: Callable[..., None], *args: Any, **options: Any) -> Any:
    attempts = count()

    def told_seldom(*what: Any) -> None:
        if next(attempts) % _TOLD_EVERY == 0:
            failed(*what)

    return ensure(told_seldom, *args, interval_start=RECONNECT, interval_step=0, **options)


class Places(TaskPool):
    """One thread a job, and a bell at its end.

    A worker that takes only what it has places for stops asking Redis while all are taken, and its event loop sleeps
    for up to a second before it looks again. So the end of a job wakes the loop, through a file descriptor: 40 jobs
    of 10 ms on two places take 0.24 s, and 17 s without the bell.
    """

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        """Run a task in a free thread; the bell rings after all that Celery does at its end."""
        taken = super().on_apply(*args, **kwargs)
        taken.f.add_done_callback(_ring)
        return taken

    def register_with_event_loop(self, loop: Any) -> None:
        """Called again after each reconnect, which clears the loop."""
        loop.add_reader(bell.DESCRIPTOR, os.eventfd_read, bell.DESCRIPTOR)


def _ring(_: Future[Any]) -> None:
    bell.ring()
