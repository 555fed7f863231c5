"""Where a benchmark takes place: a folder in memory that all cells share, their containers, and the bare root.

Everything goes when it ends, however it ends: agents end with their stdin, and a janitor in a session of its own
removes what is left when this process is gone.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import IO, Any

from transcoder.bench import engines, janitor, sources
from transcoder.bench.engines import Container, Docker, Processes
from transcoder.bench.result import Cell, StackRun
from transcoder.errors import BenchmarkFailed, EngineMissing, ImageMissing, TranscoderError, error_named
from transcoder.version import __version__

MEMORY = "/dev/shm"
DISK = os.environ.get("TMPDIR") or "/var/tmp"
"""For the image's root: /tmp is in memory on many machines."""

_READY_LIMIT = 120.0
_LEAD, _TRIES = 0.1, 4
_ENDING = 10.0
_LAST_WORDS = 600

Json = dict[str, Any]


class Agent:
    """One container's agent, and the pipe that keeps it alive."""

    def __init__(self, name: str, words: Sequence[str], log: str) -> None:
        self.name = name
        self._log = log
        self._rest = b""
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, start_new_session=True
            )
        assert self.process.stdin
        assert self.process.stdout
        self._stdin: IO[bytes] = self.process.stdin
        self._stdout: IO[bytes] = self.process.stdout

    def ask(self, **question: Any) -> None:
        """Put a question; `answer` has what becomes of it."""
        try:
            self._stdin.write(json.dumps(question).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def answer(self, limit: float) -> Json:
        """The answer to the question that was put.

        Raises:
            BenchmarkFailed: it is gone, or did not answer in time.
            TranscoderError: what it says went wrong.
        """
        said = self.hear(limit)
        if wrong := said.get("error"):
            kind = error_named(wrong["kind"])
            if kind is TranscoderError:
                raise BenchmarkFailed(f"{self.name}: {wrong['kind']}: {wrong['what']}")
            raise kind(wrong["what"], wrong["next_step"], wrong["evidence"])
        answer: Json = said["answer"]
        return answer

    def hear(self, limit: float) -> Json:
        """The next line that it says."""
        until = monotonic() + limit
        with selectors.DefaultSelector() as pipe:
            pipe.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not pipe.select(max(0.0, until - monotonic())):
                    raise BenchmarkFailed(f"{self.name} did not answer within {limit:g} s")
                data = os.read(self._stdout.fileno(), 1 << 20)
                if not data:
                    raise self._gone()
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        said: Json = json.loads(line)
        return said

    def close(self) -> None:
        """Let it end, by the end of its questions."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def wait(self, limit: float) -> None:
        """Wait for that, or kill it."""
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stdout.close()

    def _gone(self) -> BenchmarkFailed:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDING)
        return BenchmarkFailed(
            f"{self.name} ended ({self.process.returncode}): {self._said() or 'it said nothing'}",
            "Memory may have run out (the kernel's log and the engine's say so), or somebody removed it.",
        )

    def _said(self) -> str:
        with open(self._log, encoding="utf-8", errors="replace") as file:
            return file.read()[-_LAST_WORDS:].strip()

    def ready(self) -> Json:
        """What it says when it is ready: its version as `ready`, a digest of its code as `sources`.

        Raises:
            ImageMissing: the image has no agent.
            BenchmarkFailed: it ended for another reason.
        """
        try:
            return self.hear(_READY_LIMIT)
        except BenchmarkFailed as failed:
            if "No module named" in failed.what or "no such file" in failed.what.lower():
                raise ImageMissing(
                    f"the image has no benchmark in it: {failed.what}",
                    "Build it anew from this version: docs/deploy.md",
                ) from None
            raise


@dataclass(frozen=True, slots=True)
class Seen:
    """What the stacks of a cell did, and for how many seconds a quota held its containers back.

    `cpu` is what stacks and agents together had of the CPUs, in seconds.
    """

    stacks: tuple[StackRun, ...]
    throttled: float
    cpu: float


class Housed:
    """A cell whose containers are up."""

    def __init__(self, cell: Cell, agents: Sequence[Agent], start: float) -> None:
        self.cell = cell
        self.agents = tuple(agents)
        self.start = start

    @property
    def agent(self) -> Agent:
        """The first of its containers."""
        return self.agents[0]

    def run(self, argv: Sequence[str], *, device: bool, limit: float, stacks: int | None = None) -> Seen:
        """Release all its stacks at one moment and wait for their end; `stacks` is how many each container has, if not
        as many as the cell says.

        Raises:
            BenchmarkFailed: a container is gone, or could never be released in time.
        """
        lead = _LEAD
        for _ in range(_TRIES):
            self.release(argv, device=device, limit=limit, lead=lead, stacks=stacks)
            answers = [agent.answer(limit + _READY_LIMIT) for agent in self.agents]
            if not any("late" in answer for answer in answers):
                return _seen(answers)
            lead *= 2
        raise BenchmarkFailed(
            f"{self.cell.name}: its stacks had no common start, since some took longer than {lead / 2:g} s",
            "The machine is too busy to measure anything. End what else runs on it.",
        )

    def release(
        self, argv: Sequence[str], *, device: bool, limit: float, lead: float = _LEAD, stacks: int | None = None
    ) -> float:
        """Tell all when to begin; gives that moment of CLOCK_MONOTONIC."""
        each = stacks or self.cell.stacks // max(1, self.cell.containers)
        at = monotonic() + lead
        for agent in self.agents:
            agent.ask(ask="run", argv=list(argv), stacks=each, at=at, limit=limit, device=device)
        return at

    def close(self) -> None:
        """End its containers."""
        for agent in self.agents:
            agent.close()
        for agent in self.agents:
            agent.wait(_ENDING)


class Rig:
    """Where cells are housed; `use` opens one. `inside` is the shared folder as the cells see it, `folder` as we do."""

    def __init__(
        self,
        engine: Docker | Processes,
        image: str,
        *,
        nodes: Sequence[str] = (),
        groups: Sequence[int] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.engine = engine
        self.image = image
        self.benchmark = secrets.token_hex(4)
        name = janitor.PREFIX + self.benchmark
        self.folder = f"{MEMORY if os.access(MEMORY, os.W_OK) else DISK}/{name}"
        self.inside = engine.inside or self.folder
        self.root = f"{DISK}/{name}-root"
        # of a container: files in the shared folder must be ours to remove
        self.user = (os.geteuid(), os.getegid()) if os.geteuid() else (1000, 1000)
        self._nodes, self._groups, self._options = tuple(nodes), tuple(groups), tuple(options)
        self._housed: list[Housed] = []
        self._made = 0
        self._sources = sources.digest()
        self.other_code: str = ""
        """A sentence where a container's code is not this program's, though both have the same version."""

    def clip(self, name: str) -> tuple[str, str]:
        """The path of a shared file as we see it, and as the cells do."""
        return f"{self.folder}/{name}", f"{self.inside}/{name}"

    def house(self, cell: Cell) -> Housed:
        """Start a cell's containers, together, and wait until all are ready.

        Raises:
            ImageMissing: the image has no agent, or another version's.
            BenchmarkFailed: a container could not be started.
        """
        began = monotonic()
        agents = [self._start(cell) for _ in range(max(1, cell.containers))]
        housed = Housed(cell, agents, 0.0)
        self._housed.append(housed)
        for agent in agents:
            told = agent.ready()
            version = told["ready"]
            if version != __version__:
                raise ImageMissing(
                    f"the image {self.image} has transcoder {version}, and this is {__version__}",
                    "Build it anew from this version (docs/deploy.md), or name one with --image.",
                )
            self._compare(told.get("sources", "unknown"))
        housed.start = monotonic() - began
        return housed

    def _compare(self, theirs: str) -> None:
        if theirs != self._sources:
            self.other_code = (
                f"the code in {self.image} is not this program's, though both are {__version__}"
                f" (digests {theirs} and {self._sources}): what was measured is that image's"
            )

    def _start(self, cell: Cell) -> Agent:
        self._made += 1
        name = f"{janitor.PREFIX}{self.benchmark}-{self._made}"
        container = Container(
            name, self.benchmark, self.folder, self.user, self.image, self._nodes, self._groups, self._options
        )
        words = self.engine.words(container) if cell.containers else self._bare(container)
        return Agent(name, words, f"{self.folder}/{name}.log")

    def _bare(self, container: Container) -> list[str]:
        if isinstance(self.engine, Processes):
            return self.engine.words(container)
        return engines.bare_words(self.root, container, self.engine.environment(self.image))

    def unpack(self) -> None:
        """Make the root of the bare cells.

        Raises:
            ImageMissing: it could not be.
        """
        if isinstance(self.engine, Docker):
            self.engine.unpack(self.image, self.benchmark, self.root)

    def kill(self, housed: Housed, number: int) -> None:
        """Kill one of its containers, as a crash would."""
        agent = housed.agents[number]
        self.engine.kill(agent.name, agent.process.pid)

    def close(self) -> None:
        """End every container, all at once."""
        for housed in self._housed:
            for agent in housed.agents:
                agent.close()
        for housed in self._housed:
            housed.close()


@contextmanager
def opened(made: Rig, also: Sequence[str] = ()) -> Iterator[Rig]:
    """Its folder and its janitor, which removes the paths in `also` too.

    Raises:
        EngineMissing: no janitor can be started.
    """
    janitor.sweep(made.engine.program, {MEMORY, DISK})
    with ExitStack() as after:
        paths = [made.folder, made.root, *also]
        words = [sys.executable, "-m", janitor.__name__, made.engine.program, made.benchmark, *paths]
        try:
            warden = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        except OSError as refused:
            raise EngineMissing(f"{sys.executable} cannot be started: {refused.strerror}") from None
        after.callback(_dismiss, warden)
        os.makedirs(made.folder)
        lock = after.enter_context(open(f"{made.folder}/{janitor.LOCK}", "wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.engine.inside and not os.geteuid():
            os.chown(made.folder, *made.user)
        after.callback(made.close)
        yield made


def _dismiss(warden: subprocess.Popen[bytes]) -> None:
    """All has ended in order: the janitor clears up and ends."""
    assert warden.stdin
    with suppress(BrokenPipeError):
        warden.stdin.write(b"in order\n")
        warden.stdin.close()
    warden.wait()


def _seen(answers: Sequence[Json]) -> Seen:
    stacks = tuple(
        StackRun.model_validate({**stack, "container": number})
        for number, answer in enumerate(answers)
        for stack in answer["stacks"]
    )
    stacked = math.fsum(one.cpu_user + one.cpu_system for one in stacks)
    cpu = max(stacked, math.fsum(answer.get("cpu", 0.0) for answer in answers))  # other code may not tell it
    return Seen(stacks, sum(answer["throttled"] for answer in answers), cpu)


def blast(
    rig: Rig, housed: Housed, argv: Sequence[str], after: float, *, device: bool, limit: float
) -> tuple[int, int]:
    """Kill one of its containers `after` seconds from the start; gives (stacks that were lost, that finished).

    The cell is of no use afterwards.
    """
    at = housed.release(argv, device=device, limit=limit)
    sleep(max(0.0, at + after - monotonic()))
    rig.kill(housed, 0)
    finished = 0
    for agent in housed.agents:
        with suppress(BenchmarkFailed):
            stacks = agent.answer(limit + _READY_LIMIT).get("stacks", ())
            finished += sum(not stack["trouble"] for stack in stacks)
    return housed.cell.stacks - finished, finished
