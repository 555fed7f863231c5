"""What the input is: ffprobe's JSON read into values.

Times in seconds, sizes in pixels, rates in frames per second. A value that ffprobe does not know is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Json = Mapping[str, Any]

PICTURE_DISPOSITIONS = ("attached_pic", "still_image", "timed_thumbnails")
HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}


@dataclass(frozen=True, slots=True)
class Colour:
    """Colour tags in ffmpeg's own names; None where the file does not say."""

    primaries: str | None = None
    transfer: str | None = None
    matrix: str | None = None
    range: str | None = None

    @property
    def hdr(self) -> str | None:
        """'PQ', 'HLG' or None."""
        return HDR_TRANSFERS.get(self.transfer or "")


@dataclass(frozen=True, slots=True)
class Mastering:
    """SMPTE ST 2086: chromaticities as fractions of 1, luminances in candela per square metre."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    min_luminance: Fraction
    max_luminance: Fraction


@dataclass(frozen=True, slots=True)
class LightLevel:
    """CTA-861.3 content light level in candela per square metre."""

    max_content: int
    max_average: int


@dataclass(frozen=True, slots=True)
class VideoStream:
    """One video stream. `width` x `height` are as stored, before `rotation` (degrees clockwise) and `sar`.

    `tick` is the unit of its time stamps in seconds.
    """

    index: int
    codec: str
    width: int
    height: int
    pix_fmt: str
    depth: int = 8
    sar: Fraction = Fraction(1)
    rate: Fraction | None = None
    base_rate: Fraction | None = None
    tick: Fraction | None = None
    frames: int | None = None
    duration: float | None = None
    start: float = 0.0
    field_order: str = "unknown"
    rotation: int = 0
    colour: Colour = Colour()
    mastering: Mastering | None = None
    light_level: LightLevel | None = None
    dolby_vision_profile: int | None = None
    language: str | None = None
    title: str | None = None

    @property
    def interlaced(self) -> bool:
        """Marked as two fields a frame."""
        return self.field_order in ("tt", "bb", "tb", "bt")

    @property
    def variable_rate(self) -> bool:
        """The average rate and the base rate differ: frames do not come at even distances.

        Field-coded streams have a base rate of two fields a frame and are not variable.
        """
        if not self.rate or not self.base_rate:
            return True
        ratio = self.base_rate / self.rate
        return not (abs(ratio - 1) < Fraction(1, 200) or (self.interlaced and abs(ratio - 2) < Fraction(1, 100)))


@dataclass(frozen=True, slots=True)
class AudioStream:
    """One audio stream."""

    index: int
    codec: str
    channels: int
    layout: str | None = None
    sample_rate: int | None = None
    duration: float | None = None
    start: float = 0.0
    language: str | None = None


@dataclass(frozen=True, slots=True)
class SubtitleStream:
    """One subtitle stream."""

    index: int
    codec: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """A media file as ffprobe sees it. `duration` is the container's promise, not a measurement."""

    format: str
    duration: float | None
    start: float = 0.0
    size: int = 0
    video: tuple[VideoStream, ...] = ()
    audio: tuple[AudioStream, ...] = ()
    subtitles: tuple[SubtitleStream, ...] = ()
    pictures: int = 0
    attachments: int = 0
    chapters: int = 0
    other: tuple[str, ...] = field(default=())

    @property
    def main_video(self) -> VideoStream | None:
        """The first video stream that is not a picture."""
        return self.video[0] if self.video else None


def read(report: Json) -> Media:
    """The report of `ffprobe -show_format -show_streams -show_chapters -of json` as a value."""
    streams = [{"index": number, **stream} for number, stream in enumerate(_objects(report.get("streams")))]
    head = _object(report.get("format"))
    kinds = [(_kind(stream), stream) for stream in streams]
    return Media(
        format=str(head.get("format_name", "")),
        duration=_length(head.get("duration")),
        start=_seconds(head.get("start_time")) or 0.0,
        size=_count(head.get("size")) or 0,
        video=tuple(_video(stream) for kind, stream in kinds if kind == "video"),
        audio=tuple(_audio(stream) for kind, stream in kinds if kind == "audio"),
        subtitles=tuple(_subtitle(stream) for kind, stream in kinds if kind == "subtitle"),
        pictures=sum(kind == "picture" for kind, _ in kinds),
        attachments=sum(kind == "attachment" for kind, _ in kinds),
        chapters=len(_objects(report.get("chapters"))),
        other=tuple(str(stream.get("codec_name", kind)) for kind, stream in kinds if kind in ("data", "unknown")),
    )


