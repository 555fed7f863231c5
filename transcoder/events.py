"""What happened: frozen values that the core emits. Log, metrics and ledger are equal listeners of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from transcoder.command import Command, Route
from transcoder.errors import TranscoderError
from transcoder.faults import FaultClass
from transcoder.media import Media
from transcoder.progress import Progress
from transcoder.usage import Usage


@dataclass(frozen=True, slots=True)
class Probing:
    """The source is being looked at."""

    source: str


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be tried, best first, and what is left out of the job and why."""

    source: Media
    commands: tuple[Command, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """ffmpeg starts on one route."""

    route: Route


@dataclass(frozen=True, slots=True)
class Advanced:
    """ffmpeg reports progress. `fraction` from 0 to 1, `eta` in seconds; None where the duration is not known."""

    route: Route
    progress: Progress
    fraction: float | None
    eta: float | None


@dataclass(frozen=True, slots=True)
class Verifying:
    """ffmpeg is done and its outputs are looked at."""

    route: Route


@dataclass(frozen=True, slots=True)
class FellBack:
    """A route failed. `lost` is the time spent on it in seconds."""

    route: Route
    kind: FaultClass
    what: str
    lost: float


@dataclass(frozen=True, slots=True)
class Publishing:
    """Every output is verified and is being given its name."""

    route: Route


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """One published file. Rates in frames per second, duration in seconds, size in bytes."""

    name: str
    path: str
    container: str
    bytes: int
    sha256: str
    duration: float
    frames: int | None
    codec: str | None
    width: int | None
    height: int | None
    depth: int | None
    audio: tuple[str, ...]
    subtitles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds. `decode` is the part of verifying that decodes."""

    probe: float = 0.0
    encode: float = 0.0
    verify: float = 0.0
    decode: float = 0.0
    publish: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Tried:
    """A route that did not work, and why. `lost` in seconds."""

    route: str
    kind: str
    what: str
    lost: float


@dataclass(frozen=True, slots=True)
class Published:
    """The job is done: verified files stand under their names and the manifest beside them.

    `gpu` is what the GPU's engines did on the route that published; None in software and where no driver counts.
    """

    route: Route
    outputs: tuple[OutputFacts, ...]
    manifest: str
    timings: Timings
    tried: tuple[Tried, ...] = ()
    warnings: tuple[str, ...] = ()
    gpu: Usage | None = None

    @property
    def on_gpu(self) -> bool | None:
        """Whether the GPU really did it: its engines worked, or they stood still on a route that should use it.

        None in software, and where its counters could not be read.
        """
        return None if self.gpu is None else self.gpu.seconds > 0

    @property
    def fps(self) -> float | None:
        """Frames of source encoded per second, by the output with most frames."""
        frames = max((one.frames or 0 for one in self.outputs), default=0)
        return round(frames / self.timings.encode, 2) if frames and self.timings.encode else None

    @property
    def speed(self) -> float | None:
        """Seconds of source encoded per second (x real time), by the longest output."""
        seconds = max((one.duration for one in self.outputs), default=0.0)
        return round(seconds / self.timings.encode, 3) if self.timings.encode else None

    def as_record(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        values = asdict(self)
        route = values.pop("route")
        where = {"route": route["name"], "api": route["api"], "device": route["device"]}
        values["gpu"] = self.gpu.as_record() if self.gpu else None
        return {**where, "verified": True, "on_gpu": self.on_gpu, "fps": self.fps, "speed": self.speed, **values}


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ends without an output."""

    error: TranscoderError


@dataclass(frozen=True, slots=True)
class PutOff:
    """The job failed in a way that may pass, and is tried again in so many seconds by whoever has a place."""

    error: TranscoderError
    seconds: float


@dataclass(frozen=True, slots=True)
class HandedOn:
    """The job goes on with another worker, which takes it from `queue`; this one has nothing more to do with it."""

    queue: str
    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The job is not this worker's any more: what becomes of it is another's to say."""

    why: str


Event: TypeAlias = (
    Probing
    | Planned
    | Started
    | Advanced
    | Verifying
    | FellBack
    | Publishing
    | Published
    | Failed
    | PutOff
    | HandedOn
    | Lost
)
Emit: TypeAlias = Callable[[Event], None]


def phase(event: Event) -> str | None:
    """The phase that an event begins, in the user's words; None where it begins none."""
    match event:
        case Probing():
            return "probing"
        case Started() | Advanced():
            return "encoding"
        case Verifying():
            return "verifying"
        case Publishing():
            return "publishing"
        case Published() | Failed() | PutOff() | HandedOn() | Lost():
            return "done"
        case Planned() | FellBack():
            return None
