"""The story of a topology benchmark: the same stacks packed in different ways, in shuffled blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from transcoder.bench import analysis, clips, design
from transcoder.bench.contrasts import deviation
from transcoder.bench.destination import Destination, unfinished
from transcoder.bench.engines import Docker, Processes, engine, granted, own, without_values
from transcoder.bench.environment import environment
from transcoder.bench.hardware import hardware
from transcoder.bench.result import Blast, Cell, Design, Profile, Result, Run, StackRun, Workload
from transcoder.bench.result import Engine as EngineName
from transcoder.bench.rig import Housed, Rig, Seen, blast, opened
from transcoder.bench.session import (
    LEAST_FRAMES,
    Session,
    Show,
    cut,
    device,
    in_order,
    paced,
    telling_why,
    too_short,
    trouble,
)
from transcoder.bench.stack import spec
from transcoder.bench.whole_path import SERVER, Broker, WorkingCell, available
from transcoder.errors import BenchmarkFailed, MachineBusy

_LEAST_BLOCKS = 3
"""Fewer have no interval; they are measured whatever time they take."""
_PLAN_LIMIT = 300.0
_MAKE_LIMIT = 300.0
_KILL_SECONDS = 1.5
_PACED_SECONDS = 3.0
"""A run in which a container is killed lasts so long at least: an engine may take a second to kill one."""
_STRIKE = 0.4
"""The share of such a run after which the container is killed."""
_OVERRUN = 0.1
"""The share of the budget by which the blocks may be slower than the pilot's before they end."""
_LIGHTER = "Take a smaller clip or fewer stacks, or a lower rate of the device."
"""What lets a simulated device take less of the CPUs."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a profile is: seconds of a run and of the clip that is made, stacks, seconds of the whole."""

    run: float
    clip: float
    stacks: tuple[int, ...]
    budget: float
    worker: bool = False


