"""Decide: what is asked + what the input is + what the machine can make = the commands worth trying, best first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transcoder import audio, backends, picture
from transcoder.command import Command, Rung, Work
from transcoder.container import holds
from transcoder.errors import FfmpegMissing, InputRefused, InputUnreadable, NoRoute, SpecError
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
        SpecError: two outputs would have one name.
        NoRoute: acceleration is required and nothing here offers it.
        FfmpegMissing: this ffmpeg lacks an encoder that is needed.
    """
    rungs, left_out = _rungs(spec, source)
    _refuse_shared_targets(rungs)
    work = Work(spec.source, source, rungs)
    commands = tuple(
        replace(command, max_pixels=max_pixels)
        for backend in _allowed(spec)
        for command in backend.commands(work, machine)
        if _on_device(spec, command)
    )
    if not commands:
        raise _nothing_to_try(spec, rungs, machine)
    return Plan(spec, source, commands, rungs, left_out)


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


def _on_device(spec: JobSpec, command: Command) -> bool:
    wanted = spec.acceleration.device
    return wanted is None or command.route.device in (wanted, None)


def _nothing_to_try(spec: JobSpec, rungs: tuple[Rung, ...], machine: Machine) -> NoRoute | FfmpegMissing:
    wanted = sorted({f"{rung.output.video.codec}" for rung in rungs if rung.output.video and rung.picture})
    codecs = ", ".join(wanted) or "these streams"
    if spec.acceleration.policy == "require":
        where = f" on {spec.acceleration.device}" if spec.acceleration.device else ""
        having = ", ".join(sorted(machine.apis - {SOFTWARE})) or "none"
        return NoRoute(
            f"acceleration is required for {codecs}{where} and this machine offers none (accelerators here: {having})",
            "Submit with --accel prefer, or run where the device is mapped.",
        )
    return FfmpegMissing(
        f"ffmpeg {machine.build.version} has no working encoder for {codecs}",
        "Install an ffmpeg with libx264, libx265, libsvtav1 and libvpx (Debian's has them).",
    )
