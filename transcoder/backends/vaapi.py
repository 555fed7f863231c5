"""VAAPI: Intel and AMD through their VA drivers. One render node decodes, filters and encodes, or what it can of that.

Facts of ffmpeg 5.1 and 7.1 that the words below depend on:

- `format=nv12|vaapi,hwupload` before the first filter lets the decoder fall back to software inside the same process:
  frames of the device pass, others are uploaded.
- `-noautoscale` at every output: a change of size or colour in the middle of a file would else put a software scaler
  among the device's frames, which ends the job (libavfilter, "Impossible to convert between the formats").
- ffmpeg 5.1 has fixed pools of surfaces, so a ladder or B-frames run out of them; 7.1 ignores the extra ones.
- A rate control that is not named depends on the driver, and one that it lacks is replaced without a word
  (libavcodec/vaapi_encode.c, vaapi_encode_init_rate_control): it is always named, and only when a trial proved it.
"""

from __future__ import annotations

from collections.abc import Iterator

from transcoder.command import Command, Filter, Options, Route, Rung, Work, branch
from transcoder.dialect import (
    DEVICE_QUALITY,
    PIXELS,
    colours,
    cpu_filters,
    cropped,
    frame_rate,
    hvc1,
    key_frames,
    on_scale,
    sample_aspect,
    timing,
)
from transcoder.machine import CODECS, MADE, SAMPLE, SOFTWARE, TRIAL_PICTURE, Ability, Build, Device, Machine, Trial
from transcoder.media import VideoStream
from transcoder.picture import Picture
from transcoder.spec import Bitrate, ConstantBitrate, Quality, Rate

API = "vaapi"
RANK = 10
NEEDS = "a VA driver for the GPU: intel-media-va-driver (Intel) or mesa-va-drivers (AMD)"

ENCODERS = {"h264": "h264_vaapi", "hevc": "hevc_vaapi", "av1": "av1_vaapi", "vp9": "vp9_vaapi"}
SURFACE = {8: "nv12", 10: "p010"}
VP9_MATRICES = {
    None: "unknown",
    "bt709": "bt709",
    "bt470bg": "bt601",
    "smpte170m": "smpte170",
    "smpte240m": "smpte240",
    "bt2020nc": "bt2020",
}
"""What VP9 has a name for (its specification, 7.2.2), by ffmpeg's names for matrices."""
WHOLE_POOL = ("extra_hw_frames", "24")
DECODED_SURFACES = 16

SPEEDS = {"fast": "7", "balanced": "4", "quality": "1"}
"""`-compression_level` is the driver's quality level, 1 the best; a driver without levels ignores it with a warning."""


def trials(build: Build, device: Device | None) -> tuple[Trial, ...]:
    """What the driver lists, tried: decoding, filters, and every encoder in every rate control."""
    if device is None or device.trouble:
        return ()
    return (*_decodes(device), *_filter_trials(build, device), *_encodes(build, device))


def commands(work: Work, machine: Machine) -> tuple[Command, ...]:
    """For every device that can encode all outputs: as much on it as it can do, then only the encoding."""
    if not work.codecs:
        return ()
    return tuple(
        command
        for device in machine.devices
        if all(_encoder(rung, machine, device) for rung in work.rungs if rung.picture)
        for command in _routes(work, machine, device)
    )


def _routes(work: Work, machine: Machine, device: Device) -> Iterator[Command]:
    decodes = _can_decode(work, machine, device) and not _turned(work)
    filters = all(_can_filter(rung, machine, device) for rung in work.rungs if rung.picture)
    if decodes and filters:
        yield _command(
            work, machine, device, Route("vaapi", API, device.id, API, API, work.codecs), "all on the device"
        )
    elif decodes:
        route = Route("vaapi-download", API, device.id, API, SOFTWARE, work.codecs)
        yield _command(work, machine, device, route, "the device cannot make this picture: filtered on the CPU")
    elif filters:
        route = Route("vaapi-upload", API, device.id, SOFTWARE, API, work.codecs)
        yield _command(work, machine, device, route, "the device cannot decode this: decoded on the CPU")
    route = Route("vaapi-encode", API, device.id, SOFTWARE, SOFTWARE, work.codecs)
    yield _command(work, machine, device, route, "only encoding on the device, which asks least of it")


def _command(work: Work, machine: Machine, device: Device, route: Route, reason: str) -> Command:
    decoding: Options = (
        ("hwaccel", "vaapi"),
        ("hwaccel_device", "va"),
        ("hwaccel_output_format", "vaapi"),
        ("extra_hw_frames", str(DECODED_SURFACES)),
        ("threads", "1"),  # frame threads gain a device nothing and hold its surfaces
    )
    return Command(
        route=route,
        reason=reason,
        source=work.path,
        branches=tuple(
            branch(rung, work.media, _filters(rung, route), _encoder_options(rung, machine, device))
            for rung in work.rungs
        ),
        input_options=decoding if route.decode == API else (("threads", str(machine.threads)),),
        global_options=(*_opened(device), "-filter_complex_threads", str(machine.threads)),
    )


