"""Software: decode, filter and encode on the CPU. It is the last rung of every plan and the judge of every input."""

from __future__ import annotations

from fractions import Fraction

from transcoder.command import Command, Filter, Options, Route, Rung, Work, branch
from transcoder.dialect import PIXELS, Points, colours, cpu_filters, hvc1, key_frames, on_scale, timing, tonemap
from transcoder.machine import MADE, SOFTWARE, TRIAL_PICTURE, Ability, Build, Device, Machine, Trial
from transcoder.media import Colour, LightLevel, Mastering, VideoStream
from transcoder.picture import Picture
from transcoder.spec import Bitrate, ConstantBitrate, Quality, Rate, Video

API = SOFTWARE
RANK = 100
NEEDS = "an ffmpeg with libx264, libx265, libsvtav1 and libvpx (Debian's has them)"

ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}

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

QUALITY: dict[str, Points] = {
    "libx264": ((1, 1), (51, 51)),
    "libx265": ((1, 1), (18, 18), (23, 21), (28, 28), (33, 34), (38, 39), (51, 51)),
    "libsvtav1": ((1, 1), (18, 19), (23, 29), (28, 47), (33, 57), (38, 61), (51, 63)),
    "libvpx-vp9": ((1, 1), (18, 16), (23, 25), (28, 38), (33, 49), (38, 58), (51, 63)),
}
"""Points (libx264's CRF, this encoder's CRF) of equal quality, straight lines between; docs/quality.md."""


def trials(build: Build, device: Device | None) -> tuple[Trial, ...]:
    """A few frames with every encoder of the build, at every depth, and the mapping of HDR to SDR."""
    if device:
        return ()
    mapping = Trial(Ability(API, "tonemap", 10, does="filter"), _TONEMAP_TRIAL)
    encoders = tuple(
        Trial(Ability(API, codec, depth, encoder), _trial_words(encoder, depth))
        for codec, encoder in ENCODERS.items()
        if encoder in build.encoders
        for depth in PIXELS
    )
    return (*encoders, mapping) if {"zscale", "tonemap"} <= build.filters else encoders


def commands(work: Work, machine: Machine) -> tuple[Command, ...]:
    """One command that decodes once and makes every output; none where an encoder is missing."""
    if any(_encoder(rung, machine) is None for rung in work.rungs if rung.picture):
        return ()
    encodes = any(rung.picture or any(sound.codec != "copy" for sound in rung.sounds) for rung in work.rungs)
    return (
        Command(
            route=Route(SOFTWARE, API, codecs=work.codecs),
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
    if picture.tonemap and not machine.can(API, "tonemap", 10, does="filter"):
        return None
    able = machine.can(API, video.codec, picture.depth)
    return able.encoder if able else None


def _hands_on(machine: Machine) -> bool:
    """Whether ffmpeg hands HDR10's metadata on to the container: VP9 has no place for it in its own stream."""
    return not machine.build.numbers or machine.build.numbers >= (7, 1)


def _filters(rung: Rung) -> tuple[Filter, ...]:
    return cpu_filters(rung.picture, PIXELS[rung.picture.depth]) if rung.picture else ()


def _encoder_options(rung: Rung, machine: Machine) -> Options:
    encoder, video, picture, source = _encoder(rung, machine), rung.output.video, rung.picture, rung.source
    if encoder is None or video is None or picture is None or source is None:
        return ()
    parameters = _parameters(encoder, video.rate, picture, machine.threads)
    return (
        ("c:v", encoder),
        *SPEEDS[encoder][video.speed],
        *_rate_options(encoder, video.rate),
        *_key_frames(encoder, video, picture, source),
        *timing(picture, source),
        *colours(picture),
        *((parameters,) if parameters else ()),
        *hvc1(video.codec, rung.output.container),
        ("threads", str(machine.threads)),
    )


def _rate_options(encoder: str, rate: Rate) -> Options:
    match rate:
        case Quality():
            crf: Options = (("crf", str(on_scale(QUALITY[encoder], rate.quality))),)
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


def _key_frames(encoder: str, video: Video, picture: Picture, source: VideoStream) -> Options:
    """None between the forced ones, so that the rungs of a ladder agree."""
    own: dict[str, Options] = {
        "libx264": (("sc_threshold", "0"), ("forced-idr", "1")),
        "libx265": (("forced-idr", "1"),),
    }
    return (*key_frames(video, picture, source), *own.get(encoder, ()))


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


_HDR = Colour("bt2020", "smpte2084", "bt2020nc", "tv")
_TONEMAP_TRIAL = (
    *TRIAL_PICTURE,
    *("-filter:v", "format=yuv420p10le," + ",".join(map(str, tonemap(_HDR))) + ",format=yuv420p"),
    *("-c:v", "ffv1", "-f", "matroska", MADE),
)


def _trial_words(encoder: str, depth: int) -> tuple[str, ...]:
    return (
        *TRIAL_PICTURE,
        *("-vf", f"format={PIXELS[depth]}", "-c:v", encoder),
        *(word for name, value in SPEEDS[encoder]["fast"] for word in (f"-{name}", value or "")),
        *("-f", "matroska", MADE),
    )
