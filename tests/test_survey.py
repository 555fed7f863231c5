"""Look at the machine: only what a trial proved is counted on, and a trial is made once for the same ffmpeg."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import gpu
from tests.local import program
from transcoder import recall
from transcoder.errors import FfmpegMissing
from transcoder.faults import FaultClass
from transcoder.machine import SOFTWARE, Ability, Device, Entry, Machine
from transcoder.policy import Policy
from transcoder.proof import FRAME, Verdict, unlike
from transcoder.survey import cpus, lasting, survey, survey_devices, survey_software, try_again

pytestmark = pytest.mark.slow

X264 = frozenset(Ability(SOFTWARE, "h264", depth, "libx264") for depth in (8, 10))


def stub(
    folder: Path, *, version: str = "6.1.1-3ubuntu5", encoders: str = "V....D libx264", trial: str = 'exec ffmpeg "$@"'
) -> str:
    """An ffmpeg that says what it is told to and writes a line into `started` with every start."""
    return program(
        folder,
        "ffmpeg",
        f'echo "$*" >> {shlex.quote(str(folder / "started"))}\n'
        f'case "$*" in\n'
        f"-version) echo 'ffmpeg version {version} Copyright (c) 2000-2024 the FFmpeg developers';;\n"
        f"*-encoders) echo 'Encoders:'; echo ' V..... = Video'; echo ' ------'; echo ' {encoders}  Some words';;\n"
        f"*-filters) echo 'Filters:'; echo ' T.. = Timeline'; echo ' ..C scale            V->V       Some words';;\n"
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
    assert {able.codec for able in machine.abilities if able.does == "encode"} == {"h264", "av1", "vp9"}


def test_a_depth_that_fails_its_trial_is_not_counted_on(tmp_path: Path) -> None:
    narrow = stub(tmp_path, trial='case "$*" in *yuv420p10*) exit 1;; *) exec ffmpeg "$@";; esac')
    assert survey(Policy(("/",), ffmpeg=narrow)).abilities == {Ability(SOFTWARE, "h264", 8, "libx264")}


@pytest.mark.parametrize("trial", ["exit 1", "kill -SEGV $$", "kill -KILL $$"], ids=["error", "crash", "kill"])
def test_encoders_that_all_fail_leave_nothing_to_count_on(tmp_path: Path, trial: str) -> None:
    machine = survey(Policy(("/",), ffmpeg=stub(tmp_path, trial=trial)))
    assert machine.abilities == frozenset()
    assert "libx264" in machine.build.encoders


def test_an_encoder_that_is_not_compiled_in_is_not_tried(tmp_path: Path) -> None:
    machine = survey(Policy(("/",), ffmpeg=stub(tmp_path)))
    assert machine.abilities == X264
    assert len(starts(tmp_path)) == 6, "version, encoders, filters, a trial of each depth, a look at what they made"


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


BUILD = {"version": "9.9", "numbers": [9, 9], "encoders": [], "filters": []}
BROKEN = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "half of it": b'{"build": {"version": "9.9"',
    "a list": b"[]",
    "null": b"null",
    "without a build": b'{"verdicts": []}',
    "without verdicts": json.dumps({"build": BUILD}).encode(),
    "a build that is a number": b'{"build": 9, "verdicts": []}',
    "a verdict that is a number": json.dumps({"build": BUILD, "verdicts": [9]}).encode(),
    "a verdict with other fields": json.dumps({"build": BUILD, "verdicts": [{"speed": 9}]}).encode(),
    "encoders that are one text": json.dumps({"build": {**BUILD, "encoders": "libx264"}, "verdicts": []}).encode(),
    "numbers that are texts": json.dumps({"build": {**BUILD, "numbers": ["9", "9"]}, "verdicts": []}).encode(),
    "deeper than anyone reads": b"[" * 100_000,
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


# Devices

SMALL: dict[str, object] = {"encode": "h264", "decode": "none", "rc": "CQP", "vpp": False}


@pytest.fixture(scope="session")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows what software can do here, so that only devices are tried."""
    folder = tmp_path_factory.mktemp("surveyed")
    survey_software(Policy(("/",)), str(folder))
    return folder


