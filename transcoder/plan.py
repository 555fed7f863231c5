"""Decide: what is asked + what the input is + what the machine can make = the commands worth trying, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transcoder import audio, backends, picture
from transcoder.command import Command, Rung, Work, pixel_rate
from transcoder.container import holds
from transcoder.errors import FfmpegMissing, InputRefused, InputUnreadable, NoRoute, SpecError
from transcoder.faults import FaultClass, Next, Stage, what_next
from transcoder.machine import SOFTWARE, Machine
from transcoder.media import Media, VideoStream
from transcoder.spec import JobSpec, Output


@dataclass(frozen=True, slots=True)
class Plan:
    """For this spec and source: the commands, best first; the outputs they make; what is left out, a sentence each."""

    spec: JobSpec
    source: Media
    commands: tuple[Command, ...]
    rungs: tuple[Rung, ...]
    left_out: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The final path of each output."""
        return tuple(rung.target for rung in self.rungs)

    @property
    def extensions(self) -> tuple[str, ...]:
        """The file name ending of each output."""
        return tuple(rung.output.extension for rung in self.rungs)


def plan(spec: JobSpec, source: Media, machine: Machine, max_pixels: int | None = None) -> Plan:
    """Every command worth trying for this job on this machine. `max_pixels` bounds a picture that grows on the way.

    Raises:
        InputUnreadable: the source lacks what is asked.
        InputRefused: the source is not accepted, or cannot be carried by what is asked.
        SpecError: two outputs would have one name, or an API is asked that is none.
        NoRoute: acceleration is required and nothing here offers it.
        FfmpegMissing: this ffmpeg lacks an encoder that is needed.
    """
    rungs, left_out = _rungs(spec, source)
    _refuse_shared_targets(rungs)
    work = Work(spec.source, source, rungs)
    commands = tuple(
        replace(command, max_pixels=max_pixels, cost=pixel_rate(rungs))
        for backend in _allowed(spec)
        for command in backend.commands(work, machine)
        if _on_device(spec, machine, command)
    )
    if not commands:
        raise _nothing_to_try(spec, rungs, machine)
    if _encodes(spec) and spec.acceleration.policy == "prefer" and all(one.route.api == SOFTWARE for one in commands):
        left_out = (*left_out, *(f"no GPU is used: {why}" for why in _why_not(spec, rungs, machine)))
    return Plan(spec, source, commands, rungs, left_out)


def effort(spec: JobSpec, source: Media) -> int:
    """Pixels that the job encodes in all, on any machine; 0 for copies and sound, and where nobody knows the length.

    Raises:
        InputUnreadable, InputRefused: as in `plan`.
    """
    rungs, _ = _rungs(spec, source)
    return round(pixel_rate(rungs) * (source.duration or 0))


def following(
    commands: Sequence[Command], tried: Command, fault: FaultClass, stage: Stage | None, again: int
) -> Command | None:
    """The command to try after `tried` failed at `stage` (None where nobody knows), or None: the job ends.

    `again` counts how often this command failed so far. What the fault says is wrong is not tried a second time: a
    decoder that failed is followed by decoding in software, an encoder or a device that failed by another device or
    software. Only a shortage is given a second try on the same command.
    """
    after = commands[commands.index(tried) + 1 :]
    elsewhere = next((one for one in after if one.route.place != tried.route.place), None)
    match what_next(fault, tried.route.api), fault:
        case ((Next.LATER | Next.FAIL), _):
            return None
        case _, FaultClass.TRANSIENT if again == 1:
            return tried
        case _, FaultClass.CAPABILITY:
            return next((one for one in after if _spares(one, tried, stage)), None)
        case _, (FaultClass.HARDWARE | FaultClass.UNKNOWN) if stage in ("decode", "filter"):
            return next((one for one in after if _spares(one, tried, stage)), None)
        case _:
            return elsewhere


def _spares(command: Command, tried: Command, stage: Stage | None) -> bool:
    """Whether a command does without what failed: this stage on this device and API."""
    route, failed = command.route, tried.route
    if route.place != failed.place:
        return True
    match stage:
        case "decode":
            return route.decode != failed.decode
        case "filter":
            return route.filter != failed.filter
        case "encode":
            return route.api != failed.api
        case _:
            return True


def _rungs(spec: JobSpec, source: Media) -> tuple[tuple[Rung, ...], tuple[str, ...]]:
    rungs: list[Rung] = []
    left_out: list[str] = []
    for output in _fitting(spec, source):
        kept, dropped = audio.subtitles(output, source)
        rungs.append(replace(_rung(spec, output, source), subtitles=kept))
        left_out += dropped
    names = {rung.output.name for rung in rungs}
    smaller = [f"{output.name}: larger than the source" for output in spec.outputs if output.name not in names]
    covers = ("the cover picture: outputs hold audio, video and subtitles",) if source.pictures else ()
    others = tuple(f"video stream {stream.index}: an output holds the first one" for stream in source.video[1:])
    return tuple(rungs), (*smaller, *left_out, *covers, *others)


def _fitting(spec: JobSpec, source: Media) -> tuple[Output, ...]:
    """The outputs without the rungs above the source; where all are above, the smallest at the source's size."""
    stream = source.main_video
    if stream is None:
        return spec.outputs
    fitting = tuple(
        output
        for output in spec.outputs
        if output.video is None or output.video.codec == "copy" or picture.decide(output.video, stream)
    )
    if any(output.video for output in fitting) or not any(output.video for output in spec.outputs):
        return fitting
    pictured = [output for output in spec.outputs if output.video]
    stand_in = pictured[picture.smallest([output.video for output in pictured if output.video])]
    video = stand_in.video and stand_in.video.model_copy(update={"upscale": "never"})
    return (stand_in.model_copy(update={"video": video}), *fitting)


