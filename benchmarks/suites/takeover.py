"""From the kill of a worker to the next attempt at its job, by another worker that has a place free.

Two real workers with one place each; the one that encodes is killed (SIGKILL), its job begins again in the other, as
the record says, and another worker takes the dead one's place. How far into its heartbeat a worker is when it dies is
chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks import material
from benchmarks.figures import bootstrap, quantile
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec
from tests import services
from transcoder.client import Client, Status

BOUND = 5.0
PATIENCE = 60.0


def run(stand: Stand) -> list[Row]:
    room, source = stand.room("takeover"), material.clip(60, 720)
    with ExitStack() as stack:
        client = Client(stand.redis.url)
        stack.callback(client.close)

        def hired() -> services.Worker:
            cache = {"TRANSCODER_CACHE_FOLDER": str(stand.folder / "cache")}
            return stack.enter_context(
                services.worker(stand.redis.url, room, stand.roots, concurrency=1, **cache),
            )

        workers = [hired(), hired()]
        for turn in range(stand.times(10, 40)):
            job_id = client.submit(spec(source, str(room / f"made-{turn}.mp4"), 720))
            owner = until(client, job_id, lambda status: status.phase == "encoding").owner or ""
            time.sleep(stand.random.uniform(0, 0.5))
            victim = next(one for one in workers if f"-{one.pid}-" in owner)
            killed = time.time()
            victim.kill()
            begun = until(client, job_id, lambda status: status.attempts == 2).started or 0.0
            stand.raw.setdefault("takeover", []).append({"again": begun - killed})
            client.cancel(job_id)
            until(client, job_id, lambda status: status.is_finished)
            workers = [one for one in workers if one is not victim] + [hired()]
    return rows(stand.raw["takeover"], stand.seed)


def until(client: Client, job_id: str, true: Callable[[Status], bool]) -> Status:
    """The job's status as soon as that is true of it.

    Raises:
        TimeoutError: it is not, for too long.
    """
    deadline = time.monotonic() + PATIENCE
    while not true(status := client.status(job_id)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job is {status.state}, {status.phase}")
        time.sleep(0.02)
    return status


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    seconds = [block["again"] for block in blocks]
    return [
        Row("takeover", f"A killed worker's job begins again in another, p{share * 100:.0f}",
            bootstrap(partial(quantile, share=share), seconds, seed=seed), "s", len(seconds), BOUND)
        for share in (0.5, 0.95)
    ]  # fmt: skip
