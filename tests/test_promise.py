"""What an output must be, and in what a finished file breaks that: every kind of broken promise, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.values import HDR10, SOURCE, SRT, STEREO, SURROUND, VIDEO, planned, source
from transcoder.media import AudioStream, Colour, Media, VideoStream
from transcoder.plan import Plan
from transcoder.promise import Broken, Facts, Track, broken, expected_frames, length_of


def kept(plan: Plan) -> Facts:
    """The file of the first output as it should be, with the source's lengths counted from the source's first stamp."""
    rung, media = plan.rungs[0], plan.source
    tracks: dict[int, Track] = {}
    video: tuple[VideoStream, ...] = ()
    if rung.source and (picture := rung.picture):
        video = (
            VideoStream(
                index=0,
                codec=rung.output.video.codec if rung.output.video else "",
                width=picture.width,
                height=picture.height,
                pix_fmt="yuv420p",
                depth=picture.depth,
                sar=picture.sar,
                colour=picture.colour,
                mastering=picture.mastering,
            ),
        )
    elif rung.source:
        video = (rung.source,)
    if rung.source:
        tracks[0] = track(rung.source, media, rung.source.frames or 0)
    by_index = {stream.index: stream for stream in media.audio}
    sounds = []
    for number, sound in enumerate(rung.sounds, start=len(video)):
        sounds.append(AudioStream(number, sound.result_codec, 2))
        tracks[number] = track(by_index[sound.index], media, 469)
    made = Media("mov,mp4", media.duration, video=video, audio=tuple(sounds), subtitles=(SRT,) * len(rung.subtitles))
    return Facts(made, tracks)


def track(stream: VideoStream | AudioStream, media: Media, packets: int) -> Track:
    start = stream.start - media.start
    return Track(packets, start, start + (stream.duration or 0.0))


def judged(plan: Plan, facts: Facts, decoded: int | None = None) -> tuple[Broken, ...]:
    return broken(plan.rungs[0], plan.source, facts, decoded)


Change = Callable[[Facts], Facts]


def shown(**changes: Any) -> Change:
    """The made picture with other properties."""
    return lambda facts: replace(
        facts, media=replace(facts.media, video=(replace(facts.media.video[0], **changes), *facts.media.video[1:]))
    )


def coloured(**changes: Any) -> Change:
    return lambda facts: shown(colour=replace(facts.media.video[0].colour, **changes))(facts)


def having(**changes: Any) -> Change:
    """The made file with other streams."""
    return lambda facts: replace(facts, media=replace(facts.media, **changes))


def packed(index: int, **changes: Any) -> Change:
    """A track with other packets."""
    return lambda facts: replace(facts, tracks={**facts.tracks, index: replace(facts.tracks[index], **changes)})


def empty(index: int) -> Change:
    return lambda facts: replace(facts, tracks={key: one for key, one in facts.tracks.items() if key != index})


def both(*changes: Change) -> Change:
    def change(facts: Facts) -> Facts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


HEVC, AAC = replace(VIDEO, codec="hevc"), AudioStream(1, "aac", 2)

WRONG: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no audio": (having(audio=()), ("audio streams are none, not ['aac']",)),
    "one audio too many": (having(audio=(AAC, AAC)), ("audio streams are ['aac', 'aac'], not ['aac']",)),
    "another audio codec": (having(audio=(replace(AAC, codec="opus"),)), ("audio streams are ['opus'], not ['aac']",)),
    "no video": (having(video=()), ("video streams are none, not ['h264']",)),
    "one video too many": (having(video=(VIDEO, VIDEO)), ("video streams are ['h264', 'h264'], not ['h264']",)),
    "another video codec": (shown(codec="hevc"), ("video streams are ['hevc'], not ['h264']",)),
    "nothing at all": (
        having(video=(), audio=()),
        ("video streams are none, not ['h264']", "audio streams are none, not ['aac']"),
    ),
    "a subtitle that nobody asked for": (having(subtitles=(SRT,)), ("there are 1 subtitle streams, not 0",)),
    "another size": (shown(width=1280, height=720), ("size is 1280x720, not 1920x1080",)),
    "one line less": (shown(height=1078), ("size is 1920x1078, not 1920x1080",)),
    "another depth": (shown(depth=10), ("depth is 10, not 8",)),
    "rotation left": (shown(rotation=90), ("rotation is 90, not 0",)),
    "another sample aspect": (shown(sar=Fraction(64, 45)), ("sample aspect is 64/45, not 1",)),
    "other primaries": (coloured(primaries="bt2020"), ("colour primaries is bt2020, not bt709",)),
    "another transfer": (coloured(transfer="smpte2084"), ("colour transfer is smpte2084, not bt709",)),
    "another matrix": (coloured(matrix="bt470bg"), ("colour matrix is bt470bg, not bt709",)),
    "colours lost": (
        shown(colour=Colour(range="tv")),
        tuple(f"colour {name} is None, not bt709" for name in ("primaries", "transfer", "matrix")),
    ),
    "another range": (coloured(range="pc"), ("colour range is pc, not tv",)),
    "a mastering display from nowhere": (
        shown(mastering=HDR10.mastering),
        ("mastering display is True, not False",),
    ),
    "a frame more than decoded": (packed(0, packets=252), ("252 frames were written of 250 decoded",)),
    "two frames lost": (packed(0, packets=248), ("248 frames were written of 250 decoded",)),
    "sound out of step": (
        both(packed(0, end=9.7), packed(1, end=10.4)),
        ("audio stream 1 ends -0.70 s away from where it ends in the source",),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("salvage", [False, True], ids=["strictly", "with salvage"])
def test_every_broken_promise_is_named(wrong: str, salvage: bool) -> None:
    change, what = WRONG[wrong]
    plan = planned(SOURCE, salvage=salvage)
    found = judged(plan, change(kept(plan)), decoded=250)
    assert tuple(one.what for one in found) == what
    assert not any(one.short for one in found)


SHORT: dict[str, tuple[Change, int | None, tuple[str, ...]]] = {
    "too few frames": (packed(0, packets=247), None, ("247 of 250 frames are there",)),
    "too few frames, as many as decoded": (packed(0, packets=200), 200, ("200 of 250 frames are there",)),
    "the picture ends early": (packed(0, end=9.4), 250, ("video ends at 9.40 s of 10.00 s",)),
    "the sound ends early": (packed(1, end=9.4), 250, ("audio stream 1 ends at 9.40 s of 10.00 s",)),
    "both end early": (
        both(packed(0, end=5.0, packets=125), packed(1, end=5.0)),
        125,
        ("125 of 250 frames are there", "video ends at 5.00 s of 10.00 s", "audio stream 1 ends at 5.00 s of 10.00 s"),
    ),
    "no packet of sound": (empty(1), 250, ("audio stream 1 is empty",)),
    "no frame": (empty(0), 0, ("0 of 250 frames are there", "video is empty")),
}


@pytest.mark.parametrize("wrong", SHORT)
@pytest.mark.parametrize("salvage", [False, True], ids=["strictly", "with salvage"])
def test_less_than_the_source_promises_is_short(wrong: str, salvage: bool) -> None:
    change, decoded, what = SHORT[wrong]
    plan = planned(SOURCE, salvage=salvage)
    found = judged(plan, change(kept(plan)), decoded)
    assert tuple(one.what for one in found) == what
    assert all(one.short for one in found)


def test_frames_that_were_decoded_and_are_not_there_are_lost_by_us() -> None:
    plan = planned(SOURCE)
    found = judged(plan, packed(0, packets=200)(kept(plan)), decoded=250)
    assert [(one.what, one.short) for one in found] == [
        ("200 frames were written of 250 decoded", False),
        ("200 of 250 frames are there", True),
    ]


WITHIN: dict[str, Change] = {
    "nothing changed": lambda facts: facts,
    "one frame less": packed(0, packets=249),
    "one frame more": packed(0, packets=251),
    "the picture ends half a second early": packed(0, end=9.55),
    "the sound ends half a second early": packed(1, end=9.55),
    "the sound ends later by its last packet": packed(1, end=10.021),
    "a sample aspect rounded by the container": shown(sar=Fraction(1001, 1000)),
    "a range that is not said": coloured(range=None),
    "twice as long as the header said": both(packed(0, end=20.0), packed(1, end=20.0)),
}


@pytest.mark.parametrize("change", WITHIN.values(), ids=WITHIN)
def test_what_is_within_the_tolerance_breaks_nothing(change: Change) -> None:
    plan = planned(SOURCE)
    assert judged(plan, change(kept(plan)), decoded=250) == ()


def test_mastering_display_that_is_lost_is_named() -> None:
    plan = planned(source(HDR10), {"video": {"codec": "hevc"}})
    facts = kept(plan)
    assert judged(plan, facts) == ()
    (lost,) = judged(plan, shown(mastering=None)(facts))
    assert lost == Broken("mastering display is False, not True")


def test_a_subtitle_that_is_lost_is_named() -> None:
    plan = planned(source(subtitles=(SRT,)), {"container": "mkv"})
    facts = kept(plan)
    assert judged(plan, facts) == ()
    (lost,) = judged(plan, having(subtitles=())(facts))
    assert lost == Broken("there are 0 subtitle streams, not 1")


def test_a_second_sound_that_ends_early_is_named() -> None:
    plan = planned(source(audio=(STEREO, SURROUND)), {})
    facts = kept(plan)
    assert judged(plan, facts) == ()
    (early,) = judged(plan, packed(2, end=2.0)(facts))
    assert early == Broken("audio stream 2 ends at 2.00 s of 10.00 s", short=True)


def test_ends_that_lie_apart_in_the_source_may_lie_apart_in_the_file() -> None:
    plan = planned(source(audio=(replace(STEREO, duration=7.0),)))
    facts = kept(plan)
    assert judged(plan, facts) == ()
    assert judged(plan, packed(1, end=7.5)(facts)) == ()


def test_an_edit_list_counts_frames_that_are_never_shown() -> None:
    plan = planned(source(replace(VIDEO, frames=500)))
    facts = packed(0, packets=250)(kept(plan))
    assert judged(plan, facts, decoded=250) == ()
    (lost,) = judged(plan, packed(0, packets=200)(facts), decoded=200)
    assert lost == Broken("200 of 250 frames are there", short=True)


def test_a_capped_rate_is_counted_by_the_seconds_that_are_there() -> None:
    fast = replace(VIDEO, rate=Fraction(50), base_rate=Fraction(50), frames=500)
    plan = planned(source(fast), {"video": {"max_fps": 25}})
    facts = packed(0, packets=250)(kept(plan))
    assert judged(plan, facts, decoded=500) == ()
    assert judged(plan, packed(0, packets=253)(facts), decoded=500) == ()
    for wrong in (246, 254, 500):
        (rate,) = judged(plan, packed(0, packets=wrong)(facts), decoded=500)
        assert rate == Broken(f"{wrong} frames are there, 250 are due at 25 a second")


def test_a_capped_rate_does_not_hide_an_early_end() -> None:
    fast = replace(VIDEO, rate=Fraction(50), base_rate=Fraction(50), frames=500)
    plan = planned(source(fast), {"video": {"max_fps": 25}})
    (early,) = judged(plan, packed(0, packets=125, end=5.0)(kept(plan)), decoded=250)
    assert early == Broken("video ends at 5.00 s of 10.00 s", short=True)


@pytest.mark.parametrize(
    ("container", "says"),
    [("matroska,webm", 11.4), ("mov,mp4", 10.0)],
    ids=["matroska counts from zero", "mp4 does not"],
)
def test_a_source_that_starts_late_promises_what_comes_after_its_start(container: str, says: float) -> None:
    video, audio = (replace(one, start=1.4, duration=says) for one in (VIDEO, STEREO))
    assert isinstance(video, VideoStream)
    plan = planned(source(video, audio=(audio,), format=container, start=1.4, duration=11.4))
    facts = both(packed(0, end=10.0), packed(1, end=10.0))(kept(plan))
    assert judged(plan, facts, decoded=250) == ()
    (early,) = judged(plan, packed(0, end=9.4)(facts), decoded=250)
    assert early == Broken("video ends at 9.40 s of 10.00 s", short=True)


def test_sound_that_begins_later_ends_later() -> None:
    plan = planned(source(audio=(replace(STEREO, start=3.0, duration=7.0),)))
    facts = kept(plan)
    assert facts.tracks[1].end == 10.0
    assert judged(plan, facts) == ()
    (early,) = judged(plan, packed(1, end=7.0)(facts))
    assert early == Broken("audio stream 1 ends at 7.00 s of 10.00 s", short=True)


def test_an_avi_cut_short_promises_what_its_header_counts() -> None:
    cut = replace(VIDEO, duration=5.0)
    assert length_of(cut, source(cut, format="avi")) == 10.0
    assert length_of(cut, source(cut)) == 5.0


def test_where_no_stream_says_its_length_the_file_does() -> None:
    video, audio = replace(VIDEO, duration=None, frames=None), replace(STEREO, duration=None)
    plan = planned(source(video, audio=(audio,)))
    facts = both(packed(0, packets=125, end=5.0), packed(1, end=5.0))(kept(plan))
    (early,) = judged(plan, facts, decoded=125)
    assert early == Broken("the file ends at 5.00 s of 10.00 s", short=True)
    assert judged(plan, packed(1, end=10.0)(facts), decoded=125) == ()


def test_the_length_of_the_file_may_be_that_of_a_stream_left_out() -> None:
    video, audio = replace(VIDEO, duration=5.0, frames=125), replace(STEREO, duration=5.0)
    for parts in ({"other": ("bin_data",)}, {"subtitles": (SRT,)}):
        plan = planned(source(video, audio=(audio,), duration=10.0, **parts))
        assert judged(plan, kept(plan), decoded=125) == ()
    plan = planned(source(video, audio=(audio,), duration=10.0))
    (early,) = judged(plan, kept(plan), decoded=125)
    assert early == Broken("the file ends at 5.00 s of 10.00 s", short=True)


def test_nothing_is_promised_by_a_source_that_says_nothing() -> None:
    video, audio = replace(VIDEO, duration=None, frames=None), replace(STEREO, duration=None)
    plan = planned(source(video, audio=(audio,), duration=None))
    facts = both(packed(0, packets=3, end=0.12), packed(1, end=0.12))(kept(plan))
    assert judged(plan, facts, decoded=3) == ()
    assert [(one.what, one.short) for one in judged(plan, empty(0)(facts), decoded=0)] == [("video is empty", True)]


def test_a_copied_picture_is_as_it_was() -> None:
    turned = replace(VIDEO, rotation=90, sar=Fraction(64, 45), colour=Colour(range="pc"), depth=10)
    plan = planned(source(turned), {"video": {"codec": "copy"}})
    facts = kept(plan)
    assert judged(plan, facts, decoded=None) == ()
    assert judged(plan, facts, decoded=0) == ()
    (lost,) = judged(plan, packed(0, packets=200)(facts))
    assert lost == Broken("200 of 250 frames are there", short=True)
    (other,) = judged(plan, shown(codec="hevc")(facts))
    assert other == Broken("video streams are ['hevc'], not ['h264']")


def test_sound_alone_needs_no_picture() -> None:
    plan = planned(SOURCE, {"video": None})
    facts = kept(plan)
    assert judged(plan, facts) == ()
    (early,) = judged(plan, packed(0, end=5.0)(facts))
    assert early == Broken("audio stream 1 ends at 5.00 s of 10.00 s", short=True)


COUNTS: dict[str, tuple[VideoStream, int | None]] = {
    "the header's count": (VIDEO, 250),
    "a count near the duration": (replace(VIDEO, frames=251), 251),
    "a count with an edit list": (replace(VIDEO, frames=500), 250),
    "no count": (replace(VIDEO, frames=None), None),
    "no count and a variable rate": (replace(VIDEO, frames=None, base_rate=Fraction(100)), None),
    "a count and a variable rate": (replace(VIDEO, base_rate=Fraction(100)), 250),
    "a count and no rate": (replace(VIDEO, rate=None), 250),
    "a count and no length": (replace(VIDEO, duration=None), 250),
    "nothing": (replace(VIDEO, frames=None, rate=None), None),
}


@pytest.mark.parametrize(("stream", "frames"), COUNTS.values(), ids=COUNTS)
def test_the_count_is_believed_where_it_agrees_with_the_duration(stream: VideoStream, frames: int | None) -> None:
    assert expected_frames(stream, stream.duration) == frames


seconds = st.floats(0.6, 20_000, allow_nan=False)
rates = st.sampled_from([Fraction(25), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(50), Fraction(120)])


@st.composite
def sources(draw: st.DrawFn) -> Media:
    rate, length, start = draw(rates), draw(seconds), draw(st.floats(0, 100))
    video = replace(
        VIDEO,
        width=draw(st.integers(2, 4096)),
        height=draw(st.integers(2, 4096)),
        sar=draw(st.sampled_from([Fraction(1), Fraction(64, 45), Fraction(8, 9)])),
        rotation=draw(st.sampled_from([0, 90, 180, 270])),
        rate=rate,
        base_rate=rate,
        frames=max(1, round(length * rate)),
        duration=length,
        start=start,
    )
    sounds = [
        replace(STEREO, index=number, start=start + draw(st.floats(0, 5)), duration=draw(seconds))
        for number in range(1, 1 + draw(st.integers(0, 3)))
    ]
    return source(video, audio=tuple(sounds), duration=None, start=start)


@given(
    media=sources(),
    video=st.sampled_from([{}, {"codec": "hevc"}, {"codec": "copy"}, {"height": 360}, {"codec": "hevc", "width": 640}]),
    audio=st.sampled_from([None, {}, {"streams": "first"}]),
)
def test_a_file_equal_to_its_promise_breaks_nothing(
    media: Media, video: dict[str, Any], audio: dict[str, Any] | None
) -> None:
    plan = planned(media, {"video": video, "audio": audio, "container": "mkv"})
    stream = media.main_video
    assert stream is not None
    assert judged(plan, kept(plan), decoded=stream.frames) == ()


@given(media=sources(), part=st.floats(0.01, 0.9))
def test_a_file_of_a_part_of_it_is_short(media: Media, part: float) -> None:
    plan = planned(media)
    facts = kept(plan)
    whole = facts.tracks[0].end
    assume(whole * (1 - part) > 0.51)
    cut = packed(0, end=whole * part)(facts)
    stream = media.main_video
    assert stream is not None
    assert any(one.short and one.what.startswith("video ends at") for one in judged(plan, cut, stream.frames))


@pytest.mark.parametrize("change", [{"rotation": 90}, {"width": 640}, {"sar": Fraction(4, 3)}], ids=str)
def test_a_copied_picture_is_shown_as_the_source_is(change: dict[str, Any]) -> None:
    source = replace(SOURCE, audio=(), video=(replace(VIDEO, **change),))
    plan = planned(source, {"video": {"codec": "copy"}})
    assert judged(plan, kept(plan)) == ()
    facts = kept(plan)
    (wrong,) = judged(plan, replace(facts, media=replace(facts.media, video=(VIDEO,))))
    assert not wrong.short
