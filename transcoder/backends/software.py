"""Software: decode, filter and encode on the CPU. It is the last rung of every plan and the judge of every input."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil

from transcoder.command import Command, Filter, Options, Route, Rung, Work, branch
from transcoder.machine import SOFTWARE, Ability, Build, Machine, Trial
from transcoder.media import Colour, LightLevel, Mastering, VideoStream
from transcoder.picture import Picture
from transcoder.spec import Bitrate, ConstantBitrate, Quality, Rate, Video

API = SOFTWARE
RANK = 100

ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}
PIXELS = {8: "yuv420p", 10: "yuv420p10le"}

SPEEDS: dict[str, dict[str, Options]] = {
    "libx264": {
        "fast": (("preset", "veryfast"),),
        "balanced": (("preset", "medium"),),
        "quality": (("preset", "slow"),),
    },
    "libx265": {
        "fast": (("preset", "superfast"),),
        "balanced": (("preset", "fast"),),
        "quality": (("preset", "slow"),),
    },
    "libsvtav1": {"fast": (("preset", "11"),), "balanced": (("preset", "8"),), "quality": (("preset", "5"),)},
    "libvpx-vp9": {"fast": (("cpu-used", "5"),), "balanced": (("cpu-used", "3"),), "quality": (("cpu-used", "1"),)},
}

QUALITY: dict[str, tuple[tuple[int, int], ...]] = {
    "libx264": ((1, 1), (51, 51)),
    "libx265": ((1, 1), (18, 18), (23, 21), (28, 28), (33, 34), (38, 39), (51, 51)),
    "libsvtav1": ((1, 1), (18, 19), (23, 29), (28, 47), (33, 57), (38, 61), (51, 63)),
    "libvpx-vp9": ((1, 1), (18, 16), (23, 25), (28, 38), (33, 49), (38, 58), (51, 63)),
}
"""Points (libx264's CRF, this encoder's CRF) of equal quality, straight lines between; docs/quality.md."""


def trials(build: Build) -> tuple[Trial, ...]:
    """One frame with every encoder of the build, at every depth."""
    return tuple(
        Trial(Ability(API, codec, depth, encoder), _trial_words(encoder, depth))
        for codec, encoder in ENCODERS.items()
        if encoder in build.encoders
        for depth in PIXELS
    )


def commands(work: Work, machine: Machine) -> tuple[Command, ...]:
    """One command that decodes once and makes every output; none where an encoder is missing."""
    if any(_encoder(rung, machine) is None for rung in work.rungs if rung.picture):
        return ()
    encodes = any(rung.picture or any(sound.codec != "copy" for sound in rung.sounds) for rung in work.rungs)
    return (
        Command(
            route=Route(SOFTWARE, API),
            reason="software runs everywhere" if encodes else "nothing is encoded: streams are copied",
            source=work.path,
            branches=tuple(
                branch(rung, work.media, _filters(rung), _encoder_options(rung, machine)) for rung in work.rungs
            ),
            global_options=("-filter_complex_threads", str(machine.threads)),
            input_options=(("threads", str(machine.threads)), *_stamped(work)),
        ),
    )


def _stamped(work: Work) -> Options:
    """Give time stamps to the packets of a copy that have none: an AVI's, which no other container takes."""
    return (("fflags", "+genpts"),) if any(rung.copied for rung in work.rungs) else ()


def _encoder(rung: Rung, machine: Machine) -> str | None:
    video, picture = rung.output.video, rung.picture
    if video is None or picture is None or (video.codec == "vp9" and picture.mastering and not _hands_on(machine)):
        return None
    able = machine.can(API, video.codec, picture.depth)
    return able.encoder if able else None


def _hands_on(machine: Machine) -> bool:
    """Whether ffmpeg hands HDR10's metadata on to the container: VP9 has no place for it in its own stream."""
    return not machine.build.numbers or machine.build.numbers >= (7, 1)


