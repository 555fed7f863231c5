"""How much disk the outputs of a job may need: by the bitrate that is asked, or guessed from pixels and quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from transcoder.command import USUAL_RATE, Rung
from transcoder.media import Media
from transcoder.spec import Quality

_PER_PIXEL: Final = {"h264": 0.14, "hevc": 0.1, "av1": 0.08, "vp9": 0.1}
"""Bits for a pixel at quality 23, of busy pictures; calm ones need a fifth of it."""

_HALVES: Final = 6
"""Steps of quality that halve the bits (x264's scale)."""

_SOUND = 96_000
"""Bits per second of a channel whose encoder chooses."""

_AROUND = 1.05
_LEAST = 1 << 20
_UNKNOWN = 3600.0
"""Seconds of a source whose container promises no length."""


def bytes_for(source: Media, rungs: Sequence[Rung]) -> int:
    """Bytes that all the outputs together may have, rather too many than too few."""
    return sum(_output(source, rung) for rung in rungs)


def _output(source: Media, rung: Rung) -> int:
    seconds = source.duration or _UNKNOWN
    copied = rung.copied or any(sound.codec == "copy" for sound in rung.sounds)
    bits = (_picture(rung) + sum(sound.bitrate or _SOUND * (sound.channels or 2) for sound in rung.sounds)) * seconds
    return max(_LEAST, round(bits / 8 * _AROUND) + (source.size if copied else 0))


def _picture(rung: Rung) -> float:
    """Bits per second."""
    if not rung.picture or not rung.output.video:
        return 0.0
    rate = rung.output.video.rate
    if not isinstance(rate, Quality):
        return float(getattr(rate, "bitrate", 0))
    shown = rung.picture
    fps = float(shown.fps or (rung.source.rate if rung.source else None) or USUAL_RATE)
    per_pixel = _PER_PIXEL.get(rung.output.video.codec, max(_PER_PIXEL.values()))
    return shown.width * shown.height * fps * per_pixel * float(2.0 ** ((23 - rate.quality) / _HALVES))
