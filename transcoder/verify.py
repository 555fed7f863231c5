"""Does the output keep its promise? Exit code 0 proves nothing: look at headers, packets and pictures."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import IO, Any

from transcoder import ffmpeg, media
from transcoder.command import Route, Rung
from transcoder.errors import InputRefused, InputUnreadable, JobCancelled
from transcoder.faults import Evidence, Fault, FaultClass, classify, errors_in, harm
from transcoder.machine import SOFTWARE
from transcoder.plan import Plan
from transcoder.policy import Policy
from transcoder.probe import first_frame_hdr, watched
from transcoder.promise import Facts, Track, broken
from transcoder.resemblance import refuse_unlike
from transcoder.spec import JobSpec

SAMPLED_GROUPS = 3
"""How many groups of pictures are decoded beside the first and the last."""

_PACKETS_BEGIN = b'    "packets": ['

SLOWEST_READ = 5_000_000
"""Storage slower than this, in bytes per second, is taken for stuck when an output is read back."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The outputs are good. `decode` is how long decoding took, in seconds; `warnings` say what was let pass."""

    facts: tuple[Facts, ...]
    decode: float
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Made:
    """One file that ffmpeg made, the output it should be, and what it is."""

    path: str
    rung: Rung
    facts: Facts


def verify(
    planned: Plan,
    route: Route,
    paths: Sequence[str],
    finished: ffmpeg.Finished,
    policy: Policy,
    cancelled: Callable[[], bool],
) -> Verified:
    """Check every output against its promise, then decode parts of it, or everything. What a device made is also
    compared with the source.

    Raises:
        Fault: MISMATCH for an output that breaks its promise or shows something else than the source, INPUT where it
            is short of what the source promised, OUTPUT where there was no room for it, BLOCKED where the source was
            not delivered to its end, HARDWARE and its like where the device failed though ffmpeg ended with success.
        JobCancelled: `cancelled` said so.
    """
    kind, what = classify(0, finished.stderr)
    # ffmpeg 5.1 ends with 0 when the disk is full at the trailer
    if kind in (FaultClass.OUTPUT, FaultClass.BLOCKED):
        raise Fault(kind, what, Evidence(stderr=finished.stderr))
    if finished.device and (harmed := harm(finished.stderr)):
        raise Fault(*harmed, Evidence(stderr=finished.stderr))
    made = [
        Made(path, rung, look(path, policy, cancelled, hdr=_carries_mastering(rung)))
        for path, rung in zip(paths, planned.rungs, strict=True)
    ]
    warnings: list[str] = []
    if finished.usage and not finished.usage.seconds:
        warnings.append(f"the route uses {finished.device}, and the counters of its engines stood still")
    for one in made:
        warnings += _judge(planned, one, finished)
    if complaints := errors_in(finished.stderr):
        often = "once" if len(complaints) == 1 else f"{len(complaints)} times"
        warnings.append(f"ffmpeg complained {often} about the source, first: {complaints[0]}")
    began = monotonic()
    warnings += _decode(_parts(planned.spec, made), policy, cancelled)
    if route.api != SOFTWARE:
        refuse_unlike(planned, paths, _shown(made), policy, cancelled)
    return Verified(tuple(one.facts for one in made), monotonic() - began, tuple(dict.fromkeys(warnings)))


def _shown(made: Sequence[Made]) -> float:
    """How long after their first pictures the last ones begin, in seconds, in the output that ends first."""
    tracks = [one.facts.track(stream.index) for one in made if (stream := one.facts.media.main_video)]
    return min((track.last - track.start for track in tracks if track), default=0.0)


