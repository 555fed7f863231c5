"""Look at the machine: only what a trial proved is counted on, and a trial is made once for the same ffmpeg."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from tests.local import program
from transcoder.errors import FfmpegMissing
from transcoder.machine import SOFTWARE, Ability
from transcoder.policy import Policy
from transcoder.survey import cpus, survey

pytestmark = pytest.mark.slow

X264 = frozenset(Ability(SOFTWARE, "h264", depth, "libx264") for depth in (8, 10))


def stub(
    folder: Path, *, version: str = "6.1.1-3ubuntu5", encoders: str = "V....D libx264", trial: str = "exit 0"
) -> str:
    """An ffmpeg that says what it is told to and writes a line into `started` with every start."""
    return program(
        folder,
        "ffmpeg",
        f'echo "$*" >> {shlex.quote(str(folder / "started"))}\n'
        f'case "$*" in\n'
        f"-version) echo 'ffmpeg version {version} Copyright (c) 2000-2024 the FFmpeg developers';;\n"
        f"*-encoders) echo 'Encoders:'; echo ' V..... = Video'; echo ' ------'; echo ' {encoders}  Some words';;\n"
        f"*) {trial};;\n"
        f"esac",
    )


def starts(folder: Path) -> list[str]:
    return (folder / "started").read_text().splitlines()


# What is there


def test_what_is_installed_here_is_found() -> None:
    machine = survey(Policy(("/",)))
    assert machine.build.numbers >= (5, 1)
    assert machine.build.version.lstrip("n").startswith(f"{machine.build.numbers[0]}.{machine.build.numbers[1]}")
    assert {"libx264", "libx265", "libsvtav1", "libvpx-vp9", "aac"} <= machine.build.encoders
    for codec, encoder in {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}.items():
        for depth in (8, 10):
            assert machine.can(SOFTWARE, codec, depth) == Ability(SOFTWARE, codec, depth, encoder)
    assert machine.threads == cpus()


def test_an_encoder_that_fails_its_trial_is_not_counted_on(tmp_path: Path) -> None:
    wrapper = program(tmp_path, "ffmpeg", 'case "$*" in *libx265*) exit 1;; esac; exec ffmpeg "$@"')
    machine = survey(Policy(("/",), ffmpeg=wrapper))
    assert "libx265" in machine.build.encoders
    assert machine.can(SOFTWARE, "hevc", 8) is machine.can(SOFTWARE, "hevc", 10) is None
    assert {able.codec for able in machine.abilities} == {"h264", "av1", "vp9"}


def test_a_depth_that_fails_its_trial_is_not_counted_on(tmp_path: Path) -> None:
    narrow = stub(tmp_path, trial='case "$*" in *yuv420p10*) exit 1;; *) exit 0;; esac')
    assert survey(Policy(("/",), ffmpeg=narrow)).abilities == {Ability(SOFTWARE, "h264", 8, "libx264")}


@pytest.mark.parametrize("trial", ["exit 1", "kill -SEGV $$", "kill -KILL $$"], ids=["error", "crash", "kill"])
def test_encoders_that_all_fail_leave_nothing_to_count_on(tmp_path: Path, trial: str) -> None:
    machine = survey(Policy(("/",), ffmpeg=stub(tmp_path, trial=trial)))
    assert machine.abilities == frozenset()
    assert "libx264" in machine.build.encoders


def test_an_encoder_that_is_not_compiled_in_is_not_tried(tmp_path: Path) -> None:
    machine = survey(Policy(("/",), ffmpeg=stub(tmp_path)))
    assert machine.abilities == X264
    assert len(starts(tmp_path)) == 4, "version, encoders, and a trial of each depth"


VERSIONS = {
    "Debian's": ("5.1.6-0+deb12u1", (5, 1)),
    "a release": ("7.1", (7, 1)),
    "a tag": ("n6.0", (6, 0)),
    "two digits": ("10.0.2", (10, 0)),
    "a development build": ("N-117888-g0d4a9ce6b0", ()),
    "a build from git": ("git-2024-05-01-abcdef1", ()),
}


@pytest.mark.parametrize(("version", "numbers"), VERSIONS.values(), ids=VERSIONS)
def test_a_version_is_read_however_it_is_written(tmp_path: Path, version: str, numbers: tuple[int, ...]) -> None:
    build = survey(Policy(("/",), ffmpeg=stub(tmp_path, version=version))).build
    assert (build.version, build.numbers) == (version, numbers)


@pytest.mark.parametrize("version", ["4.4.2-0ubuntu0.22.04.1", "n4.3", "5.0.1"])
def test_an_ffmpeg_that_is_too_old_names_the_setting(tmp_path: Path, version: str) -> None:
    old = stub(tmp_path, version=version)
    with pytest.raises(FfmpegMissing, match=r"5\.1 or newer is needed") as caught:
        survey(Policy(("/",), ffmpeg=old))
    assert old in caught.value.what
    assert version in caught.value.what
    assert "TRANSCODER_FFMPEG" in caught.value.next_step
    assert starts(tmp_path) == ["-version"]


@pytest.mark.parametrize("says", ["true", "echo avconv version 12", "echo not ffmpeg version 7.1", "cat /bin/sh"])
def test_another_program_is_not_taken_for_ffmpeg(tmp_path: Path, says: str) -> None:
    other = program(tmp_path, "ffmpeg", says)
    with pytest.raises(FfmpegMissing, match="is not ffmpeg") as caught:
        survey(Policy(("/",), ffmpeg=other))
    assert other in caught.value.what
    assert len(caught.value.what) < 1000
    assert "TRANSCODER_FFMPEG" in caught.value.next_step


@pytest.mark.parametrize(
    ("programs", "setting"),
    [({"ffmpeg": "/nowhere/it"}, "TRANSCODER_FFMPEG"), ({"ffprobe": "/nowhere/it"}, "TRANSCODER_FFPROBE")],
    ids=["ffmpeg", "ffprobe"],
)
def test_a_program_that_is_missing_names_its_setting(programs: dict[str, str], setting: str) -> None:
    with pytest.raises(FfmpegMissing, match="/nowhere/it is not to be found") as caught:
        survey(Policy(("/",), **programs))  # type: ignore[arg-type]
    assert caught.value.next_step.endswith(f"set {setting}.")


# It is remembered


def test_the_second_time_no_process_is_started(tmp_path: Path) -> None:
    policy, cache = Policy(("/",), ffmpeg=stub(tmp_path)), str(tmp_path / "cache" / "below")
    first = survey(policy, cache)
    before = starts(tmp_path)
    assert survey(policy, cache) == first
    assert starts(tmp_path) == before
    assert len(list(Path(cache).iterdir())) == 1, "no draft is left"


def test_without_a_cache_folder_nothing_is_remembered(tmp_path: Path) -> None:
    policy = Policy(("/",), ffmpeg=stub(tmp_path))
    survey(policy)
    before = len(starts(tmp_path))
    survey(policy)
    assert len(starts(tmp_path)) == 2 * before


def test_another_ffmpeg_at_the_same_place_is_surveyed_anew(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert survey(Policy(("/",), ffmpeg=stub(tmp_path)), cache).build.version == "6.1.1-3ubuntu5"
    assert survey(Policy(("/",), ffmpeg=stub(tmp_path, version="7.1")), cache).build.version == "7.1"


def test_a_link_is_remembered_by_what_it_leads_to(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = stub(tmp_path / "old", version="6.0"), stub(tmp_path / "new", version="7.0")
    link, cache = tmp_path / "ffmpeg", str(tmp_path / "cache")
    link.symlink_to(old)
    assert survey(Policy(("/",), ffmpeg=str(link)), cache).build.version == "6.0"
    link.unlink()
    link.symlink_to(new)
    assert survey(Policy(("/",), ffmpeg=str(link)), cache).build.version == "7.0"


def test_the_number_of_threads_is_not_what_is_remembered(tmp_path: Path) -> None:
    policy, cache = Policy(("/",), ffmpeg=stub(tmp_path)), str(tmp_path / "cache")
    assert survey(policy, cache, threads=7).threads == 7
    assert survey(policy, cache, threads=3).threads == 3
    assert survey(policy, cache).threads == cpus()


def test_what_is_no_ffmpeg_is_not_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FfmpegMissing):
        survey(Policy(("/",), ffmpeg=stub(tmp_path, version="4.4")), str(cache))
    assert not cache.exists()


BUILD = {"version": "9.9", "numbers": [9, 9], "encoders": []}
BROKEN = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "half of it": b'{"build": {"version": "9.9"',
    "a list": b"[]",
    "null": b"null",
    "without a build": b'{"abilities": []}',
    "without abilities": json.dumps({"build": BUILD}).encode(),
    "a build that is a number": b'{"build": 9, "abilities": []}',
    "an ability that is a number": json.dumps({"build": BUILD, "abilities": [9]}).encode(),
    "an ability with another field": json.dumps({"build": BUILD, "abilities": [{"speed": 9}]}).encode(),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_cache_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    policy, cache = Policy(("/",), ffmpeg=stub(tmp_path)), tmp_path / "cache"
    first = survey(policy, str(cache))
    (remembered,) = cache.iterdir()
    remembered.write_bytes(content)
    assert survey(policy, str(cache)) == first


# root may write anywhere, and nobody into a file
@pytest.mark.parametrize("folder", ["file", "file/below", "long" * 100], ids=["a file", "below a file", "too long"])
def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    machine = survey(Policy(("/",), ffmpeg=stub(tmp_path)), str(tmp_path / folder))
    assert machine.abilities == X264
    assert (tmp_path / "file").read_text() == "in the way"


# CPUs


def test_there_is_a_cpu_at_least_and_no_more_than_this_process_may_use() -> None:
    assert 1 <= cpus() <= len(os.sched_getaffinity(0))


def test_cpus_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
