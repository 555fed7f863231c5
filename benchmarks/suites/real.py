"""A real job of 60 s at 720p against the same ffmpeg command bare.

Pairs of real runs tell what is so, with the noise of the machine. A stand-in for the encode tells the same within
milliseconds: what the job adds for a file of that length, over the wall time of the bare runs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import material, stand_in
from benchmarks.figures import bootstrap, quantile, ratio
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec, timed
from benchmarks.suites.path import PAUSE, job

BOUND = 0.02


def run(stand: Stand) -> list[Row]:
    room = stand.room("real")
    source = material.clip(60, 720)
    recording = stand_in.record(stand, spec(source, str(room / "recorded.mp4"), 720), room / "recording")
    program = stand_in.slow_ffmpeg(recording, room / "slow-ffmpeg", PAUSE)
    arms = {
        "job": partial(job, stand, room, source, program, "job"),
        "bare": partial(encode, recording, program, room, "bare"),
    }
    for _ in range(stand.times(6, 25)):
        stand.block("real.stand_in", arms)
    pairs = {
        "job": partial(job, stand, room, source, stand.policy.ffmpeg, "job"),
        "bare": partial(encode, recording, stand.policy.ffmpeg, room, "bare"),
    }
    for number in range(1, stand.times(1, 8) + 1):
        stand.say(f"  real pair {number}")
        stand.block("real.pairs", pairs)
    return rows(stand.raw["real.stand_in"], stand.raw["real.pairs"], stand.seed)


def encode(recording: stand_in.Recording, program: str, room: Path, name: str) -> Block:
    """The bare command of the job, with nothing around it."""
    words = recording.command.argv(program, [str(room / "bare.mp4")])
    block: Block = {}
    with timed(block, f"{name}.wall"):
        subprocess.run([words[0], "-y", "-nostats", "-loglevel", "error", *words[1:]], capture_output=True, check=True)
    return block


def rows(stood_in: Sequence[Block], pairs: Sequence[Block], seed: int) -> list[Row]:
    def added(some: Sequence[Block]) -> float:
        ours = quantile([block["job.wall"] - block["job.decode"] for block in some], 0.5)
        return ours - quantile([block["bare.wall"] for block in some], 0.5)

    def derived(some: Sequence[Block], real: Sequence[Block]) -> float:
        return added(some) / quantile([block["bare.wall"] for block in real], 0.5)

    def decode(some: Sequence[Block], real: Sequence[Block]) -> float:
        spent = quantile([block["job.decode"] for block in some], 0.5)
        return spent / quantile([block["bare.wall"] for block in real], 0.5)

    without = [(block["job.wall"] - block["job.decode"], block["bare.wall"]) for block in pairs]
    whole = [(block["job.wall"], block["bare.wall"]) for block in pairs]
    counts = len(stood_in)
    return [
        Row("real", "A 60 s 720p job adds to bare ffmpeg, ffprobe starts included, derived",
            bootstrap(derived, stood_in, pairs, seed=seed), "percent", counts, BOUND),
        Row("real", "The same in seconds", bootstrap(added, stood_in, seed=seed), "ms", counts),
        Row("real", "The decode check of that job, apart", bootstrap(decode, stood_in, pairs, seed=seed), "percent",
            counts),
        Row("real", "Real pairs, job without decode check / bare", ratio(without, seed), "ratio", len(pairs)),
        Row("real", "Real pairs, whole job / bare", ratio(whole, seed), "ratio", len(pairs)),
    ]  # fmt: skip
