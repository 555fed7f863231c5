"""The manifest holds what was asked and what came of it, and both can be read back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import HDR10, SOURCE, SRT, planned, source, spec
from transcoder.command import Route
from transcoder.events import OutputFacts, Published, Timings, Tried
from transcoder.manifest import VERSION, Attempt, compose, output, published
from transcoder.media import AudioStream
from transcoder.probe import Fingerprint
from transcoder.promise import Facts, Track
from transcoder.spec import JobSpec, read
from transcoder.usage import Usage

FINGERPRINT = Fingerprint(size=1_000_000, modified_ns=1_700_000_000_123_456_789, inode=42, ends_sha256="ab" * 32)
ARGV = ("ffmpeg", "-i", "file:/in/clip.mov", "file:/out/made.mp4")
MADE = OutputFacts(
    name="main",
    path="/out/made.mp4",
    container="mp4",
    bytes=123_456,
    sha256="cd" * 32,
    duration=10.0,
    frames=250,
    codec="h264",
    width=1920,
    height=1080,
    depth=8,
    audio=("aac", "opus"),
    subtitles=("mov_text",),
)
SOUND = OutputFacts(
    "sound", "/out/made.m4a", "mp4", 9, "ef" * 32, 10.0, None, None, None, None, None, audio=("aac",), subtitles=()
)
RESULT = Published(
    route=Route("vaapi renderD128", "vaapi", "/dev/dri/renderD128"),
    outputs=(MADE, SOUND),
    manifest="/out/job.transcoder.json",
    timings=Timings(0.1, 5.0, 1.5, 1.25, 0.01, 6.7),
    tried=(Tried("qsv", "config", "Device creation failed", 0.5),),
    warnings=("the cover picture: outputs hold audio, video and subtitles", "é 🎬"),
    gpu=Usage((("video", 1.25), ("video-enhance", 0.5)), 64 << 20),
)


def composed(asked: JobSpec, result: Published = RESULT) -> dict[str, Any]:
    manifest = compose(
        asked, Attempt("job", 2), result, fingerprint=asdict(FINGERPRINT), argv=ARGV, build="5.1.6-0+deb12u1"
    )
    travelled: dict[str, Any] = json.loads(json.dumps(manifest, allow_nan=False))
    return travelled


def test_a_manifest_says_who_what_of_which_and_how() -> None:
    manifest = composed(spec())
    assert manifest["manifest"] == VERSION == 1
    assert (manifest["job"], manifest["attempt"]) == ("job", 2)
    assert Fingerprint(**manifest["source"]) == FINGERPRINT
    assert manifest["ffmpeg"] == "5.1.6-0+deb12u1"
    assert tuple(manifest["argv"]) == ARGV
    assert set(manifest) == {"manifest", "job", "attempt", "spec", "source", "ffmpeg", "argv", "result"}


def test_a_result_says_what_it_is_worth() -> None:
    result = composed(spec())["result"]
    assert result["verified"] is True
    assert (result["route"], result["api"]) == ("vaapi renderD128", "vaapi")
    assert (result["fps"], result["speed"]) == (50.0, 2.0)


@pytest.mark.parametrize(
    ("gpu", "on_gpu"), [(Usage((("video", 0.001),), 9), True), (Usage((), 9), False), (None, None)]
)
def test_a_result_says_whether_the_gpu_really_did_it(gpu: Usage | None, on_gpu: bool | None) -> None:
    result = composed(spec(), replace(RESULT, gpu=gpu))["result"]
    assert result["on_gpu"] is on_gpu
    assert result["gpu"] == (gpu.as_record() if gpu else None)


def test_a_manifest_of_before_gpus_were_counted_is_read() -> None:
    manifest = composed(spec())
    del manifest["result"]["gpu"], manifest["result"]["on_gpu"]
    assert published(manifest) == replace(RESULT, gpu=None)


def test_a_result_reads_back_equal() -> None:
    assert published(composed(spec())) == RESULT


ASKED: dict[str, dict[str, Any]] = {
    "nothing special": {"outputs": [{}]},
    "a ladder": {"outputs": [{"name": f"{height}p", "video": {"height": height}} for height in (1080, 720, 360)]},
    "sound alone": {"outputs": [{"video": None}]},
    "copies": {"outputs": [{"container": "mkv", "video": {"codec": "copy"}, "audio": {"codec": "copy"}}]},
    "a bitrate": {"outputs": [{"video": {"rate": {"mode": "bitrate", "bitrate": 3_000_000}}}]},
    "switches": {"outputs": [{}], "salvage": True, "overwrite": True, "verify": "full", "priority": 9},
    "an accelerator": {
        "outputs": [{}],
        "acceleration": {"policy": "require", "apis": ["vaapi"], "device": "/dev/dri/renderD128"},
    },
    "odd names": {"outputs": [{}], "source": "/in/é 🎬\n.mov", "metadata": {"key": "välue"}, "token": "mine"},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_spec_reads_back_equal(asked: dict[str, Any]) -> None:
    wanted = read({"source": "/in/clip.mov", "target": "/out/{name}.{ext}", **asked})
    assert read(composed(wanted)["spec"]) == wanted


words = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e6).map(lambda value: round(value, 4))
outputs = st.builds(
    OutputFacts,
    name=words,
    path=words,
    container=words,
    bytes=counts,
    sha256=words,
    duration=seconds,
    frames=st.none() | counts,
    codec=st.none() | words,
    width=st.none() | counts,
    height=st.none() | counts,
    depth=st.none() | counts,
    audio=st.lists(words, max_size=3).map(tuple),
    subtitles=st.lists(words, max_size=3).map(tuple),
)
results = st.builds(
    Published,
    route=st.builds(Route, words, words, st.none() | words),
    outputs=st.lists(outputs, max_size=3).map(tuple),
    manifest=words,
    timings=st.builds(Timings, seconds, seconds, seconds, seconds, seconds, seconds),
    tried=st.lists(st.builds(Tried, words, words, words, seconds), max_size=3).map(tuple),
    warnings=st.lists(words, max_size=3).map(tuple),
    gpu=st.none()
    | st.builds(Usage, st.dictionaries(words, seconds, max_size=3).map(lambda found: tuple(found.items())), counts),
)


@given(results)
def test_every_result_reads_back_equal(result: Published) -> None:
    assert published(composed(spec(), result)) == result


# What is said of one output


def test_an_output_is_described_by_its_headers_and_packets() -> None:
    plan = planned(source(HDR10, subtitles=(SRT,)), {"container": "mkv", "video": {"codec": "hevc"}})
    made = source(HDR10, audio=(AudioStream(1, "aac", 2), AudioStream(2, "opus", 6)), subtitles=(SRT,))
    facts = Facts(made, {0: Track(250, 0.0, 10.0), 1: Track(469, 0.0, 10.0057), 2: Track(500, 0.0, 9.0)})
    assert output(plan.rungs[0], facts, 77, "ab" * 32) == OutputFacts(
        name="main",
        path="/out/made.mkv",
        container="mkv",
        bytes=77,
        sha256="ab" * 32,
        duration=10.006,
        frames=250,
        codec="hevc",
        width=1920,
        height=1080,
        depth=10,
        audio=("aac", "opus"),
        subtitles=("subrip",),
    )


def test_an_output_without_a_picture_has_no_frames() -> None:
    plan = planned(SOURCE, {"video": None})
    made = replace(SOURCE, video=(), audio=(AudioStream(0, "aac", 2),))
    found = output(plan.rungs[0], Facts(made, {0: Track(469, 0.0, 10.0)}), 9, "")
    assert (found.frames, found.codec, found.width, found.height, found.depth) == (None,) * 5
    assert found.audio == ("aac",)
    assert found.path == "/out/made.m4a"
    assert found.duration == 10.0