class Lab:
    """A machine with GPUs in software, and a cache of its own."""

    def __init__(self, gpus: gpu.Machine, surveyed: Path, folder: Path) -> None:
        self.gpus, self.cache, self.sysfs = gpus, folder / "cache", folder / "sys"
        shutil.copytree(surveyed, self.cache)
        self.policy = Policy(("/",), dri=str(gpus.nodes), sysfs=str(self.sysfs), trial_limit=10)

    def add(self, name: str = "renderD128", **config: object) -> gpu.Gpu:
        """A device that is not Intel's, so that VAAPI alone is tried."""
        (self.sysfs / "class/drm" / name / "device").mkdir(parents=True, exist_ok=True)
        (self.sysfs / "class/drm" / name / "device/vendor").write_text("0x1002")
        return self.gpus.add(name, {**SMALL, **{key.replace("__", "."): value for key, value in config.items()}})

    def survey(self, *, fresh: bool = False, **changed: float) -> Machine:
        return survey(replace(self.policy, **changed), str(self.cache), fresh=fresh)  # type: ignore[arg-type]

    def remembered(self) -> list[Path]:
        """The files about devices."""
        return [path for path in self.cache.iterdir() if b'"va_driver"' in path.read_bytes()]


@pytest.fixture
def lab(gpus: gpu.Machine, surveyed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name, value in gpus.environment.items():
        monkeypatch.setenv(name, value)
    return Lab(gpus, surveyed, tmp_path)


def on(machine: Machine, device: str = "renderD128") -> set[tuple[str, str, int, str | None, bool]]:
    return {
        (able.does, able.codec, able.depth, able.mode, able.low_power)
        for able in machine.abilities
        if able.device == device
    }


def reasons(machine: Machine) -> set[str]:
    return {one.why for one in machine.refusals}


def settled() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_what_works_on_a_device_is_proven_in_every_mode_that_it_lists(lab: Lab) -> None:
    lab.add(decode="h264 hevc", encode="h264 hevc", rc="CQP VBR", vpp=True)
    machine = lab.survey()
    coded = {("h264", 8), ("hevc", 8), ("hevc", 10)}
    assert on(machine) == {
        *(("decode", *one, None, False) for one in coded),
        *(("filter", work, depth, None, False) for work in ("scale", "deinterlace") for depth in (8, 10)),
        *(("encode", *one, mode, False) for one in coded for mode in ("CQP", "VBR")),
    }
    assert machine.refusals == ()
    (device,) = machine.devices
    assert (device.va_driver, device.trouble) == ("Simulated GPU driver", None)


def test_modes_and_entrypoints_that_the_driver_does_not_list_are_not_tried(lab: Lab) -> None:
    lab.add(entrypoint="lp")
    machine = lab.survey()
    assert on(machine) == {("encode", "h264", 8, "CQP", True)}
    assert machine.refusals == ()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("green", "its pictures are empty"),
        ("truncate", "its pictures are "),
        ("drop", "read"),
        ("segfault", "ffmpeg died of signal 11"),
        ("status 24", "Failed to end picture encode issue: 24 (internal encoding error)."),
    ],
)
def test_an_encoder_that_fails_or_lies_is_refused_in_plain_words(lab: Lab, fault: str, why: str) -> None:
    lab.add(fault__encode=fault)
    machine = lab.survey()
    assert on(machine) == set()
    (refusal,) = machine.refusals
    assert refusal.ability == Ability("vaapi", "h264", 8, "h264_vaapi", "renderD128", "encode", "CQP")
    assert why in refusal.why or "pictures, and said success" in refusal.why


