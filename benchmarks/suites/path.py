"""A tiny job over bare ffmpeg: what probing, verifying, publishing, and the queue around them, add to it.

In ffmpeg's place stands a program that copies a finished file after 0.1 s; the decode check runs the real ffmpeg, and
the probes the real ffprobe. Beside each job the bare arm runs the same stand-in and then ffprobe twice. What the job
takes longer than that, without its decode check, is ours.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, process_time

from benchmarks import material, stand_in
from benchmarks.figures import bootstrap, quantile
from benchmarks.report import Row
from benchmarks.stand import Alone, Block, Stand, spec, timed
from tests import services
from transcoder.client import Client
from transcoder.job import transcode
from transcoder.manifest import Attempt

PAUSE = 0.1
BOUNDS = {0.5: 0.015, 0.95: 0.030}

_numbers = count()


def run(stand: Stand) -> list[Row]:
    room = stand.room("path")
    source = material.tiny()
    recording = stand_in.record(stand, spec(source, str(room / "recorded.mp4"), 720), room / "recording")
    program = stand_in.slow_ffmpeg(recording, room / "slow-ffmpeg", PAUSE)
    with services.worker(
        stand.redis.url, room / "worker", stand.roots, concurrency=1,
        TRANSCODER_FFMPEG=program, TRANSCODER_CACHE_FOLDER=str(stand.folder / "cache"),
    ) as worker:  # fmt: skip
        client = Client(stand.redis.url)
        arms = {
            "job": partial(job, stand, room, source, program, "job"),
            "queued": partial(queued, client, room, source),
            "bare": partial(bare, recording, program, source, room, "bare"),
            "again": partial(bare, recording, program, source, room, "again"),
        }
        for arm in arms.values():
            arm()  # what is read and imported once
        for _ in range(stand.times(15, 100)):
            stand.block("path", arms)
        client.close()
        assert worker.running
    return rows(stand.raw["path"], stand.seed)


def job(stand: Stand, room: Path, source: Path, program: str, name: str) -> Block:
    """A whole job in this process."""
    number = next(_numbers)
    asked = spec(source, str(room / "job" / f"{number}.mp4"), 720)
    (room / "job").mkdir(exist_ok=True)
    policy = replace(stand.policy, ffmpeg=program)
    block: Block = {}
    own = process_time()
    with timed(block, f"{name}.wall"):
        made = transcode(asked, Attempt(f"{name}{number}"), stand.machine, policy, lambda _: None, Alone())
    block[f"{name}.own"] = process_time() - own
    spent = made.timings
    parts = {"probe": spent.probe, "encode": spent.encode, "verify": spent.verify, "publish": spent.publish}
    return block | {f"{name}.{part}": seconds for part, seconds in parts.items()} | {f"{name}.decode": spent.decode}


def queued(client: Client, room: Path, source: Path) -> Block:
    """A job through the queue and the worker: from before submit until its record says published."""
    asked = spec(source, str(room / "queued" / f"{next(_numbers)}.mp4"), 720)
    (room / "queued").mkdir(exist_ok=True)
    began = monotonic()
    job_id = client.submit(asked)
    submitted = monotonic() - began
    result = client.wait(job_id, every=0.1)
    status = client.status(job_id)
    assert status.finished
    # both times are Redis' own; how soon this process hears of it is not the question
    return {"queued.wall": submitted + status.finished - status.created, "queued.decode": result["timings"]["decode"]}


def bare(recording: stand_in.Recording, program: str, source: Path, room: Path, name: str) -> Block:
    """What nobody can do without: the encode, and a look at the source and at the result."""
    made = room / "bare.mp4"
    block: Block = {}
    with timed(block, f"{name}.wall"):
        with timed(block, f"{name}.encode"):
            subprocess.run(recording.command.argv(program, [str(made)]), capture_output=True, check=True)
        for path in (source, made):
            subprocess.run(
                ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json", str(path)],
                capture_output=True, check=True,
            )  # fmt: skip
    return block


def added(blocks: Sequence[Block], arm: str, share: float) -> float:
    """How much more than the bare arm, by quantiles of both."""
    ours = [block[f"{arm}.wall"] - block[f"{arm}.decode"] for block in blocks]
    return quantile(ours, share) - quantile([block["bare.wall"] for block in blocks], share)


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    found = [
        Row(
            "path", f"{what} adds to bare ffmpeg + 2 ffprobe starts, p{share * 100:.0f}",
            bootstrap(partial(added, arm=arm, share=share), blocks, seed=seed), "ms", len(blocks), bound,
        )
        for arm, what in (("job", "A tiny job"), ("queued", "A tiny job, submit to published,"))
        for share, bound in BOUNDS.items()
    ]  # fmt: skip

    def noise(some: Sequence[Block]) -> float:
        return quantile([one["again.wall"] for one in some], 0.5) - quantile([one["bare.wall"] for one in some], 0.5)

    def decode(some: Sequence[Block]) -> float:
        return quantile([one["job.decode"] for one in some], 0.5)

    def starts(some: Sequence[Block]) -> float:
        return quantile([one["bare.wall"] - one["bare.encode"] for one in some], 0.5)

    def own(some: Sequence[Block]) -> float:
        return quantile([one["job.own"] for one in some], 0.5)

    informing = {
        "Processor time of our own process in that job, p50": own,
        "Noise floor of that: bare against bare, p50": noise,
        "Two ffprobe starts, p50": starts,
        "The decode check of a tiny job, apart, p50": decode,
    }
    return found + [
        Row("path", goal, bootstrap(figure, blocks, seed=seed), "ms", len(blocks)) for goal, figure in informing.items()
    ]
