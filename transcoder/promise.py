"""What an output must be, and in what a finished file breaks that: decided from values, whoever made the file.

Times in seconds. A file is 'short' when it holds less than the source promises: then the source may be at fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from transcoder.command import Rung
from transcoder.media import AudioStream, Media, VideoStream

MIN_TOLERANCE = 0.5
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Track:
    """One stream as its packets show it: how many, from when to when, when its key frames are, when its last begins."""

    packets: int
    start: float
    end: float
    keys: tuple[float, ...] = ()
    last: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """A finished file: what its headers say and what its packets show, by stream index."""

    media: Media
    tracks: dict[int, Track]

    def track(self, index: int) -> Track | None:
        """The packets of a stream; None where it has none."""
        return self.tracks.get(index)


@dataclass(frozen=True, slots=True)
class Broken:
    """One promise that is not kept. `short` says that there is less than the source promises."""

    what: str
    short: bool = False


def broken(rung: Rung, source: Media, facts: Facts, decoded: int | None) -> tuple[Broken, ...]:
    """Every promise that the file breaks; none for a good one.

    `decoded` is how many frames of the source's video ffmpeg decoded, None where that is not known.
    """
    streams = _streams(rung, facts.media)
    if streams:
        return streams
    return (*_picture(rung, facts.media), *_frames(rung, source, facts, decoded), *_lengths(rung, source, facts))


def expected_frames(stream: VideoStream, length: float | None) -> int | None:
    """How many frames the source promises for a picture of `length` seconds, None where it does not say.

    The container's count is believed where it agrees with the length: with an edit list it has frames that are never
    shown. Without a count there is no promise: Matroska, WebM and MPEG-TS tell variable rates as if they were constant.
    """
    by_time = round(length * stream.rate) if length and stream.rate else None
    if stream.frames and (by_time is None or abs(stream.frames - by_time) <= max(2, by_time * TOLERANCE)):
        return stream.frames
    return by_time if stream.frames and not stream.variable_rate else None


def _streams(rung: Rung, made: Media) -> tuple[Broken, ...]:
    wanted = {
        "video": [_codec(rung)] if rung.source else [],
        "audio": [sound.result_codec for sound in rung.sounds],
    }
    having = {"video": [stream.codec for stream in made.video], "audio": [stream.codec for stream in made.audio]}
    wrong = [
        Broken(f"{kind} streams are {having[kind] or 'none'}, not {wanted[kind] or 'none'}")
        for kind in wanted
        if wanted[kind] != having[kind]
    ]
    if len(made.subtitles) != len(rung.subtitles):
        wrong.append(Broken(f"there are {len(made.subtitles)} subtitle streams, not {len(rung.subtitles)}"))
    return tuple(wrong)


def _codec(rung: Rung) -> str:
    if rung.copied and rung.source:
        return rung.source.codec
    return rung.output.video.codec if rung.output.video else ""


def _picture(rung: Rung, made: Media) -> tuple[Broken, ...]:
    picture, stream = rung.picture, made.main_video
    if picture is None or stream is None:
        return _copied(rung, stream)
    wanted: list[tuple[str, object, object]] = [
        ("size", (stream.width, stream.height), (picture.width, picture.height)),
        ("sample aspect", stream.sar, picture.sar),
        ("depth", stream.depth, picture.depth),
        ("rotation", stream.rotation, 0),
    ]
    wanted += [
        (f"colour {name}", getattr(stream.colour, name), getattr(picture.colour, name))
        for name in ("primaries", "transfer", "matrix")
        if getattr(picture.colour, name) is not None
    ]
    # a stream that does not say its range has video range (H.264 E.2.1)
    wanted.append(("colour range", stream.colour.range or "tv", picture.colour.range or "tv"))
    wanted.append(("mastering display", stream.mastering is not None, picture.mastering is not None))
    return _unlike(wanted)


def _copied(rung: Rung, made: VideoStream | None) -> tuple[Broken, ...]:
    """A copy is shown as the source was: some muxers drop the rotation (Matroska before ffmpeg 7)."""
    if rung.source is None or made is None:
        return ()
    wanted = (
        ("size", (made.width, made.height), (rung.source.width, rung.source.height)),
        ("sample aspect", made.sar, rung.source.sar),
        ("rotation", made.rotation, rung.source.rotation),
    )
    return _unlike(wanted)


def _unlike(wanted: Sequence[tuple[str, object, object]]) -> tuple[Broken, ...]:
    return tuple(
        Broken(f"{name} is {_shown(found)}, not {_shown(due)}") for name, found, due in wanted if not _same(found, due)
    )


def _same(is_: object, should: object) -> bool:
    """Equal, or sample aspects within the rounding of a container's fields."""
    if isinstance(is_, Fraction) and isinstance(should, Fraction):
        return abs(is_ / should - 1) < Fraction(1, 200)
    return is_ == should


