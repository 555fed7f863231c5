"""Plans: which outputs are made of a source, by which commands, and what is refused with which reason."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import GPU, MACHINE, SOURCE, SRT, STEREO, VIDEO, planned, source, with_gpu
from transcoder import backends
from transcoder.command import Command, Route, Work
from transcoder.errors import FfmpegMissing, InputRefused, InputUnreadable, NoRoute, SpecError
from transcoder.faults import FaultClass, Stage
from transcoder.machine import Build, Machine, Trial
from transcoder.plan import following

LADDER = tuple({"name": f"{height}p", "video": {"height": height, "upscale": "skip"}} for height in (2160, 1080, 480))


def test_rungs_above_the_source_are_left_out_and_said() -> None:
    made = planned(SOURCE, *LADDER)
    assert [rung.output.name for rung in made.rungs] == ["1080p", "480p"]
    assert made.left_out == ("2160p: larger than the source",)
    assert made.targets == ("/out/1080p.mp4", "/out/480p.mp4")


def test_a_source_below_every_rung_becomes_the_smallest_at_its_own_size() -> None:
    tiny = replace(VIDEO, width=320, height=180)
    made = planned(source(tiny), *LADDER)
    picture = made.rungs[0].picture
    assert [rung.output.name for rung in made.rungs] == ["480p"]
    assert picture
    assert (picture.width, picture.height) == (320, 180)


def test_a_target_is_named_after_the_height_that_comes_out() -> None:
    made = planned(SOURCE, {"video": {"width": 640}}, target="/out/{stem}-{height}.{ext}")
    assert made.targets == ("/out/clip-360.mp4",)


def test_two_outputs_with_one_name_are_refused() -> None:
    with pytest.raises(SpecError, match=r"would both be /out/1080\.mp4"):
        planned(SOURCE, {"name": "a"}, {"name": "b"}, target="/out/{height}.{ext}")


@pytest.mark.parametrize(
    ("media", "output", "refusal", "words"),
    [
        pytest.param(replace(SOURCE, video=()), {}, InputUnreadable, "no video stream", id="no video"),
        pytest.param(replace(SOURCE, video=(), pictures=1), {}, InputUnreadable, "only a cover picture", id="cover"),
        pytest.param(replace(SOURCE, audio=()), {"video": None}, InputUnreadable, "has no audio", id="no audio"),
        pytest.param(
            source(replace(VIDEO, dolby_vision_profile=5)),
            {},
            InputRefused,
            "Dolby Vision profile 5",
            id="Dolby Vision",
        ),
        pytest.param(
            source(replace(VIDEO, codec="prores")),
            {"video": {"codec": "copy"}},
            InputRefused,
            r"mp4 cannot hold the video of .* \(prores\)",
            id="copy into a container that cannot",
        ),
        pytest.param(SOURCE, {"audio": {"streams": [1]}}, InputUnreadable, "has 1 audio streams", id="no such stream"),
    ],
)
def test_a_source_that_cannot_give_what_is_asked_is_refused(
    media: Any, output: dict[str, Any], refusal: type[Exception], words: str
) -> None:
    with pytest.raises(refusal, match=words):
        planned(media, output)


def test_a_source_without_sound_gives_an_output_without_sound() -> None:
    assert planned(replace(SOURCE, audio=())).rungs[0].sounds == ()


def test_what_cannot_come_along_is_said() -> None:
    pictures = replace(SRT, codec="hdmv_pgs_subtitle")
    made = planned(replace(SOURCE, subtitles=(pictures,), pictures=1))
    assert any("subtitle stream 3 (hdmv_pgs_subtitle)" in line for line in made.left_out)
    assert any("cover picture" in line for line in made.left_out)


def test_required_acceleration_that_no_backend_offers_fails_with_the_reason() -> None:
    with pytest.raises(
        NoRoute, match="required for h264 and cannot be had: there is no device '/dev/dri/renderD128' here"
    ):
        planned(SOURCE, acceleration={"policy": "require", "device": "/dev/dri/renderD128"})


def test_required_acceleration_does_not_hinder_a_copy() -> None:
    made = planned(SOURCE, {"video": {"codec": "copy"}}, acceleration={"policy": "require"})
    assert [command.route.api for command in made.commands] == ["software"]


def test_an_ffmpeg_without_the_encoder_is_named() -> None:
    bare = Machine(Build("6.0", (6, 0), frozenset()), frozenset(), 2)
    with pytest.raises(FfmpegMissing, match=r"ffmpeg 6\.0 has no working encoder for h264"):
        planned(SOURCE, machine=bare)


def accelerator(api: str, *devices: str, rank: int = 10) -> Any:
    """A backend as one file would offer it: its commands are those of software under another route."""

    def commands(work: Work, machine: Machine) -> tuple[Command, ...]:
        (command,) = next(one for one in ALL if one.API == "software").commands(work, machine)
        return tuple(replace(command, route=Route(api, api, device), reason="proven") for device in devices)

    def trials(build: Build) -> tuple[Trial, ...]:
        return ()

    return SimpleNamespace(API=api, RANK=rank, trials=trials, commands=commands)


ALL = backends.every()


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more backends, since this version ships none: what a later file in backends/ adds."""
    added = (accelerator("qsv", "/dev/dri/renderD128", rank=10), accelerator("vaapi", "/dev/dri/renderD129", rank=20))
    monkeypatch.setattr(backends, "every", lambda: (*added, *ALL))


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize(
    ("asked", "routes"),
    [
        pytest.param({}, ["qsv", "vaapi", "software"], id="prefer: hardware first, software last"),
        pytest.param({"policy": "require"}, ["qsv", "vaapi"], id="require: no software"),
        pytest.param({"policy": "never"}, ["software"], id="never: software alone"),
        pytest.param({"apis": ["vaapi", "qsv"]}, ["vaapi", "qsv", "software"], id="in the order asked"),
        pytest.param({"apis": ["vaapi"]}, ["vaapi", "software"], id="one API"),
        pytest.param({"device": "/dev/dri/renderD129"}, ["vaapi", "software"], id="one device"),
    ],
)
def test_routes_are_tried_in_the_order_that_is_asked(asked: dict[str, Any], routes: list[str]) -> None:
    assert [command.route.api for command in planned(SOURCE, acceleration=asked).commands] == routes


