"""What must change in the sound, and which subtitles come along: decided once, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass

from transcoder.container import OWN_TEXT, TEXT_SUBTITLES, holds
from transcoder.errors import InputRefused, InputUnreadable
from transcoder.media import AudioStream, Media
from transcoder.spec import Audio, Container, Output

OPUS_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""The channel layouts that Opus knows, by number of channels (RFC 7845, 5.1.1.2)."""

MOST_CHANNELS = 8
"""What ffmpeg's AAC encoder and Opus can hold in one stream."""

OPUS_CEILING = 256_000
"""The most that libopus accepts, in bits per second a channel."""


@dataclass(frozen=True, slots=True)
class Sound:
    """One audio stream of an output. `index` is the source's stream number; `bitrate` in bits per second."""

    index: int
    codec: str
    result_codec: str
    bitrate: int | None = None
    channels: int = 0
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class Subtitle:
    """One subtitle stream of an output; `codec` is 'copy' or the text codec that it is turned into."""

    index: int
    codec: str


def sounds(audio: Audio, container: Container, source: Media) -> tuple[Sound, ...]:
    """The audio streams of an output.

    Raises:
        InputUnreadable: for an audio stream that the source has not.
        InputRefused: for a stream to copy that the container cannot hold.
    """
    return tuple(_sound(audio, container, stream) for stream in _chosen(audio, source))


def subtitles(output: Output, source: Media) -> tuple[tuple[Subtitle, ...], tuple[str, ...]]:
    """The subtitle streams of an output, and a sentence for each that is left out."""
    if output.subtitles == "drop" or output.video is None:
        return (), ()
    kept: list[Subtitle] = []
    left_out: list[str] = []
    for stream in source.subtitles:
        if holds(output.container, "subtitle", stream.codec):
            kept.append(Subtitle(stream.index, "copy"))
        elif stream.codec in TEXT_SUBTITLES:
            kept.append(Subtitle(stream.index, OWN_TEXT[output.container]))
        else:
            left_out.append(
                f"{output.name}: subtitle stream {stream.index} ({stream.codec}) is not for {output.container}"
            )
    return tuple(kept), tuple(left_out)


def _chosen(audio: Audio, source: Media) -> tuple[AudioStream, ...]:
    if audio.streams == "all":
        return source.audio
    if audio.streams == "first":
        return source.audio[:1]
    if missing := [number for number in audio.streams if number >= len(source.audio)]:
        raise InputUnreadable(
            f"the source has {len(source.audio)} audio streams; number {missing[0]} (from 0) is asked",
            "Ask for streams that `ffprobe` lists, or for 'all' or 'first'.",
        )
    return tuple(source.audio[number] for number in audio.streams)


def _sound(audio: Audio, container: Container, stream: AudioStream) -> Sound:
    if audio.codec == "copy":
        if not holds(container, "audio", stream.codec):
            raise InputRefused(
                f"{container} cannot hold audio stream {stream.index} ({stream.codec}) as it is",
                "Encode it (codec 'aac' or 'opus'), or take container 'mkv'.",
            )
        return Sound(stream.index, "copy", stream.codec, channels=stream.channels)
    channels = min(audio.channels or MOST_CHANNELS, stream.channels or 2, MOST_CHANNELS)
    bitrate = audio.bitrate or 64_000 * channels
    return Sound(
        index=stream.index,
        codec=audio.codec,
        result_codec=audio.codec,
        bitrate=min(bitrate, OPUS_CEILING * channels) if audio.codec == "opus" else bitrate,
        channels=channels,
        layout=OPUS_LAYOUTS.get(channels) if audio.codec == "opus" else None,
    )
