"""Exit code 0 proves nothing: a good output passes, a bad one is caught, and the fault says whose it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MakeClip
from tests.local import MACHINE, children, program
from tests.values import SOURCE
from transcoder import ffmpeg
from transcoder.command import Route
from transcoder.errors import JobCancelled
from transcoder.faults import Fault, FaultClass, Next, blames_device, stage, what_next
from transcoder.machine import SOFTWARE
from transcoder.plan import Plan, plan
from transcoder.policy import Policy
from transcoder.probe import probe
from transcoder.promise import Facts, Track
from transcoder.spec import read
from transcoder.usage import Usage
from transcoder.verify import SAMPLED_GROUPS, Verified, look, verify, windows

CPU = Route(SOFTWARE, SOFTWARE)
POLICY = Policy(("/",))


def never() -> bool:
    return False


# Which parts are decoded


def shown(keys: tuple[float, ...], end: float, start: float | None = None) -> Facts:
    first = start if start is not None else keys[0] if keys else 0.0
    return Facts(SOURCE, {0: Track(int(end * 25), first, end, keys)})


@given(
    gaps=st.lists(st.floats(0.04, 20), min_size=SAMPLED_GROUPS + 3, max_size=200),
    start=st.floats(0, 100),
    seed=st.text(),
)
def test_the_first_the_last_and_three_other_groups_are_decoded(gaps: list[float], start: float, seed: str) -> None:
    keys = tuple(start + sum(gaps[:number]) for number in range(len(gaps)))
    end = start + sum(gaps)
    chosen = windows(shown(keys, end), seed)
    assert len(chosen) == len(set(chosen)) == SAMPLED_GROUPS + 2
    groups = [(key - start, until - key) for key, until in zip(keys, (*keys[1:], end), strict=True)]
    assert set(chosen) <= set(groups)
    assert (chosen[0], chosen[-1]) == (groups[0], groups[-1])
    assert chosen == tuple(sorted(chosen))


@given(keys=st.lists(st.floats(0, 100), max_size=SAMPLED_GROUPS + 2, unique=True), seed=st.text())
def test_of_few_groups_all_are_decoded(keys: list[float], seed: str) -> None:
    assert windows(shown(tuple(sorted(keys)), 101.0, start=0.0), seed) == ((None, None),)


def test_what_has_no_picture_is_decoded_whole() -> None:
    assert windows(Facts(replace(SOURCE, video=()), {1: Track(469, 0.0, 10.0)}), "") == ((None, None),)
    assert windows(Facts(SOURCE, {}), "") == ((None, None),)


def test_the_same_seed_chooses_the_same_and_another_seed_others() -> None:
    facts = shown(tuple(map(float, range(200))), 200.0)
    assert windows(facts, "/in/a /out/a") == windows(facts, "/in/a /out/a")
    assert len({windows(facts, f"/in/{number} /out/a") for number in range(20)}) > 15


# Real files


@dataclass
class Run:
    """A job that ffmpeg has ended with exit code 0."""

    plan: Plan
    path: Path
    finished: ffmpeg.Finished

    def verified(self, path: Path | None = None, policy: Policy = POLICY) -> Verified:
        try:
            return verify(self.plan, CPU, [str(path or self.path)], self.finished, policy, never)
        finally:
            assert children() == []

    def refused(self, path: Path | None = None, policy: Policy = POLICY) -> Fault:
        with pytest.raises(Fault) as caught:
            self.verified(path, policy)
        return caught.value

    def asking(self, **spec: Any) -> Run:
        """The same run of a job that asks for something else as well."""
        return replace(self, plan=replace(self.plan, spec=self.plan.spec.model_copy(update=spec)))


def run(source: Path, path: Path, output: dict[str, Any] | None = None) -> Run:
    spec = read({"source": str(source), "target": str(path), "outputs": [output or GROUPS]})
    planned = plan(spec, probe(str(source), POLICY), MACHINE)
    *_, last = ffmpeg.run(planned.commands[-1].argv("ffmpeg", [str(path)]), POLICY, never)
    assert isinstance(last, ffmpeg.Finished)
    return Run(planned, path, last)


GROUPS: dict[str, Any] = {"video": {"speed": "fast", "gop": 1}}
"""A group of pictures a second."""


@pytest.fixture(scope="module")
def good(make_clip: MakeClip, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(make_clip("testsrc2=s=320x180:r=25:d=10"), tmp_path_factory.mktemp("good") / "made.mp4")


@pytest.fixture
def spoilt(good: Run, tmp_path: Path) -> Path:
    return Path(shutil.copy(good.path, tmp_path / "spoilt.mp4"))


def made(path: Path, *words: object) -> Path:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, words), str(path)], check=True, timeout=60)
    return path


def damage(path: Path, at: float, size: int = 8000) -> Path:
    """Flip the bytes at a part of the media data: enough of them to hit pictures, whatever lies there."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 8
    # before a faststart file's media data lies its index; behind another's
    end = data.index(b"moov") if data.index(b"moov") > begin else len(data)
    middle = begin + int((end - begin) * at)
    data[middle : middle + size] = bytes(byte ^ 0xFF for byte in data[middle : middle + size])
    path.write_bytes(data)
    return path


