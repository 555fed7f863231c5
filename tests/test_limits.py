"""What one run of ffmpeg may take: time, CPU, memory, space; and that it stands behind the worker."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.local import Place, program
from tests.test_ffmpeg import POLICY, fault, never
from transcoder import ffmpeg
from transcoder.errors import InputRefused
from transcoder.faults import FaultClass, Next, blames_device, what_next

pytestmark = pytest.mark.slow


def real(words: str) -> list[str]:
    return ["ffmpeg", "-nostdin", *words.split()]


ENDLESS = "-f lavfi -i testsrc2=s=1280x720:r=25 -c:v libx264"


def test_a_run_that_takes_too_long_is_ended_and_no_device_is_blamed() -> None:
    found = fault(real(f"{ENDLESS} -f null -"), replace(POLICY, wall_limit=1.0))
    assert (found.kind, found.what) == (FaultClass.LIMIT, "ffmpeg ran for 1 s, longer than any job may")
    assert not blames_device(FaultClass.LIMIT, "vaapi")
    assert what_next(FaultClass.LIMIT, "vaapi") is Next.FAIL


def test_a_run_that_takes_too_much_cpu_time_is_ended_by_the_kernel() -> None:
    found = fault(real(f"{ENDLESS} -f null -"), replace(POLICY, cpu_limit=1.0))
    assert (found.kind, found.what) == (FaultClass.LIMIT, "ffmpeg took more CPU time than any job may")


def test_an_output_that_grows_too_large_is_ended_by_the_kernel(tmp_path: Path) -> None:
    words = real("-f lavfi -i testsrc2=s=640x360:r=25 -c:v rawvideo -f nut")
    found = fault([*words, str(tmp_path / "out.nut")], replace(POLICY, max_file=1 << 20))
    assert (found.kind, found.what) == (FaultClass.LIMIT, "ffmpeg wrote a file that is larger than any may be")
    assert (tmp_path / "out.nut").stat().st_size <= 1 << 20


def test_a_run_takes_no_piece_of_memory_that_is_too_large(tmp_path: Path) -> None:
    source = tmp_path / "4_000_000_bytes_a_frame.raw"
    source.write_bytes(bytes(8_000_000))
    words = [*real("-f rawvideo -s 2000x2000 -pix_fmt gray -i"), str(source), "-f", "null", "-"]
    for limit, refused in ((POLICY.max_alloc, False), (1 << 20, True)):
        *_, last = ffmpeg.run(words, replace(POLICY, max_alloc=limit), never)
        assert isinstance(last, ffmpeg.Finished)  # 5.1 says so and ends with 0, as if the source ended there
        assert any("Cannot allocate memory" in line for line in last.stderr) == refused


def test_ffmpeg_stands_behind_the_worker(tmp_path: Path) -> None:
    stub = program(tmp_path, "ffmpeg", f"nice > {tmp_path}/nice; exit 0")
    for nice in (0, 7):
        list(ffmpeg.run((stub,), replace(POLICY, nice=nice), never))
        assert int((tmp_path / "nice").read_text()) == os.nice(0) + nice


def test_a_job_that_meets_a_limit_is_refused_and_leaves_nothing(make_clip: MakeClip, tmp_path: Path) -> None:
    place = Place.below(tmp_path, wall_limit=0.3)
    source = place.bring(make_clip("testsrc2=s=640x360:r=25:d=30", audio=False, extra=["-preset", "ultrafast"]))
    error = place.refuses(place.spec(source), InputRefused)
    assert "TRANSCODER_WALL_LIMIT" in error.next_step