def _opened(device: Device) -> tuple[str, ...]:
    return ("-init_hw_device", f"vaapi=va:{device.node}", "-filter_hw_device", "va")


def _can_decode(work: Work, machine: Machine, device: Device) -> bool:
    """The device decodes the codec and depth, in 4:2:0 and with luma and chroma of their own."""
    stream = work.media.main_video
    if stream is None or stream.pix_fmt not in ("yuv420p", "yuvj420p", "nv12", "yuv420p10le", "p010le"):
        return False
    return machine.can(API, stream.codec, stream.depth, device.id, "decode") is not None


def _can_filter(rung: Rung, machine: Machine, device: Device) -> bool:
    """Conversions of colour stay on the CPU: drivers differ, and no trial proves them."""
    picture, source = rung.picture, rung.source
    if picture is None or source is None or picture.from_rgb or picture.from_full_range or picture.tonemap:
        return False
    work = ["scale", *(["deinterlace"] if picture.deinterlace else [])]
    depths = {picture.depth, _stored(source)}
    return all(machine.can(API, one, depth, device.id, "filter") for one in work for depth in depths)


def _stored(source: VideoStream) -> int:
    return 10 if source.depth > 8 else 8


def _turned(work: Work) -> bool:
    """Ffmpeg turns a picture only where it decodes it to memory, and it passes the mark on where it does not."""
    return any(rung.picture and rung.picture.turned for rung in work.rungs)


def _encoder(rung: Rung, machine: Machine, device: Device) -> Ability | None:
    """The proven encoder with the first rate control that keeps the promise."""
    video, picture = rung.output.video, rung.picture
    if video is None or picture is None or (video.codec == "vp9" and picture.colour.matrix not in VP9_MATRICES):
        return None
    proven = machine.proven(API, video.codec, picture.depth, device.id)
    return next((able for mode in _modes(video.rate) for able in proven if able.mode == mode), None)


def _modes(rate: Rate) -> tuple[str, ...]:
    match rate:
        case Quality():
            return ("ICQ", "CQP")
        case Bitrate():
            return ("VBR", "CBR")
        case ConstantBitrate():
            return ("CBR",)


def _filters(rung: Rung, route: Route) -> tuple[Filter, ...]:
    picture, source = rung.picture, rung.source
    if picture is None or source is None:
        return ()
    surface, decoded = SURFACE[picture.depth], SURFACE[_stored(source)]
    upload = Filter("hwupload", ())
    if route.filter == API:
        arriving = f"{decoded}|vaapi" if route.decode == API else decoded
        return (Filter("format", (("pix_fmts", arriving),)), upload, *_on_device(picture, surface))
    made = (*cpu_filters(picture, surface), upload)
    if route.decode == API:
        # the format must be the surface's own: hwdownload converts nothing. Frames that the decoder made in memory
        # after all are uploaded first, so that it need not be known which these are
        either = Filter("format", (("pix_fmts", f"{decoded}|vaapi"),))
        return (either, upload, Filter("hwdownload", ()), Filter("format", (("pix_fmts", decoded),)), *made)
    return made


def _on_device(picture: Picture, surface: str) -> tuple[Filter, ...]:
    """The last one is always a scaler: it does what a crop only marked, and makes the encoder's format."""
    steps: list[Filter] = []
    if picture.deinterlace:
        steps.append(Filter("deinterlace_vaapi", (("rate", "frame"), ("auto", "1"), WHOLE_POOL)))
    if picture.fps:
        steps.append(frame_rate(picture.fps))
    if picture.crop:
        steps.append(cropped(picture.crop))
    size = (("w", str(picture.width)), ("h", str(picture.height)))
    steps.append(Filter("scale_vaapi", (*size, ("format", surface), WHOLE_POOL)))
    if picture.scale or picture.crop:  # ffmpeg reckons with the sizes before the crop (libavfilter/vaapi_vpp.c)
        steps.append(sample_aspect(picture.sar))
    return tuple(steps)


def _encoder_options(rung: Rung, machine: Machine, device: Device) -> Options:
    able, video, picture, source = _encoder(rung, machine, device), rung.output.video, rung.picture, rung.source
    if able is None or video is None or picture is None or source is None:
        return ()
    return (
        ("noautoscale", None),
        ("c:v", able.encoder),
        *_profile(video.codec, picture.depth),
        *((("low_power", "1"),) if able.low_power else ()),
        ("compression_level", SPEEDS[video.speed]),
        *_rate(able, video.rate),
        *_references(able, source),
        *key_frames(video, picture, source),
        *timing(picture, source),
        *colours(picture),
        *_in_its_frames(video.codec, picture.colour.matrix),
        *hvc1(video.codec, rung.output.container),
    )


def _profile(codec: str, depth: int) -> Options:
    profiles = {"h264": "high", "hevc": "main10" if depth == 10 else "main"}
    return (("profile:v", profiles[codec]),) if codec in profiles else ()


