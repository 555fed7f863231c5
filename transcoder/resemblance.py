"""Does an output show what its source shows? A GPU can say that all is well and give green pictures.

Some moments of the source, decoded in software, are laid beside the same moments of each output, both made small and
grey, so that only gross differences count: those of tone mapping, deinterlacing or a frame more or less do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transcoder import ffmpeg
from transcoder.command import GUARDED, Rung
from transcoder.dialect import cropped
from transcoder.faults import Evidence, Fault, FaultClass
from transcoder.plan import Plan
from transcoder.policy import Policy

MOMENTS = (0.05, 0.3, 0.55, 0.8, 0.95)
"""Where to look, as parts of the time to the last picture: after that begins there is none, and ffmpeg 7 then fails."""

LIKE = 0.35
"""The least SSIM of 64x36 grey pictures that show the same. The clips of the tests have 0.8 and more, a green or black
picture beside one with any structure less than 0.1."""

WITHOUT_INDEX = frozenset({"mpegts", "mpeg"})
"""Formats of sources where a search ends anywhere, and pictures begin at the next key frame (libavformat/mpegts.c)."""

LEAD = 5.0
"""Seconds before a moment at which such a source is read, so that a key frame lies between."""

NEAR = 0.5
"""Seconds after a moment that its picture may come there; a later one is another picture, and is not compared."""

_SSIM = re.compile(r"ssim@m(\d+)o(\d+) .*?All:([0-9.]+|nan)")


@dataclass(frozen=True, slots=True)
class Pair:
    """The SSIM of one moment of one output, by their numbers."""

    moment: int
    output: int
    likeness: float


def refuse_unlike(
    planned: Plan, paths: Sequence[str], last: float, policy: Policy, cancelled: Callable[[], bool]
) -> None:
    """Compare the outputs that have an encoded picture with the source. `last` is when their last pictures begin, in s.

    Raises:
        Fault: MISMATCH, an output shows something else in two moments, or in most of those that could be compared.
        JobCancelled: `cancelled` said so.
    """
    looked_at = [(number, rung) for number, rung in enumerate(planned.rungs) if rung.picture]
    if not looked_at:
        return
    moments = [part * last for part in MOMENTS] if last else [0.0]
    words, said = _seen(planned, paths, looked_at, moments, policy, cancelled)
    pairs = read(said)
    for number, rung in looked_at:
        if unlike(tuple(pair.likeness for pair in pairs if pair.output == number)):
            what = f"{rung.output.name}: the picture does not resemble the source's"
            raise Fault(FaultClass.MISMATCH, what, Evidence(words, 0, said))


def read(stderr: Sequence[str]) -> tuple[Pair, ...]:
    """What ffmpeg's ssim filters said; identical pictures have inf in the log and 1 here."""
    found = (_SSIM.search(line) for line in stderr)
    return tuple(
        Pair(int(one[1]), int(one[2]), 0.0 if one[3] == "nan" else float(one[3])) for one in found if one is not None
    )


def unlike(likeness: Sequence[float]) -> bool:
    """Whether these moments show something else: two of them, or most, or none was seen.

    One alone may be the other side of a cut.
    """
    bad = sum(one < LIKE for one in likeness)
    return not likeness or bad >= 2 or bad * 2 > len(likeness)


def _seen(
    planned: Plan,
    paths: Sequence[str],
    looked_at: Sequence[tuple[int, Rung]],
    moments: Sequence[float],
    policy: Policy,
    cancelled: Callable[[], bool],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The command that compared these moments, and what it said.

    A source may have no picture at one: it changes its size before, or no key frame is near. ffmpeg 7 then fails
    whatever else it has seen, so that each moment is asked alone, and those that fail are left out.
    """
    words = _words(planned, paths, looked_at, moments, policy)
    try:
        return words, next(
            step for step in ffmpeg.run(words, policy, cancelled) if isinstance(step, ffmpeg.Finished)
        ).stderr
    except Fault as fault:
        if fault.evidence.returncode is None:  # it did not end by itself
            raise
        if len(moments) == 1:
            return words, ()
    alone = [_seen(planned, paths, looked_at, (moment,), policy, cancelled) for moment in moments]
    return words, tuple(line for _, said in alone for line in said)


def _words(
    planned: Plan,
    paths: Sequence[str],
    looked_at: Sequence[tuple[int, Rung]],
    moments: Sequence[float],
    policy: Policy,
) -> tuple[str, ...]:
    stream = looked_at[0][1].source
    guarded = [word for option, value in GUARDED for word in (f"-{option}", value or "")]
    inputs: list[str] = []
    graphs: list[str] = []
    results: list[str] = []
    for moment, seconds in enumerate(moments):
        seek = ("-threads", "1", "-ss", f"{seconds:.6f}")
        lead = min(LEAD, seconds) if planned.source.format in WITHOUT_INDEX else 0.0
        there = ("-threads", "1", "-ss", f"{seconds - lead:.6f}")
        at_once = f"trim=start={lead:.6f}:duration={NEAR:g}," if lead else ""
        base = moment * (len(looked_at) + 1)
        inputs += [*guarded, *there, "-i", f"file:{planned.spec.source}"]
        copies = "".join(f"[s{moment}x{number}]" for number, _ in looked_at)
        graph = [f"[{base}:{stream.index if stream else 0}]{at_once}{_FIRST},split={len(looked_at)}{copies}"]
        for place, (number, rung) in enumerate(looked_at):
            inputs += ["-protocol_whitelist", "file", *seek, "-i", f"file:{paths[number]}"]
            crop = f"{cropped(rung.picture.crop)}," if rung.picture and rung.picture.crop else ""
            graph.append(f"[s{moment}x{number}]{crop}{_SMALL}[a{moment}x{number}]")
            graph.append(f"[{base + 1 + place}:v:0]{_FIRST},{_SMALL}[b{moment}x{number}]")
            graph.append(f"[a{moment}x{number}][b{moment}x{number}]ssim@m{moment}o{number}[r{moment}x{number}]")
            results += ["-map", f"[r{moment}x{number}]"]
        # a graph each: where the source changes its size ffmpeg sets all inputs of a graph up anew, and 7.1 hangs
        graphs += ["-filter_complex", ";".join(graph)]
    return (policy.ffmpeg, "-hide_banner", "-nostdin", *inputs, *graphs, *results, "-f", "null", "-")


_FIRST = "trim=end_frame=1,setpts=0"
_SMALL = "scale=64:36:flags=area,format=gray"
