"""Profiles: the shipped ones, and a folder of one's own."""

from pathlib import Path

import pytest

from transcoder.errors import SettingsError, SpecError
from transcoder.profiles import every, profile, text
from transcoder.spec import Bitrate

SHIPPED = (
    "audio-aac",
    "av1-1080p",
    "h264-1080p",
    "h264-720p",
    "hevc-1080p",
    "hevc-2160p-10bit",
    "ladder-h264",
    "remux",
)
OWN = "description: Small.\noutputs:\n- video: {height: 240}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(OWN)
    (tmp_path / "notes.txt").write_text("not a profile")
    return tmp_path


def test_the_shipped_profiles_are_these() -> None:
    assert tuple(one.name for one in every()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_makes_a_spec_that_bears_its_name(name: str) -> None:
    spec = profile(name).spec(source="/media/a.mov", target="/media/{stem}-{name}.{ext}", priority=9)
    assert (spec.profile, spec.priority) == (name, 9)


def test_the_ladder_leaves_out_what_is_above_the_source_and_aligns_its_key_frames() -> None:
    videos = [output.video for output in profile("ladder-h264").outputs if output.video]
    assert [video.height for video in videos] == [1080, 720, 480, 360]
    assert {(video.upscale, video.gop) for video in videos} == {("skip", 2.0)}
    for video in videos:
        assert isinstance(video.rate, Bitrate)
        assert 1.07 <= video.rate.ceiling / video.rate.bitrate <= 1.5


def test_the_audio_profile_makes_an_m4a() -> None:
    assert [output.extension for output in profile("audio-aac").outputs] == ["m4a"]


def test_a_folder_adds_profiles(folder: Path) -> None:
    assert profile("small", str(folder)).outputs[0].video
    assert {one.name for one in every(str(folder))} == {*SHIPPED, "small"}


def test_a_folder_replaces_a_shipped_profile(folder: Path) -> None:
    (folder / "remux.yml").write_text(OWN)
    assert profile("remux", str(folder)).description == "Small."
    assert len(every(str(folder))) == len(SHIPPED) + 1


def test_the_text_of_a_profile_is_its_file(folder: Path) -> None:
    assert text("small", str(folder)) == OWN


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        pytest.param("h264-1080", "h264-1080p", id="a letter short"),
        pytest.param("ladder", "ladder-h264", id="a part"),
        pytest.param("hvec-1080p", "hevc-1080p", id="letters swapped"),
    ],
)
def test_an_unknown_profile_is_refused_with_near_ones_and_all(asked: str, meant: str) -> None:
    with pytest.raises(SpecError, match=f"no profile '{asked}'") as refused:
        profile(asked)
    assert f"Did you mean {meant}" in refused.value.next_step
    for name in SHIPPED:
        assert name in refused.value.next_step


@pytest.mark.parametrize("name", ["../h264-1080p", "/etc/passwd", "", "x" * 5000])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(SpecError, match="no profile"):
        profile(name)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        pytest.param(
            "description: A\noutputs:\n- video: {heigth: 240}\n", "outputs.0.video.heigth: there is no", id="typo"
        ),
        pytest.param("description: A\noutputs: []\n", "outputs: ", id="no outputs"),
        pytest.param("outputs: [{}]\n", "description: Field required", id="no description"),
        pytest.param("outputs: [{}, {}]\ndescription: A\n", "every output has a name of its own", id="one name twice"),
        pytest.param("outputs: [\n", "line 2", id="not YAML"),
        pytest.param("- a\n", "a profile has", id="a list"),
        pytest.param(f"name: b\n{OWN}", "its file's name for a name", id="a name inside"),
        pytest.param("!!python/object/apply:os.system [true]", "could not determine a constructor", id="code"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_field(tmp_path: Path, written: str, why: str) -> None:
    (tmp_path / "own.yaml").write_text(written)
    with pytest.raises(SpecError) as refused:
        profile("own", str(tmp_path))
    assert str(tmp_path / "own.yaml") in refused.value.what
    assert why in refused.value.what


def test_a_folder_that_is_not_there_is_an_error_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file") as refused:
        every(str(tmp_path / "gone"))
    assert "TRANSCODER_PROFILES_FOLDER" in refused.value.next_step