@pytest.mark.parametrize(
    ("config", "does"),
    [({"decode": "h264", "fault__decode": "green"}, "decode"), ({"vpp": True, "fault__process": "green"}, "filter")],
    ids=["decoder", "filter"],
)
def test_a_decoder_or_filter_that_gives_green_pictures_is_refused(
    lab: Lab, config: dict[str, object], does: str
) -> None:
    lab.add("renderD128", **config)
    machine = lab.survey()
    assert {one[0] for one in on(machine)} == {"encode"}
    assert {one.ability.does for one in machine.refusals} == {does}
    assert reasons(machine) == {"its pictures are empty: one colour, nothing in them"}


def test_an_encoder_that_hangs_is_killed_once_and_leaves_nothing(lab: Lab) -> None:
    lab.add(fault__encode="hang", rc="CQP CBR VBR")
    open_before, began = settled(), time.monotonic()
    machine = lab.survey(trial_limit=3)
    assert on(machine) == set()
    assert "it hung, and was killed after 3 s" in reasons(machine)
    assert time.monotonic() - began < 11, "the modes of an encoder that hung are not waited for one by one"
    assert settled() == open_before
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if str(lab.gpus.nodes).encode() in line]


def test_a_device_that_takes_one_session_at_a_time_is_proven_all_the_same(lab: Lab) -> None:
    lab.add(max_sessions=1, rc="CQP CBR VBR ICQ")
    assert {mode for *_, mode, _ in on(lab.survey())} == {"CQP", "CBR", "VBR", "ICQ"}


def test_of_two_devices_the_broken_one_is_left_out(lab: Lab) -> None:
    lab.add("renderD128", broken=True)
    lab.add("renderD129")
    machine = lab.survey()
    broken, good = machine.devices
    assert "its VA driver does not start" in str(broken.trouble)
    assert good.trouble is None
    assert (on(machine, "renderD128"), len(on(machine, "renderD129"))) == (set(), 1)
    lab.add("renderD128")
    assert len(on(lab.survey(), "renderD128")) == 1, "a driver that did not start is asked again"


def test_software_comes_first_and_devices_are_added_to_it(lab: Lab) -> None:
    lab.add(decode="h264")
    first = survey_software(lab.policy, str(lab.cache), threads=3)
    assert first.devices == ()
    assert {able.device for able in first.abilities} == {None}
    whole = survey_devices(first, lab.policy, str(lab.cache))
    assert whole == survey(lab.policy, str(lab.cache), threads=3)
    assert on(whole) == {("encode", "h264", 8, "CQP", False), ("decode", "h264", 8, None, False)}


# What is remembered of devices


