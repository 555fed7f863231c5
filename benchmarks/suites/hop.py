"""From submit to start against bare Celery's hop, and submit against apply_async: same Redis, pool and transport.

Both workers wait idle; each block sends one job to ours and two to the bare one, in an order of chance. Both ends note
the monotonic clock in the first line of what they were to do. The bare application has the settings of ours.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bare, material, stamps
from benchmarks.figures import bootstrap, quantile
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec
from tests import services
from transcoder import ledger, queue
from transcoder.client import Client

HOP_BOUND, SUBMIT_BOUND = 1.5, 1.3
SAME = (
    "accept_content", "task_serializer", "task_ignore_result", "task_acks_late", "worker_disable_prefetch",
    "worker_prefetch_multiplier", "worker_enable_prefetch_count_reduction", "worker_pool", "broker_transport_options",
    "broker_connection_retry_on_startup", "worker_enable_remote_control", "worker_send_task_events",
    "task_send_sent_event", "worker_hijack_root_logger", "worker_redirect_stdouts",
)  # fmt: skip
"""Settings of ours that the bare application has as well."""
ORDER = "queue_order_strategy"


def run(stand: Stand) -> list[Row]:
    room = stand.room("hop")
    heard = stamps.Stamps(room / "stamps")
    options = same_options(stand.redis.url)
    environment = {stamps.VARIABLE: heard.path, "TRANSCODER_CACHE_FOLDER": str(stand.folder / "cache")}
    with bare_worker(stand.redis.url, room, heard, options), stamped_worker(stand, room, environment):
        client = Client(stand.redis.url)
        task = bare.app_for(stand.redis.url, options).tasks[bare.TASK]
        arms = {
            "ours": partial(_ours, stand, client, heard, room),
            "bare": partial(_bare, stand, task, heard, "bare"),
            "again": partial(_bare, stand, task, heard, "again"),
        }
        for _ in range(5):
            for arm in arms.values():
                arm()
        for _ in range(stand.times(80, 400)):
            stand.block("hop", arms)
        client.close()
    heard.close()
    return rows(stand.raw["hop"], stand.seed)


def same_options(url: str) -> dict[str, Any]:
    """The settings that both have. The order of the queues is not among them: the bare worker has one queue."""
    ours = queue.app_for(url).conf
    transport = {name: value for name, value in ours["broker_transport_options"].items() if name != ORDER}
    return {name: ours[name] for name in SAME} | {"broker_transport_options": transport}


@contextmanager
def bare_worker(
    url: str, room: Path, heard: stamps.Stamps, options: dict[str, Any], *command: str
) -> Iterator[services.Service]:
    """A worker of bare Celery, that has been started but may not be ready."""
    words = command or (sys.executable, "-m", "benchmarks.bare")
    service = services.Service(words, room / "bare.log", bare_environment(url, heard, options))
    service.start()
    try:
        yield service
    finally:
        service.kill()


def bare_environment(url: str, heard: stamps.Stamps, options: dict[str, Any]) -> dict[str, str]:
    return {**os.environ, "BARE_BROKER": url, "BARE_OPTIONS": repr(options), stamps.VARIABLE: heard.path}


@contextmanager
def stamped_worker(stand: Stand, room: Path, settings: dict[str, str]) -> Iterator[services.Worker]:
    """Our worker, whose jobs only note their beginning."""
    service = services.Worker(stand.redis.url, room, map(Path, stand.policy.roots), concurrency=1, settings=settings)
    place = service.command.index("transcoder")
    service.command[place : place + 2] = ["benchmarks.stamped_worker"]
    try:
        service.start()
        yield service
    finally:
        service.stop()


def _settle(stand: Stand) -> None:
    """Both workers have written their records and wait again."""
    time.sleep(stand.random.uniform(0.02, 0.05))


def _ours(stand: Stand, client: Client, heard: stamps.Stamps, room: Path) -> Block:
    asked = spec(material.tiny(), str(room / f"{secrets.token_hex(4)}.mp4"), 720)
    _settle(stand)
    began = time.monotonic_ns()
    job_id = client.submit(asked)
    submitted = time.monotonic_ns()
    return {"ours.submit": (submitted - began) / 1e9, "ours.hop": (heard.wait_for(job_id) - began) / 1e9}


def _bare(stand: Stand, task: Any, heard: stamps.Stamps, name: str) -> Block:
    job_id = secrets.token_hex(8)
    _settle(stand)
    began = time.monotonic_ns()
    task.apply_async((job_id,), priority=ledger.step(5))
    submitted = time.monotonic_ns()
    return {f"{name}.submit": (submitted - began) / 1e9, f"{name}.hop": (heard.wait_for(job_id) - began) / 1e9}


def over_bare(blocks: Sequence[Block], what: str, share: float, arm: str = "ours") -> float:
    """A quantile of an arm over the same quantile of the bare arm."""
    ours, others = [block[f"{arm}.{what}"] for block in blocks], [block[f"bare.{what}"] for block in blocks]
    return quantile(ours, share) / quantile(others, share)


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    names = {
        "hop": ("Submit to start / bare Celery's hop", HOP_BOUND),
        "submit": ("Submit / apply_async", SUBMIT_BOUND),
    }
    found = []
    for what, (goal, bound) in names.items():
        for share in (0.5, 0.95):
            ours, theirs = (quantile([block[f"{arm}.{what}"] for block in blocks], share) for arm in ("ours", "bare"))
            found.append(
                Row("hop", f"{goal}, p{share * 100:.0f}",
                    bootstrap(partial(over_bare, what=what, share=share), blocks, seed=seed), "ratio", len(blocks),
                    bound, note=f"{ours * 1e3:.2f} / {theirs * 1e3:.2f} ms"),
            )  # fmt: skip
    noise = bootstrap(partial(over_bare, what="hop", share=0.5, arm="again"), blocks, seed=seed)
    return [*found, Row("hop", "Noise floor of that: bare hop against bare hop, p50", noise, "ratio", len(blocks))]
