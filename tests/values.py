"""Values for tests that touch nothing: a source as ffprobe would describe it, a machine that can do all, a plan."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from transcoder.machine import SOFTWARE, Ability, Build, Device, Machine
from transcoder.media import AudioStream, Colour, LightLevel, Mastering, Media, SubtitleStream, VideoStream
from transcoder.plan import Plan, plan
from transcoder.spec import JobSpec, read

ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}
BUILD = Build("7.1", (7, 1), frozenset(ENCODERS.values()))
MACHINE = Machine(
    BUILD,
    frozenset(
        (
            *(Ability(SOFTWARE, codec, depth, encoder) for codec, encoder in ENCODERS.items() for depth in (8, 10)),
            Ability(SOFTWARE, "tonemap", 10, does="filter"),
        )
    ),
    threads=4,
)

GPU = Device("0000:00:02.0", "/dev/dri/renderD128", "0x8086", "i915", "Some driver")
MODES = ("CQP", "ICQ", "VBR", "CBR", "QVBR")


def with_gpu(api: str, modes: tuple[str, ...] = MODES, **wanting: bool) -> Machine:
    """The machine with a GPU that does all in h264, hevc, av1 and vp9, but what is `wanting`: decode, filter."""
    codecs = [("h264", 8), *((codec, depth) for codec in ("hevc", "av1", "vp9") for depth in (8, 10))]
    encode = {
        Ability(api, codec, depth, f"{codec}_{api}", GPU.id, "encode", m) for codec, depth in codecs for m in modes
    }
    decode = {Ability(api, codec, depth, device=GPU.id, does="decode") for codec, depth in codecs}
    filters = {
        Ability(api, work, depth, device=GPU.id, does="filter")
        for work in ("scale", "deinterlace")
        for depth in (8, 10)
    }
    every = encode | (set() if wanting.get("decode") else decode) | (set() if wanting.get("filter") else filters)
    return replace(MACHINE, abilities=MACHINE.abilities | every, devices=(GPU,))


BT709 = Colour("bt709", "bt709", "bt709", "tv")
PQ = Colour("bt2020", "smpte2084", "bt2020nc", "tv")
HLG = Colour("bt2020", "arib-std-b67", "bt2020nc", "tv")
MASTERING = Mastering(
    red=(Fraction(34000, 50000), Fraction(16000, 50000)),
    green=(Fraction(13250, 50000), Fraction(34500, 50000)),
    blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
    white=(Fraction(15635, 50000), Fraction(16450, 50000)),
    min_luminance=Fraction(50, 10000),
    max_luminance=Fraction(10_000_000, 10000),
)
LIGHT = LightLevel(1000, 400)

VIDEO = VideoStream(
    index=0,
    codec="h264",
    width=1920,
    height=1080,
    pix_fmt="yuv420p",
    rate=Fraction(25),
    base_rate=Fraction(25),
    frames=250,
    duration=10.0,
    colour=BT709,
)
STEREO = AudioStream(index=1, codec="aac", channels=2, layout="stereo", sample_rate=48000, duration=10.0)
SURROUND = AudioStream(index=2, codec="ac3", channels=6, layout="5.1(side)", sample_rate=48000, duration=10.0)
SRT = SubtitleStream(index=3, codec="subrip", language="eng")
SOURCE = Media(format="mov,mp4,m4a,3gp,3g2,mj2", duration=10.0, size=1_000_000, video=(VIDEO,), audio=(STEREO,))
HDR10 = replace(VIDEO, codec="hevc", pix_fmt="yuv420p10le", depth=10, colour=PQ, mastering=MASTERING, light_level=LIGHT)


def source(*video: VideoStream, **changes: Any) -> Media:
    """The usual source with another picture, or with other parts."""
    return replace(SOURCE, video=video or SOURCE.video, **changes)


def spec(*outputs: dict[str, Any], **fields: Any) -> JobSpec:
    """A spec of these outputs; the target has the name of the output in it where there are several."""
    target = "/out/{name}.{ext}" if len(outputs) > 1 else "/out/made.{ext}"
    return read({"source": "/in/clip.mov", "target": target, "outputs": list(outputs or ({},)), **fields})


def planned(media: Media, *outputs: dict[str, Any], machine: Machine = MACHINE, **fields: Any) -> Plan:
    return plan(spec(*outputs, **fields), media, machine)


def words(media: Media, *outputs: dict[str, Any], **fields: Any) -> tuple[str, ...]:
    """The words of the last command of the plan, which is software's."""
    return planned(media, *outputs, **fields).commands[-1].argv()


def after(option: str, argv: tuple[str, ...]) -> str:
    """The word after an option."""
    return argv[argv.index(option) + 1]
