"""An ffmpeg command as a value: graphs built with ffmpeg-python, compiled to a tuple of words.

A backend says the filters and the encoder's options of each branch; what is the same for all (mapping, sound,
metadata, container) is said here once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import ffmpeg

from transcoder.audio import Sound, Subtitle
from transcoder.container import MUXER
from transcoder.machine import SOFTWARE
from transcoder.media import Media, VideoStream
from transcoder.picture import Picture
from transcoder.spec import Output

Options = tuple[tuple[str, str | None], ...]

FORMATS = ",".join(
    (
        *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "mpeg", "avi", "flv", "asf", "mxf", "gxf", "ogg", "dv"),
        *("wav", "w64", "mp3", "aac", "flac", "h264", "hevc", "obu", "m4v", "mpegvideo", "ivf", "yuv4mpegpipe"),
    )
)
"""Demuxers that read one file and nothing else. Playlists and scripts (hls, concat, dash, sdp) are not among them:
they open further files and addresses that they name (CVE-2016-1897, CVE-2017-9993, CVE-2023-6602)."""

GUARDED: Options = (("protocol_whitelist", "file"), ("format_whitelist", FORMATS))
"""Input options that keep a hostile file to itself, for ffprobe and ffmpeg alike."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a graph with its named arguments."""

    name: str
    arguments: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As in a filter graph, for arguments without special characters."""
        words = ":".join(f"{key}={value}" for key, value in self.arguments)
        return f"{self.name}={words}" if words else self.name


@dataclass(frozen=True, slots=True)
class Rung:
    """One output, decided. `copied` is the video stream that passes through; `picture` what is encoded otherwise."""

    output: Output
    target: str
    picture: Picture | None
    source: VideoStream | None
    sounds: tuple[Sound, ...] = ()
    subtitles: tuple[Subtitle, ...] = ()

    @property
    def copied(self) -> bool:
        """The video passes through unchanged."""
        return self.source is not None and self.picture is None


@dataclass(frozen=True, slots=True)
class Work:
    """All that a backend needs to know of a job: the file, what it is, and its outputs."""

    path: str
    media: Media
    rungs: tuple[Rung, ...]

    @property
    def codecs(self) -> frozenset[str]:
        """The video codecs that are encoded."""
        return frozenset(rung.output.video.codec for rung in self.rungs if rung.picture and rung.output.video)


@dataclass(frozen=True, slots=True)
class Route:
    """A way through the machine: `api` encodes on `device` (its id; None for the CPU).

    `decode` and `filter` are the APIs that decode and filter. `codecs` are those that are encoded.
    """

    name: str
    api: str
    device: str | None = None
    decode: str = SOFTWARE
    filter: str = SOFTWARE
    codecs: frozenset[str] = frozenset()

    @property
    def place(self) -> str:
        """What it runs on: the device, or the API where that has devices of its own."""
        return self.device or self.api


@dataclass(frozen=True, slots=True)
class Branch:
    """One output of a command: its filters after the common ones, its streams, its options."""

    name: str
    target: str
    filters: tuple[Filter, ...]
    video: int | None
    others: tuple[str, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class Command:
    """One ffmpeg run that makes every output of a job, and why it is in the plan."""

    route: Route
    reason: str
    source: str
    branches: tuple[Branch, ...]
    input_options: Options = ()
    global_options: tuple[str, ...] = ()
    max_pixels: int | None = None
    cost: float = 0.0
    """Pixels per second that it encodes at the source's own pace: how much of a device or of the CPUs it takes."""

    def argv(self, ffmpeg_path: str = "ffmpeg", outputs: Sequence[str] | None = None) -> tuple[str, ...]:
        """The words to execute, writing to `outputs` (the branches' own targets when left out)."""
        paths = [branch.target for branch in self.branches] if outputs is None else outputs
        guarded = {**dict(GUARDED), **({"max_pixels": str(self.max_pixels)} if self.max_pixels else {})}
        source = ffmpeg.input(f"file:{self.source}", **guarded, **dict(self.input_options))
        pictures = _pictures(source, self.branches)
        made = [
            _output(source, branch, pictures.get(branch.name), path)
            for branch, path in zip(self.branches, paths, strict=True)
        ]
        words: list[str] = ffmpeg.merge_outputs(*made).get_args()
        return (ffmpeg_path, "-hide_banner", "-nostdin", *self.global_options, *words)


USUAL_RATE = 25.0
"""Frames per second of a source that does not say."""


def pixel_rate(rungs: Sequence[Rung]) -> float:
    """Pixels per second that are encoded for a second of source; nothing for copies and sound."""
    return sum(
        rung.picture.width * rung.picture.height * float(rung.picture.fps or rung.source.rate or USUAL_RATE)
        for rung in rungs
        if rung.picture and rung.source
    )


