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
"""Where to look, as parts of the duration."""

LIKE = 0.35
"""The least SSIM of 64x36 grey pictures that show the same. The clips of the tests have 0.8 and more, a green or black
picture beside one with any structure less than 0.1."""

_SSIM = re.compile(r"ssim@m(\d+)o(\d+) .*?All:([0-9.]+|nan)")


@dataclass(frozen=True, slots=True)
class Pair:
    """The SSIM of one moment of one output, by their numbers."""

    moment: int
    output: int
    likeness: float


def refuse_unlike(
    planned: Plan, paths: Sequence[str], duration: float | None, policy: Policy, cancelled: Callable[[], bool]
) -> None:
    """Compare the outputs that have an encoded picture with the source; `duration` is that of the source in seconds.

    Raises:
        Fault: MISMATCH, an output shows something else in two moments, or in most of those that could be compared.
        JobCancelled: `cancelled` said so.
    """
    looked_at = [(number, rung) for number, rung in enumerate(planned.rungs) if rung.picture]
    if not looked_at:
        return
    words = _words(planned, paths, looked_at, duration, policy)
    finished = next(step for step in ffmpeg.run(words, policy, cancelled) if isinstance(step, ffmpeg.Finished))
    pairs = read(finished.stderr)
    for number, rung in looked_at:
        if unlike(tuple(pair.likeness for pair in pairs if pair.output == number)):
            what = f"{rung.output.name}: the picture does not resemble the source's"
            raise Fault(FaultClass.MISMATCH, what, Evidence(words, 0, finished.stderr))


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


def _words(
    planned: Plan,
    paths: Sequence[str],
    looked_at: Sequence[tuple[int, Rung]],
    duration: float | None,
    policy: Policy,
) -> tuple[str, ...]:
    moments = [part * duration for part in MOMENTS] if duration else [0.0]
    stream = looked_at[0][1].source
    guarded = [word for option, value in GUARDED for word in (f"-{option}", value or "")]
    inputs: list[str] = []
    graphs: list[str] = []
    for moment, seconds in enumerate(moments):
        seek = ("-threads", "1", "-ss", f"{seconds:.6f}")
        base = moment * (len(looked_at) + 1)
        inputs += [*guarded, *seek, "-i", f"file:{planned.spec.source}"]
        copies = "".join(f"[s{moment}x{number}]" for number, _ in looked_at)
        graphs.append(f"[{base}:{stream.index if stream else 0}]{_FIRST},split={len(looked_at)}{copies}")
        for place, (number, rung) in enumerate(looked_at):
            inputs += ["-protocol_whitelist", "file", *seek, "-i", f"file:{paths[number]}"]
            crop = f"{cropped(rung.picture.crop)}," if rung.picture and rung.picture.crop else ""
            graphs.append(f"[s{moment}x{number}]{crop}{_SMALL}[a{moment}x{number}]")
            graphs.append(f"[{base + 1 + place}:v:0]{_FIRST},{_SMALL}[b{moment}x{number}]")
            graphs.append(f"[a{moment}x{number}][b{moment}x{number}]ssim@m{moment}o{number}[r{moment}x{number}]")
    results = [f"[r{moment}x{number}]" for moment in range(len(moments)) for number, _ in looked_at]
    return (
        *(policy.ffmpeg, "-hide_banner", "-nostdin", *inputs, "-filter_complex", ";".join(graphs)),
        *(*(word for result in results for word in ("-map", result)), "-f", "null", "-"),
    )


_FIRST = "trim=end_frame=1,setpts=0"
_SMALL = "scale=64:36:flags=area,format=gray"
