"""Run a job here and now, without a queue, and look at what it leaves behind."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from transcoder import job
from transcoder.command import Command
from transcoder.errors import TranscoderError
from transcoder.events import Event, Published
from transcoder.machine import SOFTWARE, Ability, Build, Machine
from transcoder.manifest import Attempt
from transcoder.policy import Policy
from transcoder.spec import JobSpec, read

MACHINE = Machine(Build("5.1", (5, 1), frozenset({"libx264"})), frozenset({Ability(SOFTWARE, "h264", 8, "libx264")}), 2)
FAST = {"video": {"speed": "fast"}}


@dataclass
class Yes:
    """A permit that always says yes; `on_claim` and `at_the_end` are called where the job asks."""

    on_claim: Callable[[], None] = lambda: None
    at_the_end: Callable[[], None] = lambda: None
    claimed: tuple[str, ...] = ()

    def cancelled(self) -> bool:
        return False

    def fenced(self) -> None:
        pass

    def may_write(self, targets: Sequence[str]) -> None:
        self.claimed = tuple(targets)
        self.on_claim()

    def slot(self, command: Command) -> AbstractContextManager[None]:
        """There is a place."""
        return nullcontext()

    def room(self, folder: str, need: int) -> AbstractContextManager[None]:
        """Whatever the disk has."""
        return nullcontext()

    def still_ours(self) -> None:
        self.at_the_end()


@dataclass
class Place:
    """Two media roots, one for sources and one for targets, and the rules for them."""

    inside: Path
    out: Path
    policy: Policy
    events: list[Event] = field(default_factory=list)

    @classmethod
    def below(cls, folder: Path, **policy: object) -> Place:
        inside, out = folder / "in", folder / "out"
        inside.mkdir()
        out.mkdir()
        return cls(inside, out, Policy(roots=(str(inside), str(out)), **policy))  # type: ignore[arg-type]

    def bring(self, clip: Path, name: str | None = None) -> Path:
        """A copy of the clip among the sources."""
        return Path(shutil.copy(clip, self.inside / (name or clip.name)))

    def spec(self, source: Path | str, target: Path | str | None = None, **fields: object) -> JobSpec:
        return read(
            {"source": str(source), "target": str(target or self.out / "made.mp4"), "outputs": [FAST], **fields}
        )

    def run(
        self, spec: JobSpec, job_id: str = "job", attempt: int = 1, *, permit: job.Permit | None = None
    ) -> Published:
        return job.transcode(spec, Attempt(job_id, attempt), MACHINE, self.policy, self.events.append, permit or Yes())

    def refuses(self, spec: JobSpec, kind: type[TranscoderError], about: str | None = None) -> TranscoderError:
        """The job is refused with an error of this kind that names the thing and a way on, and leaves no trace."""
        before = everything_below(self.out)
        with pytest.raises(TranscoderError) as caught:
            self.run(spec)
        error = caught.value
        assert type(error) is kind, error
        assert error.next_step
        assert (about or repr(spec.source)) in error.what
        assert everything_below(self.out) == before, "something was left behind"
        assert children() == []
        return error


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every name below a folder with what tells whether it was touched: inode and size."""
    found = {str(path): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (state.st_ino, 0 if stat.S_ISDIR(state.st_mode) else state.st_size) for name, state in found.items()}


def children() -> list[str]:
    """The command lines of our own child processes, the dead that nobody reaped included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid():
                    found.append((entry / "cmdline").read_text().replace("\0", " ") or entry.name)
            except OSError:
                continue
    return found


def program(folder: Path, name: str, script: str) -> str:
    """A shell script that stands in for a program."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    """The path with other permissions for a while."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)
