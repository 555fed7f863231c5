"""ffmpeg's stderr and exit code become one class of fault, which decides what to do next.

The texts are those of ffmpeg 5.1 and 7.1. On 6 and later the exit code is the low byte of the negated AVERROR and
supports the text; on 5.1 it is nearly always 1, so that the text decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

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
    BLOCKED = "blocked"
    """The storage of the source (or of the output) does not answer: no route is faster than that, try again later."""
    INPUT = "input"
    """The source is at fault, once software says so."""
    OUTPUT = "output"
    """The place to write to is at fault: full, read-only, gone."""
    LIMIT = "limit"
    """The job takes more time, CPU or space than any may here: no route takes less."""
    MISMATCH = "mismatch"
    """ffmpeg said success and the output does not keep its promise."""
    CRASHED = "crashed"
    """ffmpeg died of a signal that nobody here sent."""
    UNKNOWN = "unknown"
    """None of the above: next route."""


Stage: TypeAlias = Literal["device", "decode", "filter", "encode"]
"""Where on a device something failed. Uploading is the device's work, downloading the decoder's: a route that decodes
in software does without it."""


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

    An input is only at fault when software says so; a full disk is full, and a storage silent, for every route.
    """
    match kind:
        case FaultClass.OUTPUT | FaultClass.BLOCKED:
            return Next.LATER
        case FaultClass.LIMIT:
            return Next.FAIL
        case FaultClass.INPUT | FaultClass.MISMATCH | FaultClass.CAPABILITY | FaultClass.CONFIG if api == SOFTWARE:
            return Next.FAIL
        case FaultClass.TRANSIENT | FaultClass.STALLED | FaultClass.CRASHED if api == SOFTWARE:
            return Next.LATER
        case _:
            return Next.ROUTE


def blames_device(kind: FaultClass, api: str) -> bool:
    """Whether a fault of that class on a route of that API counts against the device, for its circuit breaker.

    A picture that it cannot do, a shortage, and what the source or the storage did wrong do not.
    """
    return api != SOFTWARE and kind in (
        FaultClass.HARDWARE,
        FaultClass.STALLED,
        FaultClass.CRASHED,
        FaultClass.CONFIG,
        FaultClass.MISMATCH,
    )


def stage(fault: Fault) -> Stage | None:
    """Where on the device it failed, as far as ffmpeg's words tell; None where they do not.

    The line that tells the fault may come from what all stages share (a pool of surfaces): the next line that names
    its stage is that of who asked for it.
    """
    if fault.kind not in _OF_DEVICES:
        return None
    errors = [line for line in fault.evidence.stderr if _LEVEL.search(line)]
    told = next((at for at, line in enumerate(errors) if plain(line) == fault.what), None)
    lines = [fault.what] if told is None else errors[told:]
    return next((found for line in lines if (found := _stage_of(line))), None)


def _stage_of(line: str) -> Stage | None:
    return next((name for name, words in _STAGES if words.search(line)), None)


# By ffmpeg's component, which begins the line, and by its words: `h264` decodes, `h264_vaapi` encodes. `h264_qsv` does
# both, so its name alone tells nothing: what both say of a session ("Error setting a HW handle") is placed by the next
# line, that of the stream.
_STAGES: tuple[tuple[Stage, re.Pattern[str]], ...] = (
    (
        "device",
        re.compile(
            r"^\[AVHWDevice|VA display|VAAPI connection|creating a MFX session|Device creation|child device handle"
        ),
    ),
    ("device", re.compile(r"^\[(?:Parsed_)?hwupload|device setup failed|No device available|upload frame")),
    (
        "decode",
        re.compile(r"^\[(?:Parsed_)?hwdownload|download frame|^\[(?:h26[34]|hevc|av1|vp[89]|mpeg\w*|vc1|mjpeg) @"),
    ),
    (
        "decode",
        re.compile(
            r"to create decode|decode issue|to decode picture|MFX video decoder|QSV decod|decoding (?:stream|header)"
        ),
    ),
    ("decode", re.compile(r"^\[vist#|Error while decoding stream|setup for format|support image size")),
    (
        "filter",
        re.compile(r"^\[Parsed_|processing|VPP|qsvvpp|\[(?:scale|vpp|deinterlace|overlay|tonemap)_(?:vaapi|qsv)"),
    ),
    ("encode", re.compile(r"^\[\w+_vaapi @|^\[vost#|encod|RC mode|QSV runtime|reconstructed frame")),
    ("encode", re.compile(r"to sync to (?:output buffer|picture) completion|to map output buffers|packed header")),
)

