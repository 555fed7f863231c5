"""ffprobe's JSON becomes values: the right ones for what ffprobe says, and always some."""

from __future__ import annotations

import copy
import json
import subprocess
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import LIGHT, MASTERING
from transcoder import media
from transcoder.media import AudioStream, Colour, Media, SubtitleStream, VideoStream

RATIONALS = {
    "red_x": "34000/50000", "red_y": "16000/50000", "green_x": "13250/50000", "green_y": "34500/50000",
    "blue_x": "7500/50000", "blue_y": "3000/50000", "white_point_x": "15635/50000", "white_point_y": "16450/50000",
    "min_luminance": "50/10000", "max_luminance": "10000000/10000",
}  # fmt: skip
MASTERING_SIDE = {"side_data_type": "Mastering display metadata", **RATIONALS}
LIGHT_SIDE = {"side_data_type": "Content light level metadata", "max_content": 1000, "max_average": 400}

VIDEO: dict[str, Any] = {
    "index": 0, "codec_name": "hevc", "codec_type": "video", "width": 3840, "height": 2160, "pix_fmt": "yuv420p10le",
    "sample_aspect_ratio": "1:1", "field_order": "progressive", "color_range": "tv", "color_space": "bt2020nc",
    "color_transfer": "smpte2084", "color_primaries": "bt2020", "r_frame_rate": "24000/1001",
    "avg_frame_rate": "24000/1001", "start_time": "0.083000", "duration": "10.010000", "nb_frames": "240",
    "time_base": "1/24000",
    "disposition": {"default": 1, "attached_pic": 0}, "tags": {"language": "eng", "title": "Main"},
    "side_data_list": [MASTERING_SIDE, LIGHT_SIDE],
}  # fmt: skip
AUDIO: dict[str, Any] = {
    "index": 1, "codec_name": "aac", "codec_type": "audio", "sample_rate": "48000", "channels": 6,
    "channel_layout": "5.1", "start_time": "0.000000", "duration": "10.0", "tags": {"language": "deu"},
}  # fmt: skip
REPORT: dict[str, Any] = {
    "streams": [
        VIDEO,
        AUDIO,
        {"index": 2, "codec_type": "subtitle", "codec_name": "subrip", "tags": {"LANGUAGE": "fra"}},
        {"index": 3, "codec_type": "video", "codec_name": "mjpeg", "disposition": {"attached_pic": 1}},
        {"index": 4, "codec_type": "attachment", "codec_name": "ttf"},
        {"index": 5, "codec_type": "data", "codec_name": "bin_data"},
    ],
    "chapters": [{"id": 0}, {"id": 1}],
    "format": {"format_name": "matroska,webm", "duration": "10.010000", "start_time": "0.000000", "size": "12345"},
}


def video(**changes: Any) -> VideoStream:
    fields = {key: value for key, value in {**VIDEO, **changes}.items() if value is not None}
    (stream,) = media.read({"streams": [fields]}).video
    return stream


def test_a_report_becomes_values() -> None:
    found = media.read(REPORT)
    assert (found.format, found.duration, found.size, found.chapters) == ("matroska,webm", 10.01, 12345, 2)
    assert (found.pictures, found.attachments, found.other) == (1, 1, ("bin_data",))
    (picture,) = found.video
    assert (picture.width, picture.height, picture.depth) == (3840, 2160, 10)
    assert (picture.rate, picture.frames, picture.start) == (Fraction(24000, 1001), 240, 0.083)
    assert picture.tick == Fraction(1, 24000)
    assert (picture.language, picture.title) == ("eng", "Main")
    assert picture.colour == Colour("bt2020", "smpte2084", "bt2020nc", "tv")
    assert (picture.mastering, picture.light_level) == (MASTERING, LIGHT)
    (sound,) = found.audio
    assert (sound.index, sound.channels, sound.layout, sound.sample_rate) == (1, 6, "5.1", 48000)
    (text,) = found.subtitles
    assert (text.index, text.codec, text.language) == (2, "subrip", "fra")


