"""What a benchmark is asked, what it saw and what follows, as values; the JSON of a result is these.

Moments are seconds of CLOCK_MONOTONIC since the stacks of a run were released. A field's bounds hold wherever it is
made; what fields say of each other is checked where a result is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Final = 1

Accel = Annotated[str, Field(pattern="^[a-z0-9]{1,20}$")]
"""The name of a backend."""

DeviceKind = Literal["real", "simulated", "software"]
Engine = Literal["docker", "podman", "processes"]
Profile = Literal["quick", "full", "gpu"]
Count = Annotated[int, Field(ge=0)]
Frames = Annotated[int, Field(ge=0, le=10**9)]
"""A year of 25 per second is less."""
Pixels = Annotated[int, Field(ge=1, le=10**6)]
Seconds = Annotated[float, Field(ge=0)]


class Value(BaseModel):
    """A frozen value that knows all its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(Value):
    """A way to pack `stacks` equal stacks, all together, into that many containers; 0 containers is bare.

    `worker` is the product's whole path: each stack is a job through the queue to a worker in the container, verified
    and published.
    """

    containers: int = Field(ge=0)
    stacks: int = Field(ge=1)
    worker: bool = False

    @property
    def name(self) -> str:
        """As people read it: `bare 4`, `1 × 4` (one container with four stacks), `4 × 1`, `worker 1 × 4`."""
        packing = f"{self.containers} × {self.stacks // self.containers}" if self.containers else f"bare {self.stacks}"
        return f"worker {packing}" if self.worker else packing


class Workload(Value):
    """What every stack does: the clip, and what is made of it, by the product's own plan for that acceleration."""

    accel: Accel
    clip: str
    """Its name in the corpus."""
    codec: str = "h264"
    width: Pixels
    height: Pixels
    frames: Frames
    """Of the clip as one stack reads it, which it encodes all."""
    frame_rate: float = Field(gt=0, le=10**6)
    """Frames per second at which it plays: real time."""
    argv: tuple[str, ...] = ()
    """ffmpeg's words, as planned; the same in every cell."""


class Device(Value):
    """What did the encoding: a GPU, one made in software for tests, or the CPUs."""

    kind: DeviceKind
    name: str
    address: str = ""


class Environment(Value):
    """The machine and the programs, for who compares results."""

    host: str = ""
    cpu: str = ""
    cpus: int = Field(default=1, ge=1)
    memory: Count = 0
    """Bytes."""
    kernel: str = ""
    governor: str = ""
    cgroup: str = ""
    engine: str = ""
    """The container engine and its version."""
    image: str = ""
    """Its name and digest."""
    ffmpeg: str = ""
    driver: str = ""
    transcoder: str = ""


class Stamp(Value):
    """That many frames were encoded at that second."""

    at: Seconds
    frames: Frames


class StackRun(Value):
    """One stack's run in a cell."""

    container: Count
    """Counted from 0; 0 too where bare."""
    started: float = Field(ge=-1)
    """A little before the release where clocks are read one after the other."""
    ended: float
    frames: Frames
    stamps: tuple[Stamp, ...] = ()
    cpu_user: Seconds = 0.0
    cpu_system: Seconds = 0.0
    """Seconds of the CPU, of ffmpeg; of a worker's stack of its worker too."""
    switches: Count = 0
    pss: Count = 0
    """Bytes, the largest proportional set size that was seen."""
    engines: Mapping[str, Seconds] = {}
    """Seconds that the GPU's engines worked for it, by engine."""
    digest: str = ""
    """Of the encoded pictures: equal in all cells where the encoder is deterministic."""
    trouble: str = ""
    """Why it ended before its time; empty where it did not."""


class Run(Value):
    """One cell, once: all its stacks released at the same moment."""

    block: Count
    place: Count
    """In the order of its block, from 0."""
    cell: Cell
    again: bool = False
    """Whether it is the block's second run of the reference cell (A/A)."""
    warmup: bool = False
    """A run before the first block, of which only start-up is used."""
    pilot: bool = False
    """Whether its block was of the pilot, from which the number of blocks was fixed."""
    stacks: tuple[StackRun, ...]
    start: Seconds = 0.0
    """Seconds from the start of the cell's containers until all were ready; 0 where they were up already."""
    cpu_busy: float = 0.0
    """The share of all CPUs that worked, from 0 to 1."""
    steal: float = 0.0
    load: float = 0.0
    throttled: Seconds = 0.0
    """Seconds that a quota held its containers back."""


