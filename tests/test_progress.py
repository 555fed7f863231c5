"""ffmpeg's -progress stream, as it comes and as it should not."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoder.progress import Progress, Reader

BLOCK = b"""frame=42
fps=24.50
stream_0_0_q=28.0
bitrate= 512.3kbits/s
total_size=123456
out_time_us=1680000
out_time_ms=1680000
out_time=00:00:01.680000
dup_frames=1
drop_frames=2
speed=1.25x
progress=continue
"""
REPORT = Progress(frame=42, fps=24.5, out_time=1.68, size=123456, speed=1.25, duplicated=1, dropped=2)
UNKNOWN = b"frame=0\nfps=0.00\nbitrate=N/A\ntotal_size=N/A\nout_time_us=N/A\nspeed=N/A\nprogress=end\n"


def test_a_block_is_a_report() -> None:
    assert Reader().feed(BLOCK) == [REPORT]


def test_what_is_not_known_is_none() -> None:
    assert Reader().feed(UNKNOWN) == [Progress(frame=0, fps=0.0, last=True)]


def test_a_negative_time_is_the_beginning() -> None:
    (report,) = Reader().feed(b"out_time_us=-41708\nprogress=continue\n")
    assert report.out_time == 0.0


@given(st.lists(st.integers(0, len(BLOCK) * 3), max_size=20))
def test_it_does_not_matter_where_the_stream_is_cut(cuts: list[int]) -> None:
    stream, reader = BLOCK * 3, Reader()
    edges = [0, *sorted(cuts), len(stream)]
    reports = [report for start, end in pairwise(edges) for report in reader.feed(stream[start:end])]
    assert reports == [REPORT] * 3


pieces = [
    *(b"frame=", b"progress=end\n", b"out_time_us=", b"nan\n", b"\n", b"="),
    *(b"speed=1e400x\n", b"frame=9e99\n", b"total_size=1e400\n"),
]
noise = st.binary(max_size=200) | st.sampled_from(pieces)


@given(st.lists(noise, max_size=30))
def test_any_bytes_are_read_and_give_finite_numbers(chunks: list[bytes]) -> None:
    reader = Reader()
    for chunk in chunks:
        for report in reader.feed(chunk):
            numbers = [report.fps, report.out_time, report.speed, report.frame, report.size]
            assert all(number is None or isfinite(number) for number in numbers)
            assert 0 <= (report.fraction(10.0) or 0) <= 1
            hash(report.mark)


def test_a_stream_without_line_ends_takes_no_memory() -> None:
    reader = Reader()
    for _ in range(100):
        reader.feed(b"x" * 100_000)
    for number in range(10_000):
        reader.feed(b"key%d=1\n" % number)
    assert len(reader._rest) <= 4096
    assert len(reader._values) <= 256
    assert reader.feed(b"\n" + BLOCK)[0].last is False


@pytest.mark.parametrize(
    ("time", "duration", "fraction"),
    [(5.0, 10.0, 0.5), (12.0, 10.0, 1.0), (0.0, 10.0, 0.0), (5.0, None, None), (5.0, 0.0, None), (None, 10.0, None)],
)
def test_the_fraction_that_is_done_is_known_where_the_duration_is(
    time: float | None, duration: float | None, fraction: float | None
) -> None:
    assert Progress(out_time=time).fraction(duration) == fraction


def test_the_time_left_follows_the_speed() -> None:
    assert Progress(out_time=5.0, speed=2.0).eta(10.0) == 2.5
    assert Progress(out_time=5.0).eta(10.0) is None
    assert Progress(out_time=5.0, speed=0.0).eta(10.0) is None


def test_two_equal_marks_mean_that_nothing_happened() -> None:
    assert Progress(frame=1, fps=3).mark == Progress(frame=1, fps=9).mark
    assert Progress(frame=2).mark > Progress(frame=1).mark
    assert Progress(size=10).mark > Progress().mark
