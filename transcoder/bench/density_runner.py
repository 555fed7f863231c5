"""The story of a density benchmark: more and more streams at once, in one container and in one each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

from transcoder import capacity, settings
from transcoder.bench import clips, density, destination
from transcoder.bench.contrasts import throughput
from transcoder.bench.density import Ask, Limits, Seen
from transcoder.bench.destination import Destination, unfinished
from transcoder.bench.engines import Docker, engine, own, without_values
from transcoder.bench.environment import crowded, environment
from transcoder.bench.hardware import hardware
from transcoder.bench.result import Cell, Density, Design, Engine, Level, Result, Run, Workload
from transcoder.bench.rig import Housed, Rig, opened
from transcoder.bench.session import (
    LEAST_FRAMES,
    Session,
    Show,
    cut,
    device,
    in_order,
    telling_why,
    too_short,
    trouble,
)
from transcoder.capacity import CapacityFile, Measurement, OfCpus
from transcoder.errors import BenchmarkFailed, SettingsError

Packing = Literal["one", "each"]
"""All streams in one container, or each in one of its own."""
PACKINGS: tuple[Packing, ...] = ("one", "each")

_PLAN_LIMIT = 300.0
_LEAST_SECONDS = LEAST_FRAMES / 25
"""Of the clip that is made here."""
_SLOWEST = 0.05
"""× real time; a run whose streams are slower than that is ended."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks. `seconds` of the clip are what each stream makes in a run, which takes as long at N streams."""

    accel: str = "auto"
    """The name of a backend; `auto` is that of the GPU where there is one."""
    engine: Engine = "docker"
    image: str | None = None
    clip: str | None = None
    codec: str = "h264"
    height: int = 720
    limits: Limits = field(default_factory=lambda: Limits(64))
    seconds: float = 10.0
    packings: tuple[Packing, ...] = PACKINGS
    options: tuple[str, ...] = ()


def measure(asked: Asked, out: Destination, capacities: str | None, show: Show) -> Result:
    """Search and confirm, with the result in the file `out` after each run, marked as partial until the end.

    What was found goes into the capacity file `capacities` too, beside what that says of other devices.

    Raises:
        EngineMissing, ImageMissing: there is nothing to run containers with, or of.
        NoRoute: there is no such device.
        MachineBusy: a simulated device whose simulation takes more than half of the CPUs.
        BenchmarkFailed: not even one stream can be made, or a container failed.
        TargetExists, TargetUnwritable: a file cannot be written.
        SettingsError: the capacity file that is there is none.
        InputMissing, InputUnreadable: the clip cannot be read, or has no picture.
    """
    out.look()
    known = _known(capacities)
    clips.look(asked.clip)
    drafts = [unfinished(path) for path in (out.path, capacities) if path]
    chosen = engine(asked.engine)
    version = chosen.version()
    given = hardware(asked.accel, asked.options)
    image = (asked.image or own(given.target)) if isinstance(chosen, Docker) else ""
    digest = chosen.require(image)
    made = Rig(chosen, image, nodes=given.nodes, groups=given.groups, options=asked.options)
    with in_order(), opened(made, also=drafts) as rig:
        session = _Session(asked, rig, out, show)
        with telling_why(session):
            session.prepare(version, f"{image} {digest}".strip())
            result = session.search()
    if capacities:
        destination.write(capacities, capacity.text(with_found(known, result)), "--capacity")
    return result


def with_found(capacities: CapacityFile, result: Result) -> CapacityFile:
    """The capacity file with what a whole result found."""
    measured = measurement(result)
    if result.device.address:
        return capacity.with_device(capacities, result.device.address, measured)
    return capacity.with_cpus(capacities, OfCpus(**measured.model_dump(), cpus=result.environment.cpus))


def described(result: Result) -> str:
    """What a capacity file says of the device after this whole result."""
    measured = measurement(result)
    device = f"{result.device.address} bears" if result.device.address else f"{result.environment.cpus} CPUs bear"
    doubt = "" if measured.confirmed else " (not confirmed)"
    least = "at least " if measured.at_least else ""
    many = "stream" if measured.streams == 1 else "streams"
    return f"{device} {least}{measured.streams} {many}, {measured.pixels_per_second:,} pixels a second{doubt}"