def _filters(rung: Rung) -> tuple[Filter, ...]:
    picture = rung.picture
    if picture is None:
        return ()
    steps: list[Filter] = []
    if picture.deinterlace:
        steps.append(Filter("bwdif", (("mode", "send_frame"), ("deint", "interlaced"))))
    if picture.fps:
        steps.append(Filter("fps", (("fps", f"{picture.fps.numerator}/{picture.fps.denominator}"),)))
    if picture.scale or picture.from_rgb or picture.from_full_range:
        steps.append(_scale(picture))
    if picture.from_rgb:
        steps.append(_named(picture.colour))
    if picture.scale:
        steps.append(Filter("setsar", (("sar", f"{picture.sar.numerator}/{picture.sar.denominator}"),)))
    steps.append(Filter("format", (("pix_fmts", PIXELS[picture.depth]),)))
    return tuple(steps)


def _scale(picture: Picture) -> Filter:
    matrix = (("out_color_matrix", "bt709"),) if picture.from_rgb else ()
    size = (("w", str(picture.width)), ("h", str(picture.height)))
    return Filter("scale", (*size, ("flags", "bicubic"), ("out_range", "tv"), *matrix))


def _named(colour: Colour) -> Filter:
    """Say the new colours in the frames: from ffmpeg 7 on they outweigh the encoder's options."""
    names = (("color_primaries", colour.primaries), ("color_trc", colour.transfer), ("colorspace", colour.matrix))
    return Filter("setparams", tuple((key, name) for key, name in names if name))


def _encoder_options(rung: Rung, machine: Machine) -> Options:
    encoder, video, picture, source = _encoder(rung, machine), rung.output.video, rung.picture, rung.source
    if encoder is None or video is None or picture is None or source is None:
        return ()
    hvc1: Options = (("tag:v", "hvc1"),) if video.codec == "hevc" and rung.output.container == "mp4" else ()
    parameters = _parameters(encoder, video.rate, picture, machine.threads)
    return (
        ("c:v", encoder),
        *SPEEDS[encoder][video.speed],
        *_rate_options(encoder, video.rate),
        *_key_frames(encoder, video, picture, source),
        *_timing(picture, source),
        *_colour(picture),
        *((parameters,) if parameters else ()),
        *hvc1,
        ("threads", str(machine.threads)),
    )


def _rate_options(encoder: str, rate: Rate) -> Options:
    match rate:
        case Quality():
            crf: Options = (("crf", str(mapped_quality(encoder, rate.quality))),)
            # libvpx takes crf as a floor under a target bitrate unless that is 0 (ffmpeg-codecs, libvpx)
            return (*crf, ("b:v", "0")) if encoder == "libvpx-vp9" else crf
        case Bitrate() if encoder == "libsvtav1":
            # SVT-AV1 2.x refuses a ceiling beside an average: "Max Bitrate only supported with CRF mode"
            return (("b:v", str(rate.bitrate)),)
        case Bitrate():
            return (("b:v", str(rate.bitrate)), ("maxrate:v", str(rate.ceiling)), ("bufsize:v", str(rate.buffer)))
        case ConstantBitrate() if encoder == "libsvtav1":
            return (("b:v", str(rate.bitrate)),)
        case ConstantBitrate():
            held = str(rate.bitrate)
            return (("b:v", held), ("minrate:v", held), ("maxrate:v", held), ("bufsize:v", str(rate.buffer)))


def mapped_quality(encoder: str, quality: int) -> int:
    """The encoder's own CRF for a quality on libx264's scale, by the table above."""
    points = QUALITY[encoder]
    (x0, y0), (x1, y1) = next((low, high) for low, high in pairwise(points) if low[0] <= quality <= high[0])
    return round(y0 + (y1 - y0) * (quality - x0) / (x1 - x0))


