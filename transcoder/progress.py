"""ffmpeg's -progress stream read into values."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True)
class Progress:
    """One report. `out_time` in seconds of output, `speed` in times real time, `size` in bytes; None is unknown."""

    frame: int | None = None
    fps: float | None = None
    out_time: float | None = None
    size: int | None = None
    speed: float | None = None
    duplicated: int = 0
    dropped: int = 0
    last: bool = False

    @property
    def mark(self) -> tuple[int, float, int]:
        """What grows while ffmpeg works: (frames, seconds, bytes). Two equal marks mean that nothing happened."""
        return (self.frame or 0, self.out_time or 0.0, self.size or 0)

    def fraction(self, duration: float | None) -> float | None:
        """How much is done, from 0 to 1, of an output of `duration` seconds; None where that is not known."""
        if not duration or duration <= 0 or self.out_time is None:
            return None
        return min(1.0, max(0.0, self.out_time / duration))

    def eta(self, duration: float | None) -> float | None:
        """Seconds of work left at the present speed; None where that is not known."""
        fraction = self.fraction(duration)
        if fraction is None or not duration or not self.speed:
            return None
        return duration * (1 - fraction) / self.speed


class Reader:
    """Bytes in as they come, reports out as they are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._values: dict[str, str] = {}

    def feed(self, data: bytes) -> list[Progress]:
        """The reports that these bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        # a line without an end is not ffmpeg's: keep memory bounded
        self._rest = self._rest[-4096:]
        return [report for line in lines if (report := self._line(line.decode("utf-8", "replace").strip()))]

    def _line(self, line: str) -> Progress | None:
        key, sign, value = line.partition("=")
        if not sign:
            return None
        if key != "progress":
            if len(self._values) < 256:
                self._values[key] = value.strip()
            return None
        values, self._values = self._values, {}
        return _report(values, last=value.strip() == "end")


def _report(values: dict[str, str], last: bool) -> Progress:
    time = _number(values.get("out_time_us"))
    return Progress(
        frame=_whole(values.get("frame")),
        fps=_number(values.get("fps")),
        # ffmpeg starts below zero when the first packet has a negative time stamp
        out_time=None if time is None else max(0.0, time / 1_000_000),
        size=_whole(values.get("total_size")),
        speed=_number((values.get("speed") or "").removesuffix("x")),
        duplicated=_whole(values.get("dup_frames")) or 0,
        dropped=_whole(values.get("drop_frames")) or 0,
        last=last,
    )


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if isfinite(number) else None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)
