"""The exact command lines of the VAAPI backend, and the traps that they step around.

`GOLDEN=write python -m pytest tests/test_backends_vaapi.py` writes them anew.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.values import GPU, HDR10, MODES, PQ, SOURCE, VIDEO, after, planned, source, with_gpu
from transcoder.backends import vaapi
from transcoder.command import Command
from transcoder.machine import Build, Device, Entry, Machine, Trouble
from transcoder.media import Media

GOLDEN = Path(__file__).parent / "golden"
BITRATE = {"mode": "bitrate", "bitrate": 3_000_000}
CONSTANT = {"mode": "constant", "bitrate": 3_000_000}
INTERLACED = replace(VIDEO, field_order="tt")
TURNED = replace(VIDEO, rotation=90)
FULL = replace(VIDEO, pix_fmt="yuvj420p")
PRORES = replace(VIDEO, codec="prores", pix_fmt="yuv422p10le", depth=10)
ALL = with_gpu("vaapi")
NO_FILTERS = with_gpu("vaapi", filter=True)
LADDER = tuple(
    {"name": f"{height}p", "video": {"height": height, "rate": BITRATE, "max_fps": 30}} for height in (1080, 720, 360)
)
FIELDS_50 = replace(INTERLACED, rate=Fraction(50), base_rate=Fraction(50))


def video(codec: str = "h264", **fields: Any) -> dict[str, Any]:
    return {"video": {"codec": codec, **fields}}


def commands(media: Media, *outputs: dict[str, Any], machine: Machine = ALL, **fields: Any) -> tuple[Command, ...]:
    return tuple(
        one for one in planned(media, *outputs, machine=machine, **fields).commands if one.route.api == "vaapi"
    )


CASES: dict[str, tuple[Media, tuple[dict[str, Any], ...], Machine]] = {
    "h264": (SOURCE, (video(height=720),), ALL),
    "h264-bitrate": (SOURCE, (video(height=720, rate=BITRATE, speed="fast"),), ALL),
    "h264-constant": (SOURCE, (video(rate=CONSTANT),), ALL),
    "hevc-hdr10": (source(HDR10), (video("hevc"),), ALL),
    "av1": (SOURCE, (video("av1", rate=BITRATE),), ALL),
    "vp9": (SOURCE, ({"container": "webm", **video("vp9"), "audio": {"codec": "opus"}},), ALL),
    "ladder": (source(FIELDS_50), LADDER, ALL),
    "cropped": (SOURCE, (video(crop={"top": 140, "bottom": 140}),), ALL),
    "download": (SOURCE, (video(height=720),), NO_FILTERS),
    "upload": (source(PRORES), (video(height=720),), ALL),
    "turned": (source(TURNED), (video(height=640),), ALL),
    "tone-mapped": (source(HDR10), (video(height=720),), ALL),
}


@pytest.mark.parametrize("case", CASES)
def test_a_job_becomes_exactly_this_command(case: str) -> None:
    media, outputs, machine = CASES[case]
    told = "".join(f"{word}\n" for word in commands(media, *outputs, machine=machine)[0].argv())
    golden = GOLDEN / f"vaapi-{case}.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(told)
    assert golden.read_text() == told


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("vaapi-*.txt")} == {f"vaapi-{case}" for case in CASES}


@pytest.mark.parametrize(
    ("media", "machine", "routes"),
    [
        pytest.param(SOURCE, ALL, ["vaapi", "vaapi-encode"], id="a device that does all"),
        pytest.param(SOURCE, NO_FILTERS, ["vaapi-download", "vaapi-encode"], id="no filters"),
        pytest.param(SOURCE, with_gpu("vaapi", decode=True), ["vaapi-upload", "vaapi-encode"], id="no decoder"),
        pytest.param(source(PRORES), ALL, ["vaapi-upload", "vaapi-encode"], id="a codec for no GPU"),
        pytest.param(source(TURNED), ALL, ["vaapi-upload", "vaapi-encode"], id="a turned picture"),
        pytest.param(
            source(replace(VIDEO, pix_fmt="yuvj420p")), ALL, ["vaapi-download", "vaapi-encode"], id="full range"
        ),
        pytest.param(source(HDR10), ALL, ["vaapi-download", "vaapi-encode"], id="HDR to SDR"),
        pytest.param(replace(SOURCE, video=()), ALL, [], id="sound alone"),
    ],
)
def test_a_device_is_given_as_much_as_it_can_do(media: Media, machine: Machine, routes: list[str]) -> None:
    output: dict[str, Any] = video() if media.video else {"video": None}
    assert [one.route.name for one in commands(media, output, machine=machine)] == routes


def test_software_is_the_last_resort_unless_acceleration_is_required() -> None:
    assert planned(SOURCE, machine=ALL).commands[-1].route.name == "software"
    required = planned(SOURCE, machine=ALL, acceleration={"policy": "require"}).commands
    assert {one.route.api for one in required} == {"vaapi"}


@pytest.mark.parametrize(
    ("rate", "proven", "mode"),
    [
        (None, MODES, "ICQ"),
        (None, ("CQP", "CBR"), "CQP"),
        (BITRATE, MODES, "VBR"),
        (BITRATE, ("CQP", "CBR"), "CBR"),
        (CONSTANT, MODES, "CBR"),
        (None, ("VBR", "CBR", "QVBR"), None),
        (BITRATE, ("CQP", "ICQ"), None),
        (CONSTANT, ("CQP", "ICQ", "VBR"), None),
    ],
)
def test_only_a_rate_control_that_a_trial_proved_is_used(
    rate: dict[str, Any] | None, proven: tuple[str, ...], mode: str | None
) -> None:
    wanted = video(rate=rate) if rate else video()
    found = commands(SOURCE, wanted, machine=with_gpu("vaapi", modes=proven))
    assert [after("-rc_mode", one.argv()) for one in found] == [mode] * 2 * bool(mode)


def test_a_bitrate_under_a_constant_rate_control_has_no_higher_ceiling() -> None:
    argv = commands(SOURCE, video(rate=BITRATE), machine=with_gpu("vaapi", modes=("CBR",)))[0].argv()
    assert after("-b:v", argv) == after("-maxrate:v", argv) == "3000000"


def test_every_output_of_a_ladder_refuses_the_scaler_that_ffmpeg_would_insert() -> None:
    argv = commands(SOURCE, *LADDER)[0].argv()
    assert argv.count("-noautoscale") == len(LADDER)


def test_a_ladder_on_the_device_decodes_and_deinterlaces_once() -> None:
    argv = commands(source(FIELDS_50), *LADDER)[0].argv()
    graph = after("-filter_complex", argv)
    assert argv.count("-i") == 1
    assert graph.count("deinterlace_vaapi") == graph.count("hwupload") == graph.count("fps=fps=") == 1
    assert graph.count("scale_vaapi") == len(LADDER)


def test_what_was_cropped_always_passes_a_scaler_of_the_device() -> None:
    graph = after("-filter_complex", commands(SOURCE, video(crop={"left": 2}))[0].argv())
    assert graph.index("crop=") < graph.index("scale_vaapi=")


def test_ten_bits_never_reach_an_eight_bit_encoder() -> None:
    deep = replace(VIDEO, codec="hevc", pix_fmt="yuv420p10le", depth=10)
    graph = after("-filter_complex", commands(source(deep), video())[0].argv())
    assert "p010|vaapi" in graph.replace("\\", "")
    assert "format=nv12" in graph[graph.index("scale_vaapi") :]


def test_h264_with_ten_bits_is_made_in_software() -> None:
    assert [one.route.name for one in planned(SOURCE, video(depth=10), machine=ALL).commands] == ["software"]


def test_all_outputs_must_be_had_from_the_device() -> None:
    machine = ALL.without(GPU.id, frozenset({"hevc"}))
    mixed = ({"name": "a", **video()}, {"name": "b", **video("hevc")})
    assert commands(SOURCE, *mixed, machine=machine) == ()
    assert commands(SOURCE, mixed[0], machine=machine)


def test_a_device_is_named_by_its_node_in_the_command_and_by_its_address_in_the_route() -> None:
    command = commands(SOURCE)[0]
    assert command.route.device == GPU.id
    assert after("-init_hw_device", command.argv()) == f"vaapi=va:{GPU.node}"


LISTED = replace(
    GPU,
    entries=(
        Entry("H264High", "EncSliceLP", frozenset({"CQP"})),
        Entry("HEVCMain10", "EncSlice", frozenset({"CQP", "VBR", "AVBR"})),
        Entry("H264Main", "VLD"),
    ),
)
BUILD = Build("7.1", (7, 1), frozenset(vaapi.ENCODERS.values()), frozenset({"scale_vaapi", "deinterlace_vaapi"}))


def test_only_what_the_driver_lists_is_tried() -> None:
    tried = {(one.does, one.codec, one.depth, one.mode, one.low_power) for one in abilities(BUILD, LISTED)}
    assert tried == {
        ("decode", "h264", 8, None, False),
        ("encode", "h264", 8, "CQP", True),
        ("encode", "hevc", 10, "CQP", False),
        ("encode", "hevc", 10, "VBR", False),
    }


def test_a_driver_that_cannot_be_asked_is_tried_with_everything() -> None:
    tried = abilities(BUILD, GPU)
    assert {one.mode for one in tried if one.does == "encode"} == set(MODES)
    assert {one.codec for one in tried if one.does == "filter"} == {"scale", "deinterlace"}


def test_an_encoder_that_is_not_compiled_in_is_not_tried() -> None:
    old = replace(BUILD, encoders=frozenset({"h264_vaapi"}))
    assert {one.codec for one in abilities(old, GPU) if one.does == "encode"} == {"h264"}


def test_a_device_that_cannot_be_opened_is_not_tried() -> None:
    assert vaapi.trials(BUILD, replace(GPU, trouble=Trouble("mode", "permission denied", "chmod g+rw it"))) == ()
    assert vaapi.trials(BUILD, None) == ()


def test_a_low_power_encoder_is_asked_for_by_name_and_without_reordered_frames() -> None:
    machine = with_gpu("vaapi")
    low = frozenset(replace(able, low_power=True) if able.does == "encode" else able for able in machine.abilities)
    argv = commands(SOURCE, machine=replace(machine, abilities=low))[0].argv()
    assert (after("-low_power", argv), after("-bf", argv)) == ("1", "0")


def test_hdr_that_is_kept_stays_on_the_device() -> None:
    command = commands(source(HDR10), video("hevc"))[0]
    assert command.route.name == "vaapi"
    assert after("-color_trc:v", command.argv()) == PQ.transfer


def abilities(build: Build, device: Device) -> list[Any]:
    return [trial.ability for trial in vaapi.trials(build, device)]
