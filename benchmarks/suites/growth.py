"""Memory of a worker that runs thousands of jobs.

A real worker, two jobs at a time, real Redis, records, probes' answers read, files checked, synced and published. Stood
in for are ffmpeg (it copies a finished file and says what the real one said, of the decode check too) and ffprobe (it
prints what the real one printed).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine_room, material, stand_in
from benchmarks.figures import Interval, quantile
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec
from tests import services
from transcoder.client import Client

BOUND = 1e6
JOBS = 5000
_BEFORE = 200
"""Jobs before the first look: what is imported and allocated once is no growth."""
_AT_ONCE = 100


def run(stand: Stand) -> list[Row]:
    room = stand.room("growth")
    source = material.tiny()
    recording = stand_in.record(stand, spec(source, str(room / "recorded.mp4"), 360), room / "recording")
    with services.worker(
        stand.redis.url, room / "worker", stand.roots, concurrency=2,
        TRANSCODER_FFMPEG=stand_in.fast_ffmpeg(recording, room / "fast-ffmpeg"),
        TRANSCODER_FFPROBE=stand_in.fast_ffprobe(recording, room / "fast-ffprobe"),
        TRANSCODER_CACHE_FOLDER=str(stand.folder / "cache"),
    ) as worker:  # fmt: skip
        client = Client(stand.redis.url)
        done = _batch(client, room, source, 0, _BEFORE)
        _look(stand, worker, 0)
        began = time.monotonic()
        jobs = stand.times(600, JOBS)
        while done < _BEFORE + jobs:
            done = _batch(client, room, source, done, _AT_ONCE)
            _look(stand, worker, done - _BEFORE)
            if (done - _BEFORE) % 1000 == 0:
                pace = (done - _BEFORE) / (time.monotonic() - began)
                stand.say(f"  {done - _BEFORE} of {jobs} jobs, {pace:.0f} a second")
        client.close()
    return rows(stand.raw["growth"])


def _batch(client: Client, room: Path, source: Path, done: int, jobs: int) -> int:
    """Run so many jobs, check that each was published, and clear their files away."""
    folder = room / f"made-{done}"
    folder.mkdir()
    ids = [client.submit(spec(source, str(folder / f"{number}.mp4"), 360)) for number in range(jobs)]
    for job_id in ids:
        client.wait(job_id, every=0.02)
    missing = jobs - len(list(folder.glob("*.mp4")))
    if missing:
        raise RuntimeError(f"{missing} of {jobs} jobs left no file")
    shutil.rmtree(folder)
    return done + jobs


def _look(stand: Stand, worker: services.Worker, jobs: int) -> None:
    time.sleep(0.1)  # until its last word to Redis is said
    stand.raw.setdefault("growth", []).append({"jobs": jobs, "resident": machine_room.resident(worker.pid)})


def rows(looks: Sequence[Block]) -> list[Row]:
    jobs = int(looks[-1]["jobs"])
    whole = [look["resident"] for look in looks]
    # the mean of what lies around each end, since one look sees what a batch has left for the moment
    width = max(1, len(whole) // 10)
    grown = quantile(whole[-width:], 0.5) - quantile(whole[:width], 0.5)
    late = quantile(whole[-width:], 0.5) - quantile(whole[len(whole) // 2 : len(whole) // 2 + width], 0.5)
    too_few = jobs < JOBS and grown <= BOUND
    return [
        Row("growth", f"Growth of the worker over {jobs:,} jobs", Interval(grown, grown, grown), "MB", len(looks),
            BOUND, "cannot tell" if too_few else None, note=f"the bound is for {JOBS:,}" if jobs < JOBS else ""),
        Row("growth", "Of that in the second half", Interval(late, late, late), "MB", len(looks)),
    ]  # fmt: skip