def _rung(spec: JobSpec, output: Output, source: Media) -> Rung:
    stream = _video_for(spec, output, source)
    sounds = audio.sounds(output.audio, output.container, source) if output.audio else ()
    shown = picture.decide(output.video, stream) if stream and output.video and output.video.codec != "copy" else None
    if stream is None and not sounds:
        raise InputUnreadable(
            f"the source {spec.source!r} has no audio and audio is all that is asked",
            "Ask for video, or another source.",
        )
    height = shown.height if shown else stream.height if stream else None
    return Rung(output, spec.target_of(output, height), shown, stream, sounds)


def _video_for(spec: JobSpec, output: Output, source: Media) -> VideoStream | None:
    if output.video is None:
        return None
    stream = source.main_video
    if stream is None:
        only = "only a cover picture" if source.pictures else "no video stream"
        raise InputUnreadable(
            f"the source {spec.source!r} has {only} and output '{output.name}' asks for video",
            "Take a profile without video (audio-aac), or another source.",
        )
    if stream.dolby_vision_profile == 5:
        raise InputRefused(
            f"the source {spec.source!r} is Dolby Vision profile 5, whose colours (IPTPQc2) no encoder here can read",
            "Take a master in Dolby Vision profile 7 or 8, HDR10, HLG or SDR.",
        )
    if output.video.codec == "copy" and not holds(output.container, "video", stream.codec):
        raise InputRefused(
            f"{output.container} cannot hold the video of {spec.source!r} ({stream.codec}) as it is",
            "Encode it, or take container 'mkv'.",
        )
    return stream


def _refuse_shared_targets(rungs: tuple[Rung, ...]) -> None:
    seen: dict[str, str] = {}
    for rung in rungs:
        if other := seen.get(rung.target):
            raise SpecError(
                f"outputs '{other}' and '{rung.output.name}' would both be {rung.target}",
                "Put {name} into the target.",
            )
        seen[rung.target] = rung.output.name


def _allowed(spec: JobSpec) -> list[backends.Backend]:
    asked = spec.acceleration
    hardware = [backend for backend in backends.every() if backend.API != SOFTWARE]
    if unknown := [api for api in asked.apis if api not in {backend.API for backend in backends.every()}]:
        known = ", ".join(backend.API for backend in hardware)
        raise SpecError(f"acceleration.apis: there is no API {unknown[0]!r}", f"There are {known}.")
    if asked.apis:
        hardware = sorted(
            (backend for backend in hardware if backend.API in asked.apis),
            key=lambda backend: asked.apis.index(backend.API),
        )
    software = [backend for backend in backends.every() if backend.API == SOFTWARE]
    if asked.policy == "require" and _encodes(spec):
        return hardware
    return software if asked.policy == "never" else [*hardware, *software]


def _encodes(spec: JobSpec) -> bool:
    return any(output.video and output.video.codec != "copy" for output in spec.outputs)


def _on_device(spec: JobSpec, machine: Machine, command: Command) -> bool:
    """A device may be named by its address or by its node."""
    wanted, device = spec.acceleration.device, machine.device(command.route.device)
    return wanted in (None, command.route.device, device and device.node) or command.route.device is None


def _why_not(spec: JobSpec, rungs: tuple[Rung, ...], machine: Machine) -> tuple[str, ...]:
    """Why no device can do this job, a sentence for each; none where there is no device and none was asked for."""
    asked = spec.acceleration
    if asked.device and not machine.device(asked.device):
        here = ", ".join(f"{one.id} ({one.node})" for one in machine.devices) or "none"
        return (f"there is no device {asked.device!r} here; the devices are: {here}",)
    devices = [one for one in machine.devices if asked.device in (None, one.id, one.node)]
    apis = [one.API for one in backends.every() if one.API != SOFTWARE and (not asked.apis or one.API in asked.apis)]
    reasons = [f"{one.id}: {one.trouble}" for one in devices if one.trouble]
    for device in (one for one in devices if not one.trouble):
        reasons += [f"{api} on {device.id}: {_lacking(rungs, machine, api, device.id)}" for api in apis]
    if not devices and asked.apis:
        return (f"there is no GPU here for {', '.join(asked.apis)}",)
    return tuple(reasons)


def _lacking(rungs: tuple[Rung, ...], machine: Machine, api: str, device: str) -> str:
    for rung in rungs:
        video, depth = rung.output.video, rung.picture.depth if rung.picture else 0
        if not video or not rung.picture or machine.can(api, video.codec, depth, device):
            continue
        refused = next(
            (
                one.why
                for one in machine.refusals
                if (one.ability.api, one.ability.device, one.ability.codec, one.ability.depth, one.ability.does)
                == (api, device, video.codec, depth, "encode")
            ),
            "this ffmpeg or the driver has no encoder for it",
        )
        return f"{video.codec} with {depth} bits: {refused}"
    return "no trial proved a rate control that keeps to what is asked"


def _nothing_to_try(spec: JobSpec, rungs: tuple[Rung, ...], machine: Machine) -> NoRoute | FfmpegMissing:
    wanted = sorted({f"{rung.output.video.codec}" for rung in rungs if rung.output.video and rung.picture})
    codecs = ", ".join(wanted) or "these streams"
    if spec.acceleration.policy == "require":
        why = "; ".join(_why_not(spec, rungs, machine)) or "there is no GPU here"
        return NoRoute(
            f"acceleration is required for {codecs} and cannot be had: {why}",
            "`transcoder devices` shows what works here and what is missing; --accel prefer takes software instead.",
        )
    return FfmpegMissing(
        f"ffmpeg {machine.build.version} has no working encoder for {codecs}",
        "Install an ffmpeg with libx264, libx265, libsvtav1 and libvpx (Debian's has them).",
    )