_MAKING = (
    r"Failed to create (?:(?:encode|processing) pipeline (?:configuration|config|context)|decode (?:configuration|"
)
_MAKING += r"context)|surface): "
"""Of what the driver makes before it works. The status behind it tells a shortage from an inability."""

_TABLE: tuple[tuple[FaultClass, str], ...] = (
    (FaultClass.OUTPUT, r"No space left on device|Disk quota exceeded|File too large|Read-only file system"),
    (FaultClass.OUTPUT, r"Error (?:writing trailer|muxing a packet).*(?:Input/output error|Stale file handle)"),
    (FaultClass.BLOCKED, r"Error (?:during demuxing|opening input): (?:Input/output error|Connection timed out)"),
    (FaultClass.BLOCKED, r"Stale file handle|Transport endpoint is not connected"),
    (FaultClass.CONFIG, r"No VA display found|Cannot open a VA display|Failed to initialise VAAPI connection"),
    (FaultClass.CONFIG, r"Error creating a MFX session|Error setting child device handle|Device creation failed"),
    (FaultClass.CONFIG, r"No device available for decoder|Hardware device setup failed|Unknown encoder|No such filter"),
    (FaultClass.HARDWARE, r"GPU [Hh]ang|device failed \(-17\)|internal encoding error|Failed to sync (?:surface|to )"),
    (FaultClass.HARDWARE, r"Failed to end picture (?:en|de)code issue|hardware accelerator failed to decode picture"),
    (FaultClass.HARDWARE, r"Failed to map output buffers|Failed to create parameter buffer|bitstream output buffer"),
    (FaultClass.HARDWARE, r"Failed to start picture processing|Error running VPP|Failed to (?:derive|read|map) image"),
    (FaultClass.TRANSIENT, _MAKING + r"(?:2|34) |failed to allocate memory \(-4\)"),
    (FaultClass.HARDWARE, _MAKING + r"1 \("),
    (FaultClass.CAPABILITY, _MAKING),
    (FaultClass.TRANSIENT, r"Unable to allocate a surface|Cannot allocate memory|Resource temporarily unavailable"),
    (FaultClass.HARDWARE, r"Failed to (?:up|down)load frame"),
    (FaultClass.CAPABILITY, r"No usable encoding (?:profile|entrypoint) found|Driver does not support"),
    # whatever QSV was about: its runtime lacks the codec, the depth or the filter
    (FaultClass.CAPABILITY, r"unsupported \(-3\)"),
    (FaultClass.CAPABILITY, r"Hardware does not support|not supported by the QSV runtime|Failed to create a qsvvpp"),
    (FaultClass.CAPABILITY, r"Error initializing the (?:encoder|MFX video decoder)|Error decoding stream header"),
    (FaultClass.CAPABILITY, r"No support for codec|Failed setup for format|Impossible to convert between the formats"),
    # h264_qsv's and hevc_qsv's own words at work, with any status that is not above
    (FaultClass.HARDWARE, r"Error during encoding: "),
    (FaultClass.INPUT, r"moov atom not found|Format not on whitelist|not on whitelist"),
    (FaultClass.INPUT, r"could not find codec parameters|Could not find codec parameters|Picture size .* exceeds"),
    (
        FaultClass.INPUT,
        r"matches no streams|does not contain any stream|Error opening input|EBML header parsing failed",
    ),
    (FaultClass.TRANSIENT, r"get_buffer\(\) failed"),
    (FaultClass.INPUT, r"Invalid data found when processing input|Error while decoding stream"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _TABLE)
_OF_DEVICES = (FaultClass.CONFIG, FaultClass.CAPABILITY, FaultClass.HARDWARE, FaultClass.TRANSIENT)
"""The classes that a device's own words can tell."""
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

_OF_A_DRIVER = re.compile(r"\[AVHWDeviceContext @|libva: ")
"""What is said of a device when it is opened; where it fails the rest says so."""

_LEVEL = re.compile(r"\[(?:error|fatal|panic)\] ?")


_CALM = re.compile(r"\[(?:info|verbose|debug|trace)\]")
_SET_UP = re.compile(
    r"Failed to create (?:decode|surface)|Unable to allocate a surface|No support for codec|image size"
)
_IN_SOFTWARE = re.compile(r"Failed setup for format")


def classify(returncode: int, stderr: Sequence[str]) -> tuple[FaultClass, str]:
    """The class of a run that ended with `returncode` (negative for a signal), and the line that says it best."""
    if limit := _limit(returncode, stderr):
        return FaultClass.LIMIT, limit
    every = [line for line in stderr if _LEVEL.search(line)]
    errors = [line for line in every if not _NOISE.search(line)] or every
    died = returncode < 0 or returncode in (137, 139)
    # what a decoder complains of kills nobody
    ranked = [
        (rank, line) for line in errors if (rank := _rank(line)) and not (died and _kind(rank) is FaultClass.INPUT)
    ]
    if ranked:
        first, best = min(ranked, key=lambda one: one[0])
        if (kind := _kind(first)) in _OF_DEVICES:  # one failure makes others, so the first one said is the cause
            best = next(line for rank, line in ranked if _kind(rank) is kind)
        return kind, plain(best)
    best = plain(errors[-1]) if errors else f"ffmpeg ended with {_ending(returncode)} and said nothing"
    if died:
        return FaultClass.CRASHED, f"ffmpeg died of {_ending(returncode)}"
    return _CODES.get(returncode, FaultClass.UNKNOWN), best


def _limit(returncode: int, stderr: Sequence[str]) -> str | None:
    """Which limit of a process was met: the kernel says so by a signal (setrlimit(2)), which ffmpeg may take."""
    if returncode in (-25, 153):
        return "ffmpeg wrote a file that is larger than any may be"
    if returncode in (-24, 152) or (returncode == 255 and any("received signal 24" in line for line in stderr)):
        return "ffmpeg took more CPU time than any job may"
    return None


def _rank(line: str) -> int | None:
    """Where a line stands in the table, from 1; None where it does not."""
    return next((rank for rank, (_, pattern) in enumerate(_PATTERNS, 1) if pattern.search(line)), None)


def _kind(rank: int) -> FaultClass:
    return _TABLE[rank - 1][0]


def errors_in(stderr: Sequence[str]) -> list[str]:
    """What ffmpeg says of the source, in lines of level error and worse, without decoration."""
    beside = (_NOISE, _OF_A_DRIVER)
    return [plain(line) for line in stderr if _LEVEL.search(line) and not any(one.search(line) for one in beside)]


def harm(stderr: Sequence[str]) -> tuple[FaultClass, str] | None:
    """What the device did wrong in a run that ended with exit code 0 on a hardware route; None where nothing.

    A decoder that fails loses frames and ffmpeg ends with 0 all the same (7.1), or repeats others in their place (5.1).
    A decoder that could not be set up is no harm: ffmpeg decodes in software then.
    """
    kept: list[str] = []
    for line in stderr:
        if not _LEVEL.search(line):
            continue
        kept.append(line)
        if _IN_SOFTWARE.search(line):
            kept.pop()
            while kept and _SET_UP.search(kept[-1]):
                kept.pop()
    kind, what = classify(0, kept)
    return (kind, what) if kind in _OF_DEVICES else None


def last_words(stderr: Sequence[str], count: int) -> tuple[str, ...]:
    """The last lines that tell people something: warnings, errors, and what others than ffmpeg say (drivers, encoders).

    Where there are none of these, the last of all.
    """
    telling = [line for line in stderr if not _CALM.search(line)]
    return tuple((telling or stderr)[-count:])


def plain(line: str) -> str:
    """A line of ffmpeg's log without component, address and level."""
    return re.sub(r"^(?:\[[^\]]*\] ?)+", "", line).strip() or line.strip()


def _ending(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
