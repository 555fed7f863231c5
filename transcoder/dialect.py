"""What all backends say alike: filters on the CPU, key frames, time stamps, colours."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil

from transcoder.command import Filter, Options
from transcoder.media import Colour, VideoStream
from transcoder.picture import Crop, Picture
from transcoder.spec import Video

PIXELS = {8: "yuv420p", 10: "yuv420p10le"}

Points = tuple[tuple[int, int], ...]

DEVICE_QUALITY: dict[str, Points] = {
    "h264": ((1, 1), (18, 20), (23, 25), (28, 30), (51, 51)),
    "hevc": ((1, 1), (18, 20), (23, 25), (28, 30), (51, 51)),
    "av1": ((1, 1), (18, 76), (23, 116), (28, 160), (51, 255)),
    "vp9": ((1, 1), (18, 64), (23, 100), (28, 152), (51, 255)),
}
"""Points (libx264's CRF, a device's quality number): first guesses, not measured on any device; docs/quality.md."""


def cpu_filters(picture: Picture, pixels: str) -> tuple[Filter, ...]:
    """The whole picture made on the CPU, in the pixel format `pixels`.

    What the rungs of a ladder have in common comes first, so that it is done once.
    """
    steps: list[Filter] = []
    if picture.deinterlace:
        steps.append(Filter("bwdif", (("mode", "send_frame"), ("deint", "interlaced"))))
    if picture.fps:
        steps.append(frame_rate(picture.fps))
    if picture.crop:
        steps.append(cropped(picture.crop))
    if picture.scale or picture.from_rgb or picture.from_full_range:
        steps.append(_scale(picture))
    if picture.from_rgb:
        steps.append(named(picture.colour))
    if picture.tonemap:
        steps += tonemap(picture.tonemap)
    if picture.scale:
        steps.append(sample_aspect(picture.sar))
    steps.append(Filter("format", (("pix_fmts", pixels),)))
    return tuple(steps)


def frame_rate(fps: Fraction) -> Filter:
    """Drop to a rate."""
    return Filter("fps", (("fps", f"{fps.numerator}/{fps.denominator}"),))


def cropped(crop: Crop) -> Filter:
    """Cut the edges off. On frames in a GPU it only marks them, and the next filter there does it."""
    words = (("w", crop.width), ("h", crop.height), ("x", crop.left), ("y", crop.top))
    return Filter("crop", tuple((name, str(value)) for name, value in words))


def sample_aspect(sar: Fraction) -> Filter:
    """Say how wide a sample is beside its height."""
    return Filter("setsar", (("sar", f"{sar.numerator}/{sar.denominator}"),))


def named(colour: Colour) -> Filter:
    """Say the new colours in the frames: from ffmpeg 7 on they outweigh the encoder's options."""
    names = (("color_primaries", colour.primaries), ("color_trc", colour.transfer), ("colorspace", colour.matrix))
    return Filter("setparams", tuple((key, name) for key, name in names if name))


def _scale(picture: Picture) -> Filter:
    matrix = (("out_color_matrix", "bt709"),) if picture.from_rgb else ()
    size = (("w", str(picture.width)), ("h", str(picture.height)))
    return Filter("scale", (*size, ("flags", "bicubic"), ("out_range", "tv"), *matrix))


def tonemap(source: Colour) -> tuple[Filter, ...]:
    """HDR to SDR: linear light, the gamut of BT.709, Hable's curve (ffmpeg-filters, tonemap and zscale).

    100 candela a square metre is what SDR calls white.
    """
    said = Colour(source.primaries or "bt2020", source.transfer, source.matrix or "bt2020nc")
    return (
        # by name in the frames: zscale's own options for its input find "no path between colorspaces" (ffmpeg 5.1)
        named(said),
        Filter("setparams", (("range", "tv"),)),
        Filter("zscale", (("t", "linear"), ("npl", "100"))),
        Filter("format", (("pix_fmts", "gbrpf32le"),)),
        Filter("zscale", (("p", "bt709"),)),
        Filter("tonemap", (("tonemap", "hable"), ("desat", "0"))),
        Filter("zscale", (("t", "bt709"), ("m", "bt709"), ("r", "tv"))),
        # what the HDR was mastered for is no longer true, and encoders of ffmpeg 7 write what they find in the frames
        Filter("sidedata", (("mode", "delete"), ("type", "MASTERING_DISPLAY_METADATA"))),
        Filter("sidedata", (("mode", "delete"), ("type", "CONTENT_LIGHT_LEVEL"))),
    )


def key_frames(video: Video, picture: Picture, source: VideoStream) -> Options:
    """A key frame at every multiple of the GOP's seconds and, where the encoder can be told, nowhere else."""
    fps = picture.fps or max(source.rate or Fraction(25), source.base_rate or Fraction(0))
    distance = max(1, ceil(fps * Fraction(video.gop).limit_denominator(1000)))
    return (("g", str(distance)), ("force_key_frames", f"expr:gte(t,n_forced*{video.gop:g})"))


def timing(picture: Picture, source: VideoStream) -> Options:
    """Every frame keeps its own time; with a variable rate in the source's own ticks, not in those of 1/rate."""
    tick = source.tick or Fraction(1, 90_000)
    variable = source.variable_rate and not picture.fps
    return (
        ("fps_mode:v", "vfr"),
        *((("enc_time_base:v", f"{tick.numerator}:{tick.denominator}"),) if variable else ()),
    )


def colours(picture: Picture) -> Options:
    """The colour tags of an output."""
    transfer = picture.colour.transfer or ""
    tags = {
        "color_primaries:v": picture.colour.primaries,
        "color_trc:v": _TRANSFER_OPTIONS.get(transfer, transfer),
        "colorspace:v": picture.colour.matrix,
        "color_range:v": picture.colour.range,
    }
    return tuple((name, value) for name, value in tags.items() if value)


_TRANSFER_OPTIONS = {"bt470m": "gamma22", "bt470bg": "gamma28"}
"""Where the option has another word for a transfer than ffprobe."""


def hvc1(codec: str, container: str) -> Options:
    """Apple's players want HEVC in an mp4 called so."""
    return (("tag:v", "hvc1"),) if codec == "hevc" and container == "mp4" else ()


def on_scale(points: Points, quality: int) -> int:
    """An encoder's own number for a quality on libx264's scale: straight lines between points of equal quality."""
    (x0, y0), (x1, y1) = next((low, high) for low, high in pairwise(points) if low[0] <= quality <= high[0])
    return round(y0 + (y1 - y0) * (quality - x0) / (x1 - x0))