def _shown(value: object) -> str:
    return "x".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def _frames(rung: Rung, source: Media, facts: Facts, decoded: int | None) -> tuple[Broken, ...]:
    made = facts.media.main_video
    if rung.source is None or made is None:
        return ()
    track = facts.track(made.index)
    count = track.packets if track else 0
    promised = expected_frames(rung.source, length_of(rung.source, source))
    if rung.picture and rung.picture.fps:
        return _against_rate(track, rung.picture.fps)
    wrong = []
    if decoded is not None and rung.picture and abs(count - decoded) > max(1, decoded // 500):
        wrong.append(Broken(f"{count} frames were written of {decoded} decoded"))
    if promised and count < promised - max(2, promised * TOLERANCE):
        wrong.append(Broken(f"{count} of {promised} frames are there", short=True))
    return tuple(wrong)


def _against_rate(track: Track | None, fps: Fraction) -> tuple[Broken, ...]:
    """A capped rate is even: so many frames in so many seconds. How many seconds it must be is `_lengths`' matter."""
    if track is None:
        return ()
    wanted = (track.end - track.start) * float(fps)
    if abs(track.packets - wanted) <= max(3.0, wanted * TOLERANCE):
        return ()
    return (Broken(f"{track.packets} frames are there, {wanted:.0f} are due at {float(fps):g} a second"),)


def _lengths(rung: Rung, source: Media, facts: Facts) -> tuple[Broken, ...]:
    wrong: list[Broken] = []
    pairs = []
    if rung.source and (made := facts.media.main_video):
        pairs.append(("video", _video_end(rung.source, source), facts.track(made.index)))
    by_index = {stream.index: stream for stream in source.audio}
    for sound, made_audio in zip(rung.sounds, facts.media.audio, strict=True):
        stream = by_index[sound.index]
        pairs.append((f"audio stream {sound.index}", _end(stream, source), facts.track(made_audio.index)))
    for name, promised, track in pairs:
        wrong += _length(name, promised, track)
    nobody_says = all(promised is None for _, promised, _ in pairs)
    if not wrong and source.duration and (nobody_says or _takes_everything(rung, source)):
        longest = max((track.end for _, _, track in pairs if track), default=0.0)
        wrong += _length("the file", _from_start(source.duration, source.start, source), Track(1, 0.0, longest))
    return (*wrong, *(() if wrong else _skew(pairs)))


def _takes_everything(rung: Rung, source: Media) -> bool:
    """The output has every stream of the source, so that the source's longest is among them."""
    pictures = [] if rung.source is None else [rung.source]
    same = [stream.index for stream in source.video] == [stream.index for stream in pictures]
    heard = {sound.index for sound in rung.sounds} == {stream.index for stream in source.audio}
    return same and heard and not source.subtitles and not source.other


def _length(name: str, promised: float | None, track: Track | None) -> list[Broken]:
    if track is None or track.packets == 0:
        return [Broken(f"{name} is empty", short=True)] if promised is None or promised > MIN_TOLERANCE else []
    if promised is None:
        return []
    missing = promised - track.end
    if missing > max(MIN_TOLERANCE, promised * TOLERANCE):
        return [Broken(f"{name} ends at {track.end:.2f} s of {promised:.2f} s", short=True)]
    return []


def _skew(pairs: list[tuple[str, float | None, Track | None]]) -> tuple[Broken, ...]:
    """The ends of picture and sound lie as far apart as in the source, within half a second."""
    if len(pairs) < 2 or not pairs[0][0].startswith("video"):
        return ()
    (_, picture_promised, picture), *others = pairs
    wrong = []
    for name, promised, track in others:
        if not (picture and track and picture_promised and promised):
            continue
        if picture.end > picture_promised + MIN_TOLERANCE or track.end > promised + MIN_TOLERANCE:
            continue  # the source's headers say too little, so that they do not say how its ends lie
        moved = (picture.end - track.end) - (picture_promised - promised)
        if abs(moved) > MIN_TOLERANCE:
            wrong.append(Broken(f"{name} ends {moved:+.2f} s away from where it ends in the source"))
    return tuple(wrong)


def length_of(stream: VideoStream | AudioStream, source: Media) -> float | None:
    """How many seconds of this stream the source promises, None where it does not say."""
    if not stream.duration:
        return None
    if source.format == "avi" and isinstance(stream, VideoStream) and stream.frames and stream.rate:
        # ffprobe fits the duration of an AVI to the size of the file; the header's count stays
        return max(stream.duration, float(stream.frames / stream.rate))
    return _from_start(stream.duration, stream.start, source) if _matroska(source) else stream.duration


def _from_start(duration: float, start: float, source: Media) -> float:
    """A Matroska file of ffmpeg's counts from zero, wherever the first packet is; so does an mp4 as a whole."""
    from_zero = _matroska(source) or source.format.startswith("mov")
    return duration - start if from_zero and 0 < start < duration else duration


def _matroska(source: Media) -> bool:
    return source.format.startswith("matroska")


def _video_end(stream: VideoStream, source: Media) -> float | None:
    if stream.duration:
        return _end(stream, source)
    # the container's duration is its longest stream's: the picture's own only where there is nothing else
    return source.duration if source.duration and not source.audio else None


def _end(stream: VideoStream | AudioStream, source: Media) -> float | None:
    """When a stream of the source ends, from the file's first time stamp, which becomes the output's zero."""
    length = length_of(stream, source)
    return None if length is None else stream.start - source.start + length