def look(path: str, policy: Policy, cancelled: Callable[[], bool], *, hdr: bool = False) -> Facts:
    """Headers and packets of a finished file, read in one pass that keeps no packet.

    Raises:
        Fault: MISMATCH, the file cannot be read; TRANSIENT or BLOCKED, ffprobe gave no answer (`probe.watched`).
        JobCancelled: `cancelled` said so.
    """
    words = (
        # level fatal: a chatty stderr would fill its pipe while only stdout is read
        *(policy.ffprobe, "-v", "fatal", "-protocol_whitelist", "file", "-show_format", "-show_streams"),
        *("-show_chapters", "-show_entries", "packet=stream_index,pts_time,dts_time,duration_time,flags"),
        *("-of", "json=c=1", "-i", f"file:{path}"),
    )
    size = os.path.getsize(path) if os.path.exists(path) else 0
    if size == 0:
        raise Fault(FaultClass.MISMATCH, "ffmpeg said success and made no file", Evidence(words))
    try:
        with watched(words, policy.probe_limit + size / SLOWEST_READ, cancelled) as child:
            assert child.stdout
            report, tracks = _read(child.stdout, cancelled)
            child.wait()  # the watch still runs
        if child.returncode != 0 or not report:
            raise Fault(FaultClass.MISMATCH, "the output cannot be read back", Evidence(words, child.returncode))
        found = media.read(report)
        if hdr and (stream := found.main_video) and stream.mastering is None:
            mastering, light = first_frame_hdr(path, policy, cancelled)
            found = replace(found, video=(replace(stream, mastering=mastering, light_level=light), *found.video[1:]))
    except (InputUnreadable, InputRefused) as error:  # what probing says of sources; here it is the output
        raise Fault(FaultClass.MISMATCH, f"the output cannot be read back: {error.what}", Evidence(words)) from None
    return Facts(found, tracks)


def _carries_mastering(rung: Rung) -> bool:
    return rung.picture is not None and rung.picture.mastering is not None


def _judge(planned: Plan, made: Made, finished: ffmpeg.Finished) -> list[str]:
    """Warnings for what salvage lets pass; anything else that is broken ends the attempt."""
    source = made.rung.source
    decoded = finished.decoded.get((0, source.index)) if source else None
    wrong = broken(made.rung, planned.source, made.facts, decoded)
    name = made.rung.output.name
    serious = [one for one in wrong if not (one.short and planned.spec.salvage)]
    if serious:
        kind = FaultClass.INPUT if all(one.short for one in serious) else FaultClass.MISMATCH
        raise Fault(kind, "; ".join(f"{name}: {one.what}" for one in serious), Evidence(stderr=finished.stderr))
    return [f"salvaged: {name}: {one.what}" for one in wrong]


class _Span:
    """The packets of one stream while they pass by."""

    def __init__(self) -> None:
        self.packets = 0
        self.start = float("inf")
        self.end = float("-inf")
        self.last = float("-inf")
        self.last_lasts = True
        self.keys: list[float] = []

    def see(self, packet: dict[str, Any]) -> None:
        if "D" in packet.get("flags", ""):  # outside the edit list: never shown
            return
        self.packets += 1
        time = float(packet.get("pts_time") or packet.get("dts_time") or 0.0)
        self.start = min(self.start, time)
        self.end = max(self.end, time + float(packet.get("duration_time") or 0.0))
        if time >= self.last:
            self.last, self.last_lasts = time, "duration_time" in packet
        if packet.get("flags", "").startswith("K"):
            self.keys.append(time)

    def track(self, stream: media.Json) -> Track:
        """What passed by. In an mp4 reordered pictures at uneven distances have no durations: `stream`, the headers,
        says how long the last one stands, which can be long on a recorded screen.
        """
        said = float(stream.get("start_time", 0)) + float(stream.get("duration", 0))
        end = self.end if self.last_lasts else max(self.end, said)
        keys = tuple(sorted(self.keys)) if stream.get("codec_type") == "video" else ()
        return Track(self.packets, self.start, end, keys, self.last)