def decoding(good: Run, frames: int) -> Run:
    """The same run where ffmpeg could decode only so many frames of the source."""
    return replace(good, finished=ffmpeg.Finished((), {(0, 0): frames}))


def counted(path: Path) -> dict[int, int]:
    """Packets by stream, as ffprobe itself counts them."""
    words = ["ffprobe", "-v", "error", "-count_packets", "-show_entries", "stream=index,nb_read_packets", "-of", "json"]
    said = subprocess.run([*words, str(path)], capture_output=True, check=True, timeout=60).stdout
    return {stream["index"]: int(stream["nb_read_packets"]) for stream in json.loads(said)["streams"]}


slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("how", ["sampled", "full"])
def test_a_good_output_passes(good: Run, how: str) -> None:
    passed = good.asking(verify=how).verified()
    assert passed.warnings == ()
    assert passed.decode > 0
    (facts,) = passed.facts
    assert facts.tracks[0].packets == 250
    assert facts.tracks[0].end == pytest.approx(10, abs=0.05)
    assert facts.tracks[0].keys == pytest.approx(range(10), abs=0.05)
    assert facts.tracks[1].keys == ()
    assert len(windows(facts, "")) == SAMPLED_GROUPS + 2


@slow
def test_only_the_chosen_groups_are_decoded_unless_all_is_asked(good: Run, tmp_path: Path) -> None:
    words = tmp_path / "words"
    stub = program(tmp_path, "ffmpeg", f'echo "$*" >> "{words}"; exec ffmpeg "$@"')
    policy = replace(POLICY, ffmpeg=stub)
    good.verified(policy=policy)
    good.asking(verify="full").verified(policy=policy)
    sampled, full = words.read_text().splitlines()
    assert (sampled.count(" -i "), sampled.count(" -ss "), sampled.count(" -t ")) == (5, 5, 5)
    assert (full.count(" -i "), full.count(" -ss "), full.count(" -t ")) == (1, 0, 0)


@slow
@pytest.mark.parametrize("at", [0.1, 0.33, 0.5, 0.77])
def test_damage_anywhere_is_caught_by_decoding_all(good: Run, spoilt: Path, at: float) -> None:
    found = good.asking(verify="full").refused(damage(spoilt, at))
    assert found.kind is FaultClass.MISMATCH
    assert found.what.startswith("the output does not decode: ")
    assert found.evidence.stderr
    assert str(spoilt) in " ".join(found.evidence.argv)


@slow
@pytest.mark.parametrize("at", [0.02, 0.97], ids=["the beginning", "the end"])
def test_damage_at_either_end_is_caught_by_a_sample(good: Run, spoilt: Path, at: float) -> None:
    found = good.refused(damage(spoilt, at))
    assert (found.kind, found.what.partition(":")[0]) == (FaultClass.MISMATCH, "the output does not decode")


@slow
def test_half_the_time_is_the_inputs_fault(good: Run, spoilt: Path) -> None:
    half = made(spoilt, "-t", 5, "-i", good.path, "-c", "copy")
    found = decoding(good, counted(half)[0]).refused(half)
    assert found.kind is FaultClass.INPUT
    assert "of 250 frames are there" in found.what
    assert "video ends at 5." in found.what


@slow
def test_half_the_time_is_our_fault_where_all_was_decoded(good: Run, spoilt: Path) -> None:
    found = good.refused(made(spoilt, "-t", 5, "-i", good.path, "-c", "copy"))
    assert found.kind is FaultClass.MISMATCH
    assert "frames were written of 250 decoded" in found.what


@slow
@pytest.mark.parametrize("part", [0.25, 0.5, 0.9])
def test_a_part_of_the_bytes_is_caught(good: Run, spoilt: Path, part: float) -> None:
    spoilt.write_bytes(spoilt.read_bytes()[: int(spoilt.stat().st_size * part)])
    unknown = replace(good, finished=ffmpeg.Finished((), {}))
    assert unknown.refused(spoilt).kind in (FaultClass.INPUT, FaultClass.MISMATCH)


@slow
def test_with_salvage_half_the_time_passes_with_a_warning(good: Run, spoilt: Path) -> None:
    half = made(spoilt, "-t", 5, "-i", good.path, "-c", "copy")
    warnings = decoding(good, counted(half)[0]).asking(salvage=True).verified(half).warnings
    assert warnings
    assert all(warning.startswith("salvaged: main: ") for warning in warnings)


