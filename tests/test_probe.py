"""Look at the source: what it is, and which state of it this is."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import pytest

from tests.conftest import MakeClip
from tests.local import children, program
from transcoder.errors import FfmpegMissing, InputMissing, InputUnreadable, PathRefused
from transcoder.media import LightLevel
from transcoder.policy import Policy
from transcoder.probe import Fingerprint, fingerprint, first_frame_hdr, head, probe

pytestmark = pytest.mark.slow


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy((str(tmp_path),))


# What it is


def test_a_real_clip_is_what_it_is(bbb: Path) -> None:
    found = probe(str(bbb), Policy((str(bbb.parent),)))
    assert found.format.startswith("mov,mp4")
    assert found.size == bbb.stat().st_size
    assert found.duration == pytest.approx(5.3, abs=0.1)
    assert (len(found.video), len(found.audio), len(found.subtitles), found.pictures) == (1, 1, 0, 0)
    (video,), (audio,) = found.video, found.audio
    assert (video.codec, video.width, video.height, video.pix_fmt, video.depth) == ("h264", 1280, 720, "yuv420p", 8)
    assert (video.rate, video.base_rate, video.frames) == (Fraction(25), Fraction(25), 132)
    assert video.duration == pytest.approx(132 / 25)
    assert (video.rotation, video.sar, video.interlaced, video.variable_rate) == (0, Fraction(1), False, False)
    assert (audio.codec, audio.channels, audio.sample_rate) == ("aac", 6, 48000)
    assert children() == []


def test_a_made_clip_is_what_was_made(make_clip: MakeClip) -> None:
    # ffmpeg 7 asks the pictures for their colours, 5.1 the options
    named = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
    tags = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv")
    clip = make_clip(
        f"testsrc2=s=320x180:r=30000/1001:d=1,setsar=64/45,format=yuv420p10le,{named}",
        audio="sine=sample_rate=44100:d=1",
        container="mkv",
        pix_fmt="yuv420p10le",
        extra=(*tags, "-c:a", "flac", "-metadata:s:a", "language=fre"),
    )
    found = probe(str(clip), Policy((str(clip.parent),)))
    (video,), (audio,) = found.video, found.audio
    assert found.format == "matroska,webm"
    assert (video.depth, video.sar, video.rate) == (10, Fraction(64, 45), Fraction(30000, 1001))
    colour = video.colour
    assert (colour.primaries, colour.transfer, colour.matrix, colour.range) == ("bt709", "bt709", "bt709", "tv")
    assert (audio.codec, audio.channels, audio.sample_rate, audio.language) == ("flac", 1, 44100, "fre")


def test_hdr10_that_only_the_frames_tell_of_is_found(make_clip: MakeClip) -> None:
    mastering = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    clip = make_clip(
        "testsrc2=s=64x64:r=25:d=0.4,format=yuv420p10le,"
        "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv",
        audio=False,
        vcodec="libx265",
        container="ts",
        pix_fmt="yuv420p10le",
        extra=(
            *("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc"),
            *("-x265-params", f"log-level=none:hdr10=1:repeat-headers=1:master-display={mastering}:max-cll=1000,400"),
        ),
    )
    policy = Policy((str(clip.parent),))
    (video,) = probe(str(clip), policy).video
    assert video.colour.hdr == "PQ"
    assert video.mastering is not None
    assert video.mastering.red == (Fraction(34000, 50000), Fraction(16000, 50000))
    assert video.mastering.max_luminance == 1000
    assert video.light_level == LightLevel(1000, 400)
    assert first_frame_hdr(str(clip), policy) == (video.mastering, video.light_level)


def test_frames_are_only_asked_where_they_could_tell_more(tmp_path: Path, make_clip: MakeClip) -> None:
    started = tmp_path / "started"
    ffprobe = program(tmp_path, "ffprobe", f'echo "$*" >> {shlex.quote(str(started))}; exec ffprobe "$@"')
    clip = make_clip()
    probe(str(clip), Policy((str(clip.parent),), ffprobe=ffprobe))
    (words,) = started.read_text().splitlines()
    assert "-show_frames" not in words
    assert "-protocol_whitelist file -format_whitelist " in words
    assert words.endswith(f"-i file:{clip}")


def test_ffprobe_does_not_see_our_settings(
    tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's address may hold its password."""
    monkeypatch.setenv("TRANSCODER_BROKER", "redis://:secret@host:6379/0")
    ffprobe = program(tmp_path, "ffprobe", 'env > "$0.env"; exec ffprobe "$@"')
    clip = make_clip()
    probe(str(clip), Policy((str(clip.parent),), ffprobe=ffprobe))
    seen = Path(f"{ffprobe}.env").read_text()
    assert "PATH=" in seen
    assert "TRANSCODER_" not in seen


def test_ffprobe_that_talks_without_end_is_read_to_its_end(tmp_path: Path, make_clip: MakeClip) -> None:
    noisy = program(tmp_path, "ffprobe", 'yes noise | head -c 5000000 >&2; exec ffprobe "$@"')
    clip = make_clip()
    assert probe(str(clip), Policy((str(clip.parent),), ffprobe=noisy)).main_video is not None