def read_hdr(frame: Json) -> tuple[Mastering | None, LightLevel | None]:
    """The HDR10 metadata among the `side_data_list` of a frame or of a stream."""
    sides = _objects(frame.get("side_data_list"))
    masterings = [mastering for side in sides if (mastering := _mastering(side))]
    levels = [level for side in sides if (level := _light_level(side))]
    return next(iter(masterings), None), next(iter(levels), None)


def off_beat(report: Json, rate: Fraction) -> bool:
    """Whether the packets of ffprobe's report do not come at multiples of 1/`rate`.

    Matroska has one rate for the whole file, which may be an average, and time stamps in milliseconds.
    """
    known = [_seconds(packet.get("pts_time")) for packet in _objects(report.get("packets"))]
    times = [time for time in known if time is not None]
    beats = [(time - min(times)) * float(rate) for time in times]
    return any(abs(beat - round(beat)) > 0.0015 * float(rate) for beat in beats)


Disguise = Literal["HLS playlist", "ffconcat script", "SDP session", "DASH manifest", "picture", "text"]

_MAGIC: tuple[tuple[re.Pattern[bytes], Disguise], ...] = (
    (re.compile(rb"^(\xef\xbb\xbf)?\s*#EXTM3U"), "HLS playlist"),
    (re.compile(rb"^(\xef\xbb\xbf)?\s*ffconcat\b"), "ffconcat script"),
    (re.compile(rb"^(\xef\xbb\xbf)?v=0\r?\n"), "SDP session"),
    (re.compile(rb"<MPD\b"), "DASH manifest"),
    (
        re.compile(rb"^(\x89PNG|\xff\xd8\xff|GIF8|BM..\0\0|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(avif|heic|mif1))", re.S),
        "picture",
    ),
)


def disguise(head: bytes) -> Disguise | None:
    """What a file that is not audio or video is, by its first bytes (a few hundred suffice); None if not known."""
    for magic, name in _MAGIC:
        if magic.search(head[:1024]):
            return name
    printable = bool(head) and all(byte in b"\t\n\r\f" or byte >= 32 for byte in head[:512])
    return "text" if printable else None


def _kind(stream: Json) -> str:
    kind = str(stream.get("codec_type", "unknown"))
    disposition = _object(stream.get("disposition"))
    if kind == "video" and any(disposition.get(mark) for mark in PICTURE_DISPOSITIONS):
        return "picture"
    return kind if kind in ("video", "audio", "subtitle", "attachment", "data") else "unknown"


def _video(stream: Json) -> VideoStream:
    mastering, light = read_hdr(stream)
    return VideoStream(
        index=_count(stream["index"]) or 0,
        codec=str(stream.get("codec_name", "unknown")),
        width=_count(stream.get("width")) or 0,
        height=_count(stream.get("height")) or 0,
        pix_fmt=str(stream.get("pix_fmt", "unknown")),
        depth=_depth(stream),
        sar=_aspect(stream.get("sample_aspect_ratio")),
        rate=_rate(stream.get("avg_frame_rate")),
        base_rate=_rate(stream.get("r_frame_rate")),
        tick=_tick(stream.get("time_base")),
        frames=_count(stream.get("nb_frames")),
        duration=_duration(stream),
        start=_seconds(stream.get("start_time")) or 0.0,
        field_order=str(stream.get("field_order", "unknown")),
        rotation=_rotation(stream),
        colour=_colour(stream),
        mastering=mastering,
        light_level=light,
        dolby_vision_profile=_dolby_vision(stream),
        language=_tag(stream, "language"),
        title=_tag(stream, "title"),
    )


def _audio(stream: Json) -> AudioStream:
    return AudioStream(
        index=_count(stream["index"]) or 0,
        codec=str(stream.get("codec_name", "unknown")),
        channels=_count(stream.get("channels")) or 0,
        layout=_text(stream.get("channel_layout")),
        sample_rate=_count(stream.get("sample_rate")),
        duration=_duration(stream),
        start=_seconds(stream.get("start_time")) or 0.0,
        language=_tag(stream, "language"),
    )


