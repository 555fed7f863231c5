"""The manifest of a finished job: what was asked, of which source, by which command, and what came of it.

It is the commit: a job's outputs are promised when its manifest stands, and a result can be read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transcoder.command import Route, Rung
from transcoder.events import OutputFacts, Published, Timings, Tried
from transcoder.promise import Facts
from transcoder.spec import JobSpec
from transcoder.usage import from_record

VERSION = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which job this is, and the how-manieth try at it (the fencing number; 1 without a queue).

    `left` are the targets that an earlier try, whose worker is gone, may have begun to publish.
    """

    job_id: str
    number: int = 1
    left: tuple[str, ...] = ()


Json = Mapping[str, Any]


def compose(
    spec: JobSpec, attempt: Attempt, result: Published, *, fingerprint: Json, argv: Sequence[str], build: str
) -> dict[str, Any]:
    """The manifest as JSON-ready values; `build` is ffmpeg's version, `argv` the command with the final paths."""
    return {
        "manifest": VERSION,
        "job": attempt.job_id,
        "attempt": attempt.number,
        "spec": spec.model_dump(mode="json", by_alias=True),
        "source": dict(fingerprint),
        "ffmpeg": build,
        "argv": list(argv),
        "result": result.as_record(),
    }


def published(manifest: Json) -> Published:
    """The result of a job, read back from its manifest."""
    result: dict[str, Any] = dict(manifest["result"])
    return Published(
        route=Route(result["route"], result["api"], result["device"]),
        outputs=tuple(_output(one) for one in result["outputs"]),
        manifest=result["manifest"],
        timings=Timings(**result["timings"]),
        tried=tuple(Tried(**one) for one in result["tried"]),
        warnings=tuple(result["warnings"]),
        gpu=from_record(result.get("gpu")),  # which manifests of 0.1 do not have
    )


def output(rung: Rung, facts: Facts, size: int, sha256: str) -> OutputFacts:
    """One published file: its headers and packets, `size` in bytes and the checksum of the whole."""
    media = facts.media
    video = media.main_video
    track = facts.track(video.index) if video else None
    return OutputFacts(
        name=rung.output.name,
        path=rung.target,
        container=rung.output.container,
        bytes=size,
        sha256=sha256,
        duration=round(max((one.end for one in facts.tracks.values()), default=0.0), 3),
        frames=track.packets if track else None,
        codec=video.codec if video else None,
        width=video.width if video else None,
        height=video.height if video else None,
        depth=video.depth if video else None,
        audio=tuple(stream.codec for stream in media.audio),
        subtitles=tuple(stream.codec for stream in media.subtitles),
    )


def _output(values: Json) -> OutputFacts:
    fields = dict(values)
    return OutputFacts(**{**fields, "audio": tuple(fields["audio"]), "subtitles": tuple(fields["subtitles"])})