def test_a_device_is_remembered_and_no_process_is_started(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.add()
    first = lab.survey()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert lab.survey() == first
    assert len(lab.remembered()) == 1


def test_fresh_does_not_believe_what_is_remembered_and_remembers_anew(lab: Lab) -> None:
    lab.add()
    lab.survey()
    lab.add(fault__config__encode="status 18")
    assert on(lab.survey()), "nothing that is known of has changed"
    assert on(lab.survey(fresh=True)) == set()
    assert on(lab.survey()) == set(), "a driver that refuses will refuse again"


@pytest.mark.parametrize("fault", ["green", "segfault", "status 24"])
def test_what_may_pass_is_tried_again_with_the_next_survey(lab: Lab, fault: str) -> None:
    lab.add(fault__encode=fault)
    assert on(lab.survey()) == set()
    lab.add()
    assert len(on(lab.survey())) == 1


def test_an_api_that_cannot_start_on_a_device_that_works_is_remembered_as_such() -> None:
    """The runtimes' files are part of the key: an Intel GPU without QSV's is not tried anew with every start."""
    works, fails = Verdict(able("vaapi", "CQP")), Verdict(able("qsv", "CQP"), FaultClass.CONFIG, "no session")
    assert lasting((works, fails)) == (works, fails)
    assert lasting((fails,)) == (), "nothing works: the device itself may be at fault"
    other = Verdict(able("vaapi", "VBR"), FaultClass.CONFIG, "no display")
    assert lasting((works, other)) == (works,), "it worked for a neighbour"


def test_refusals_of_what_finds_its_devices_by_itself_are_not_remembered() -> None:
    absent = Verdict(Ability("nvenc", "h264", 8, "h264_nvenc"), FaultClass.CAPABILITY, "no CUDA")
    assert lasting((absent,)) == ()


def able(api: str, mode: str) -> Ability:
    return Ability(api, "h264", 8, f"h264_{api}", "0000:00:02.0", "encode", mode)


def test_another_driver_file_is_another_survey(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.add()
    lab.survey()
    drivers = tmp_path / "drivers-of-today"
    shutil.copytree(os.environ["LIBVA_DRIVERS_PATH"], drivers)
    monkeypatch.setenv("LIBVA_DRIVERS_PATH", str(drivers))
    lab.survey()
    assert len(lab.remembered()) == 2
    for driver in drivers.glob("*_drv_video.so"):
        os.utime(driver, (1, 1))
    lab.survey()
    assert len(lab.remembered()) == 3


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"node": "/dev/dri/renderD200"}, False),
        ({"driver": "xe"}, True),
        ({"id": "0000:03:00.0"}, True),
        ({"vendor": "0x1002"}, True),
    ],
    ids=str,
)
def test_a_device_is_the_same_under_another_number_and_not_with_another_driver(
    change: dict[str, str], again: bool
) -> None:
    device = Device("0000:00:02.0", "/dev/dri/renderD128", "0x8086", "i915")
    changed = replace(device, **change)  # type: ignore[arg-type]
    assert (recall.of_device(changed, {}) != recall.of_device(device, {})) is again


@pytest.mark.parametrize("name", ["LIBVA_DRIVER_NAME", "ONEVPL_SEARCH_PATH", "AMD_DEBUG", "MESA_LOADER"])
def test_variables_that_choose_a_driver_are_part_of_what_is_known(name: str) -> None:
    device = Device("0000:00:02.0", "/dev/dri/renderD128")
    assert recall.of_device(device, {name: "x"}) != recall.of_device(device, {name: "y"})
    assert recall.of_device(device, {"HOME": "x"}) == recall.of_device(device, {"HOME": "y"})


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_about_a_device_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert recall.read(str(tmp_path / "file"), recall.OfDevice) is None


names = st.text(st.characters(codec="utf-8"), max_size=8)
abilities = st.builds(
    Ability,
    api=names,
    codec=names,
    depth=st.integers(8, 12),
    encoder=names,
    device=st.none() | names,
    does=st.sampled_from(("encode", "decode", "filter")),
    mode=st.none() | names,
    low_power=st.booleans(),
)
verdicts = st.builds(Verdict, abilities, st.none() | st.sampled_from(FaultClass), names)
listed = st.builds(Entry, names, names, st.frozensets(names, max_size=3), st.integers(0, 99), st.integers(0, 99))
held = st.builds(
    recall.OfDevice, st.none() | names, st.none() | st.lists(listed).map(tuple), st.lists(verdicts).map(tuple)
)
BOUNDED = hypothesis.settings(max_examples=60, deadline=None)


@BOUNDED
@given(held)
def test_what_is_remembered_is_what_was_found(value: recall.OfDevice) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recall.write(f"{folder}/below/file", value)
        assert recall.read(f"{folder}/below/file", recall.OfDevice) == value
        assert os.listdir(f"{folder}/below") == ["file"]