def _key_frames(encoder: str, video: Video, picture: Picture, source: VideoStream) -> Options:
    """A key frame at every multiple of the GOP's seconds and nowhere else, so that the rungs of a ladder agree."""
    fps = picture.fps or max(source.rate or Fraction(25), source.base_rate or Fraction(0))
    distance = max(1, ceil(fps * Fraction(video.gop).limit_denominator(1000)))
    forced: Options = (("g", str(distance)), ("force_key_frames", f"expr:gte(t,n_forced*{video.gop:g})"))
    own: dict[str, Options] = {
        "libx264": (("sc_threshold", "0"), ("forced-idr", "1")),
        "libx265": (("forced-idr", "1"),),
    }
    return (*forced, *own.get(encoder, ()))


def _timing(picture: Picture, source: VideoStream) -> Options:
    """Every frame keeps its own time; with a variable rate in the source's own ticks, not in those of 1/rate."""
    tick = source.tick or Fraction(1, 90_000)
    variable = source.variable_rate and not picture.fps
    return (
        ("fps_mode:v", "vfr"),
        *((("enc_time_base:v", f"{tick.numerator}:{tick.denominator}"),) if variable else ()),
    )


def _colour(picture: Picture) -> Options:
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


def _parameters(encoder: str, rate: Rate, picture: Picture, threads: int) -> tuple[str, str] | None:
    """The encoder's private parameters, which ffmpeg has no option for."""
    constant = isinstance(rate, ConstantBitrate)
    match encoder:
        case "libx264":
            return ("x264-params", "nal-hrd=cbr") if constant else None
        case "libx265":
            words = ["log-level=error", "scenecut=0", "open-gop=0", f"pools={threads}", *_x265_hdr(picture)]
            return "x265-params", ":".join([*words, "strict-cbr=1"] if constant else words)
        case "libsvtav1":
            words = [f"lp={threads}", *_svt_hdr(picture)]
            return "svtav1-params", ":".join([*words, "rc=2", "pred-struct=1"] if constant else words)
        case _:
            return "row-mt", "1"


def _x265_hdr(picture: Picture) -> list[str]:
    words = []
    if picture.mastering:
        # units of 0.00002 and 0.0001 (x265 documentation, --master-display)
        words.append(f"master-display={_mastering(picture.mastering, Fraction(50_000), Fraction(10_000))}")
    if picture.light_level:
        words.append(f"max-cll={_light(picture.light_level)}")
    return [*words, "hdr10=1", "repeat-headers=1"] if words else []


def _svt_hdr(picture: Picture) -> list[str]:
    words = []
    if picture.mastering:
        words.append(f"mastering-display={_mastering(picture.mastering, None, None)}")
    if picture.light_level:
        words.append(f"content-light={_light(picture.light_level)}")
    return words


def _mastering(side: Mastering, chroma: Fraction | None, luminance: Fraction | None) -> str:
    def number(value: Fraction, unit: Fraction | None) -> str:
        return str(round(value * unit)) if unit else f"{float(value):.6g}"

    def pair(values: tuple[Fraction, Fraction]) -> str:
        return "({},{})".format(*(number(value, chroma) for value in values))

    levels = f"({number(side.max_luminance, luminance)},{number(side.min_luminance, luminance)})"
    return f"G{pair(side.green)}B{pair(side.blue)}R{pair(side.red)}WP{pair(side.white)}L{levels}"


def _light(level: LightLevel) -> str:
    return f"{level.max_content},{level.max_average}"


def _trial_words(encoder: str, depth: int) -> tuple[str, ...]:
    picture = "testsrc2=s=256x256:r=30:d=0.1"
    return (
        *("-hide_banner", "-nostdin", "-v", "error", "-f", "lavfi", "-i", picture),
        *("-vf", f"format={PIXELS[depth]}", "-frames:v", "1", "-c:v", encoder),
        *(word for name, value in SPEEDS[encoder]["fast"] for word in (f"-{name}", value or "")),
        *("-f", "null", "-"),
    )