def test_every_command_says_why_it_is_there() -> None:
    assert all(command.reason for command in planned(SOURCE).commands)
    copied = planned(SOURCE, {"video": {"codec": "copy"}, "audio": {"codec": "copy"}})
    assert "copied" in copied.commands[0].reason


def test_every_output_of_a_ladder_is_made_by_every_command() -> None:
    made = planned(replace(SOURCE, audio=(STEREO,)), *LADDER, machine=MACHINE)
    assert all(len(command.branches) == len(made.rungs) for command in made.commands)


def test_an_api_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match="there is no API 'vappi'") as caught:
        planned(SOURCE, acceleration={"apis": ["vaapi", "vappi"]})
    assert caught.value.next_step == "There are vaapi, qsv."


@pytest.mark.parametrize("name", [GPU.id, GPU.node])
def test_a_device_is_asked_for_by_address_or_node(name: str) -> None:
    made = planned(SOURCE, machine=with_gpu("vaapi"), acceleration={"policy": "require", "device": name}).commands
    assert {one.route.device for one in made} == {GPU.id}
    with pytest.raises(NoRoute, match="/dev/dri/renderD129"):
        planned(
            SOURCE,
            machine=with_gpu("vaapi"),
            acceleration={"policy": "require", "device": "/dev/dri/renderD129"},
        )


# After a fault

GPU_ROUTES = planned(SOURCE, machine=with_gpu("vaapi")).commands
WHOLE, ENCODE, CPU = GPU_ROUTES


@pytest.mark.parametrize(
    ("kind", "stage", "again", "then"),
    [
        (FaultClass.CONFIG, None, 1, CPU),
        (FaultClass.CONFIG, "device", 1, CPU),
        (FaultClass.CAPABILITY, None, 1, ENCODE),
        (FaultClass.CAPABILITY, "decode", 1, ENCODE),
        (FaultClass.CAPABILITY, "filter", 1, ENCODE),
        (FaultClass.CAPABILITY, "encode", 1, CPU),
        (FaultClass.HARDWARE, None, 1, CPU),
        (FaultClass.HARDWARE, "decode", 1, ENCODE),
        (FaultClass.HARDWARE, "filter", 1, ENCODE),
        (FaultClass.HARDWARE, "encode", 1, CPU),
        (FaultClass.STALLED, None, 1, CPU),
        (FaultClass.CRASHED, None, 1, CPU),
        (FaultClass.MISMATCH, None, 1, CPU),
        (FaultClass.INPUT, None, 1, CPU),
        (FaultClass.TRANSIENT, None, 1, WHOLE),
        (FaultClass.TRANSIENT, None, 2, CPU),
        (FaultClass.OUTPUT, None, 1, None),
    ],
)
def test_after_a_fault_comes_the_first_command_that_spares_what_failed(
    kind: FaultClass, stage: Stage | None, again: int, then: Command | None
) -> None:
    assert following(GPU_ROUTES, WHOLE, kind, stage, again) is then


@pytest.mark.parametrize("kind", FaultClass)
def test_after_software_nothing_is_tried(kind: FaultClass) -> None:
    after = following(GPU_ROUTES, CPU, kind, None, 1)
    assert after is None or kind is FaultClass.UNKNOWN or (after is CPU and kind is FaultClass.TRANSIENT)


@given(st.sampled_from(FaultClass), st.sampled_from([None, "device", "decode", "filter", "encode"]))
def test_faults_lead_to_an_end(kind: FaultClass, stage: Stage | None) -> None:
    command: Command | None = WHOLE
    tries = 0
    seen: list[Command] = []
    while command:
        seen.append(command)
        command = following(GPU_ROUTES, command, kind, stage, seen.count(command))
        tries += 1
        assert tries < 10


def test_decoding_can_be_kept_off_the_devices() -> None:
    made = planned(SOURCE, machine=with_gpu("vaapi").decoding_in_software()).commands
    assert [one.route.decode for one in made] == ["software"] * 3
    assert made[0].route.name == "vaapi-upload"
