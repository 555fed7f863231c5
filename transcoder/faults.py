"""ffmpeg's stderr and exit code become one class of fault, which decides what to do next.

The texts are those of ffmpeg 5.1 and 7.1. On 6 and later the exit code is the low byte of the negated AVERROR and
supports the text; on 5.1 it is nearly always 1, so that the text decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from transcoder.machine import SOFTWARE


class FaultClass(StrEnum):
    """What went wrong, named after what to do next."""

    CONFIG = "config"
    """The device or its driver is not usable here: take it out of service, go on with the next route."""
    CAPABILITY = "capability"
    """The device cannot do this stream: next route, the device stays in service."""
    HARDWARE = "hardware"
    """The device failed while working: next route, and count it against the device."""
    TRANSIENT = "transient"
    """Short of memory or places: the same may work later."""
    STALLED = "stalled"
    """Nothing moved for too long."""
    INPUT = "input"
    """The source is at fault, once software says so."""
    OUTPUT = "output"
    """The place to write to is at fault: full, read-only, gone."""
    MISMATCH = "mismatch"
    """ffmpeg said success and the output does not keep its promise."""
    CRASHED = "crashed"
    """ffmpeg died of a signal that nobody here sent."""
    UNKNOWN = "unknown"
    """None of the above: next route."""


class Next(StrEnum):
    """What to do after a fault."""

    ROUTE = "next route"
    LATER = "retry later"
    FAIL = "fail for good"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is kept of a failed run: the command, its end, the last lines of stderr (bounded)."""

    argv: tuple[str, ...] = ()
    returncode: int | None = None
    stderr: tuple[str, ...] = ()


class Fault(Exception):
    """A run that did not give a good output. `evidence` is enough to repeat it by pasting."""

    def __init__(self, kind: FaultClass, what: str, evidence: Evidence | None = None) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.evidence = evidence or Evidence()


def what_next(kind: FaultClass, api: str) -> Next:
    """What to do after a fault of that class on a route of that API.

    An input is only at fault when software says so; a full disk is full for every route.
    """
    match kind:
        case FaultClass.OUTPUT:
            return Next.LATER
        case FaultClass.INPUT | FaultClass.MISMATCH | FaultClass.CAPABILITY | FaultClass.CONFIG if api == SOFTWARE:
            return Next.FAIL
        case FaultClass.TRANSIENT | FaultClass.STALLED | FaultClass.CRASHED if api == SOFTWARE:
            return Next.LATER
        case _:
            return Next.ROUTE


_TABLE: tuple[tuple[FaultClass, str], ...] = (
    (FaultClass.OUTPUT, r"No space left on device|Disk quota exceeded|File too large|Read-only file system"),
    (FaultClass.CONFIG, r"No VA display found|Cannot open a VA display|Failed to initialise VAAPI connection"),
    (FaultClass.CONFIG, r"Device creation failed|Error creating a MFX session|Error setting child device handle"),
    (FaultClass.CONFIG, r"No device available for decoder|Hardware device setup failed|Unknown encoder|No such filter"),
    (
        FaultClass.TRANSIENT,
        r"pipeline configuration: (?:2|34) |(?:context|surface): (?:2|34) \(|failed to allocate memory \(-4\)",
    ),
    (FaultClass.TRANSIENT, r"Unable to allocate a surface|Cannot allocate memory|Resource temporarily unavailable"),
    (FaultClass.HARDWARE, r"GPU [Hh]ang|device failed \(-17\)|internal encoding error|Failed to sync (?:surface|to )"),
    (FaultClass.HARDWARE, r"Failed to end picture (?:en|de)code issue|hardware accelerator failed to decode picture"),
    (FaultClass.HARDWARE, r"Failed to map output buffers|Failed to create parameter buffer|Failed to download frame"),
    (FaultClass.HARDWARE, r"Failed to start picture processing|Error running VPP"),
    (FaultClass.CAPABILITY, r"No usable encoding (?:profile|entrypoint) found|Driver does not support"),
    (FaultClass.CAPABILITY, r"Failed to create (?:encode|processing) pipeline|Hardware does not support"),
    (FaultClass.CAPABILITY, r"Impossible to convert between the formats|not supported by the QSV runtime"),
    (FaultClass.CAPABILITY, r"Error initializing the encoder|Failed to create a qsvvpp"),
    (FaultClass.INPUT, r"moov atom not found|Format not on whitelist|not on whitelist"),
    (FaultClass.INPUT, r"could not find codec parameters|Could not find codec parameters|Picture size .* exceeds"),
    (
        FaultClass.INPUT,
        r"matches no streams|does not contain any stream|Error opening input|EBML header parsing failed",
    ),
    (FaultClass.INPUT, r"Invalid data found when processing input|Error while decoding stream"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _TABLE)
_CODES = {228: FaultClass.OUTPUT, 244: FaultClass.TRANSIENT, 183: FaultClass.INPUT, 254: FaultClass.INPUT}
_NOISE = re.compile(
    r"Conversion failed!|Error while opening encoder|Error initializing output stream|Nothing was written into output|"
    r"Error opening output files?:|Exiting with exit code|deinit called without sending EOS|"
    r"Error setting encoder parameters|Could not open encoder before EOF|"
    r"Terminating thread with return code|Task finished with error code|"
    # nothing is lost: time stamps of neighbours, rounded; and in a container x265 may not bind its threads
    r"non monotonically increasing dts to muxer|unable to set thread affinity"
)
"""What ffmpeg says after, or beside, the line that tells what is wrong."""

_LEVEL = re.compile(r"\[(?:error|fatal|panic)\] ?")


def classify(returncode: int, stderr: Sequence[str]) -> tuple[FaultClass, str]:
    """The class of a run that ended with `returncode` (negative for a signal), and the line that says it best."""
    every = [line for line in stderr if _LEVEL.search(line)]
    errors = [line for line in every if not _NOISE.search(line)] or every
    for kind, pattern in _PATTERNS:
        if line := next((line for line in errors if pattern.search(line)), None):
            return kind, plain(line)
    best = plain(errors[-1]) if errors else f"ffmpeg ended with {_ending(returncode)} and said nothing"
    if returncode < 0 or returncode in (137, 139):
        return FaultClass.CRASHED, f"ffmpeg died of {_ending(returncode)}"
    return _CODES.get(returncode, FaultClass.UNKNOWN), best


def errors_in(stderr: Sequence[str]) -> list[str]:
    """The lines of level error and worse, without decoration."""
    return [plain(line) for line in stderr if _LEVEL.search(line) and not _NOISE.search(line)]


def plain(line: str) -> str:
    """A line of ffmpeg's log without component, address and level."""
    return re.sub(r"^(?:\[[^\]]*\] ?)+", "", line).strip() or line.strip()


def _ending(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
