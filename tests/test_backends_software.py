"""The exact command lines of the software backend: a change in one is seen in review.

`GOLDEN=write python -m pytest tests/test_backends_software.py` writes them anew.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.values import HDR10, HLG, LIGHT, MACHINE, SOURCE, SRT, SURROUND, VIDEO, planned, source, words
from transcoder import backends
from transcoder.backends import software
from transcoder.dialect import on_scale
from transcoder.errors import FfmpegMissing
from transcoder.machine import Build
from transcoder.media import Media

GOLDEN = Path(__file__).parent / "golden"
VARIABLE = replace(VIDEO, rate=Fraction(24), base_rate=Fraction(60), frames=240, tick=Fraction(1, 90_000))
INTERLACED = replace(VIDEO, field_order="tt")
TURNED = replace(VIDEO, rotation=90)
RGB = replace(VIDEO, pix_fmt="gbrp")
ANAMORPHIC = replace(VIDEO, width=720, height=576, sar=Fraction(64, 45))


def video(codec: str = "h264", **fields: Any) -> dict[str, Any]:
    return {"codec": codec, **fields}


BITRATE = {"mode": "bitrate", "bitrate": 3_000_000}
CONSTANT = {"mode": "constant", "bitrate": 3_000_000}
LADDER = tuple(
    {"name": f"{height}p", "video": video(height=height, rate=BITRATE, upscale="skip", max_fps=30)}
    for height in (2160, 1080, 720, 360)
)

CASES: dict[str, tuple[Media, tuple[dict[str, Any], ...]]] = {
    "h264-quality": (SOURCE, ({"video": video(height=720)},)),
    "h264-bitrate": (SOURCE, ({"video": video(height=720, rate=BITRATE, speed="fast")},)),
    "h264-constant": (SOURCE, ({"video": video(rate=CONSTANT)},)),
    "hevc-hdr10": (source(HDR10), ({"video": video("hevc")},)),
    "hevc-constant": (SOURCE, ({"video": video("hevc", rate=CONSTANT)},)),
    "av1-hdr10": (source(HDR10), ({"container": "mkv", "video": video("av1", rate=BITRATE)},)),
    "av1-hlg": (source(replace(HDR10, colour=HLG, mastering=None, light_level=None)), ({"video": video("av1")},)),
    "av1-constant": (SOURCE, ({"video": video("av1", rate=CONSTANT)},)),
    "vp9-opus": (
        source(audio=(SURROUND,), subtitles=(SRT,)),
        ({"container": "webm", "video": video("vp9"), "audio": {"codec": "opus"}},),
    ),
    "ladder": (SOURCE, LADDER),
    "remux": (
        source(audio=(SURROUND,), subtitles=(SRT,), attachments=1),
        ({"container": "mkv", "video": video("copy"), "audio": {"codec": "copy"}},),
    ),
    "sound-alone": (SOURCE, ({"video": None},)),
    "variable-rate": (source(VARIABLE), ({"video": video()},)),
    "capped-rate": (source(replace(VIDEO, rate=Fraction(50), base_rate=Fraction(50))), ({"video": video(max_fps=30)},)),
    "interlaced": (source(INTERLACED), ({"video": video(height=576)},)),
    "turned": (source(TURNED), ({"video": video(height=640)},)),
    "rgb": (source(RGB), ({"video": video()},)),
    "anamorphic": (source(ANAMORPHIC), ({"video": video(width=640, height=360)},)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_job_becomes_exactly_this_command(case: str) -> None:
    media, outputs = CASES[case]
    told = "".join(f"{word}\n" for word in words(media, *outputs))
    golden = GOLDEN / f"software-{case}.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(told)
    assert golden.read_text() == told


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("software-*.txt")} == {f"software-{case}" for case in CASES}


def test_the_document_on_quality_has_the_table_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "quality.md").read_text()
    rows = [[int(cell) for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| \d+ \|.*\|$", page, re.M)[:7]]
    encoders = ("libx264", "libx265", "libsvtav1", "libvpx-vp9")
    for quality, *numbers in rows:
        assert [on_scale(software.QUALITY[encoder], quality) for encoder in encoders] == numbers
    assert [row[0] for row in rows] == [point[0] for point in software.QUALITY["libx265"]]


@pytest.mark.parametrize("encoder", software.QUALITY)
def test_a_lower_quality_number_never_asks_an_encoder_for_less(encoder: str) -> None:
    mapped = [on_scale(software.QUALITY[encoder], quality) for quality in range(1, 52)]
    assert mapped == sorted(mapped)
    assert all(1 <= crf <= 63 for crf in mapped)


def test_only_encoders_of_the_build_are_tried() -> None:
    trials = software.trials(Build("5.1", (5, 1), frozenset({"libx264", "h264_nvenc"})), None)
    assert {(trial.ability.encoder, trial.ability.depth) for trial in trials} == {("libx264", 8), ("libx264", 10)}


def test_what_no_trial_proved_is_never_planned() -> None:
    without = replace(MACHINE, abilities=frozenset(able for able in MACHINE.abilities if able.codec != "hevc"))
    with pytest.raises(FfmpegMissing, match="no working encoder for hevc"):
        planned(SOURCE, {"video": video("hevc")}, machine=without)


def test_software_comes_last_of_all_backends() -> None:
    assert backends.every()[-1] is software


def test_light_levels_alone_are_told_to_x265() -> None:
    argv = words(source(replace(HDR10, mastering=None)), {"video": video("hevc")})
    parameters = argv[argv.index("-x265-params") + 1]
    assert f"max-cll={LIGHT.max_content},{LIGHT.max_average}" in parameters
    assert "master-display" not in parameters