def branch(rung: Rung, media: Media, filters: tuple[Filter, ...], encoder: Options) -> Branch:
    """One output from a backend's filters and encoder options; sound, metadata and container are added here."""
    others = [str(sound.index) for sound in rung.sounds] + [str(subtitle.index) for subtitle in rung.subtitles]
    if rung.output.container == "mkv" and media.attachments and rung.source:
        others.append("t")
    return Branch(
        name=rung.output.name,
        target=rung.target,
        filters=filters,
        video=rung.source.index if rung.source else None,
        others=tuple(others),
        options=(
            *(_copied_video(rung) if rung.copied else encoder),
            *_sound_options(rung.sounds),
            *_subtitle_options(rung.subtitles),
            *_metadata_options(rung),
            *_container_options(rung),
        ),
    )


def _copied_video(rung: Rung) -> Options:
    hvc1: Options = (("tag:v", "hvc1"),) if rung.source and rung.source.codec == "hevc" and _mp4(rung) else ()
    return (("c:v", "copy"), *hvc1)


def _sound_options(sounds: tuple[Sound, ...]) -> Options:
    encoders = {"aac": "aac", "opus": "libopus", "copy": "copy"}
    options: list[tuple[str, str | None]] = []
    for number, sound in enumerate(sounds):
        options.append((f"c:a:{number}", encoders[sound.codec]))
        if sound.bitrate:
            options.append((f"b:a:{number}", str(sound.bitrate)))
        if sound.layout:
            # libopus refuses 5.1(side) and other layouts that RFC 7845 has no place for; -ac would bring them back
            options.append((f"filter:a:{number}", f"aformat=channel_layouts={sound.layout}"))
        elif sound.codec != "copy":
            options.append((f"ac:a:{number}", str(sound.channels)))
    return tuple(options)


def _subtitle_options(subtitles: tuple[Subtitle, ...]) -> Options:
    return tuple((f"c:s:{number}", subtitle.codec) for number, subtitle in enumerate(subtitles))


def _metadata_options(rung: Rung) -> Options:
    """The file's tags and chapters, and the video's own, which a filter graph does not carry over."""
    options: list[tuple[str, str | None]] = [("map_metadata", "0"), ("map_chapters", "0")]
    if rung.picture and rung.source:
        # two spellings of the same stream, since an option can be given only once
        if rung.source.language and rung.source.language != "und":
            options.append(("metadata:s:v:0", f"language={rung.source.language}"))
        if rung.source.title:
            options.append(("metadata:s:0", f"title={rung.source.title}"))
    return tuple(options)


def _container_options(rung: Rung) -> Options:
    muxer = MUXER[rung.output.container]
    faststart: Options = (("movflags", "+faststart"),) if _mp4(rung) else ()
    attachments: Options = (("c:t", "copy"),) if rung.output.container == "mkv" else ()
    return (*attachments, *faststart, ("f", muxer))


def _mp4(rung: Rung) -> bool:
    return rung.output.container == "mp4"


def _pictures(source: Any, branches: tuple[Branch, ...]) -> dict[str, Any]:
    """The filtered picture of each branch: what the branches have in common is done once, before the split."""
    filtered = [branch for branch in branches if branch.filters]
    if not filtered:
        return {}
    common = _common([branch.filters for branch in filtered])
    stream = source[str(filtered[0].video)]
    for step in common:
        stream = _apply(stream, step)
    if len(filtered) == 1:
        return {filtered[0].name: stream}
    parts = stream.filter_multi_output("split", len(filtered))
    return {branch.name: _chain(parts[number], branch.filters[len(common) :]) for number, branch in enumerate(filtered)}


def _common(chains: Sequence[tuple[Filter, ...]]) -> tuple[Filter, ...]:
    """The filters that all chains begin with."""
    same = takewhile(lambda steps: len(set(steps)) == 1, zip(*chains, strict=False))
    return tuple(steps[0] for steps in same)


def _chain(stream: Any, filters: Sequence[Filter]) -> Any:
    for step in filters:
        stream = _apply(stream, step)
    return stream


def _apply(stream: Any, step: Filter) -> Any:
    return stream.filter(step.name, **dict(step.arguments))


def _output(source: Any, branch: Branch, picture: Any, path: str) -> Any:
    streams = [source[selector] for selector in branch.others]
    if picture is not None:
        streams.insert(0, picture)
    elif branch.video is not None:
        streams.insert(0, source[str(branch.video)])
    options: Mapping[str, str | None] = dict(branch.options)
    return ffmpeg.output(*streams, f"file:{path}", **options)
