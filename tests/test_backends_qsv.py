"""The exact command lines of the QSV backend, and the traps that they step around.

`GOLDEN=write python -m pytest tests/test_backends_qsv.py` writes them anew.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.values import GPU, HDR10, MODES, SOURCE, VIDEO, after, planned, source, with_gpu
from transcoder.backends import qsv
from transcoder.command import Command
from transcoder.machine import Ability, Build, Entry, Machine, Trouble
from transcoder.media import Media

GOLDEN = Path(__file__).parent / "golden"
BITRATE = {"mode": "bitrate", "bitrate": 3_000_000}
FLAT = {"mode": "bitrate", "bitrate": 3_000_000, "maxrate": 3_000_000}
CONSTANT = {"mode": "constant", "bitrate": 3_000_000}
FIELDS_50 = replace(VIDEO, field_order="tt", rate=Fraction(50), base_rate=Fraction(50))
TURNED = replace(VIDEO, rotation=90)
MAP = frozenset(Ability("qsv", "map", depth, device=GPU.id, does="filter") for depth in (8, 10))
ALL = with_gpu("qsv")
NO_FILTERS = with_gpu("qsv", filter=True)
BOTH = replace(ALL, abilities=ALL.abilities | with_gpu("vaapi").abilities | MAP)
MAPPED = replace(
    BOTH, abilities=with_gpu("qsv", filter=True, decode=True).abilities | with_gpu("vaapi").abilities | MAP
)
LADDER = tuple(
    {"name": f"{height}p", "video": {"height": height, "rate": BITRATE, "max_fps": 30}} for height in (1080, 720, 360)
)


def video(codec: str = "h264", **fields: Any) -> dict[str, Any]:
    return {"video": {"codec": codec, **fields}}


def commands(media: Media, *outputs: dict[str, Any], machine: Machine = ALL) -> tuple[Command, ...]:
    made = planned(media, *outputs, machine=machine, acceleration={"apis": ["qsv"]}).commands
    return tuple(one for one in made if one.route.api == "qsv")


CASES: dict[str, tuple[Media, tuple[dict[str, Any], ...], Machine]] = {
    "h264": (SOURCE, (video(height=720),), ALL),
    "h264-bitrate": (SOURCE, (video(height=720, rate=BITRATE, speed="fast"),), ALL),
    "hevc-hdr10": (source(HDR10), (video("hevc"),), ALL),
    "av1": (SOURCE, (video("av1", rate=CONSTANT),), ALL),
    "ladder": (source(FIELDS_50), LADDER, ALL),
    "cropped": (SOURCE, (video(crop={"top": 140, "bottom": 140}),), ALL),
    "mapped": (source(FIELDS_50), LADDER[:1], MAPPED),
    "encode": (source(TURNED), (video(height=640),), ALL),
}


@pytest.mark.parametrize("case", CASES)
def test_a_job_becomes_exactly_this_command(case: str) -> None:
    media, outputs, machine = CASES[case]
    told = "".join(f"{word}\n" for word in commands(media, *outputs, machine=machine)[0].argv())
    golden = GOLDEN / f"qsv-{case}.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(told)
    assert golden.read_text() == told


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("qsv-*.txt")} == {f"qsv-{case}" for case in CASES}


@pytest.mark.parametrize(
    ("media", "machine", "routes"),
    [
        pytest.param(SOURCE, BOTH, ["qsv", "qsv-vaapi", "qsv-encode"], id="a device that does all"),
        pytest.param(SOURCE, ALL, ["qsv", "qsv-encode"], id="no VAAPI"),
        pytest.param(SOURCE, MAPPED, ["qsv-vaapi", "qsv-encode"], id="no QSV decoder"),
        pytest.param(SOURCE, NO_FILTERS, ["qsv-encode"], id="no filters"),
        pytest.param(source(TURNED), BOTH, ["qsv-encode"], id="a turned picture"),
        pytest.param(source(HDR10), BOTH, ["qsv-encode"], id="HDR to SDR"),
        pytest.param(replace(SOURCE, video=()), BOTH, [], id="sound alone"),
    ],
)
def test_a_device_is_given_as_much_as_it_can_do(media: Media, machine: Machine, routes: list[str]) -> None:
    output: dict[str, Any] = video() if media.video else {"video": None}
    assert [one.route.name for one in commands(media, output, machine=machine)] == routes


def test_vaapi_comes_before_qsv_unless_another_order_is_asked() -> None:
    apis = [one.route.api for one in planned(SOURCE, machine=BOTH).commands]
    assert apis == ["vaapi", "vaapi", "qsv", "qsv", "qsv", "software"]
    asked = planned(SOURCE, machine=BOTH, acceleration={"apis": ["qsv", "vaapi"]}).commands
    assert [one.route.api for one in asked] == ["qsv", "qsv", "qsv", "vaapi", "vaapi", "software"]


@pytest.mark.parametrize(
    ("rate", "proven", "words"),
    [
        (None, MODES, {"-global_quality": "25"}),
        (None, ("CQP",), {"-q:v": "25"}),
        (BITRATE, MODES, {"-b:v": "3000000", "-maxrate:v": "4500000"}),
        (BITRATE, ("CBR",), {"-b:v": "3000000", "-maxrate:v": "3000000"}),
        (FLAT, ("VBR",), None),
        (CONSTANT, MODES, {"-b:v": "3000000", "-maxrate:v": "3000000"}),
        (CONSTANT, ("VBR", "ICQ"), None),
    ],
)
def test_the_words_choose_only_a_rate_control_that_a_trial_proved(
    rate: dict[str, Any] | None, proven: tuple[str, ...], words: dict[str, str] | None
) -> None:
    wanted = video(rate=rate) if rate else video()
    found = commands(SOURCE, wanted, machine=with_gpu("qsv", modes=proven))
    assert bool(found) == (words is not None)
    rates = {"-global_quality", "-q:v", "-b:v", "-maxrate:v"}
    for command in found:
        argv = command.argv()
        assert {word: after(word, argv) for word in rates & set(argv)} == words


def test_every_output_of_a_ladder_refuses_the_scaler_that_ffmpeg_would_insert() -> None:
    assert commands(SOURCE, *LADDER)[0].argv().count("-noautoscale") == len(LADDER)


def test_no_frame_is_kept_back_when_the_size_changes() -> None:
    graph = after("-filter_complex", commands(source(FIELDS_50), *LADDER)[0].argv())
    assert graph.count("vpp_qsv") == graph.count("async_depth=0") == 1 + len(LADDER)


def test_only_intels_devices_are_tried() -> None:
    build = Build("7.1", (7, 1), frozenset(qsv.ENCODERS.values()), frozenset({"vpp_qsv"}))
    assert qsv.trials(build, GPU)
    assert qsv.trials(build, replace(GPU, vendor="0x1002")) == ()
    assert qsv.trials(build, replace(GPU, trouble=Trouble("mode", "permission denied", "chmod g+rw it"))) == ()
    assert qsv.trials(build, None) == ()
    assert qsv.trials(replace(build, encoders=frozenset()), GPU) == ()


def test_what_the_va_driver_does_not_list_is_not_tried() -> None:
    build = Build("7.1", (7, 1), frozenset(qsv.ENCODERS.values()), frozenset({"vpp_qsv"}))
    listed = replace(GPU, entries=(Entry("H264High", "EncSliceLP", frozenset({"CQP"})),))
    assert {(one.ability.does, one.ability.codec) for one in qsv.trials(build, listed)} == {("encode", "h264")}