def measurement(result: Result) -> Measurement:
    """What a whole result found, by the packing that bore less.

    The budget is what N streams cost, so that a worker takes N such jobs at a time and no more. One whole pixel more
    keeps the sum of N shares of a broken frame rate from exceeding it by a rounding. Where not even one stream was made
    in real time it is what that one was made at: jobs then run one by one.
    """
    least = min(result.density, key=lambda one: one.streams)
    load = result.workload
    rate = load.width * load.height * load.frame_rate
    return Measurement(
        pixels_per_second=math.floor(least.streams * rate if least.streams else least.pixel_rate) + 1,
        streams=least.streams,
        workload=f"{load.codec} {load.width}x{load.height} at {load.frame_rate:g} fps, {load.accel}",
        packing=least.cell.name,
        at_least=least.capped,
        confirmed=least.confirmed,
        measured=result.made,
        programs=f"transcoder {result.environment.transcoder}, ffmpeg {result.environment.ffmpeg}",
    )


class _Crowd:
    """One packing: its containers, as many as were needed so far, and what was seen."""

    def __init__(self, packing: Packing, rig: Rig, first: Housed) -> None:
        self.packing = packing
        self.seen: list[Seen] = []
        self.others: list[float] = []
        """The share of the CPUs that other programs had, of each run that confirms."""
        self._rig, self._first = rig, first
        self._agents = [*first.agents]

    def take(self, seen: Seen, others: float) -> None:
        """A run of its own, or of another's where both pack alike."""
        self.seen.append(seen)
        if seen.confirms:
            self.others.append(others)

    def cell(self, streams: int) -> Cell:
        return Cell(containers=1 if self.packing == "one" else streams, stacks=streams)

    def housed(self, streams: int) -> Housed:
        """Containers for that many streams; further ones are started where they lack."""
        if self.packing == "one":
            return Housed(self.cell(streams), self._agents, self._first.start)
        missing = streams - len(self._agents)
        if missing > 0:
            self._agents += self._rig.house(Cell(containers=missing, stacks=missing)).agents
        return Housed(self.cell(streams), self._agents[:streams], self._first.start)