@BOUNDED
@given(held, st.data())
def test_a_file_with_a_damaged_byte_is_whole_or_nothing(value: recall.OfDevice, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recall.write(f"{folder}/file", value)
        content = bytearray(Path(f"{folder}/file").read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        Path(f"{folder}/file").write_bytes(content)
        found = recall.read(f"{folder}/file", recall.OfDevice)
        assert found is None or all(isinstance(one.ability, Ability) for one in found.verdicts)


# Trying again


def test_a_device_that_is_well_again_has_nothing_against_it(lab: Lab) -> None:
    lab.add(rc="CQP CBR", encode="h264 hevc")
    machine = lab.survey()
    assert try_again(machine, lab.policy, "renderD128") == ()


def test_a_device_that_has_failed_since_says_for_which_codec(lab: Lab) -> None:
    lab.add(rc="CQP CBR", encode="h264 hevc")
    machine = lab.survey()
    lab.add(rc="CQP CBR", encode="h264 hevc", fault__encode="status 24")
    both = try_again(machine, lab.policy, "renderD128")
    assert [one.ability.codec for one in both] == ["h264", "hevc"]
    assert [one.ability.codec for one in try_again(machine, lab.policy, "renderD128", "hevc")] == ["hevc"]
    assert try_again(machine, lab.policy, "renderD128", "av1") == (), "it never encoded that"


def test_a_device_that_hangs_or_is_gone_is_told(lab: Lab) -> None:
    device = lab.add()
    machine = lab.survey()
    lab.add(fault__encode="hang")
    (hung,) = try_again(machine, replace(lab.policy, trial_limit=1), "renderD128")
    assert "it hung" in hung.why
    device.node.unlink()
    (unmapped,) = try_again(machine, lab.policy, "renderD128")
    assert "not mapped" in unmapped.why
    shutil.rmtree(lab.sysfs)
    (gone,) = try_again(machine, lab.policy, "renderD128")
    assert gone.why == "the device is gone"


# What counts as the picture


def thumbnails(colour: bytes = b"", number: int = 3) -> bytes:
    """Pictures with something in them; or all of one colour."""
    lively = bytes((31 * place * (1 + place % 3)) % 256 for place in range(FRAME))
    return (colour * (FRAME // 3) if colour else lively) * number


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (b"", "it made 0 of 3 pictures"),
        (thumbnails(number=2), "it made 2 of 3 pictures"),
        (thumbnails(b"\x00\x87\x00"), "one colour"),
        (thumbnails(b"\x00\x00\x00"), "one colour"),
        (thumbnails(number=2) + thumbnails(b"\x00\x87\x00", 1), "one colour"),
        (bytes(255 - value for value in thumbnails()), "not those that it was given"),
        (bytes(min(255, value + 9) for value in thumbnails()), "not those that it was given"),
        (thumbnails()[1:] + b"\x00", "not those that it was given"),
    ],
    ids=["empty", "short", "green", "black", "green at the end", "negative", "brighter", "wrong colours"],
)
def test_pictures_that_are_wrong_are_told(made: bytes, why: str) -> None:
    assert why in str(unlike(made, thumbnails()))


@pytest.mark.parametrize("made", [thumbnails(), thumbnails(number=4), bytes(max(0, v - 2) for v in thumbnails())])
def test_pictures_that_are_right_or_nearly_so_pass(made: bytes) -> None:
    assert unlike(made, thumbnails()) is None


def test_recoloured_pictures_need_only_light_and_shade() -> None:
    darker = bytes(value // 2 for value in thumbnails())
    assert unlike(darker, thumbnails())
    assert unlike(darker, thumbnails(), recoloured=True) is None
    negative = bytes(255 - value for value in thumbnails())
    assert "something else" in str(unlike(negative, thumbnails(), recoloured=True))
    assert "one colour" in str(unlike(thumbnails(b"\x20\x40\x60"), thumbnails(), recoloured=True))


def test_nothing_is_proven_where_the_trials_picture_itself_cannot_be_made() -> None:
    assert "cannot make the picture" in str(unlike(thumbnails(), b""))
