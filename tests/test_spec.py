"""What may be asked, what may not, and what is meant where nothing is said."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.values import spec
from transcoder.errors import SpecError
from transcoder.spec import Bitrate, ConstantBitrate, JobSpec, Output, Quality, read

PATHS = {"source": "/in/a.mov", "target": "/out/a.mp4"}


def refused(fields: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        read({**PATHS, **fields})
    assert "transcoder schema" in caught.value.next_step
    return caught.value.what


def output(**fields: Any) -> dict[str, Any]:
    return {"outputs": [fields]}


def test_two_paths_are_a_spec() -> None:
    made = read(PATHS)
    (only,) = made.outputs
    assert (only.name, only.container, made.profile, made.priority) == ("main", "mp4", "custom", 5)
    assert only.video is not None
    assert (only.video.codec, only.video.rate, only.video.gop) == ("h264", Quality(quality=23), 2.0)
    assert only.audio is not None
    assert (only.audio.codec, only.audio.streams) == ("aac", "all")
    assert (made.verify, made.overwrite, made.salvage) == ("sampled", False, False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sauce": "/in/b.mov"}, "sauce: there is no such field"),
        (output(video={"codeck": "h264"}), "outputs.0.video.codeck: there is no such field"),
        (output(video={"rate": {"mode": "bitrate", "bitrate": 1}}), "outputs.0.video.rate.bitrate.bitrate: "),
        (output(video={"rate": {"mode": "lossless"}}), "outputs.0.video.rate: "),
        (output(video={"rate": {"mode": "quality", "quality": 52}}), "outputs.0.video.rate.quality.quality: "),
        (output(video={"rate": {"mode": "bitrate", "bitrate": 2_000_000, "maxrate": 1_000_000}}), "maxrate"),
        (output(video={"depth": 9}), "outputs.0.video.depth: "),
        (output(video={"width": 8}), "outputs.0.video.width: "),
        (output(video={"gop": float("nan")}), "outputs.0.video.gop: "),
        (output(audio={"streams": [-1]}), "outputs.0.audio.streams"),
        (output(audio={"channels": 9}), "outputs.0.audio.channels: "),
        (output(video=None, audio=None), "outputs.0: an output has video or audio"),
        (output(container="webm", video={"codec": "h264"}), "outputs.0: webm cannot hold h264"),
        (output(container="webm", video={"codec": "vp9"}), "outputs.0: webm cannot hold aac"),
        (output(name="../up"), "outputs.0.name: "),
        ({"outputs": []}, "outputs: "),
        ({"outputs": [{"name": "a"}, {"name": "a"}], "target": "/out/{name}.mp4"}, "a name of its own"),
        ({"outputs": [{"name": "a"}, {"name": "b"}]}, "need a target template"),
        ({"target": "/out/{name}-{heigth}.mp4"}, "no placeholder {heigth}"),
        ({"outputs": [{"audio": {"streams": []}}]}, "outputs.0.audio.streams"),
        ({"source": "in/a.mov"}, "source: a path is absolute"),
        ({"source": "/in/../a.mov"}, "source: a path has no '..'"),
        ({"priority": 10}, "priority: "),
        ({"token": ""}, "token: "),
        ({"acceleration": {"apis": ["VAAPI"]}}, "acceleration.apis.0: "),
        ({"metadata": {"a": 1}}, "metadata.a: "),
        ({"schema": 0}, "schema: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused_by_its_name(fields: dict[str, Any], named: str) -> None:
    assert named in refused(fields)


def test_every_wrong_field_is_named_at_once() -> None:
    said = refused({"priority": 10, "verify": "maybe"})
    assert [line.split(":")[0] for line in said.splitlines()] == ["priority", "verify"]


@pytest.mark.parametrize("data", [None, 3, "text", [], [PATHS], {}], ids=repr)
def test_what_is_no_spec_at_all_is_refused(data: object) -> None:
    with pytest.raises(SpecError):
        read(data)


def test_a_spec_from_the_future_asks_for_an_upgrade() -> None:
    with pytest.raises(SpecError, match="schema 2; this version of transcoder reads up to 1") as caught:
        read({**PATHS, "schema": 2, "something": "new"})
    assert "Upgrade" in caught.value.next_step


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read(PATHS).priority = 9  # type: ignore[misc] # that it is refused is the test


def test_a_ceiling_that_is_left_out_is_half_as_much_again_and_its_buffer_two_seconds_of_it() -> None:
    rate = Bitrate(bitrate=1_000_000)
    assert (rate.ceiling, rate.buffer) == (1_500_000, 3_000_000)
    rate = Bitrate(bitrate=1_000_000, maxrate=1_200_000, bufsize=600_000)
    assert (rate.ceiling, rate.buffer) == (1_200_000, 600_000)
    assert ConstantBitrate(bitrate=1_000_000).buffer == 2_000_000


@pytest.mark.parametrize(
    ("template", "height", "path"),
    [
        ("/out/{stem}-{height}.{ext}", 720, "/out/clip-720.mp4"),
        ("/out/{stem}-{height}.{ext}", None, "/out/clip-audio.mp4"),
        ("/out/{name}/{profile}.{ext}", 720, "/out/main/custom.mp4"),
        ("/out/{Unknown}{}.mp4", 720, "/out/{Unknown}{}.mp4"),
        ("/out/{height}{height}", 720, "/out/720720"),
    ],
)
def test_a_target_is_filled_in(template: str, height: int | None, path: str) -> None:
    made = spec({}, target=template)
    assert made.target_of(made.outputs[0], height) == path


def test_a_placeholder_in_the_name_of_the_source_is_not_filled_in_again() -> None:
    made = spec({}, source="/in/{height}.mov", target="/out/{stem}.mp4")
    assert made.target_of(made.outputs[0], 720) == "/out/{height}.mp4"


@pytest.mark.parametrize(
    ("source", "stem"),
    [("/in/a.b.mov", "a.b"), ("/in/noending", "noending"), ("/in/.hidden", ".hidden"), ("/in/x.", "x")],
)
def test_a_stem_is_the_name_without_its_ending(source: str, stem: str) -> None:
    made = spec({}, source=source, target="/out/{stem}")
    assert made.target_of(made.outputs[0], None) == f"/out/{stem}"


def test_an_mp4_without_video_is_an_m4a() -> None:
    assert Output(video=None).extension == "m4a"
    assert Output(video=None, container="mkv").extension == "mkv"
    assert Output().extension == "mp4"


rates = st.one_of(
    st.builds(Bitrate, bitrate=st.integers(10_000, 10**9), maxrate=st.none()),
    st.builds(ConstantBitrate, bitrate=st.integers(10_000, 10**9)),
    st.builds(Quality, quality=st.integers(1, 51)),
)


@given(
    rate=rates,
    width=st.none() | st.integers(16, 16384),
    gop=st.floats(0.1, 600),
    priority=st.integers(0, 9),
    streams=st.sampled_from(["all", "first"]) | st.lists(st.integers(0, 255), min_size=1),
    metadata=st.dictionaries(st.text(max_size=64), st.text(max_size=1024), max_size=3),
)
def test_a_spec_comes_back_from_json_unchanged(
    rate: Bitrate, width: int | None, gop: float, priority: int, streams: object, metadata: dict[str, str]
) -> None:
    video = {"rate": rate.model_dump(), "width": width, "gop": gop}
    made = spec({"video": video, "audio": {"streams": streams}}, priority=priority, metadata=metadata)
    assert read(json.loads(made.model_dump_json(by_alias=True))) == made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(JobSpec.model_fields)), json_values))
def test_any_json_is_a_spec_or_a_spec_error(data: dict[str, Any]) -> None:
    with suppress(SpecError):
        read({**PATHS, **data})


def test_a_spec_made_in_python_is_refused_with_the_same_error() -> None:
    with pytest.raises(SpecError, match="source: a path is absolute"):
        JobSpec(source="film.mov", target="/out/film.mp4")
