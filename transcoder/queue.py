"""Celery configured, and a job's message made ready for its queue.

Celery distributes the work; the ledger is the truth about it. So a message carries a job's id and nothing else, no
result is stored in Celery, and the settings below choose the simplest way that takes a message to one free place.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from transcoder import ledger, signals
from transcoder.ledger import Message
from transcoder.machine import SOFTWARE
from transcoder.placement import QUEUES, queue_name

if TYPE_CHECKING:
    from celery import Celery  # imported where it is used: a client needs only the names and the message

TASK: Final = "transcoder.run"
"""The one task; its argument is the job's id."""

DEFAULT: Final = queue_name(SOFTWARE)


def message(job_id: str, priority: int, queue: str = DEFAULT) -> Message:
    """A job's message as Celery's own producer would put it on that queue (task protocol 2 in kombu's envelope).

    It is made here because the ledger writes it in the same step as the record. A test holds it against a message
    that Celery itself has sent.
    """
    level, name = ledger.step(priority), f"{job_id}.{secrets.token_hex(4)}"
    body = json.dumps([[job_id], {}, _EMBED]).encode()
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {**_HEADERS, "id": name, "root_id": name, "argsrepr": f"('{job_id}',)"},
        "properties": {
            "correlation_id": name,
            "delivery_mode": 2,
            # without an exchange a message goes to the queue of its routing key, and so it does when it is given back
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": level,
            "body_encoding": "base64",
            "delivery_tag": secrets.token_hex(16),
        },
    }
    return Message(queue, ledger.STEPS[level], json.dumps(envelope))


_EMBED: Final[dict[str, Any]] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_HEADERS: Final[dict[str, Any]] = {
    "lang": "py",
    "task": TASK,
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "kwargsrepr": "{}",
    "origin": "transcoder",
    "ignore_result": True,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}


_imported = Event()


class Served:
    """The queues that a free place asks for a job, in that order: what is served at the moment of asking.

    It stands in for kombu's cycle of queues. Every queue of the schema is declared from the start and this says which
    are asked; so one is added or left without a word to Celery, and a message that is on its way from a queue that
    has just been left still finds its consumer. A question to Redis waits for a second at most: that long it takes.
    """

    def __init__(self, served: Callable[[], Sequence[str]]) -> None:
        self._served = served

    def update(self, queues: Sequence[str]) -> None:
        """What is declared does not matter."""

    def consume(self, _: int) -> list[str]:
        """The queues to ask now."""
        return list(self._served())

    def rotate(self, last: str) -> str:
        """Nothing rotates: hardware comes before software at every turn."""
        return last


def app_for(broker_url: str, served: Callable[[], Sequence[str]] = lambda: (DEFAULT,)) -> Celery:
    """The Celery application over that Redis, which knows every queue of this version's schema."""
    from celery import Celery
    from kombu import Exchange, Queue

    app = Celery("transcoder", broker=broker_url, set_as_current=False)
    cycle = {"queue_order_strategy": partial(Served, served)}
    app.conf.update(_CONSUMING | _QUIET | {"broker_transport_options": _TRANSPORT | cycle})
    # the default exchange: a queue is reached by its name and needs no table of bindings
    names = [queue_name(queue) for queue in QUEUES]
    app.conf.task_queues = [Queue(name, Exchange(""), routing_key=name) for name in names]
    return app


