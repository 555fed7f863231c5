"""Memory of worker and ffmpeg together while a clip of 240 s is encoded, against one of 10 s; and of the worker alone.

The resident memory of the worker and all that it started, looked at every 10 ms, at its highest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks import machine_room, material
from benchmarks.figures import bootstrap, quantile, ratio
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec
from tests import services
from transcoder.client import Client

BOUND = 1.02
_EVERY = 0.01
_numbers = count()


def run(stand: Stand) -> list[Row]:
    room = stand.room("memory")
    with services.worker(
        stand.redis.url, room / "worker", stand.roots, concurrency=1,
        TRANSCODER_CACHE_FOLDER=str(stand.folder / "cache"),
    ) as worker:  # fmt: skip
        client = Client(stand.redis.url)
        arms = {
            name: partial(_peak, client, worker, room, material.clip(seconds, 360), name)
            for name, seconds in (("short", 10), ("again", 10), ("long", 240))
        }
        arms["short"]()  # what is imported once
        for number in range(1, stand.times(1, 4) + 1):
            stand.say(f"  memory block {number}")
            stand.block("memory", arms)
        client.close()
    return rows(stand.raw["memory"], stand.seed)


def _peak(client: Client, worker: services.Worker, room: Path, source: Path, name: str) -> Block:
    job_id = client.submit(spec(source, str(room / f"{next(_numbers)}.mp4"), 360))
    highest, looks = 0, 0
    while looks % 25 != 24 or not client.status(job_id).is_finished:
        highest = max(highest, machine_room.resident(*machine_room.family(worker.pid)))
        looks += 1
        time.sleep(_EVERY)
    client.wait(job_id)
    return {f"{name}.peak": highest, f"{name}.idle": machine_room.resident(worker.pid)}


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    def idle(some: Sequence[Block]) -> float:
        return quantile([block["long.idle"] for block in some], 0.5)

    def peak(some: Sequence[Block]) -> float:
        return quantile([block["long.peak"] for block in some], 0.5)

    return [
        Row("memory", "Memory of worker + ffmpeg, 240 s clip / 10 s clip",
            ratio([(block["long.peak"], block["short.peak"]) for block in blocks], seed), "ratio", len(blocks), BOUND),
        Row("memory", "Noise floor of that: 10 s clip / 10 s clip",
            ratio([(block["again.peak"], block["short.peak"]) for block in blocks], seed), "ratio", len(blocks)),
        Row("memory", "Worker + ffmpeg at their highest, 360p", bootstrap(peak, blocks, seed=seed), "MB", len(blocks)),
        Row("memory", "Worker alone after its jobs, metrics on", bootstrap(idle, blocks, seed=seed), "MB",
            len(blocks)),
    ]  # fmt: skip