def test_a_cover_picture_is_not_the_video() -> None:
    cover = {**VIDEO, "disposition": {"attached_pic": 1}}
    assert media.read({"streams": [cover]}).main_video is None
    found = media.read({"streams": [cover, {**VIDEO, "index": 1}]})
    assert found.main_video is not None
    assert found.main_video.index == 1


@pytest.mark.parametrize(
    ("matrix", "clockwise"),
    [("-90", 90), ("90", 270), ("180", 180), ("-180", 180), ("-270", 270), ("0", 0), ("-89.7", 90), ("-360", 0)],
)
def test_a_display_matrix_turns_clockwise_by_its_negated_angle(matrix: str, clockwise: int) -> None:
    side = {"side_data_type": "Display Matrix", "rotation": json.loads(matrix)}
    assert video(side_data_list=[side]).rotation == clockwise


@pytest.mark.parametrize(("tag", "clockwise"), [("90", 90), ("270", 270), ("-90", 270), ("0", 0)])
def test_the_old_tag_turns_clockwise(tag: str, clockwise: int) -> None:
    assert video(side_data_list=None, tags={"rotate": tag}).rotation == clockwise


@pytest.mark.parametrize(
    ("average", "base", "order", "variable"),
    [
        ("25/1", "25/1", "progressive", False),
        ("30000/1001", "30/1", "progressive", False),
        ("24/1", "120/1", "progressive", True),
        ("25/1", "50/1", "tt", False),
        ("25/1", "50/1", "progressive", True),
        ("0/0", "90000/1", "progressive", True),
    ],
)
def test_a_rate_is_variable_where_average_and_base_differ(average: str, base: str, order: str, variable: bool) -> None:
    assert video(avg_frame_rate=average, r_frame_rate=base, field_order=order).variable_rate is variable


@pytest.mark.parametrize(("order", "fields"), [("tt", True), ("bt", True), ("progressive", False), (None, False)])
def test_interlaced_is_what_is_marked_so(order: str | None, fields: bool) -> None:
    assert video(field_order=order).interlaced is fields


@pytest.mark.parametrize(
    ("text", "aspect"),
    [
        ("64:45", Fraction(64, 45)),
        ("0:1", Fraction(1)),
        ("1:0", Fraction(1)),
        ("N/A", Fraction(1)),
        (None, Fraction(1)),
    ],
)
def test_an_aspect_that_is_not_given_or_absurd_is_square(text: str | None, aspect: Fraction) -> None:
    assert video(sample_aspect_ratio=text).sar == aspect


def test_matroska_keeps_durations_in_a_tag() -> None:
    assert video(duration=None, tags={"DURATION": "00:01:02.500000000"}).duration == 62.5
    assert video(duration=None, tags={"DURATION": "soon"}).duration is None


def test_dolby_vision_says_its_profile() -> None:
    side = {"side_data_type": "DOVI configuration record", "dv_profile": 5, "dv_level": 6}
    assert video(side_data_list=[side]).dolby_vision_profile == 5
    assert video().dolby_vision_profile is None


def test_colours_that_are_unknown_are_none() -> None:
    assert video(color_space="unknown", color_transfer="reserved", color_primaries=None).colour == Colour(range="tv")