OTHER: dict[str, tuple[tuple[object, ...], str]] = {
    "another size": (("-vf", "scale=160:90", "-c:a", "copy"), "main: size is 160x90, not 320x180"),
    "no sound": (("-c:v", "copy", "-an"), "main: audio streams are none, not ['aac']"),
    "no picture": (("-vn", "-c:a", "copy"), "main: video streams are none, not ['h264']"),
    "another codec of sound": (("-c:v", "copy", "-c:a", "libmp3lame"), "main: audio streams are ['mp3'], not ['aac']"),
    "another codec of the picture": (
        ("-c:v", "mpeg4", "-c:a", "copy"),
        "main: video streams are ['mpeg4'], not ['h264']",
    ),
    "half of the frames": (("-r", "12.5", "-c:a", "copy"), "frames were written of 250 decoded"),
}


@slow
@pytest.mark.parametrize(("words", "what"), OTHER.values(), ids=OTHER)
def test_another_file_than_asked_is_caught(good: Run, spoilt: Path, words: tuple[object, ...], what: str) -> None:
    found = good.refused(made(spoilt, "-i", good.path, *words))
    assert found.kind is FaultClass.MISMATCH
    assert what in found.what


@slow
@pytest.mark.parametrize("content", [None, b"", b"hello", bytes(100_000)], ids=["none", "empty", "text", "zeros"])
def test_what_is_no_media_file_is_caught(good: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "made.mp4"
    if content is not None:
        path.write_bytes(content)
    assert good.refused(path).kind is FaultClass.MISMATCH


@slow
def test_a_full_disk_is_told_though_ffmpeg_ended_with_success(good: Run) -> None:
    said = ("[out#0 @ 0x55] [error] Error writing trailer: No space left on device",)
    found = replace(good, finished=ffmpeg.Finished(said, good.finished.decoded)).refused()
    assert (found.kind, found.what) == (FaultClass.OUTPUT, "Error writing trailer: No space left on device")


@slow
def test_what_ffmpeg_complained_of_is_a_warning(good: Run) -> None:
    said = ("[h264 @ 0x55] [error] mmco: unref short failure", "[info] fine", "[h264 @ 0x55] [error] again")
    (warning,) = replace(good, finished=ffmpeg.Finished(said, good.finished.decoded)).verified().warnings
    assert warning == "ffmpeg complained 2 times about the source, first: mmco: unref short failure"
    (warning,) = replace(good, finished=ffmpeg.Finished(said[:1], good.finished.decoded)).verified().warnings
    assert warning == "ffmpeg complained once about the source, first: mmco: unref short failure"


DECODER_FAILED = (
    "[h264 @ 0x55] [error] Failed to end picture decode issue: 23 (internal decoding error).",
    "[h264 @ 0x55] [error] hardware accelerator failed to decode picture",
)


@slow
def test_a_device_that_failed_is_told_though_ffmpeg_ended_with_success(good: Run) -> None:
    device = "0000:00:02.0"
    found = replace(good, finished=replace(good.finished, stderr=DECODER_FAILED, device=device)).refused()
    assert (found.kind, found.what) == (
        FaultClass.HARDWARE,
        "Failed to end picture decode issue: 23 (internal decoding error).",
    )
    assert stage(found) == "decode"


@slow
def test_words_that_would_tell_of_a_device_are_a_warning_in_software(good: Run) -> None:
    (warning,) = replace(good, finished=replace(good.finished, stderr=DECODER_FAILED)).verified().warnings
    assert warning.startswith("ffmpeg complained 2 times")


@slow
@pytest.mark.parametrize(
    ("usage", "warned"),
    [(Usage((), 1000), True), (Usage((("video", 0.1),), 1000), False), (None, False)],
    ids=["stood still", "worked", "no counters"],
)
def test_engines_that_stood_still_on_a_hardware_route_are_a_warning(
    good: Run, usage: Usage | None, warned: bool
) -> None:
    done = replace(good.finished, device="0000:00:02.0", usage=usage)
    told = "the route uses 0000:00:02.0, and the counters of its engines stood still"
    assert (told in replace(good, finished=done).verified().warnings) == warned


@slow
def test_a_source_that_was_not_delivered_to_its_end_is_told(good: Run) -> None:
    said = ("[in#0/mov @ 0x55] [error] Error during demuxing: Input/output error",)
    assert replace(good, finished=replace(good.finished, stderr=said)).refused().kind is FaultClass.BLOCKED


@slow
def test_a_copied_picture_that_is_damaged_passes_with_a_warning(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("testsrc2=s=320x180:r=25:d=2", audio=False)
    source = damage(Path(shutil.copy(clip, tmp_path / "source.mp4")), 0.5)
    copied = run(source, tmp_path / "made.mp4", {"video": {"codec": "copy"}, "audio": None})
    *_, warning = copied.verified().warnings
    assert warning.startswith("the copied video does not decode everywhere: ")


@slow
def test_a_cancelled_job_is_not_verified_to_the_end(good: Run) -> None:
    with pytest.raises(JobCancelled):
        verify(good.plan, CPU, [str(good.path)], good.finished, POLICY, lambda: True)
    assert children() == []


@slow
def test_every_output_is_verified(good: Run, spoilt: Path) -> None:
    outputs = [{**GROUPS, "name": name} for name in ("one", "two")]
    source = str(good.plan.spec.source)
    spec = read({"source": source, "target": "/out/{name}.mp4", "outputs": outputs})
    both = replace(good, plan=plan(spec, good.plan.source, MACHINE))
    passed = verify(both.plan, CPU, [str(good.path), str(spoilt)], good.finished, POLICY, never)
    assert len(passed.facts) == 2
    for where in (0.02, 0.2, 0.4, 0.6, 0.8):
        damage(spoilt, where)
    for paths in ([good.path, spoilt], [spoilt, good.path]):
        with pytest.raises(Fault, match="does not decode"):
            verify(both.plan, CPU, [str(path) for path in paths], good.finished, POLICY, never)


# What is counted


@slow
@pytest.mark.parametrize("container", ["mkv", "webm", "mp4", "ogg"])
def test_packets_with_side_data_are_counted(make_clip: MakeClip, tmp_path: Path, container: str) -> None:
    sound = ("-map", "0:a") if container == "ogg" else ("-map", "0:v", "-map", "0:a", "-c:v", "vp9", "-cpu-used", 8)
    path = made(tmp_path / f"made.{container}", "-i", make_clip(), *sound, "-c:a", "libopus", "-ac", 1)
    raw = subprocess.run(["ffprobe", "-v", "error", "-show_packets", str(path)], capture_output=True, check=True).stdout
    if container != "mp4":
        assert b"Skip Samples" in raw, "the case is there"
    facts = look(str(path), POLICY, never)
    assert {index: track.packets for index, track in facts.tracks.items()} == counted(path)
    assert max(track.end for track in facts.tracks.values()) == pytest.approx(2, abs=0.1)


@slow
def test_packets_outside_the_edit_list_are_not_counted(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("testsrc2=s=320x180:r=25:d=4", audio=False, extra=("-g", "100"))
    path = made(tmp_path / "cut.mp4", "-ss", 2, "-i", clip, "-c", "copy")
    assert counted(path)[0] > 60
    track = look(str(path), POLICY, never).tracks[0]
    assert track.packets == pytest.approx(50, abs=2)
    assert track.start == pytest.approx(0, abs=0.1)


@slow
def test_an_ffprobe_that_fails_halfway_is_a_mismatch(good: Run, tmp_path: Path) -> None:
    stub = program(tmp_path, "ffprobe", 'ffprobe "$@" | head -c 9000; exit 1')
    found = good.refused(policy=replace(POLICY, ffprobe=stub))
    assert (found.kind, found.what) == (FaultClass.MISMATCH, "the output cannot be read back")


def blames_nobody(fault: Fault) -> bool:
    """It is tried again, and counts against no device."""
    return what_next(fault.kind, SOFTWARE) is Next.LATER and not blames_device(fault.kind, "vaapi")


@slow
@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
def test_an_ffprobe_that_a_signal_ends_says_nothing_of_the_output(good: Run, tmp_path: Path, signal: str) -> None:
    stub = program(tmp_path, "ffprobe", f'ffprobe "$@" | head -c 9000; kill -{signal} $$')
    found = good.refused(policy=replace(POLICY, ffprobe=stub))
    assert found.kind is FaultClass.TRANSIENT
    assert "ffprobe died of signal" in found.what
    assert blames_nobody(found)


@slow
def test_an_ffprobe_that_hangs_says_nothing_of_the_output(good: Run, tmp_path: Path) -> None:
    stub = program(tmp_path, "ffprobe", "sleep 1000")
    found = good.refused(policy=replace(POLICY, ffprobe=stub, probe_limit=0.3))
    assert found.kind is FaultClass.TRANSIENT
    assert "ffprobe did not end within 0.3" in found.what
    assert blames_nobody(found)


@slow
def test_an_output_whose_storage_does_not_deliver_it_is_blocked(good: Run, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    os.mkfifo(silent)
    stub = program(tmp_path, "ffprobe", f"exec cat <>{silent}")
    found = good.refused(policy=replace(POLICY, ffprobe=stub, probe_limit=0.3))
    assert found.kind is FaultClass.BLOCKED
    assert str(silent) in found.what
    assert blames_nobody(found)