def test_the_reason_is_what_ffprobe_said_first_in_plain_words(tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(bytes(range(256)) * 20)
    says = f"[mov @ 0x55d0] [error] moov atom not found\nfile:{source}: Invalid data"
    for first, reason in ((says, "moov atom not found"), (says.partition("\n")[2], "Invalid data")):
        ffprobe = program(tmp_path, "ffprobe", f"echo {shlex.quote(first)} >&2; exit 1")
        with pytest.raises(InputUnreadable) as caught:
            probe(str(source), Policy((str(tmp_path),), ffprobe=ffprobe))
        assert caught.value.what == f"{str(source)!r} is not media that ffmpeg can read: {reason}"
        assert caught.value.next_step


def test_an_ffprobe_that_hangs_is_gone_when_its_worker_is_killed(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    os.mkfifo(silent)
    asks = "import sys; from transcoder.policy import Policy; from transcoder.probe import report"
    words = [sys.executable, "-c", f"{asks}; report(sys.argv[1], Policy(('/',)), ())", str(silent)]
    with subprocess.Popen(words) as worker:
        hung = soon(lambda: [pid for pid in below(worker.pid) if name(pid) == "ffprobe"])
        os.kill(worker.pid, signal.SIGKILL)
    try:
        soon(lambda: not any(name(pid) == "ffprobe" for pid in hung))
    finally:
        for pid in hung:
            if name(pid) == "ffprobe":
                os.kill(pid, signal.SIGKILL)


T = TypeVar("T")


def soon(true: Callable[[], T]) -> T:
    """The first answer that is true, within ten seconds."""
    deadline = time.monotonic() + 10
    while not (answer := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def below(pid: int) -> list[int]:
    """The children of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name(pid: int) -> str:
    """What a process runs; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_missing_ffprobe_names_its_setting(make_clip: MakeClip) -> None:
    clip = make_clip()
    with pytest.raises(FfmpegMissing, match="/nowhere/ffprobe") as caught:
        probe(str(clip), Policy((str(clip.parent),), ffprobe="/nowhere/ffprobe"))
    assert "TRANSCODER_FFPROBE" in caught.value.next_step


@pytest.mark.parametrize("look", [probe, fingerprint], ids=["probe", "fingerprint"])
@pytest.mark.parametrize("how", ["by words", "by a link", "by a linked folder"])
def test_nothing_outside_the_roots_is_looked_at(
    tmp_path: Path, look: Callable[[str, Policy], object], how: str
) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    secret = outside / "clip.mp4"
    secret.write_bytes(b"secret")
    (inside / "link.mp4").symlink_to(secret)
    (inside / "folder").symlink_to(outside)
    path = {"by words": secret, "by a link": inside / "link.mp4", "by a linked folder": inside / "folder" / "clip.mp4"}
    opened = secret.stat().st_atime_ns
    with pytest.raises(PathRefused):
        look(str(path[how]), Policy((str(inside),)))
    assert secret.stat().st_atime_ns == opened


# Which state of it this is


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(300_000))
    return path


def test_a_file_that_is_let_alone_keeps_its_fingerprint(source: Path, policy: Policy) -> None:
    before = fingerprint(str(source), policy)
    state = source.stat()
    assert (before.size, before.modified_ns, before.inode) == (300_000, state.st_mtime_ns, state.st_ino)
    assert fingerprint(str(source), policy) == before
    source.chmod(0o600)
    source.rename(source.with_name("renamed.mp4"))
    assert fingerprint(str(source.with_name("renamed.mp4")), policy) == before


def overwritten(at: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"x")

    return change


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def shortened(path: Path) -> None:
    os.truncate(path, 299_999)


def replaced(path: Path) -> None:
    other = path.with_name("other.mp4")
    other.write_bytes(path.read_bytes())
    other.replace(path)


CHANGES = {
    "its first byte": overwritten(0),
    "its last byte": overwritten(299_999),
    "a byte near its end": overwritten(300_000 - 65_536),
    "a byte more": appended,
    "a byte less": shortened,
    "another file of the same bytes": replaced,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_though_the_time_is_set_back(
    source: Path, policy: Policy, change: Callable[[Path], None]
) -> None:
    before, times = fingerprint(str(source), policy), source.stat()
    change(source)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = fingerprint(str(source), policy)
    assert after.modified_ns == before.modified_ns
    assert after != before


def test_a_change_in_the_middle_is_seen_by_its_time(source: Path, policy: Policy) -> None:
    before = fingerprint(str(source), policy)
    overwritten(150_000)(source)
    os.utime(source, ns=(0, before.modified_ns + 1))
    after = fingerprint(str(source), policy)
    assert after.ends_sha256 == before.ends_sha256
    assert after != before


def test_two_small_files_of_other_bytes_differ(tmp_path: Path, policy: Policy) -> None:
    found: list[Fingerprint] = []
    for content in (b"one", b"two"):
        path = tmp_path / content.decode()
        path.write_bytes(content)
        found.append(fingerprint(str(path), policy))
    assert found[0].size == found[1].size == 3
    assert found[0].ends_sha256 != found[1].ends_sha256


def test_a_source_that_is_gone_has_no_fingerprint(source: Path, policy: Policy) -> None:
    source.unlink()
    with pytest.raises(InputMissing, match=r"clip\.mp4"):
        fingerprint(str(source), policy)


def test_a_pipe_is_not_waited_for(tmp_path: Path, policy: Policy) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputMissing, match="is a pipe"):
        fingerprint(str(tmp_path / "pipe"), policy)


def test_the_head_of_a_file_is_short_and_of_a_missing_one_empty(source: Path) -> None:
    assert head(str(source)) == bytes(1024)
    source.unlink()
    assert head(str(source)) == b""