@pytest.mark.slow
def test_the_depth_of_every_pixel_format_is_what_ffmpeg_says() -> None:
    """As far as it matters: 8 or less, 10, or more."""
    listed = subprocess.run(["ffmpeg", "-v", "quiet", "-pix_fmts"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.split("-----\n")[1].splitlines()]
    assert len(rows) > 150
    # H is a hardware surface, P a palette, B a raw sensor; X'Y'Z' and float are film masters
    plain = [row for row in rows if not set("HPB") & set(row[0])]
    wrong = {
        name: (media.read({"streams": [{**VIDEO, "pix_fmt": name}]}).video[0].depth, depths)
        for _, name, _, _, depths in plain
        if min(max(8, *map(int, depths.split("-"))), 12)
        != min(media.read({"streams": [{**VIDEO, "pix_fmt": name}]}).video[0].depth, 12)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("times", "rate", "off"),
    [
        (["0.000", "0.042", "0.083", "0.125"], Fraction(24000, 1001), False),
        (["0.000", "0.125", "0.042", "0.083"], Fraction(24000, 1001), False),
        (["5.021", "5.061", "5.141", "5.101"], Fraction(25), False),
        (["0.000", "0.040", "0.120", "0.160"], Fraction(25), False),
        (["0.000", "0.040", "0.084", "0.120"], Fraction(25), True),
        (["0.000", "0.017", "0.033", "0.050"], Fraction(25), True),
        (["0.000", None, "N/A"], Fraction(25), False),
        ([], Fraction(25), False),
    ],
    ids=["23.976 in milliseconds", "reordered", "late", "a gap", "late by a tenth", "faster", "unknown", "no packets"],
)
def test_a_rate_is_kept_where_the_pictures_come_at_its_multiples(
    times: list[str | None], rate: Fraction, off: bool
) -> None:
    assert media.off_beat({"packets": [{"pts_time": time} for time in times]}, rate) is off


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"#EXTM3U\n#EXTINF:2,\na.ts", "HLS playlist"),
        (b"\xef\xbb\xbf #EXTM3U", "HLS playlist"),
        (b"ffconcat version 1.0", "ffconcat script"),
        (b"v=0\r\no=- 0", "SDP session"),
        (b'<?xml version="1.0"?><MPD xmlns', "DASH manifest"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\xff\xd8\xff\xe0", "picture"),
        (b"\0\0\0\x1cftypavif", "picture"),
        (b"Dear diary,\n", "text"),
        (b"\0\0\0\x20ftypisom", None),
        (b"\x1aE\xdf\xa3\0", None),
        (b"", None),
    ],
)
def test_a_disguise_is_seen_through(head: bytes, what: str | None) -> None:
    assert media.disguise(head) == what


@given(st.binary(max_size=2000))
def test_any_first_bytes_have_an_answer(head: bytes) -> None:
    media.disguise(head)


ODD = st.sampled_from(
    [
        *(None, "", "N/A", "nan", "inf", "-inf", "1e999", "0/0", "1:0", "-1", "9" * 5000, "1/2/3", "\0", "é"),
        *(-1, 0, 1 << 70, 1.5, float("nan"), float("inf"), True, [], {}, [None], {"a": None}),
    ]
)
anything = st.recursive(
    ODD | st.text(max_size=12) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, inner in steps for way in places(inner, (*path, key)))]


def changed(report: Any, path: tuple[Any, ...], value: Any, remove: bool) -> Any:
    if not path:
        return value
    whole = copy.deepcopy(report)
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return whole


@given(st.lists(st.tuples(st.sampled_from(places(REPORT)[1:]), anything, st.booleans()), min_size=1, max_size=4))
def test_a_mutated_report_always_gives_values(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
    report: Any = REPORT
    for path, value, remove in changes:
        try:
            report = changed(report, path, value, remove)
        except (KeyError, IndexError, TypeError):  # an earlier change took that place away
            continue
    usable(media.read(report))


@given(st.dictionaries(st.sampled_from(["streams", "format", "chapters", "other"]), anything))
def test_any_json_object_gives_values(report: dict[str, Any]) -> None:
    usable(media.read(report))


def usable(found: Media) -> None:
    """Values of the types that they say, which later code counts on."""
    assert found.duration is None or found.duration >= 0
    for stream in found.video:
        assert stream.rotation in (0, 90, 180, 270)
        assert stream.depth >= 8
        assert stream.sar > 0
        assert stream.rate is None or stream.rate > 0
        assert (stream.width >= 0, stream.height >= 0) == (True, True)
        assert stream.variable_rate in (True, False)
        assert stream.colour.hdr in ("PQ", "HLG", None)
        hash(stream)
    for sound in found.audio:
        assert sound.channels >= 0
        hash(sound)
    streams: list[VideoStream | AudioStream | SubtitleStream] = [*found.video, *found.audio, *found.subtitles]
    assert all(stream.index >= 0 for stream in streams)