class _Session(Session):
    """One benchmark under way."""

    def __init__(self, asked: Asked, rig: Rig, out: Destination, show: Show) -> None:
        super().__init__(out, show)
        self._asked, self._rig = asked, rig
        self._crowds: list[_Crowd] = []
        self._alone: list[tuple[Seen, float]] = []
        self._device = False
        self._limit = 0.0

    def prepare(self, version: str, image: str) -> None:
        """Start a container, which all packings share, make the clip, plan the work, and try one stream."""
        asked = self._asked
        self._show.phase("starting a container")
        first = self._rig.house(Cell(containers=1, stacks=1))
        if self._rig.other_code:
            self._note(self._rig.other_code)
        self._crowds = [_Crowd(packing, self._rig, first) for packing in asked.packings]
        self._show.phase("bringing the clip" if asked.clip else "making the clip")
        name, inside = clips.bring(self._rig, first, asked.clip, max(asked.seconds, _LEAST_SECONDS))
        self._show.phase("planning")
        first.agent.ask(ask="plan", accel=asked.accel, source=inside, codec=asked.codec, height=asked.height)
        with clips.named(asked.clip, inside):
            plan = first.agent.answer(_PLAN_LIMIT)
        self._device = plan["device"] is not None
        frames = min(int(plan["frames"]), max(LEAST_FRAMES, round(asked.seconds * plan["frame_rate"])))
        if frames < LEAST_FRAMES:
            self._note(too_short(frames))
        self._limit = 30 + frames / plan["frame_rate"] / _SLOWEST
        self._result = self._begun(plan, version, image, Workload(
            accel=plan["accel"],
            clip=name,
            codec=asked.codec,
            width=plan["width"],
            height=plan["height"],
            frames=frames,
            frame_rate=plan["frame_rate"],
            argv=cut(plan["argv"], frames, plan["frame_rate"]),
        ))  # fmt: skip
        run = self._run(self._crowds[0], 1, warmup=True)
        if why := trouble(run, frames):
            raise BenchmarkFailed(
                f"not even one stream can be made: {why}", "`transcoder doctor` and `transcoder devices` say more."
            )

    def _begun(self, plan: Mapping[str, Any], version: str, image: str, workload: Workload) -> Result:
        driver = plan["device"]["driver"] if plan["device"] else ""
        told = {"ffmpeg": plan["ffmpeg"], "driver": driver}
        return Result(
            kind="density",
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            partial=True,
            environment=environment(version, image).model_copy(update=told),
            device=device(plan),
            design=Design(
                profile="gpu" if self._device else "full",
                engine=self._asked.engine,
                seed=0,
                cells=(self._crowds[0].cell(1),),
                reference=self._crowds[0].cell(1),
                pilot_blocks=0,
                seconds=self._asked.seconds,
                options=without_values(self._asked.options),
            ),
            workload=workload,
        )

    def search(self) -> Result:
        """Run what the search of each packing asks for, a run of each in turn; gives the whole result."""
        while due := [(crowd, ask) for crowd in self._crowds if (ask := density.following(crowd.seen, self._limits))]:
            for crowd, ask in due:
                crowd.take(*(self._known_alone(crowd, ask) or self._look(crowd, ask)))
                self._save()
        return self._ended()

    def _known_alone(self, crowd: _Crowd, ask: Ask) -> tuple[Seen, float] | None:
        """A run of one stream, which all packings pack alike: one that another has and this has not taken yet."""
        if ask.streams != 1:
            return None
        taken = sum(one.streams == 1 and one.confirms is ask.confirms for one in crowd.seen)
        alike = [one for one in self._alone if one[0].confirms is ask.confirms]
        return alike[taken] if taken < len(alike) else None

    def _look(self, crowd: _Crowd, ask: Ask) -> tuple[Seen, float]:
        """A run, and the share of the CPUs that other programs had meanwhile."""
        what = "confirming" if ask.confirms else "trying"
        self._show.phase(f"{what} {crowd.cell(ask.streams).name}")
        run = self._run(crowd, ask.streams, pilot=not ask.confirms)
        found = Seen(ask.streams, self._slowest(run), ask.confirms), self._others[-1]
        if ask.streams == 1:
            self._alone.append(found)
        return found

    def _crowded(self) -> str:
        """Of the runs that confirm a packing's number, which count; of all while there are none."""
        confirming = [crowd.others for crowd in self._crowds if crowd.others] or [self._others]
        others = next(filter(None, map(crowded, confirming)), "")
        return others and f"{others}: what was found is not confirmed; end what else runs here and measure again"

    @property
    def _limits(self) -> Limits:
        return self._asked.limits

    def _run(self, crowd: _Crowd, streams: int, *, warmup: bool = False, pilot: bool = False) -> Run:
        housed = crowd.housed(streams)
        each = streams if crowd.packing == "one" else 1
        argv, start = self._result.workload.argv, housed.start if warmup else 0.0
        planned = Run(
            block=len(self._result.runs),
            place=0,
            cell=crowd.cell(streams),
            warmup=warmup,
            pilot=pilot,
            stacks=(),
            start=start,
        )
        run = self._observed(planned, lambda: housed.run(argv, device=self._device, limit=self._limit, stacks=each))
        self._refuse_busy(run, "Take a smaller clip or a lower rate of the device.")
        self._result = self._result.model_copy(update={"runs": (*self._result.runs, run)})
        self._show.ran(run)
        return run

    def _slowest(self, run: Run) -> float:
        """× real time; 0 where a stream failed, which is noted: a device may bear only so many at a time."""
        load = self._result.workload
        if why := trouble(run, load.frames):
            self._note(f"{run.cell.name} counts as too slow: {why}")
            return 0.0
        return min(throughput(run)[0]) / load.frame_rate

    def _save(self, **found: object) -> None:
        density = tuple(self._found(crowd) for crowd in self._crowds if crowd.seen)
        super()._save(density=density, **found)

    def _found(self, crowd: _Crowd) -> Density:
        found = density.found(crowd.seen, self._limits)
        load, cell = self._result.workload, crowd.cell(max(1, found.streams))
        at_it = [run for run in self._result.runs if run.cell == cell and not run.warmup]
        rates = [sum(throughput(run)[0]) for run in at_it if not trouble(run, load.frames)]
        return Density(
            cell=cell,
            streams=found.streams,
            intel=found.intel,
            livepeer=found.livepeer,
            confirmed=found.confirmed and not crowded(crowd.others),
            capped=found.capped,
            levels=tuple(
                Level(cell=crowd.cell(streams), streams=streams, slowest=slowest, runs=runs)
                for streams, slowest, runs in density.levels(crowd.seen)
            ),
            pixel_rate=load.width * load.height * median(rates) if rates else 0.0,
        )


def _known(path: str | None) -> CapacityFile:
    """What the capacity file says already, which is seen to be ours to write."""
    if path is None:
        return CapacityFile()
    destination.refuse(path, "--capacity")
    if not os.path.exists(path):
        return CapacityFile()
    try:
        return settings.read_capacities(path)
    except SettingsError as wrong:
        what = wrong.what.removeprefix("TRANSCODER_CAPACITY_FILE: ")
        raise SettingsError(f"--capacity: {what}", "Remove it, or name another with --capacity.") from None