def consume(
    broker_url: str,
    run: Callable[[str], None],
    *,
    name: str,
    concurrency: int,
    ready: Callable[[], None],
    served: Callable[[], Sequence[str]] = lambda: (DEFAULT,),
    ending: Callable[[], None] = lambda: None,
) -> int:
    """Call `run` with the id of every job that comes, in as many threads as `concurrency` says, until a signal.

    `served` is asked for the names of the queues every time before a job is taken; `bell.ring` after a change makes it
    heard sooner. `ready` is called when the first message may come.

    A signal to end lets it take no more, and return when the running jobs have ended; `ending` is called at each, in
    the signal's handler. Gives the exit code, 0 after a signal.
    """
    from celery.exceptions import SecurityWarning
    from celery.signals import setup_logging, worker_ready
    from celery.worker import state

    from transcoder.places import Program

    _imported.set()

    def hear(*_: object) -> None:
        # not by `stop`: at the lock of its event a second signal, in the midst of the first, would wait for itself
        state.should_stop = 0  # type: ignore[assignment] # its stub knows only the value at first
        ending()

    signals.on_end(hear)
    # about running as root, which is dangerous with pickle; here is only JSON
    warnings.simplefilter("ignore", SecurityWarning)
    app = app_for(broker_url, served)
    app.task(name=TASK, ignore_result=True)(run)

    def log_is_configured(**_: object) -> None:
        """A receiver of this signal makes Celery leave the loggers alone."""

    def consuming(**_: object) -> None:
        ready()

    setup_logging.connect(log_is_configured, weak=False)
    worker_ready.connect(consuming, weak=False)
    # two lines of Celery for every job, beside our own
    logging.getLogger("celery").setLevel(max(logging.WARNING, logging.getLogger().level))
    options = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True, "quiet": True}
    worker = Program(app=app, hostname=name, concurrency=concurrency, **options)
    worker.start()
    return int(worker.exitcode or 0)


def leaving() -> bool:
    """Whether this process was told to end: it finishes what it has and takes no more."""
    if not _imported.is_set():
        return False
    from celery.worker import state

    told: object = state.should_stop  # an exit code, 0 among them
    return told is not None and told is not False


def stop(exit_code: int = 0) -> None:
    """End `consume` within a second or so: the running jobs end first, no other is taken. From any thread but its own.

    Waits until `consume` has imported Celery: two threads that do that at once may lock each other out.
    """
    _imported.wait()
    from celery.worker import state

    state.should_stop = exit_code  # type: ignore[assignment] # its stub knows only the value at first


_CONSUMING: Final[dict[str, Any]] = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "task_ignore_result": True,
    "task_default_queue": DEFAULT,
    # Early, because the record says whether the job was done. Late would bring a message again after every
    # visibility_timeout (a three-hour encode would be offered three times) and its acknowledgement does not survive
    # a reconnect.
    "task_acks_late": False,
    # A worker takes a message when it has a free place, so that the next place goes to the most urgent job of that
    # moment. A multiplier of 1 does not do it: with early acknowledgement as many messages again as there are places
    # wait in the worker, where no later message can overtake them. worker_disable_prefetch counts the jobs in hand;
    # the multiplier of 0 takes the other count, of unacknowledged messages, out of the way.
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 0,
    "worker_enable_prefetch_count_reduction": False,
    # The task waits for ffmpeg, a process: threads do that as fast as processes, with 60 % of the memory and one
    # registry of metrics, and a job's process group is ended by the thread that waits for it.
    "worker_pool": "transcoder.places:Places",
    # Redis may come up after the worker, and may go away for as long as it likes
    "worker_consumer": "transcoder.places:Patient",
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # set so that Celery does not warn at every reconnect; it only concerns late acknowledgement
    "worker_cancel_long_running_tasks_on_connection_loss": True,
}

_QUIET: Final[dict[str, Any]] = {
    # The ledger has the heartbeats, and cancelling goes through it: without Celery's own a worker starts sooner and
    # sends Redis nothing while it waits.
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}

_TRANSPORT: Final[dict[str, Any]] = {
    "priority_steps": list(range(len(ledger.STEPS))),
    # Without it nothing is kept in `unacked`: with early acknowledgement a message would only pass through, at the
    # price of two more transactions, and the restoring of what is older than an hour. A message that is lost between
    # Redis and the claim is a queued record without message, which is found by its record.
    "ack_emulation": False,
    # A BRPOP waits for a second at most, so an answer that is overdue by this interval never comes; kombu looks every
    # so many seconds. A Redis that stands still is noticed after 4 to 7 s, by default after 26 to 51.
    "health_check_interval": ledger.HEALTH_CHECK,
    "socket_keepalive": True,
    "socket_keepalive_options": dict(ledger.KEEPALIVE),
    "socket_connect_timeout": ledger.CONNECT_TIMEOUT,
    # longer than the second for which a worker's BRPOP waits
    "socket_timeout": 5.0,
}
