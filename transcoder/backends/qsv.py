"""QSV: Intel's VPL runtime over the VA driver. For quality tools that VAAPI lacks; VAAPI comes first in a plan.

Facts of ffmpeg 7.1 that the words below depend on:

- The device is opened twice: as a VA display with Intel's driver, and as a session on that (`qsv=qs@va`); others scan
  the machine for devices (libavutil/hwcontext_qsv.c).
- QSV decoders never give way to software in the same process; a VAAPI decoder can, so that its frames, mapped, are the
  second route.
- The rate control follows from which options are there (libavcodec/qsvenc.c, select_rc_mode): a maxrate equal to the
  bitrate means CBR, and a global_quality with a maxrate alone means CQP without a word.
- `vpp_qsv` keeps `async_depth` frames back when the size of the source changes in the middle, hence 0.
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
from transcoder.picture import Crop, Picture
from transcoder.spec import Bitrate, ConstantBitrate, Quality, Rate

API = "qsv"
RANK = 20
NEEDS = "Intel's VPL runtime (libmfx-gen1.2; Tiger Lake and newer) and an ffmpeg with libvpl (6.0 or newer)"
INTEL = "0x8086"

ENCODERS = {"h264": "h264_qsv", "hevc": "hevc_qsv", "av1": "av1_qsv", "vp9": "vp9_qsv"}
SURFACE = {8: "nv12", 10: "p010"}
SPEEDS = {"fast": "veryfast", "balanced": "medium", "quality": "slower"}


def trials(build: Build, device: Device | None) -> tuple[Trial, ...]:
    """On an Intel device: decoding, filters, mapping from VAAPI, and every encoder in every rate control."""
    if device is None or device.trouble or device.vendor not in (INTEL, None):
        return ()
    if not any(encoder in build.encoders for encoder in ENCODERS.values()):
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
    turned = any(rung.picture and rung.picture.turned for rung in work.rungs)
    if not turned and _can_decode(work, machine, device, API) and _filtered_by(work, machine, device, API):
        route = Route("qsv", API, device.id, API, API, work.codecs)
        yield _command(work, machine, device, route, "decoded, filtered and encoded on the device")
    if not turned and _can_decode(work, machine, device, "vaapi") and _mapped(work, machine, device):
        route = Route("qsv-vaapi", API, device.id, "vaapi", "vaapi", work.codecs)
        yield _command(work, machine, device, route, "decoded and filtered by VAAPI on the same device")
    route = Route("qsv-encode", API, device.id, SOFTWARE, SOFTWARE, work.codecs)
    yield _command(work, machine, device, route, "only encoding on the device, which asks least of it")


def _command(work: Work, machine: Machine, device: Device, route: Route, reason: str) -> Command:
    return Command(
        route=route,
        reason=reason,
        source=work.path,
        branches=tuple(
            branch(rung, work.media, _filters(rung, route), _encoder_options(rung, machine, device))
            for rung in work.rungs
        ),
        input_options=_decoding(route, machine),
        global_options=(*_opened(device), "-filter_complex_threads", str(machine.threads)),
    )


def _decoding(route: Route, machine: Machine) -> Options:
    if route.decode == SOFTWARE:
        return (("threads", str(machine.threads)),)
    device = {API: "qs", "vaapi": "va"}[route.decode]
    return (
        ("hwaccel", route.decode),
        ("hwaccel_device", device),
        ("hwaccel_output_format", route.decode),
        ("extra_hw_frames", "32"),
        ("threads", "1"),
    )


def _opened(device: Device) -> tuple[str, ...]:
    return (
        *("-init_hw_device", f"vaapi=va:{device.node},driver=iHD"),
        *("-init_hw_device", "qsv=qs@va", "-filter_hw_device", "qs"),
    )


def _can_decode(work: Work, machine: Machine, device: Device, api: str) -> bool:
    stream = work.media.main_video
    if stream is None or stream.pix_fmt not in ("yuv420p", "nv12", "yuv420p10le", "p010le"):
        return False
    return machine.can(api, stream.codec, stream.depth, device.id, "decode") is not None


def _filtered_by(work: Work, machine: Machine, device: Device, api: str) -> bool:
    """Conversions of colour stay on the CPU: drivers differ, and no trial proves them."""
    return all(_can_filter(rung, machine, device, api) for rung in work.rungs if rung.picture)


def _can_filter(rung: Rung, machine: Machine, device: Device, api: str) -> bool:
    picture, source = rung.picture, rung.source
    if picture is None or source is None or picture.from_rgb or picture.from_full_range or picture.tonemap:
        return False
    work = ["scale", *(["deinterlace"] if picture.deinterlace else [])]
    depths = {picture.depth, _stored(source)}
    return all(machine.can(api, one, depth, device.id, "filter") for one in work for depth in depths)


def _mapped(work: Work, machine: Machine, device: Device) -> bool:
    depths = {rung.picture.depth for rung in work.rungs if rung.picture}
    mapping = all(machine.can(API, "map", depth, device.id, "filter") for depth in depths)
    return mapping and _filtered_by(work, machine, device, "vaapi")


def _stored(source: VideoStream) -> int:
    return 10 if source.depth > 8 else 8


def _encoder(rung: Rung, machine: Machine, device: Device) -> Ability | None:
    """The proven encoder with the first rate control that keeps the promise."""
    video, picture = rung.output.video, rung.picture
    if video is None or picture is None:
        return None
    proven = machine.proven(API, video.codec, picture.depth, device.id)
    return next((able for mode in _modes(video.rate) for able in proven if able.mode == mode), None)


def _modes(rate: Rate) -> tuple[str, ...]:
    match rate:
        case Quality():
            return ("ICQ", "CQP")
        case Bitrate() if rate.ceiling > rate.bitrate:
            return ("VBR", "CBR")
        case _:
            return ("CBR",)


def _filters(rung: Rung, route: Route) -> tuple[Filter, ...]:
    picture, source = rung.picture, rung.source
    if picture is None or source is None:
        return ()
    if route.filter == API:
        return _by_qsv(picture)
    if route.filter == "vaapi":
        return _by_vaapi(picture, source)
    return cpu_filters(picture, SURFACE[picture.depth])  # the encoder uploads by itself


def _by_qsv(picture: Picture) -> tuple[Filter, ...]:
    steps: list[Filter] = []
    if picture.deinterlace:
        steps.append(Filter("vpp_qsv", (("deinterlace", "2"), ("async_depth", "0"))))
    if picture.fps:
        steps.append(frame_rate(picture.fps))
    size = (*_edges(picture.crop), ("w", str(picture.width)), ("h", str(picture.height)))
    steps.append(Filter("vpp_qsv", (*size, ("format", SURFACE[picture.depth]), ("async_depth", "0"))))
    return (*steps, *_aspect(picture))


def _edges(crop: Crop | None) -> tuple[tuple[str, str], ...]:
    """vpp_qsv passes over what the crop filter marks, and squeezes the whole picture instead."""
    if crop is None:
        return ()
    return (("cw", str(crop.width)), ("ch", str(crop.height)), ("cx", str(crop.left)), ("cy", str(crop.top)))


def _by_vaapi(picture: Picture, source: VideoStream) -> tuple[Filter, ...]:
    """The decoder may give way to software: its frames are uploaded to the VA display then (hwupload=derive_device)."""
    decoded = SURFACE[_stored(source)]
    upload = Filter("hwupload", (("derive_device", "vaapi"),))
    steps: list[Filter] = [Filter("format", (("pix_fmts", f"{decoded}|vaapi"),)), upload]
    if picture.deinterlace:
        steps.append(Filter("deinterlace_vaapi", (("rate", "frame"), ("auto", "1"), _POOL)))
    if picture.fps:
        steps.append(frame_rate(picture.fps))
    if picture.crop:
        steps.append(cropped(picture.crop))
    size = (("w", str(picture.width)), ("h", str(picture.height)))
    steps.append(Filter("scale_vaapi", (*size, ("format", SURFACE[picture.depth]), _POOL)))
    mapped = (Filter("hwmap", (("derive_device", "qsv"),)), Filter("format", (("pix_fmts", "qsv"),)))
    return (*steps, *_aspect(picture), *mapped)


_POOL = ("extra_hw_frames", "24")


def _aspect(picture: Picture) -> tuple[Filter, ...]:
    return (sample_aspect(picture.sar),) if picture.scale or picture.crop else ()


def _encoder_options(rung: Rung, machine: Machine, device: Device) -> Options:
    able, video, picture, source = _encoder(rung, machine, device), rung.output.video, rung.picture, rung.source
    if able is None or video is None or picture is None or source is None:
        return ()
    return (
        ("noautoscale", None),
        ("c:v", able.encoder),
        *_profile(video.codec, picture.depth),
        ("preset", SPEEDS[video.speed]),
        *_rate(able, video.rate),
        *key_frames(video, picture, source),
        *((("forced_idr", "1"),) if video.codec in ("h264", "hevc") else ()),
        *timing(picture, source),
        *colours(picture),
        *hvc1(video.codec, rung.output.container),
    )


def _profile(codec: str, depth: int) -> Options:
    profiles = {"h264": "high", "hevc": "main10" if depth == 10 else "main"}
    return (("profile:v", profiles[codec]),) if codec in profiles else ()


def _rate(able: Ability, rate: Rate) -> Options:
    match rate:
        case Quality():
            number = str(on_scale(DEVICE_QUALITY[able.codec], rate.quality))
            return (("q:v", number),) if able.mode == "CQP" else (("global_quality", number),)
        case Bitrate() | ConstantBitrate():
            ceiling = rate.ceiling if isinstance(rate, Bitrate) and able.mode == "VBR" else rate.bitrate
            return (("b:v", str(rate.bitrate)), ("maxrate:v", str(ceiling)), ("bufsize:v", str(rate.buffer)))


def _decodes(device: Device) -> Iterator[Trial]:
    for codec, depth in CODECS:
        if device.may(codec, depth, "VLD"):
            down = f"hwdownload,format={SURFACE[depth]},format={PIXELS[depth]}"
            words = (
                *(*_opened(device), "-hwaccel", "qsv", "-hwaccel_device", "qs", "-hwaccel_output_format", "qsv"),
                *("-extra_hw_frames", "32", "-i", SAMPLE, "-noautoscale", "-filter:v", down),
                *("-c:v", "ffv1", "-f", "matroska", MADE),
            )
            yield Trial(Ability(API, codec, depth, device=device.id, does="decode"), words, (codec, depth))


def _filter_trials(build: Build, device: Device) -> Iterator[Trial]:
    if not device.may("filter", 8, "VideoProc") or "vpp_qsv" not in build.filters:
        return
    for depth, surface in SURFACE.items():
        up, down = f"format={surface},hwupload=extra_hw_frames=64", f"hwdownload,format={surface}"
        on_device = {
            "scale": f"{up},vpp_qsv=w=128:h=128:format={surface}:async_depth=0,{down}",
            "deinterlace": f"{up},vpp_qsv=deinterlace=2:async_depth=0,{down}",
            "map": f"format={surface},hwupload=derive_device=vaapi,scale_vaapi=w=128:h=128:format={surface},"
            f"hwmap=derive_device=qsv,format=qsv,{down}",
        }
        for work, graph in on_device.items():
            made = ("-filter:v", f"{graph},format={PIXELS[depth]}", "-c:v", "ffv1", "-f", "matroska", MADE)
            able = Ability(API, work, depth, device=device.id, does="filter")
            yield Trial(able, (*_opened(device), *TRIAL_PICTURE, *made))


def _encodes(build: Build, device: Device) -> Iterator[Trial]:
    for codec, depth in CODECS:
        encoder = ENCODERS[codec]
        if encoder not in build.encoders or not device.may(codec, depth, "EncSlice", "EncSliceLP"):
            continue
        for mode, words in _TRIAL_RATES.items():
            able = Ability(API, codec, depth, encoder, device.id, "encode", mode)
            profile = [word for name, value in _profile(codec, depth) for word in (f"-{name}", value or "")]
            made = (
                *("-filter:v", f"format={SURFACE[depth]}", "-c:v", encoder, *profile, *words),
                *("-f", "matroska", MADE),
            )
            yield Trial(able, (*_opened(device), *TRIAL_PICTURE, *made))


_TRIAL_RATES = {
    "CQP": ("-q:v", "25"),
    "ICQ": ("-global_quality", "25"),
    "VBR": ("-b:v", "2M", "-maxrate:v", "3M", "-bufsize:v", "4M"),
    "CBR": ("-b:v", "2M", "-maxrate:v", "2M", "-bufsize:v", "4M"),
}