class Blast(Value):
    """What is lost when one of a cell's containers is killed while all stacks work."""

    cell: Cell
    lost: Count
    """Stacks that did not finish."""
    finished: Count


class Design(Value):
    """What was to be done, fixed before the first block that counts."""

    profile: Profile
    engine: Engine
    seed: int
    cells: tuple[Cell, ...]
    reference: Cell
    margin: float = Field(default=0.03, gt=0, lt=0.5)
    """The band of equivalence: ratios within 1 ± margin are the same."""
    pilot_blocks: Count = 8
    blocks: Count = 0
    """That count, fixed from the pilot; 0 while the pilot runs."""
    wanted: Count = 0
    """How many the pilot asked for, before the time budget cut it."""
    budget: Seconds = 0.0
    """Seconds that it may take."""
    seconds: Seconds = 0.0
    """What was asked for the length of a run, or of the clip of a stream; 0 in results that do not tell."""
    options: tuple[str, ...] | None = None
    """The user's words for the engine's `run`, variables without their values; None in results that do not tell."""


class Level(Value):
    """What a density run saw at a number of streams: the slowest of them, of all repeats."""

    cell: Cell
    streams: Count
    slowest: float = Field(ge=0)
    """× real time, the median of the repeats' slowest stream."""
    runs: Count


class Density(Value):
    """The largest number of streams of which the slowest stays real time, by three rules; 0: not even one."""

    cell: Cell
    """With `stacks` as that number or 1 where it is 0."""
    streams: Count
    """Slowest ≥ 1."""
    intel: Count
    """Slowest ≥ 0.98."""
    livepeer: Count
    """Slowest takes at most 0.8 of the clip's time: ≥ 1.25."""
    confirmed: bool
    """Whether N and N + 1 were both measured anew, and said the same."""
    capped: bool = False
    """Whether the search ended at its largest number before the device was full."""
    levels: tuple[Level, ...]
    pixel_rate: float = Field(ge=0)
    """Pixels per second that the device made at N, all streams together."""


class Result(Value):
    """A benchmark's result: everything that was seen. What follows from it is worked out anew when it is read."""

    schema_version: Literal[1] = SCHEMA
    kind: Literal["topology", "density"]
    made: str
    """When it began, in UTC, ISO 8601."""
    partial: bool = False
    """Whether it was ended before its time."""
    environment: Environment
    device: Device
    design: Design
    workload: Workload
    runs: tuple[Run, ...] = ()
    blast: tuple[Blast, ...] = ()
    density: tuple[Density, ...] = ()
    verdicts: Mapping[str, str] = {}
    """The sentences of the analysis, by stacks and cell, for who reads JSON alone."""
    notes: tuple[str, ...] = ()
    """What the reader must know: a cell that could not be run here, and why."""


def contradiction(result: Result) -> str:
    """What fields of a whole result say against each other, with their name first; empty where nothing."""
    work, device = result.workload, result.device
    if (work.accel == "software") != (device.kind == "software"):
        return f"device.kind: {device.kind} does not go with workload.accel, which is {work.accel}"
    seen: set[tuple[int, Cell, bool]] = set()
    for number, run in enumerate(result.runs):
        if wrong := _contradiction(run):
            return f"runs.{number}.{wrong}"
        if run.warmup:
            continue
        if (run.block, run.cell, run.again) in seen:
            return f"runs.{number}: block {run.block} has this run of {run.cell.name} twice"
        seen.add((run.block, run.cell, run.again))
    return ""


def _contradiction(run: Run) -> str:
    if not run.stacks:
        return "stacks: a run has at least one"
    for place, stack in enumerate(run.stacks):
        if stack.ended < stack.started:
            return f"stacks.{place}.ended: {stack.ended:g} is before started, which is {stack.started:g}"
    return ""
