"""What must change in the sound, and which subtitles come along."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import SOURCE, SRT, STEREO, SURROUND
from transcoder.audio import OPUS_LAYOUTS, Sound, Subtitle, sounds, subtitles
from transcoder.errors import InputRefused, InputUnreadable
from transcoder.media import AudioStream, Media, SubtitleStream
from transcoder.spec import Audio, Container, Output

TWO = replace(SOURCE, audio=(STEREO, SURROUND))
MONO = replace(STEREO, channels=1, layout="mono")


def only(audio: Audio, stream: AudioStream, container: Container = "mp4") -> Sound:
    (sound,) = sounds(audio, container, replace(SOURCE, audio=(stream,)))
    return sound


@pytest.mark.parametrize(
    ("streams", "indices"),
    [("all", (1, 2)), ("first", (1,)), ((1,), (2,)), ((1, 0), (2, 1))],
    ids=["all", "the first", "the second", "both in another order"],
)
def test_streams_are_chosen_by_their_number_among_audio(streams: object, indices: tuple[int, ...]) -> None:
    audio = Audio.model_validate({"streams": streams})
    assert tuple(sound.index for sound in sounds(audio, "mp4", TWO)) == indices


def test_a_stream_that_is_not_there_is_named() -> None:
    with pytest.raises(InputUnreadable, match="2 audio streams; number 5"):
        sounds(Audio(streams=(0, 5)), "mp4", TWO)


def test_a_silent_source_has_no_sound_and_that_is_no_error() -> None:
    assert sounds(Audio(), "mp4", replace(SOURCE, audio=())) == ()


@given(has=st.integers(1, 16), asked=st.none() | st.integers(1, 8))
def test_channels_are_mixed_down_and_never_up(has: int, asked: int | None) -> None:
    sound = only(Audio(channels=asked), replace(STEREO, channels=has))
    assert sound.channels <= has
    assert asked is None or sound.channels <= asked
    assert sound.bitrate == 64_000 * sound.channels


@given(has=st.integers(0, 64), asked=st.none() | st.integers(1, 8), codec=st.sampled_from(["aac", "opus"]))
def test_an_encoder_is_only_asked_for_channels_that_it_can_hold(has: int, asked: int | None, codec: str) -> None:
    sound = only(Audio.model_validate({"codec": codec, "channels": asked}), replace(STEREO, channels=has))
    assert 1 <= sound.channels <= 8
    assert codec != "opus" or sound.layout in OPUS_LAYOUTS.values()


def test_opus_gets_a_layout_that_it_knows() -> None:
    assert only(Audio(codec="opus"), SURROUND, "mkv").layout == "5.1"
    assert only(Audio(codec="opus"), MONO, "mkv").layout == "mono"
    assert only(Audio(), SURROUND).layout is None


def test_a_bitrate_that_is_asked_is_taken() -> None:
    assert only(Audio(bitrate=96_000), STEREO).bitrate == 96_000


def test_a_copied_stream_is_left_as_it_is() -> None:
    assert only(Audio(codec="copy", channels=1), SURROUND, "mkv") == Sound(2, "copy", "ac3", channels=6)


@pytest.mark.parametrize(("codec", "container"), [("vorbis", "mp4"), ("aac", "webm"), ("pcm_s16le", "mp4")])
def test_a_stream_that_the_container_cannot_hold_is_not_copied(codec: str, container: Container) -> None:
    audio = Audio(codec="copy")
    with pytest.raises(InputRefused, match=f"{container} cannot hold audio stream 1 \\({codec}\\)") as caught:
        only(audio, replace(STEREO, codec=codec), container)
    assert "mkv" in caught.value.next_step


def texts(*codecs: str) -> Media:
    return replace(SOURCE, subtitles=tuple(SubtitleStream(3 + number, codec) for number, codec in enumerate(codecs)))


@pytest.mark.parametrize(
    ("container", "codec", "becomes"),
    [
        ("mp4", "mov_text", "copy"),
        ("mp4", "subrip", "mov_text"),
        ("mp4", "ass", "mov_text"),
        ("mp4", "webvtt", "mov_text"),
        ("mp4", "dvd_subtitle", None),
        ("mp4", "hdmv_pgs_subtitle", None),
        ("mkv", "mov_text", "subrip"),
        ("mkv", "subrip", "copy"),
        ("mkv", "ass", "copy"),
        ("mkv", "hdmv_pgs_subtitle", "copy"),
        ("mkv", "dvb_teletext", None),
        ("webm", "webvtt", "copy"),
        ("webm", "subrip", "webvtt"),
        ("webm", "mov_text", "webvtt"),
        ("webm", "hdmv_pgs_subtitle", None),
    ],
)
def test_text_becomes_the_containers_own_text_and_pictures_come_where_they_can(
    container: Container, codec: str, becomes: str | None
) -> None:
    video = {"codec": "av1"}
    output = Output.model_validate({"container": container, "video": video, "audio": {"codec": "opus"}})
    kept, left_out = subtitles(output, texts(codec))
    assert kept == (() if becomes is None else (Subtitle(3, becomes),))
    assert len(left_out) == (1 if becomes is None else 0)
    assert all(codec in sentence and container in sentence for sentence in left_out)


def test_subtitles_are_dropped_without_a_word_where_that_is_asked_or_there_is_no_picture() -> None:
    source = replace(SOURCE, subtitles=(SRT,))
    assert subtitles(Output(subtitles="drop"), source) == ((), ())
    assert subtitles(Output(video=None), source) == ((), ())
