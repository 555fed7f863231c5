"""What must change in the picture: sizes, rates, rotation, colours."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import inf
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.values import BT709, HDR10, HLG, LIGHT, MASTERING, PQ, VIDEO
from transcoder.errors import InputRefused
from transcoder.media import Colour, VideoStream
from transcoder.picture import Crop, Picture, decide, smallest
from transcoder.spec import Video


def shown(source: VideoStream = VIDEO, **video: Any) -> Picture:
    decided = decide(Video(**video), source)
    assert decided is not None
    return decided


def sized(width: int, height: int, sar: Fraction = Fraction(1), rotation: int = 0) -> VideoStream:
    return replace(VIDEO, width=width, height=height, sar=sar, rotation=rotation)


lengths = st.integers(2, 8192)
boxes = st.none() | st.integers(16, 8192)
aspects = st.sampled_from(
    [Fraction(1), Fraction(64, 45), Fraction(16, 15), Fraction(8, 9), Fraction(1, 2), Fraction(2)]
)
sources = st.builds(sized, lengths, lengths, aspects, st.sampled_from([0, 90, 180, 270]))


def display(width: int, height: int, sar: Fraction) -> Fraction:
    return Fraction(width, height) * sar


def upright(source: VideoStream) -> tuple[int, int, Fraction]:
    if source.rotation in (90, 270):
        return source.height, source.width, 1 / source.sar
    return source.width, source.height, source.sar


@given(source=sources, width=boxes, height=boxes, upscale=st.sampled_from(["never", "allow"]))
def test_sizes_are_even_and_inside_the_box(
    source: VideoStream, width: int | None, height: int | None, upscale: str
) -> None:
    picture = shown(source, width=width, height=height, upscale=upscale)
    assert picture.width % 2 == picture.height % 2 == 0
    assert picture.width >= 2
    assert picture.height >= 2
    # a box is about what a viewer sees: stored samples may be more, where they are narrow
    assert picture.width * picture.sar <= (width or inf) or picture.width == 2
    assert picture.height <= (height or inf) or picture.height == 2


@given(source=sources, width=boxes, height=boxes)
def test_nothing_is_enlarged_unless_that_is_allowed(source: VideoStream, width: int | None, height: int | None) -> None:
    picture = shown(source, width=width, height=height)
    across, down, sar = upright(source)
    assert picture.width * picture.sar <= max(Fraction(2), across * sar + 1)
    assert picture.height <= max(2, down)


@given(source=sources, width=boxes, height=boxes, upscale=st.sampled_from(["never", "allow"]))
def test_the_aspect_is_kept_within_the_rounding(
    source: VideoStream, width: int | None, height: int | None, upscale: str
) -> None:
    picture = shown(source, width=width, height=height, upscale=upscale)
    assume(min(picture.width, picture.height) >= 16)
    before, now = display(*upright(source)), display(picture.width, picture.height, picture.sar)
    # each length is off by at most two
    slack = Fraction(2, picture.width) + Fraction(2, picture.height) + Fraction(2, min(source.width, source.height))
    assert abs(now / before - 1) <= slack


@given(source=sources, width=boxes, height=boxes)
def test_allowing_to_enlarge_fills_the_box_on_one_side(
    source: VideoStream, width: int | None, height: int | None
) -> None:
    assume(width or height)
    picture = shown(source, width=width, height=height, upscale="allow")
    gaps = [asked - made for asked, made in ((width, picture.width), (height, picture.height)) if asked]
    same_size = not picture.scale
    assert min(gaps) <= 2 or same_size


@given(source=sources, width=boxes, height=boxes)
def test_a_rung_is_left_out_only_where_it_would_be_larger(
    source: VideoStream, width: int | None, height: int | None
) -> None:
    kept = decide(Video(width=width, height=height, upscale="skip"), source)
    across, down, sar = upright(source)
    larger = (width or 1 << 20) > across * sar and (height or 1 << 20) > down and bool(width or height)
    assert (kept is None) is larger


@pytest.mark.parametrize(
    ("source", "box", "size"),
    [
        (sized(1920, 1080), (1280, 720), (1280, 720)),
        (sized(1920, 1080), (1280, None), (1280, 720)),
        (sized(1920, 1080), (None, 720), (1280, 720)),
        (sized(1920, 1080), (1000, 1000), (1000, 562)),
        (sized(1920, 800), (1280, 720), (1280, 534)),
        (sized(640, 360), (1280, 720), (640, 360)),
        (sized(639, 359), (None, None), (638, 358)),
        (sized(639, 359), (1280, 720), (638, 358)),
        (sized(1080, 1920), (1280, 720), (404, 720)),
        (sized(1920, 1080, rotation=90), (1280, 720), (404, 720)),
        (sized(1920, 1080, rotation=180), (1280, 720), (1280, 720)),
        (sized(720, 576, Fraction(64, 45)), (1280, 720), (720, 576)),
        (sized(720, 576, Fraction(64, 45)), (854, 480), (854, 480)),
        (sized(720, 576, Fraction(64, 45)), (512, 512), (512, 288)),
        (sized(1440, 1080, Fraction(4, 3)), (1280, 720), (1280, 720)),
        (sized(3840, 2), (16, 16), (16, 2)),
    ],
    ids=lambda value: f"{value.width}x{value.height}" if isinstance(value, VideoStream) else None,
)
def test_a_picture_is_fitted_into_its_box(
    source: VideoStream, box: tuple[int | None, int | None], size: tuple[int, int]
) -> None:
    picture = shown(source, width=box[0], height=box[1])
    assert (picture.width, picture.height) == size


def test_a_size_that_is_kept_keeps_its_aspect_and_a_changed_one_has_square_samples() -> None:
    pal = sized(720, 576, Fraction(64, 45))
    kept = shown(pal, width=1920, height=1080)
    assert (kept.scale, kept.sar) == (False, Fraction(64, 45))
    changed = shown(pal, width=640, height=360)
    assert (changed.width, changed.height, changed.scale, changed.sar) == (640, 360, True, Fraction(1))


def test_a_turned_picture_has_a_turned_sample_aspect() -> None:
    assert shown(sized(720, 576, Fraction(64, 45), 90)).sar == Fraction(45, 64)
    assert shown(sized(720, 576, Fraction(64, 45), 180)).sar == Fraction(64, 45)


def test_the_smallest_rung_stands_in() -> None:
    assert smallest([Video(width=1280, height=720), Video(width=640, height=360), Video(width=1920, height=1080)]) == 1
    assert smallest([Video(), Video(height=360)]) == 1


def rated(rate: Fraction | None, base: Fraction | None = None) -> VideoStream:
    return replace(VIDEO, rate=rate, base_rate=base or rate)


@pytest.mark.parametrize(
    ("rate", "cap", "result"),
    [
        (Fraction(25), 60, None),
        (Fraction(60), 60, None),
        (Fraction(60000, 1001), 60, None),
        (Fraction(60), 59.94, Fraction(2997, 50)),
        (Fraction(60), 30, Fraction(30)),
        (Fraction(60000, 1001), 30, Fraction(30000, 1001)),
        (Fraction(50), 30, Fraction(30)),
        (Fraction(120), 30, Fraction(30)),
        (Fraction(50), 25, Fraction(25)),
        (Fraction(30), 29.97, Fraction(2997, 100)),
        (Fraction(24), 10, Fraction(10)),
        (None, 30, None),
    ],
)
def test_a_rate_is_capped_preferably_by_a_whole_divisor(
    rate: Fraction | None, cap: float, result: Fraction | None
) -> None:
    assert shown(rated(rate), max_fps=cap).fps == result


@given(rate=st.fractions(1, 300, max_denominator=1001), cap=st.floats(1, 300))
def test_a_capped_rate_is_never_above_the_cap_or_the_source(rate: Fraction, cap: float) -> None:
    fps = shown(rated(rate), max_fps=cap).fps
    if fps is None:
        assert rate <= Fraction(cap) * Fraction(1002, 1000)
    else:
        assert fps <= Fraction(cap) * Fraction(1002, 1000)
        assert fps <= rate


def test_a_variable_rate_is_capped_where_its_frames_come_faster_than_that() -> None:
    burst = rated(Fraction(20), Fraction(120))
    assert shown(burst, max_fps=30).fps == 30
    assert shown(burst, max_fps=240).fps is None


@pytest.mark.parametrize(
    ("codec", "source_depth", "asked", "depth"),
    [
        ("h264", 8, None, 8),
        ("h264", 10, None, 8),
        ("h264", 8, 10, 10),
        ("hevc", 8, None, 8),
        ("hevc", 10, None, 10),
        ("av1", 12, None, 10),
        ("vp9", 16, 8, 8),
    ],
)
def test_a_depth_that_is_left_out_is_the_sources_and_8_for_h264(
    codec: str, source_depth: int, asked: int | None, depth: int
) -> None:
    assert shown(replace(VIDEO, depth=source_depth), codec=codec, depth=asked).depth == depth


@pytest.mark.parametrize("colour", [PQ, HLG], ids=["HDR10", "HLG"])
@pytest.mark.parametrize(("codec", "depth"), [("h264", None), ("h264", 10), ("hevc", 8), ("vp9", 8), ("av1", 8)])
def test_hdr_that_would_be_washed_out_becomes_sdr_unless_it_shall_be_kept(
    colour: Colour, codec: str, depth: int | None
) -> None:
    picture = shown(replace(HDR10, colour=colour), codec=codec, depth=depth)
    assert (picture.tonemap, picture.colour, picture.mastering, picture.light_level) == (colour, BT709, None, None)
    with pytest.raises(InputRefused, match="HDR"):
        shown(replace(HDR10, colour=colour), codec=codec, depth=depth, hdr="keep")


def test_hdr_becomes_sdr_with_ten_bits_where_that_is_asked() -> None:
    picture = shown(HDR10, codec="hevc", hdr="sdr")
    assert (picture.tonemap, picture.depth, picture.colour) == (PQ, 10, BT709)
    assert shown(codec="hevc", hdr="sdr").tonemap is None


def test_edges_are_cut_off_before_the_picture_is_fitted() -> None:
    picture = shown(crop={"left": 240, "right": 240, "top": 0, "bottom": 0}, height=540)
    assert picture.crop == Crop(240, 0, 1440, 1080)
    assert (picture.width, picture.height, picture.scale) == (720, 540, True)
    assert not shown(crop={"top": 100}).scale


def test_edges_are_those_of_the_picture_as_it_is_shown() -> None:
    turned = shown(replace(VIDEO, rotation=90), crop={"top": 100})
    assert turned.crop == Crop(0, 100, 1080, 1820)


def test_a_crop_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InputRefused, match="the crop leaves nothing of the source's 1920x1080"):
        shown(crop={"left": 960, "right": 960})


@pytest.mark.parametrize("codec", ["hevc", "av1", "vp9"])
def test_hdr_is_carried_whole(codec: str) -> None:
    picture = shown(HDR10, codec=codec)
    assert (picture.depth, picture.colour, picture.mastering, picture.light_level) == (10, PQ, MASTERING, LIGHT)


def test_every_output_has_video_range() -> None:
    full = shown(replace(VIDEO, colour=replace(BT709, range="pc")))
    assert (full.from_full_range, full.colour) == (True, BT709)
    old = shown(replace(VIDEO, pix_fmt="yuvj420p", colour=Colour()))
    assert (old.from_full_range, old.colour) == (True, Colour(range="tv"))
    assert shown().from_full_range is False


@pytest.mark.parametrize(
    "pix_fmt", ["rgb24", "bgra", "gbrp", "gbrp10le", "pal8", "argb", "0rgb", "x2rgb10le", "rgba64be"]
)
def test_rgb_becomes_bt709_in_video_range(pix_fmt: str) -> None:
    picture = shown(replace(VIDEO, pix_fmt=pix_fmt, colour=Colour(matrix="gbr", range="pc")))
    assert picture.from_rgb
    assert picture.colour == BT709


def test_only_what_is_marked_interlaced_is_deinterlaced_and_only_if_that_is_wanted() -> None:
    fields = replace(VIDEO, field_order="tt")
    assert shown(fields).deinterlace
    assert not shown(fields, deinterlace="never").deinterlace
    assert not shown().deinterlace