def _read(lines: IO[bytes], cancelled: Callable[[], bool]) -> tuple[media.Json, dict[int, Track]]:
    """Ffprobe's compact JSON as it comes: packets, a line each, are counted and dropped; the rest is kept."""
    spans: dict[int, _Span] = {}
    rest: list[str] = []
    among_packets = False
    try:
        for number, line in enumerate(lines):
            if number % 4096 == 0 and cancelled():
                raise JobCancelled(
                    "the job was cancelled while verifying", "Submit it again if it is wanted after all."
                )
            if line.startswith(_PACKETS_BEGIN):
                among_packets = True
            elif among_packets and line.startswith(b'        { "stream_index"'):
                # side data follows on lines of its own, before the closing brace
                packet = json.loads(line.strip().rstrip(b",").removesuffix(b"}") + b"}")
                spans.setdefault(packet["stream_index"], _Span()).see(packet)
            elif among_packets:
                among_packets = not line.startswith(b"    ]")
            else:
                rest.append(line.decode("utf-8", "replace"))
        report = json.loads("".join(rest))
        streams = {stream["index"]: stream for stream in report["streams"]}
        return report, {index: span.track(streams[index]) for index, span in spans.items() if span.packets}
    except (ValueError, KeyError):  # ffprobe died in the middle of a line
        return {}, {}


Window = tuple[float | None, float | None]
Part = tuple[Made, Window]


def _parts(spec: JobSpec, made: Sequence[Made]) -> list[Part]:
    whole: tuple[Window, ...] = ((None, None),)
    seed = f"{spec.source} {spec.target}"
    return [(one, window) for one in made for window in (whole if spec.verify == "full" else windows(one.facts, seed))]


def _decode(parts: Sequence[Part], policy: Policy, cancelled: Callable[[], bool]) -> list[str]:
    """Decode the parts of every output in one ffmpeg; damage ends the attempt unless the video was only copied."""
    words = (policy.ffmpeg, "-hide_banner", "-nostdin", *_reading(parts), *_discarding(len(parts)))
    finished = next(step for step in ffmpeg.run(words, policy, cancelled) if isinstance(step, ffmpeg.Finished))
    complaints = errors_in(finished.stderr)
    alive = {part for (part, _), count in finished.decoded.items() if count}
    blind = [number for number, (made, _) in enumerate(parts) if made.facts.media.main_video and number not in alive]
    if not complaints and not blind:
        return []
    what = complaints[0] if complaints else f"no picture decodes in {len(blind)} of {len(parts)} places"
    if any(made.rung.copied for made, _ in parts):
        return [f"the copied video does not decode everywhere: {what}"]
    raise Fault(FaultClass.MISMATCH, f"the output does not decode: {what}", Evidence(words, 0, finished.stderr))


def _reading(parts: Sequence[Part]) -> list[str]:
    words: list[str] = []
    for made, (start, length) in parts:
        # one thread an input: frame threads multiply the memory of several inputs and decode little faster
        words += ["-protocol_whitelist", "file", "-threads", "1"]
        words += ["-ss", f"{start:.6f}"] if start is not None else []
        words += ["-t", f"{length:.6f}"] if length is not None else []
        words += ["-i", f"file:{made.path}"]
    return words


def _discarding(parts: int) -> list[str]:
    # in ticks of 1/rate two pictures of a variable rate can fall on one, which the null muxer takes for damage
    null = ("-fps_mode:v", "passthrough", "-enc_time_base:v", "1:1000000", "-f", "null", "-")
    return [word for part in range(parts) for word in ("-map", f"{part}:v:0?", "-map", f"{part}:a?", *null)]


def windows(fact: Facts, seed: str) -> tuple[Window, ...]:
    """(start, length) in seconds of the first, the last and some seeded groups of pictures between.

    (None, None), all of it, where there are no more groups than that or no video at all.
    """
    stream = fact.media.main_video
    track = fact.track(stream.index) if stream else None
    keys = track.keys if track else ()
    if track is None or len(keys) <= SAMPLED_GROUPS + 2:
        return ((None, None),)
    ends = (*keys[1:], track.end)
    chosen = {0, len(keys) - 1, *random.Random(seed).sample(range(1, len(keys) - 1), SAMPLED_GROUPS)}
    return tuple((keys[group] - track.start, ends[group] - keys[group]) for group in sorted(chosen))
