"""From a worker's start to the first line of its first job, which waits in the queue already, against bare Celery.

Ours is the command `transcoder worker` as it is, with its metrics and its look at the machine, which a start before has
remembered; its log says when the first job began. Bare Celery is the command `celery worker` with a pool of threads and
the settings of ours. The same worker started from Python, without click, is shown beside it: nobody starts it so, but
it is the floor.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bare, material, stamps, stand_in
from benchmarks.figures import quantile, ratio
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec
from benchmarks.suites.hop import bare_worker, same_options
from tests import services
from transcoder.client import Client

BOUND = 1.4
_CELERY = ("-m", "celery", "--quiet", "--app", "benchmarks.bare", "worker", "--concurrency", "1", "--without-gossip",
           "--without-mingle", "--without-heartbeat")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bare:
    """What every start of the bare worker needs."""

    heard: stamps.Stamps
    options: dict[str, Any]
    task: Any


def run(stand: Stand) -> list[Row]:
    room = stand.room("start")
    heard = stamps.Stamps(room / "stamps")
    # Celery's own pool: ours would import transcoder into the bare worker
    options = same_options(stand.redis.url) | {"worker_pool": "threads"}
    task = bare.app_for(stand.redis.url, options).tasks[bare.TASK]
    recording = stand_in.record(stand, spec(material.tiny(), str(room / "recorded.mp4"), 360), room / "recording")
    settings = {
        "TRANSCODER_FFMPEG": stand_in.fast_ffmpeg(recording, room / "fast-ffmpeg"),
        "TRANSCODER_FFPROBE": stand_in.fast_ffprobe(recording, room / "fast-ffprobe"),
        "TRANSCODER_CACHE_FOLDER": str(stand.folder / "cache"),
        "TRANSCODER_LOG_FORMAT": "json",
    }
    client = Client(stand.redis.url)
    theirs = partial(_bare, stand, room, Bare(heard, options, task))
    arms = {
        "ours": partial(_ours, stand, room, client, settings),
        "bare": partial(theirs, "bare"),
        "again": partial(theirs, "again"),
        "celery": partial(theirs, "celery", (sys.executable, *_CELERY)),
    }
    for arm in arms.values():
        arm()
    for _ in range(stand.times(5, 25)):
        stand.block("start", arms)
    client.close()
    heard.close()
    return rows(stand.raw["start"], stand.seed)


def _ours(stand: Stand, room: Path, client: Client, settings: dict[str, str]) -> Block:
    job_id = client.submit(spec(material.tiny(), str(room / f"{secrets.token_hex(4)}.mp4"), 360))
    worker = services.Worker(stand.redis.url, room / "workers", stand.roots, concurrency=1, settings=settings)
    began = time.time()
    services.Service.start(worker)  # without waiting for its health
    try:
        client.wait(job_id, every=0.1)
    finally:
        worker.kill()
    return {"ours.start": _probing(worker.log(), job_id) - began}


def _probing(log: str, job_id: str) -> float:
    """When the job began, by the log: milliseconds of some hundreds."""
    for line in log.splitlines():
        said = json.loads(line)
        if said.get("job") == job_id and said["event"] == "probing":
            return datetime.fromisoformat(said["time"]).timestamp()
    raise RuntimeError(f"the worker's log does not say that job {job_id} began:\n{log}")


def _bare(stand: Stand, room: Path, bench: Bare, name: str, command: tuple[str, ...] = ()) -> Block:
    job_id = secrets.token_hex(8)
    bench.task.apply_async((job_id,))
    began = time.monotonic()
    with bare_worker(stand.redis.url, room, bench.heard, bench.options, *command):
        return {f"{name}.start": bench.heard.wait_for(job_id) / 1e9 - began}


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    def over(arm: str, base: str = "bare") -> Any:
        return ratio([(block[f"{arm}.start"], block[f"{base}.start"]) for block in blocks], seed)

    ours, command, lean = (
        quantile([block[f"{arm}.start"] for block in blocks], 0.5) * 1e3 for arm in ("ours", "celery", "bare")
    )
    return [
        Row("start", "Worker start to first job / the same with the `celery` command", over("ours", "celery"), "ratio",
            len(blocks), BOUND, note=f"{ours:.0f} / {command:.0f} ms"),
        Row("start", "The same / Celery started from Python, without its command line", over("ours"), "ratio",
            len(blocks), note=f"{ours:.0f} / {lean:.0f} ms"),
        Row("start", "Noise floor: Celery from Python / Celery from Python", over("again"), "ratio", len(blocks)),
    ]  # fmt: skip
