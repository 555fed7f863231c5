"""Three rungs in one job against three jobs: processor time against the model of a shared decode, and wall time.

The model: what three jobs encode each costs them a decode of the source; the ladder decodes once. So its processor
time is the sum of the three, less two decodes. Processor time is that of ffmpeg's encode alone, wall time that of whole
jobs.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks import material
from benchmarks.figures import ratio, spread
from benchmarks.report import Row
from benchmarks.stand import Alone, Block, Stand, spec, timed
from transcoder.events import Emit, Event, Started, Verifying
from transcoder.job import transcode
from transcoder.manifest import Attempt

HEIGHTS = (720, 480, 360)
CPU_BOUND, WALL_BOUND = 1.05, 0.85
_numbers = count()


def run(stand: Stand) -> list[Row]:
    room = stand.room("ladder")
    source = material.clip(10, 720)
    arms = {
        "ladder": partial(one, stand, room, source, "ladder", HEIGHTS),
        "three": partial(three_at_once, stand, room, source),
        "again": partial(one, stand, room, source, "again", HEIGHTS),
        "decode": partial(decode, stand, source),
        **{f"only{height}": partial(one, stand, room, source, f"only{height}", (height,)) for height in HEIGHTS},
    }
    for number in range(1, stand.times(3, 12) + 1):
        stand.say(f"  ladder block {number}")
        stand.block("ladder", arms)
    return rows(stand.raw["ladder"], stand.seed)


def one(stand: Stand, room: Path, source: Path, name: str, heights: Sequence[int]) -> Block:
    """A job alone: its wall time, and the processor time of its encode."""
    marks: list[float] = []

    def emit(event: Event) -> None:
        if isinstance(event, Started | Verifying):
            marks.append(_processor_time())

    block: Block = {}
    with timed(block, f"{name}.wall"):
        _job(stand, room, source, heights, emit)
    began, ended = marks
    return block | {f"{name}.cpu": ended - began}


def three_at_once(stand: Stand, room: Path, source: Path) -> Block:
    block: Block = {}
    with ThreadPoolExecutor(len(HEIGHTS)) as pool, timed(block, "three.wall"):
        list(pool.map(lambda height: _job(stand, room, source, (height,), lambda _: None), HEIGHTS))
    return block


def decode(stand: Stand, source: Path) -> Block:
    """Decoding alone, picture and sound, with the threads that a job gives it."""
    began = _processor_time()
    subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-threads", str(stand.machine.threads), "-i", str(source),
         "-f", "null", "-"], check=True,
    )  # fmt: skip
    return {"decode.cpu": _processor_time() - began}


def _job(stand: Stand, room: Path, source: Path, heights: Sequence[int], emit: Emit) -> None:
    asked = spec(source, str(room / f"{next(_numbers)}-{{name}}.mp4"), *heights)
    transcode(asked, Attempt(f"ladder{next(_numbers)}"), stand.machine, stand.policy, emit, Alone())


def _processor_time() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def model(block: Block) -> float:
    """Processor time of a ladder that decodes once, from the three jobs and the decode in the same block."""
    return sum(block[f"only{height}.cpu"] for height in HEIGHTS) - (len(HEIGHTS) - 1) * block["decode.cpu"]


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    # the ladder ran twice in every block: both count, and their difference is the noise
    wall = ratio([((block["ladder.wall"] * block["again.wall"]) ** 0.5, block["three.wall"]) for block in blocks], seed)
    spent = [(block["ladder.cpu"] * block["again.cpu"]) ** 0.5 for block in blocks]
    processor = ratio([(one, model(block)) for one, block in zip(spent, blocks, strict=True)], seed)
    alone = [sum(block[f"only{height}.cpu"] for height in HEIGHTS) for block in blocks]
    separate = ratio(list(zip(spent, alone, strict=True)), seed)
    noise = [(block["again.wall"], block["ladder.wall"]) for block in blocks]
    return [
        Row("ladder", "Processor time of a three-rung ladder / shared-decode model", processor, "ratio", len(blocks),
            CPU_BOUND),
        Row("ladder", "Wall time of that ladder / three jobs at once", wall, "ratio", len(blocks), WALL_BOUND),
        Row("ladder", "Processor time of that ladder / three jobs", separate, "ratio", len(blocks)),
        Row("ladder", "Noise floor: ladder / the same ladder, wall", ratio(noise, seed), "ratio", len(blocks),
            note=f"one pair: ± {spread(noise):.0%}"),
    ]  # fmt: skip
