"""What a container can hold, in ffmpeg's codec names. Source: the muxers' tables (movenc.c, matroskaenc.c, webm)."""

from __future__ import annotations

from typing import Literal

from transcoder.spec import Container

Kind = Literal["video", "audio", "subtitle"]

TEXT_SUBTITLES = frozenset({"subrip", "ass", "ssa", "webvtt", "mov_text", "text"})
OWN_TEXT: dict[Container, str] = {"mp4": "mov_text", "mkv": "subrip", "webm": "webvtt"}
MUXER: dict[Container, str] = {"mp4": "mp4", "mkv": "matroska", "webm": "webm"}

_HOLDS: dict[Container, dict[Kind, frozenset[str]]] = {
    "mp4": {
        "video": frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video"}),
        # FLAC in mp4 is experimental in ffmpeg 5.1, which refuses it
        "audio": frozenset({"aac", "opus", "mp3", "ac3", "eac3", "alac"}),
        "subtitle": frozenset({"mov_text"}),
    },
    "webm": {
        "video": frozenset({"vp8", "vp9", "av1"}),
        "audio": frozenset({"opus", "vorbis"}),
        "subtitle": frozenset({"webvtt"}),
    },
}
_MATROSKA_CANNOT: dict[Kind, frozenset[str]] = {
    "video": frozenset(),
    "audio": frozenset(),
    "subtitle": frozenset({"mov_text", "eia_608", "dvb_teletext", "text"}),
}


def holds(container: Container, kind: Kind, codec: str) -> bool:
    """Whether a stream of that codec can be put into that container unchanged."""
    if container == "mkv":
        return codec not in _MATROSKA_CANNOT[kind]
    return codec in _HOLDS[container][kind]
