"""What every suite stands on: a folder, a private Redis, a seeded generator, and a place for observations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TypeVar

from benchmarks import material
from tests import clips, services
from transcoder.command import Command
from transcoder.machine import Machine
from transcoder.policy import Policy
from transcoder.spec import Audio, Bitrate, JobSpec, Output, Video
from transcoder.survey import survey

T = TypeVar("T")
Block = dict[str, float]
"""What was measured side by side, once."""


@dataclass
class Stand:
    """`folder` is on the file system that is measured; every suite makes its own below it."""

    folder: Path
    redis: services.Redis
    seed: int
    quick: bool
    raw: dict[str, list[Block]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        material.FOLDER.mkdir(parents=True, exist_ok=True)
        self.roots = (self.folder, clips.FOLDER, material.FOLDER)
        self.policy = Policy(roots=tuple(map(str, self.roots)))
        self.machine: Machine = survey(self.policy, str(self.folder / "cache"))

    def times(self, quick: int, full: int) -> int:
        """How often, for this length of run."""
        return quick if self.quick else full

    def room(self, name: str) -> Path:
        """A folder for a suite."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def shuffled(self, arms: Sequence[T]) -> list[T]:
        """The arms of a block in an order of chance, so that none always comes after the same other."""
        return self.random.sample(arms, len(arms))

    def block(self, suite: str, arms: Mapping[str, Callable[[], Block]]) -> Block:
        """Measure every arm once, in an order of chance, and keep what each gives."""
        block: Block = {}
        for name in self.shuffled(list(arms)):
            block |= arms[name]()
        self.raw.setdefault(suite, []).append(block)
        return block

    def say(self, sentence: str) -> None:
        """Tell the person who waits."""
        print(sentence, file=sys.stderr, flush=True)


class Alone:
    """The permit of a job without a queue."""

    def cancelled(self) -> bool:
        return False

    def fenced(self) -> None:
        """There was no earlier attempt."""

    def may_write(self, targets: Sequence[str]) -> None:
        """Nobody else writes here."""

    def slot(self, command: Command) -> AbstractContextManager[None]:
        """There is a place."""
        return nullcontext()

    def room(self, folder: str, need: int) -> AbstractContextManager[None]:
        """Whatever the disk has."""
        return nullcontext()

    def still_ours(self) -> None:
        """Nobody else could have it."""


RATES = {1080: 5_000_000, 720: 2_800_000, 480: 1_400_000, 360: 800_000}


def spec(source: Path, target: str, *heights: int, overwrite: bool = True) -> JobSpec:
    """H.264 at the encoder's fast speed, which makes the share of everything else as large as it gets, and AAC."""
    return JobSpec(
        source=str(source),
        target=target,
        overwrite=overwrite,
        outputs=tuple(
            Output(
                name=f"{height}p",
                video=Video(height=height, speed="fast", rate=Bitrate(bitrate=RATES[height])),
                audio=Audio(bitrate=128_000),
            )
            for height in heights
        ),
    )


@contextmanager
def timed(into: Block, name: str) -> Iterator[None]:
    """Keep the seconds that the body takes."""
    began = perf_counter()
    yield
    into[name] = perf_counter() - began
