"""What drivers count in fdinfo, in the spellings of i915, xe and amdgpu, becomes seconds of engines and bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoder.usage import XE_TICKS, Client, Meter, Usage, from_record, parse

I915 = """\
pos:\t0
flags:\t02100002
mnt_id:\t26
ino:\t413
drm-driver:\ti915
drm-client-id:\t42
drm-pdev:\t0000:00:02.0
drm-total-system0:\t96256 KiB
drm-shared-system0:\t16 MiB
drm-active-system0:\t0
drm-resident-system0:\t90112 KiB
drm-purgeable-system0:\t0
drm-total-stolen-system0:\t0
drm-resident-stolen-system0:\t0
drm-engine-render:\t25662044495 ns
drm-engine-copy:\t0 ns
drm-engine-video:\t2000000000 ns
drm-engine-capacity-video:\t2
drm-engine-video-enhance:\t500000000 ns
"""

XE = """\
pos:\t0
drm-driver:\txe
drm-client-id:\t7
drm-pdev:\t0000:03:00.0
drm-total-system:\t0
drm-total-gtt:\t192 KiB
drm-total-vram0:\t23992 KiB
drm-resident-gtt:\t192 KiB
drm-resident-vram0:\t20 MiB
drm-cycles-rcs:\t28257900
drm-total-cycles-rcs:\t7655183225
drm-cycles-vcs:\t19200000
drm-total-cycles-vcs:\t7655183225
drm-engine-capacity-vcs:\t2
drm-cycles-vecs:\t0
drm-total-cycles-vecs:\t7655183225
"""

AMDGPU = """\
pos:\t0
drm-driver:\tamdgpu
drm-client-id:\t1184
drm-pdev:\t0000:0b:00.0
pasid:\t32771
drm-memory-vram:\t64 MiB
drm-memory-gtt: \t2048 KiB
drm-memory-cpu: \t0 KiB
drm-engine-dec:\t1500000000 ns
drm-engine-enc:\t2500000000 ns
drm-engine-enc_1:\t1000000 ns
"""


def read(text: str) -> Client:
    client = parse(text)
    assert client
    return client


def counted(*texts: str, apart: float = 1.0) -> Usage | None:
    """What readings of one process, made so many seconds apart, come to."""
    meter = Meter()
    for number, text in enumerate(texts):
        meter.see([read(text)], number * apart)
    return meter.usage()


def test_i915_counts_nanoseconds_of_each_engine() -> None:
    assert counted(I915) == Usage(
        (("render", 25.662044), ("video", 2.0), ("video-enhance", 0.5)), memory=90112 * 1024
    )  # fmt: skip


def test_amdgpu_counts_the_engines_that_worked_and_names_memory_in_its_own_way() -> None:
    assert counted(AMDGPU) == Usage((("dec", 1.5), ("enc", 2.5), ("enc_1", 0.001)), memory=(64 << 20) + (2 << 20))


def test_an_amdgpu_that_names_no_engine_did_nothing() -> None:
    idle = "".join(line for line in AMDGPU.splitlines(keepends=True) if "engine" not in line)
    assert counted(idle) == Usage((), memory=66 << 20)


def test_xe_counts_ticks_which_the_time_between_two_readings_makes_seconds() -> None:
    later = XE.replace("7655183225", str(7655183225 + 24_000_000)).replace(
        "drm-cycles-vcs:\t19200000", "drm-cycles-vcs:\t36000000"
    )  # fmt: skip
    found = counted(XE, later, apart=2.0)
    assert found
    assert dict(found.engines)["vcs"] == pytest.approx(3.0), "36 million ticks at 12 million a second"
    assert found.memory == (20 << 20) + (192 << 10)
    assert "vecs" not in dict(found.engines)


def test_one_reading_of_xe_takes_the_usual_clock() -> None:
    found = counted(XE)
    assert found
    assert XE_TICKS == 19_200_000
    assert dict(found.engines)["vcs"] == 1.0


@pytest.mark.parametrize(
    "text",
    ["drm-driver:\tnouveau\ndrm-client-id:\t1\n", "drm-driver:\ti915\ndrm-client-id:\t1\ndrm-pdev:\t0000:00:02.0\n"],
    ids=["nouveau", "i915 before Linux 5.19"],
)
def test_a_driver_without_counters_tells_nothing(text: str) -> None:
    assert counted(text) is None


def test_no_reading_tells_nothing() -> None:
    assert Meter().usage() is None


def test_a_driver_whose_counters_stand_at_zero_did_nothing() -> None:
    assert counted("drm-driver:\ti915\ndrm-engine-video:\t0 ns\n") == Usage((), 0)


@pytest.mark.parametrize("text", ["", "pos:\t0\nflags:\t0100000\n", "eventfd-count: 0\n"])
def test_other_files_are_no_devices(text: str) -> None:
    assert parse(text) is None


def test_several_descriptors_of_one_client_count_once() -> None:
    meter = Meter()
    meter.see([read(I915), read(I915)], 0)
    assert meter.usage() == counted(I915)


def test_several_clients_and_devices_add_up() -> None:
    meter = Meter()
    others = I915.replace("client-id:\t42", "client-id:\t43"), I915.replace("00:02.0", "03:00.0")
    meter.see([read(text) for text in (I915, *others)], 0)
    found = meter.usage()
    assert found
    assert (dict(found.engines)["video"], found.memory) == (6.0, 3 * 90112 * 1024)


def test_a_counter_that_steps_back_takes_nothing_away() -> None:
    assert counted(I915, I915.replace("2000000000", "1900000000")) == counted(I915)


def test_a_client_that_closed_its_device_still_counts() -> None:
    meter = Meter()
    assert meter.see([read(I915)], 0)
    assert not meter.see([], 1)
    assert meter.usage() == counted(I915)


def test_the_mark_grows_when_an_engine_works_and_only_then() -> None:
    meter, marks = Meter(), []
    for text in (
        I915,
        I915,
        I915.replace("drm-engine-copy:\t0", "drm-engine-copy:\t1"),
        XE,
        XE.replace("28257900", "9" * 9),
    ):
        meter.see([read(text)], 0)
        marks.append(meter.mark)
    assert marks[0] == marks[1] < marks[2] < marks[3] < marks[4]


LINES = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.builds(
            "drm-{}{}:{}{}{}".format,
            st.sampled_from(["engine-", "cycles-", "total-cycles-", "total-", "memory-", "driver", ""]),
            st.sampled_from(["video", "vcs", "vram0", "client-id", "pdev", ""]) | st.text(max_size=5),
            st.sampled_from(["\t", " ", ""]),
            st.integers().map(str) | st.text(max_size=9) | st.just("9" * 6000),
            st.sampled_from([" ns", " KiB", "", " MiB", " parsec", "\r"]),
        ),
    ),
    max_size=12,
)  # fmt: skip


@given(st.lists(LINES.map("\n".join), max_size=4))
def test_any_text_is_read_without_an_error(texts: list[str]) -> None:
    meter = Meter()
    for at, text in enumerate(texts):
        if client := parse(text):
            meter.see([client], at / 100)
    found = meter.usage()
    assert found is None or (found.seconds >= 0 and found.memory >= 0)
    if found:
        assert from_record(json.loads(json.dumps(found.as_record()))) == found


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_any_characters_are_read_without_an_error(text: str) -> None:
    parse(I915 + text)
    parse(text)


def test_a_record_says_engines_seconds_and_bytes() -> None:
    used = Usage((("video", 1.25), ("video-enhance", 0.5)), 1000)
    assert used.as_record() == {
        "engines": {"video": 1.25, "video-enhance": 0.5},
        "seconds": 1.75,
        "memory_bytes": 1000,
    }
    assert from_record(used.as_record()) == used
    assert from_record(None) is None
    assert replace(used, engines=()).seconds == 0
