"""The tree of errors: few, named after what the caller can do about them, each with its exit code.

Every error says what is wrong (naming the thing) and what to do next. Codes 3 and above are ours; 0, 1, 2 and 130
have their usual meanings (success, unexpected, wrong usage, interrupted).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class TranscoderError(Exception):
    """Something the caller can act on: `what` names the thing and the cause, `next_step` says what to do.

    `of_this_host` says that it may be otherwise on another host, where other folders are mounted or media roots named.
    """

    exit_code: ClassVar[int] = 1
    summary: ClassVar[str] = "unexpected error"

    def __init__(
        self,
        what: str,
        next_step: str = "",
        evidence: Mapping[str, object] | None = None,
        *,
        of_this_host: bool = False,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step
        self.evidence = dict(evidence or {})
        self.of_this_host = of_this_host

    def __str__(self) -> str:
        return f"{self.what}\n  {self.next_step}" if self.next_step else self.what

    def as_record(self) -> dict[str, object]:
        """The error as JSON-ready values, as kept in a job's record and printed by --json."""
        return {
            "kind": type(self).__name__,
            "what": self.what,
            "next_step": self.next_step,
            "exit_code": self.exit_code,
            "evidence": self.evidence,
        }


class SpecError(TranscoderError):
    """The job's description is wrong: unknown field or profile, a number that makes no sense, a contradiction."""

    exit_code = 3
    summary = "the spec, profile or an option of it is wrong"


class PathRefused(TranscoderError):
    """A path that may not be used: outside the media roots, with `..`, or leading out through a link."""

    exit_code = 4
    summary = "a path lies outside the media roots"


class InputMissing(TranscoderError):
    """The source is not there, is not a regular file, or is empty."""

    exit_code = 5
    summary = "the source is missing, empty or not a regular file"


class InputUnreadable(TranscoderError):
    """The source is there but is not whole, not what was asked (no video, not media), or cannot be read for now."""

    exit_code = 6
    summary = "the source is damaged, cut short, cannot be read, or lacks what was asked"


class InputRefused(TranscoderError):
    """The source is understood and refused on purpose: a playlist, too many pixels, Dolby Vision profile 5."""

    exit_code = 7
    summary = "the source is refused on purpose (playlist, picture, size, Dolby Vision)"


class TargetExists(TranscoderError):
    """The target is taken: it exists, is the source itself, or another job is writing it."""

    exit_code = 8
    summary = "the target exists, is the source, or is being written by another job"


class TargetUnwritable(TranscoderError):
    """The target cannot be written: folder missing or read-only, disk full, another file system."""

    exit_code = 9
    summary = "the target cannot be written (folder missing, read-only, disk full)"


class FfmpegMissing(TranscoderError):
    """ffmpeg or ffprobe is missing, too old, or lacks an encoder."""

    exit_code = 10
    summary = "ffmpeg or ffprobe is missing, too old or lacks an encoder"


class NoRouteWorked(TranscoderError):
    """Every command worth trying was tried and none gave a verified output."""

    exit_code = 11
    summary = "every route was tried and none gave a verified output"


class NoRoute(TranscoderError):
    """Acceleration is required, and this machine, or every live worker, has none that can do it."""

    exit_code = 12
    summary = "required acceleration is not to be had, here or on any live worker"


class BrokerUnavailable(TranscoderError):
    """Redis does not answer, or is full."""

    exit_code = 13
    summary = "the broker (Redis) does not answer or refuses to write"


class JobUnknown(TranscoderError):
    """There is no record of this job."""

    exit_code = 14
    summary = "no such job"


class TokenConflict(TranscoderError):
    """The client token was used before, for another spec."""

    exit_code = 15
    summary = "the client token belongs to a job with another spec"


class JobCancelled(TranscoderError):
    """The job was cancelled."""

    exit_code = 16
    summary = "the job was cancelled"


class TransitionRefused(TranscoderError):
    """The job's record refused the change: it is finished, or it belongs to another worker by now."""

    exit_code = 17
    summary = "the job's state does not allow that"


class SettingsError(TranscoderError):
    """An environment variable is missing or wrong."""

    exit_code = 18
    summary = "a setting is missing or wrong"


class WorkersLost(TranscoderError):
    """Worker after worker was lost while it had the job."""

    exit_code = 19
    summary = "too many workers were lost while they had the job"


class Quarantined(TranscoderError):
    """ffmpeg died again and again on this source, in software too where it may run: nothing runs it again by itself."""

    exit_code = 20
    summary = "ffmpeg died again and again on the source, which rests in quarantine"


class EngineMissing(TranscoderError):
    """The container engine is missing or does not answer."""

    exit_code = 21
    summary = "the container engine is missing or does not answer"


class ImageMissing(TranscoderError):
    """The image is not here, cannot be used, or is of another version."""

    exit_code = 22
    summary = "the image is missing, cannot be used, or is of another version"


class MachineBusy(TranscoderError):
    """A simulated device cannot be measured while the CPUs that simulate it are the limit."""

    exit_code = 23
    summary = "the CPUs are too busy to measure a simulated device"


class BenchmarkFailed(TranscoderError):
    """A stack or a container of a benchmark ended before its time, so that nothing can be compared."""

    exit_code = 24
    summary = "a stack or a container of a benchmark failed"


class ResultUnusable(TranscoderError):
    """A benchmark's result that cannot be read (no result, another schema version) or compared (other work)."""

    exit_code = 25
    summary = "a benchmark's result cannot be read, or not compared with the other"


def exit_codes() -> tuple[tuple[int, str], ...]:
    """The documented table of exit codes, in order: (code, meaning)."""
    ours = {error.exit_code: error.summary for error in _tree(TranscoderError)}
    fixed = {
        0: "success",
        2: "wrong usage of the command line",
        30: "the doctor's worst finding is a warning",
        31: "the doctor's worst finding is a failure",
        130: "interrupted (Ctrl-C)",
    }
    return tuple(sorted({**ours, **fixed}.items()))


def error_named(kind: str) -> type[TranscoderError]:
    """The class of that name, for an error that comes back from a record; TranscoderError where it is unknown."""
    return {error.__name__: error for error in _tree(TranscoderError)}.get(kind, TranscoderError)


def _tree(root: type[TranscoderError]) -> list[type[TranscoderError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]