SCALES: Mapping[Profile, Scale] = {
    "quick": Scale(2.5, 8, (2,), 165),
    "full": Scale(4, 20, (2, 4), 1500, worker=True),
    "gpu": Scale(4, 60, (2, 4), 1500),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks; what is None is decided by the profile or the machine. `clip` is a path."""

    profile: Profile = "quick"
    stacks: tuple[int, ...] | None = None
    accel: str = "auto"
    """The name of a backend; `auto` is that of the GPU where there is one."""
    engine: EngineName = "docker"
    image: str | None = None
    clip: str | None = None
    codec: str = "h264"
    height: int = 720
    seed: int = 1
    budget: float | None = None
    seconds: float | None = None
    """Of one run."""
    pilot: int = design.PILOT_BLOCKS
    options: tuple[str, ...] = field(default=())
    worker: bool | None = None
    """Whether there are cells that take the product's whole path; by the profile."""

    @property
    def scale(self) -> Scale:
        """Of the profile."""
        return SCALES[self.profile]


def topology(asked: Asked, out: Destination, show: Show) -> Result:
    """Measure, with the result in the file `out` after each block, marked as partial until the end.

    Raises:
        InputMissing, InputUnreadable: the clip cannot be read, or has no picture.
        EngineMissing, ImageMissing: there is nothing to run containers with, or of.
        NoRoute: there is no such device.
        MachineBusy: a simulated device whose simulation takes more than half of the CPUs.
        BenchmarkFailed: a stack or a container failed; the file has what was measured before.
        TargetExists, TargetUnwritable: the file cannot be written.
    """
    out.look()
    clips.look(asked.clip)
    if asked.profile == "gpu" and asked.accel == "auto":
        asked = replace(asked, accel="vaapi")  # software would answer another question
    began = monotonic()
    chosen = engine(asked.engine)
    version = chosen.version()
    given = hardware(asked.accel, asked.options)
    image = (asked.image or own(given.target)) if isinstance(chosen, Docker) else ""
    digest = chosen.require(image)
    made = Rig(chosen, image, nodes=given.nodes, groups=given.groups, options=asked.options)
    with in_order(), opened(made, also=[unfinished(out.path)]) as rig, ExitStack() as after:
        session = _Session(asked, rig, out, show, began)
        after.callback(session.close)
        with telling_why(session):
            session.prepare(version, f"{image} {digest}".strip())
            session.warm_up()
            session.measure()
            session.blast()
            return session.conclude()


def cells(asked: Asked) -> tuple[Cell, ...]:
    """What is held against each other: bare cells need root and an engine, and a worker needs a Redis."""
    bare = asked.engine != "processes" and not os.geteuid()
    return design.cells(asked.stacks or asked.scale.stacks, bare=bare, worker=_worker_wanted(asked) and available())


def _worker_wanted(asked: Asked) -> bool:
    return asked.scale.worker if asked.worker is None else asked.worker


class _Session(Session):
    """One benchmark under way."""

    def __init__(self, asked: Asked, rig: Rig, out: Destination, show: Show, began: float) -> None:
        super().__init__(out, show)
        self._asked, self._rig, self._began = asked, rig, began
        self._housed: dict[Cell, Housed] = {}
        self._working: dict[Cell, WorkingCell] = {}
        self._broker: Broker | None = None
        self._source = ""
        self._argv: tuple[str, ...] = ()
        self._device = False
        self._limit = 240.0
        self._seconds: list[float] = []

    @property
    def _budget(self) -> float:
        return self._asked.budget or self._asked.scale.budget

    def _spent(self) -> float:
        return monotonic() - self._began

    def prepare(self, version: str, image: str) -> None:
        """Start the containers, make the clip, plan the work."""
        asked = self._asked
        matrix = cells(asked)
        self._tell_what_lacks()
        if any(not cell.containers for cell in matrix):
            self._show.phase("unpacking the image for the bare cells")
            self._rig.unpack()
        for cell in matrix:
            self._show.phase(f"starting {cell.name}")
            self._start(cell)
        if self._rig.other_code:
            self._note(self._rig.other_code)
        reference = design.whole(matrix)
        first = self._housed[reference]
        self._show.phase("bringing the clip" if asked.clip else "making the clip")
        name, self._source = clips.bring(self._rig, first, asked.clip, asked.scale.clip)
        with clips.named(asked.clip, self._source):
            plan = self._plan(first)
            self._device = plan["device"] is not None
            frames = self._fit(first, plan)
        if frames < LEAST_FRAMES:
            self._note(too_short(frames))
        self._argv = cut(plan["argv"], frames, plan["frame_rate"])
        if self._working:
            # a job reads its source to the end: so the source itself is made as short
            self._shorten(first, frames, plan["ffmpeg_path"])
            plan = self._plan(first)
            self._argv, frames = tuple(plan["argv"]), plan["frames"]
        self._result = Result(
            kind="topology",
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            partial=True,
            environment=environment(version, image).model_copy(
                update={"ffmpeg": plan["ffmpeg"], "driver": plan["device"]["driver"] if self._device else ""}
            ),
            device=device(plan),
            design=Design(
                profile=asked.profile,
                engine=asked.engine,
                seed=asked.seed,
                cells=matrix,
                reference=reference,
                pilot_blocks=asked.pilot,
                budget=self._budget,
                seconds=asked.seconds or asked.scale.run,
                options=without_values(asked.options),
            ),
            workload=Workload(
                accel=plan["accel"],
                clip=name,
                codec=asked.codec,
                width=plan["width"],
                height=plan["height"],
                frames=frames,
                frame_rate=plan["frame_rate"],
                argv=self._argv,
            ),
        )

    def _wishes(self) -> dict[str, Any]:
        return {"accel": self._asked.accel, "codec": self._asked.codec, "height": self._asked.height}

    def _plan(self, first: Housed) -> dict[str, Any]:
        self._show.phase("planning")
        first.agent.ask(ask="plan", source=self._source, **self._wishes())
        return first.agent.answer(_PLAN_LIMIT)

    def _shorten(self, first: Housed, frames: int, ffmpeg: str) -> None:
        """Let the source be its first packets, as they are."""
        _, short = self._rig.clip("short.mp4")
        words = [ffmpeg, "-nostdin", "-v", "error", "-y", "-i", self._source, "-map", "0:v:0", "-c", "copy"]
        first.agent.ask(ask="make", argv=[*words, "-frames:v", str(frames), short], limit=_MAKE_LIMIT)
        first.agent.answer(_MAKE_LIMIT + 10)
        self._source = short

    def _tell_what_lacks(self) -> None:
        if _worker_wanted(self._asked) and not available():
            self._note(f"no cells with a worker: {SERVER} is not installed here")
        if isinstance(self._rig.engine, Processes):
            self._note("no bare cells: without containers, one process with all stacks is bare")
        elif os.geteuid():
            self._note("no bare cells: the image's own root file system can only be entered by root (sudo)")
        elif ignored := granted(self._asked.options).ignored:
            self._note(f"bare cells are not given these words for containers: {' '.join(ignored)}")

    def _start(self, cell: Cell) -> None:
        if not cell.worker:
            self._housed[cell] = self._rig.house(cell)
            return
        self._broker = self._broker or Broker(self._rig)
        self._working[cell] = WorkingCell(self._rig, self._broker, cell)

    def close(self) -> None:
        """End what the rig does not know."""
        if self._broker:
            self._broker.close()

    def _fit(self, first: Housed, plan: Mapping[str, Any]) -> int:
        """How many frames a run takes, so that it is as long as the profile wants, and long enough to show anything."""
        trial = min(plan["frames"], LEAST_FRAMES)
        seen = first.run(cut(plan["argv"], trial, plan["frame_rate"]), device=self._device, limit=self._limit)
        self._refuse_trouble(first.cell, seen, trial)
        pace = min(map(_pace, seen.stacks))
        wanted = round(pace * (self._asked.seconds or self._asked.scale.run))
        frames = min(int(plan["frames"]), max(LEAST_FRAMES, wanted))
        self._limit = 30 + 20 * frames / pace
        return frames

    def warm_up(self) -> None:
        """Each cell once: caches are warm, containers proven, and a simulated device is not held up by the CPUs.

        Here other programs count too: what they take now can be ended before anything is measured.
        """
        starts = {cell: one.start for cell, one in self._housed.items()}
        starts |= {cell: one.start for cell, one in self._working.items()}
        for cell, start in starts.items():
            self._show.phase(f"warming up {cell.name}")
            run = self._run(Run(block=0, place=0, cell=cell, warmup=True, stacks=(), start=start))
            if self._cpus_limit(run.cpu_busy):
                raise MachineBusy(
                    f"the CPUs were {run.cpu_busy:.0%} busy with {cell.name}: they would be measured, and no device",
                    f"{_LIGHTER.removesuffix('.')}, and end what else runs here.",
                )
        self._save()

    def measure(self) -> None:
        """The pilot, the number of blocks that it asks for, and those."""
        if (spent := self._spent()) > self._budget:
            self._note(f"the set-up alone took {spent:.0f} s of {self._budget:g} s: only the least is measured")
        asked = self._result.design
        orders = design.blocks(asked.cells, asked.reference, asked.seed)
        piloted = 0
        while piloted < asked.pilot_blocks and (piloted < _LEAST_BLOCKS or self._left() > self._block()):
            self._show.block(piloted + 1, None, self._left())
            self._measure(piloted, next(orders), pilot=True)
            piloted += 1
        blocks, wanted = design.fixed_blocks(
            deviation(self._result),
            asked.margin,
            seconds=self._block(),
            left=self._left(),
            pilot=piloted,
        )
        self._result = self._result.model_copy(
            update={"design": asked.model_copy(update={"blocks": blocks, "wanted": wanted})}
        )
        for number in range(piloted, blocks):
            if self._left() < -_OVERRUN * self._budget:
                self._note(f"the time was over after {number} of {blocks} blocks")
                return
            self._show.block(number + 1, blocks, design.seconds_left(blocks - number, self._block()))
            self._measure(number, next(orders), pilot=False)

    def _block(self) -> float:
        """Seconds that a block takes."""
        turns = len(self._result.design.cells) + 1
        return design.block_seconds(self._seconds, turns, self._asked.seconds or self._asked.scale.run)

    def _left(self) -> float:
        """Seconds for further blocks: the budget without what the end needs, a run and a kill of each cell."""
        cells = len(self._result.design.cells)
        run = max(_PACED_SECONDS, self._block() / (cells + 1))
        return self._budget - self._spent() - cells * (run + _KILL_SECONDS)

    def _measure(self, number: int, turns: Sequence[design.Turn], *, pilot: bool) -> None:
        began = monotonic()
        runs = [
            self._run(Run(block=number, place=place, cell=turn.cell, again=turn.again, pilot=pilot, stacks=()))
            for place, turn in enumerate(turns)
        ]
        self._result = self._result.model_copy(update={"runs": (*self._result.runs, *runs)})
        self._save()
        self._seconds.append(monotonic() - began)

    def _run(self, planned: Run) -> Run:
        run = self._observed(planned, lambda: self._work(planned.cell))
        if planned.warmup:
            self._refuse_trouble(run.cell, run, self._result.workload.frames)
            self._result = self._result.model_copy(update={"runs": (*self._result.runs, run)})
        elif not trouble(run, self._result.workload.frames):  # which is left out, and short, so that its start is all
            self._refuse_busy(run, _LIGHTER)
        self._show.ran(run)
        return run

    def _work(self, cell: Cell) -> Seen:
        if not cell.worker:
            return self._housed[cell].run(self._argv, device=self._device, limit=self._limit)
        wishes = {**self._wishes(), "accel": self._result.workload.accel}
        return self._working[cell].run(lambda target: spec(self._source, target, wishes), limit=self._limit)

    def _refuse_trouble(self, cell: Cell, ran: Run | Seen, frames: int) -> None:
        """A stack that fails before anything counts will fail again; later on its run is left out of the analysis."""
        if why := trouble(ran, frames):
            raise BenchmarkFailed(
                f"a stack of {cell.name} failed: {why}", "`transcoder doctor` and `transcoder devices` say more."
            )

    def blast(self) -> None:
        """Kill one container of each cell while all its stacks work."""
        lost: list[Blast] = []
        workload = self._result.workload
        for cell, housed in self._housed.items():
            if not cell.containers:
                continue
            self._show.phase(f"killing a container of {cell.name}")
            seconds = max(_PACED_SECONDS, _usual_seconds(self._result, cell))
            argv = paced(self._argv, workload.frames / workload.frame_rate / seconds)
            gone, finished = blast(self._rig, housed, argv, _STRIKE * seconds, device=self._device, limit=self._limit)
            lost.append(Blast(cell=cell, lost=gone, finished=finished))
        self._result = self._result.model_copy(update={"blast": tuple(lost)})

    def conclude(self) -> Result:
        """The whole result, which is no longer partial."""
        self._show.phase("working out what follows")
        whole = self._result.model_copy(update={"partial": False})
        return self._ended(verdicts=analysis.verdicts(analysis.analyse(whole), whole))

    def _crowded(self) -> str:
        others = super()._crowded()
        return others and (
            f"{others}: bare stacks and containers compete with them differently, since the kernel shares the CPUs out"
            " by control group first"
        )


def _pace(stack: StackRun) -> float:
    """Frames per second between the first report and the last; over all its time where there are none."""
    first, last = (stack.stamps[0], stack.stamps[-1]) if stack.stamps else (None, None)
    if first and last and last.frames > first.frames:
        return (last.frames - first.frames) / (last.at - first.at)
    return max(1.0, stack.frames / max(stack.ended - stack.started, 1e-3))


def _usual_seconds(result: Result, cell: Cell) -> float:
    ended = [stack.ended for run in result.runs if run.cell == cell for stack in run.stacks]
    return math.fsum(ended) / max(1, len(ended))