def _subtitle(stream: Json) -> SubtitleStream:
    return SubtitleStream(
        index=_count(stream["index"]) or 0,
        codec=str(stream.get("codec_name", "unknown")),
        language=_tag(stream, "language"),
    )


def _duration(stream: Json) -> float | None:
    """The stream's own duration; Matroska keeps it in a tag as hours:minutes:seconds."""
    own = _length(stream.get("duration"))
    if own is not None:
        return own
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", (_tag(stream, "DURATION") or "").strip("\0 "))
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _tag(stream: Json, name: str) -> str | None:
    tags = {key.lower(): value for key, value in _object(stream.get("tags")).items()}
    return _text(tags.get(name.lower()))


_DEPTH = re.compile(r"(?:p|gray|ya|xyz|x2rgb|x2bgr|[py]\d)(9|10|12|14|16|32)(?:msb)?$")
_PACKED = {"nv20": 10, "xv30": 10, "v30x": 10, "xv36": 12}
_WIDE = re.compile(r"(?:rgb|bgr|xv)48|(?:rgba|bgra|ayuv)64|rgb96|rgba128|f(?:16|32)$")


def _depth(stream: Json) -> int:
    """Bits a sample, from the pixel format: the header's own count is missing or wrong for many codecs."""
    name = re.sub(r"[lb]e$", "", str(stream.get("pix_fmt", "")))
    if found := _DEPTH.search(name):
        return int(found[1])
    return _PACKED.get(name, 16 if _WIDE.search(name) else 8)


def _rotation(stream: Json) -> int:
    """Degrees clockwise that a player turns the picture. ffprobe gives the display matrix counter-clockwise."""
    angles = [_seconds(side.get("rotation")) for side in _objects(stream.get("side_data_list"))]
    matrix = next((angle for angle in angles if angle is not None), None)
    clockwise = -matrix if matrix is not None else _seconds(_tag(stream, "rotate")) or 0.0
    return round(clockwise / 90) * 90 % 360


def _colour(stream: Json) -> Colour:
    def known(key: str) -> str | None:
        value = stream.get(key)
        return None if value in (None, "unknown", "reserved") else str(value)

    return Colour(known("color_primaries"), known("color_transfer"), known("color_space"), known("color_range"))


def _dolby_vision(stream: Json) -> int | None:
    profiles = [_count(side.get("dv_profile")) for side in _objects(stream.get("side_data_list"))]
    return next((profile for profile in profiles if profile is not None), None)


def _mastering(side: Json) -> Mastering | None:
    axes = ("red_x", "red_y", "green_x", "green_y", "blue_x", "blue_y", "white_point_x", "white_point_y")
    values = [_ratio(side.get(name), "/") for name in (*axes, "min_luminance", "max_luminance")]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    red, green, blue, white = zip(known[0:8:2], known[1:8:2], strict=True)
    return Mastering(red, green, blue, white, min_luminance=known[8], max_luminance=known[9])


def _light_level(side: Json) -> LightLevel | None:
    content, average = _count(side.get("max_content")), _count(side.get("max_average"))
    return None if content is None or average is None else LightLevel(content, average)


def _object(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[Json]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if -1e9 < number < 1e9 else None


def _length(value: object) -> float | None:
    """A duration: not below zero."""
    seconds = _seconds(value)
    return None if seconds is None or seconds < 0 else seconds


def _count(value: object) -> int | None:
    """A whole number, not below zero."""
    try:
        number = int(str(value))
    except ValueError:
        return None
    return number if number >= 0 else None


def _rate(value: object) -> Fraction | None:
    ratio = _ratio(value, "/")
    return ratio if ratio and 0 < ratio <= 100_000 else None


def _tick(value: object) -> Fraction | None:
    ratio = _ratio(value, "/")
    return ratio if ratio and 0 < ratio <= 1 else None


def _aspect(value: object) -> Fraction:
    ratio = _ratio(value, ":")
    return ratio if ratio and Fraction(1, 20) <= ratio <= 20 else Fraction(1)


def _ratio(value: object, sign: str) -> Fraction | None:
    try:
        above, below = (int(part) for part in str(value).split(sign))
        return Fraction(above, below)
    except (ValueError, ZeroDivisionError):
        return None
