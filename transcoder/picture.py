"""What must change in the picture: decided once, for every backend to spell in its own words.

Sizes in pixels (even), rates in frames per second, depth in bits a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor

from transcoder.errors import InputRefused
from transcoder.media import Colour, LightLevel, Mastering, VideoStream
from transcoder.spec import Video

SDR = Colour("bt709", "bt709", "bt709", "tv")


@dataclass(frozen=True, slots=True)
class Crop:
    """What is kept of a picture, in pixels of it as it is shown: a box of `width` x `height` at (`left`, `top`)."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture as it shall be.

    `tonemap` has the colours of an HDR source that becomes SDR, `crop` what is kept of the source. `scale` says whether
    the size changes; `fps` is set only where the rate is capped; `turned` is the rotation in degrees clockwise that is
    applied on the way; `from_rgb` says that the source has no luma and chroma of its own, `from_full_range` that its
    samples use every code value (the output uses video range).
    """

    width: int
    height: int
    sar: Fraction
    scale: bool
    fps: Fraction | None
    deinterlace: bool
    depth: int
    colour: Colour
    turned: int = 0
    from_rgb: bool = False
    from_full_range: bool = False
    mastering: Mastering | None = None
    light_level: LightLevel | None = None
    tonemap: Colour | None = None
    crop: Crop | None = None


def decide(video: Video, source: VideoStream) -> Picture | None:
    """The picture that `video` asks of `source`; None where the rung is left out because the source is smaller.

    Raises:
        InputRefused: for HDR that shall be kept in a codec or depth that cannot carry it; for a crop that leaves
            nothing.
    """
    whole, sar = _displayed(source)
    crop = _cropped(video, whole)
    shown = (crop.width, crop.height) if crop else whole
    size = _fitted(video, shown, sar)
    if size is None:
        return None
    width, height, out_sar = size
    depth = video.depth or (8 if video.codec == "h264" else min(10, max(8, source.depth)))
    mapped = _mapped(video, source, depth)
    rgb = source.pix_fmt.startswith(("rgb", "bgr", "gbr", "pal8", "argb", "abgr", "0rgb", "0bgr", "x2rgb", "x2bgr"))
    return Picture(
        width=width,
        height=height,
        sar=out_sar,
        scale=(width, height) != shown,
        fps=_capped(video.max_fps, source),
        deinterlace=video.deinterlace == "auto" and source.interlaced,
        depth=depth,
        colour=SDR if rgb or mapped else _carried(source.colour),
        turned=source.rotation,
        from_rgb=rgb,
        from_full_range=source.colour.range == "pc" or source.pix_fmt.startswith("yuvj"),
        mastering=None if mapped else source.mastering,
        light_level=None if mapped else source.light_level,
        tonemap=source.colour if mapped else None,
        crop=crop,
    )


def _carried(colour: Colour) -> Colour:
    """What an output says of its colours: as the source, in video range. Luma and chroma have no RGB matrix."""
    return replace(colour, range="tv", matrix=None if colour.matrix == "gbr" else colour.matrix)


def smallest(videos: list[Video]) -> int:
    """Which rung stands in when the source is smaller than all of them: the one with the fewest pixels."""
    return min(range(len(videos)), key=lambda rung: (videos[rung].width or 1 << 20) * (videos[rung].height or 1 << 20))


def _displayed(source: VideoStream) -> tuple[tuple[int, int], Fraction]:
    """Size and sample aspect after the rotation is honoured."""
    if source.rotation in (90, 270):
        return (source.height, source.width), 1 / source.sar
    return (source.width, source.height), source.sar


def _fitted(video: Video, shown: tuple[int, int], sar: Fraction) -> tuple[int, int, Fraction] | None:
    """Width, height and sample aspect; a changed size has square samples, a kept one keeps the source's.

    The display width is the stored width x sample aspect, so that a box means what a viewer sees.
    """
    width, height = shown
    if video.width is None and video.height is None:
        return _even(width), _even(height), sar
    display_width = width * sar
    factor = min(
        Fraction(video.width) / display_width if video.width else Fraction(1 << 20),
        Fraction(video.height, height) if video.height else Fraction(1 << 20),
    )
    if factor > 1 and video.upscale == "skip":
        return None
    if factor == 1 or (factor > 1 and video.upscale == "never"):
        return _even(width), _even(height), sar
    return _even(display_width * factor), _even(height * factor), Fraction(1)


def _even(length: Fraction | int) -> int:
    """The nearest even number, never above an odd whole length, at least 2: 4:2:0 halves the chroma."""
    if isinstance(length, int) or length.denominator == 1:
        return max(2, int(length) // 2 * 2)
    return max(2, floor(length / 2 + Fraction(1, 2)) * 2)


def _capped(cap: float | None, source: VideoStream) -> Fraction | None:
    """The capped rate, or None where the source is below it. A whole divisor of the source's rate judders least."""
    if cap is None or source.rate is None:
        return None
    limit = Fraction(cap).limit_denominator(1001)
    fastest = max(source.rate, source.base_rate or source.rate) if source.variable_rate else source.rate
    if fastest <= limit * Fraction(1001, 1000):
        return None
    for divisor in (1, 2, 3, 4, 5):
        even = source.rate / divisor
        if limit * Fraction(95, 100) <= even <= limit * Fraction(1001, 1000):
            return even
    return limit


def _mapped(video: Video, source: VideoStream, depth: int) -> bool:
    """Whether HDR becomes SDR: asked for, or because the codec or depth cannot carry it."""
    kind = source.colour.hdr
    washed_out = video.codec == "h264" or depth == 8
    if kind and washed_out and video.hdr == "keep":
        raise InputRefused(
            f"the source is HDR ({kind}), which shall be kept, and {video.codec} with {depth} bits would wash it out",
            "Ask for hevc, av1 or vp9 with 10 bits (profile hevc-2160p-10bit), or for hdr 'auto', which maps to SDR.",
        )
    return kind is not None and (washed_out or video.hdr == "sdr")


def _cropped(video: Video, whole: tuple[int, int]) -> Crop | None:
    edges = video.crop
    if edges is None:
        return None
    width, height = whole[0] - edges.left - edges.right, whole[1] - edges.top - edges.bottom
    if width < 2 or height < 2:
        raise InputRefused(
            f"the crop leaves nothing of the source's {whole[0]}x{whole[1]} pixels", "Crop less of its edges."
        )
    return Crop(edges.left, edges.top, width, height)