def _rate(able: Ability, rate: Rate) -> Options:
    mode: Options = (("rc_mode", able.mode),)
    match rate:
        case Quality():
            return (*mode, ("global_quality", str(on_scale(DEVICE_QUALITY[able.codec], rate.quality))))
        case Bitrate() if able.mode == "CBR":
            held = str(rate.bitrate)
            return (*mode, ("b:v", held), ("maxrate:v", held), ("bufsize:v", str(rate.buffer)))
        case Bitrate():
            return (
                *mode,
                ("b:v", str(rate.bitrate)),
                ("maxrate:v", str(rate.ceiling)),
                ("bufsize:v", str(rate.buffer)),
            )
        case ConstantBitrate():
            held = str(rate.bitrate)
            return (*mode, ("b:v", held), ("maxrate:v", held), ("bufsize:v", str(rate.buffer)))


def _references(able: Ability, source: VideoStream) -> Options:
    """VP9's reordered frames need a bitstream filter that muxers do not add; a low-power H.264 encoder has none."""
    return (("bf", "0"),) if able.codec == "vp9" or able.low_power else ()


def _in_its_frames(codec: str, matrix: str | None) -> Options:
    """VP9 tells its matrix in each key frame, where VA-API has no place for it (va_enc_vp9.h); players believe that."""
    return (("bsf:v", f"vp9_metadata=color_space={VP9_MATRICES[matrix]}"),) if codec == "vp9" and matrix else ()


def _decodes(device: Device) -> Iterator[Trial]:
    for codec, depth in CODECS:
        if device.may(codec, depth, "VLD"):
            down = f"hwdownload,format={SURFACE[depth]},format={PIXELS[depth]}"
            words = (
                *("-init_hw_device", f"vaapi=va:{device.node}", "-hwaccel", "vaapi", "-hwaccel_device", "va"),
                *("-hwaccel_output_format", "vaapi", "-extra_hw_frames", "16", "-i", SAMPLE, "-noautoscale"),
                *("-filter:v", down, "-c:v", "ffv1", "-f", "matroska", MADE),
            )
            yield Trial(Ability(API, codec, depth, device=device.id, does="decode"), words, (codec, depth))


def _filter_trials(build: Build, device: Device) -> Iterator[Trial]:
    if not device.may("filter", 8, "VideoProc"):
        return
    on_device = {"scale": "scale_vaapi=w=128:h=128", "deinterlace": "deinterlace_vaapi=rate=frame:auto=1"}
    for work, words in on_device.items():
        for depth, surface in SURFACE.items():
            if words.partition("=")[0] in build.filters:
                planar = PIXELS[depth]
                graph = f"format={surface},hwupload,{words},hwdownload,format={surface},format={planar}"
                made = ("-filter:v", graph, "-c:v", "ffv1", "-f", "matroska", MADE)
                yield Trial(
                    Ability(API, work, depth, device=device.id, does="filter"),
                    (*_opened(device), *TRIAL_PICTURE, *made),
                )


def _encodes(build: Build, device: Device) -> Iterator[Trial]:
    for codec, depth in CODECS:
        encoder = ENCODERS[codec]
        if encoder not in build.encoders:
            continue
        for low_power, modes in _listed(device, codec, depth):
            for mode in modes:
                able = Ability(API, codec, depth, encoder, device.id, "encode", mode, low_power)
                yield Trial(able, (*_opened(device), *TRIAL_PICTURE, *_encode_words(able)))


def _listed(device: Device, codec: str, depth: int) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """(low power, rate controls) as the driver lists them; all of them where it could not be asked."""
    if device.entries is None:
        yield False, tuple(_TRIAL_RATES)
        return
    for entrypoint, low_power in (("EncSlice", False), ("EncSliceLP", True)):
        listed = frozenset[str]().union(*(one.modes for one in device.listed(codec, depth, entrypoint)))
        yield low_power, tuple(mode for mode in _TRIAL_RATES if mode in listed)


_AVERAGE = ("-b:v", "2M", "-maxrate:v", "3M", "-bufsize:v", "4M")
_TRIAL_RATES = {
    "CQP": ("-global_quality", "25"),
    "ICQ": ("-global_quality", "25"),
    "VBR": _AVERAGE,
    "CBR": ("-b:v", "2M", "-maxrate:v", "2M", "-bufsize:v", "4M"),
    "QVBR": ("-global_quality", "25", *_AVERAGE),
}


def _encode_words(able: Ability) -> tuple[str, ...]:
    profile = [word for name, value in _profile(able.codec, able.depth) for word in (f"-{name}", value or "")]
    return (
        *("-filter:v", f"format={SURFACE[able.depth]},hwupload", "-c:v", able.encoder, *profile),
        *(("-low_power", "1") if able.low_power else ()),
        *("-rc_mode", able.mode or "", *_TRIAL_RATES[able.mode or "CQP"], "-bf", "0", "-f", "matroska", MADE),
    )
