"""Bare Celery beside ours: one task that notes when it starts. Imports nothing of transcoder.

As a program it is the worker. BARE_BROKER is the address of Redis, BARE_OPTIONS a Python literal with Celery's
settings, BARE_STAMPS the socket that the task writes its time to.
"""

from __future__ import annotations

import ast
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, signals
from kombu import Exchange, Queue

from benchmarks.stamps import stamp

QUEUE = "bare"
TASK = "bare.note"


def app_for(broker_url: str, options: Mapping[str, Any]) -> Celery:
    """An application with one task on a queue of its own."""
    made = Celery("bare", broker=broker_url, set_as_current=False)
    made.conf.update(dict(options))
    made.conf.task_default_queue = QUEUE
    made.conf.task_queues = [Queue(QUEUE, Exchange(""), routing_key=QUEUE)]
    made.task(name=TASK, ignore_result=True)(note)
    return made


def note(job_id: str) -> None:
    stamp(job_id, time.monotonic_ns())


def from_environment() -> Celery:
    return app_for(os.environ["BARE_BROKER"], ast.literal_eval(os.environ["BARE_OPTIONS"]))


def main() -> None:
    signals.setup_logging.connect(lambda **_: logging.basicConfig(level="WARNING"), weak=False)
    options: dict[str, Any] = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True, "quiet": True}
    from_environment().Worker(concurrency=1, **options).start()


if __name__ == "__main__":
    main()
elif "BARE_OPTIONS" in os.environ:
    app = from_environment()  # for `celery --app benchmarks.bare`
