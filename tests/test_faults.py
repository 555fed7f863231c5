"""What ffmpeg says and how it ends become one class, which decides what happens next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoder.faults import FaultClass, Next, classify, errors_in, plain, what_next

SAID: list[tuple[str, int, str, FaultClass]] = [
    ("no node", 234, "No VA display found for device /dev/dri/renderD128.", FaultClass.CONFIG),
    ("no driver", 251, "Failed to initialise VAAPI connection: -1 (unknown libva error).", FaultClass.CONFIG),
    ("no VPL runtime", 171, "Error creating a MFX session: -9.", FaultClass.CONFIG),
    ("no device for the decoder", 234, "Hardware device setup failed for decoder: Invalid argument", FaultClass.CONFIG),
    ("no profile", 218, "No usable encoding profile found.", FaultClass.CAPABILITY),
    (
        "no low power",
        218,
        "No usable encoding entrypoint found for profile VAProfileH264High (7).",
        FaultClass.CAPABILITY,
    ),
    ("rate control", 234, "Driver does not support QVBR RC mode (supported modes: CQP).", FaultClass.CAPABILITY),
    (
        "no VPP",
        251,
        "Failed to create processing pipeline config: 12 (the requested VAProfile is not supported).",
        FaultClass.CAPABILITY,
    ),
    (
        "too large",
        251,
        "Failed to create encode pipeline context: 19 (the requested resolution is not supported).",
        FaultClass.CAPABILITY,
    ),
    (
        "formats",
        218,
        "Impossible to convert between the formats supported by the filter 'a' and the filter 'b'",
        FaultClass.CAPABILITY,
    ),
    ("surfaces", 244, "Unable to allocate a surface from internal buffer pool.", FaultClass.TRANSIENT),
    ("memory", 244, "Cannot allocate memory", FaultClass.TRANSIENT),
    ("encode", 251, "Failed to end picture encode issue: 24 (internal encoding error).", FaultClass.HARDWARE),
    ("QSV hang", 251, "Error during encoding: GPU Hang (-21)", FaultClass.HARDWARE),
    ("decode", 251, "hardware accelerator failed to decode picture", FaultClass.HARDWARE),
    ("download", 251, "Failed to sync surface 0x18: 34 (HW busy now).", FaultClass.HARDWARE),
    ("no moov", 183, "moov atom not found", FaultClass.INPUT),
    ("playlist", 183, "Format not on whitelist 'mov'", FaultClass.INPUT),
    ("damaged", 183, "Invalid data found when processing input", FaultClass.INPUT),
    ("no stream", 234, "Stream map '0:v' matches no streams.", FaultClass.INPUT),
    ("disk full", 228, "Error writing trailer of out.mp4: No space left on device", FaultClass.OUTPUT),
    ("read-only", 226, "out.mp4: Read-only file system", FaultClass.OUTPUT),
    ("something else", 1, "the moon is full", FaultClass.UNKNOWN),
]


@pytest.mark.parametrize("modern", [True, False], ids=["7.1", "5.1, where the code is always 1"])
@pytest.mark.parametrize(("code", "line", "kind"), [row[1:] for row in SAID], ids=[row[0] for row in SAID])
def test_the_text_decides_the_class(code: int, line: str, kind: FaultClass, modern: bool) -> None:
    stderr = ["[info] Stream mapping:", f"[h264 @ 0x55d0] [error] {line}", "[fatal] Conversion failed!"]
    assert classify(code if modern else 1, stderr) == (kind, line)


@pytest.mark.parametrize("signal", [-11, -6, -9, 139, 137])
def test_a_death_by_signal_is_a_crash(signal: int) -> None:
    assert classify(signal, [])[0] is FaultClass.CRASHED


def test_a_code_decides_where_the_text_says_nothing() -> None:
    assert classify(228, [])[0] is FaultClass.OUTPUT


@pytest.mark.parametrize(
    ("kind", "api", "then"),
    [
        (FaultClass.INPUT, "vaapi", Next.ROUTE),
        (FaultClass.INPUT, "software", Next.FAIL),
        (FaultClass.OUTPUT, "vaapi", Next.LATER),
        (FaultClass.OUTPUT, "software", Next.LATER),
        (FaultClass.HARDWARE, "vaapi", Next.ROUTE),
        (FaultClass.CAPABILITY, "qsv", Next.ROUTE),
        (FaultClass.CONFIG, "qsv", Next.ROUTE),
        (FaultClass.STALLED, "vaapi", Next.ROUTE),
        (FaultClass.STALLED, "software", Next.LATER),
        (FaultClass.CRASHED, "software", Next.LATER),
        (FaultClass.MISMATCH, "vaapi", Next.ROUTE),
        (FaultClass.MISMATCH, "software", Next.FAIL),
    ],
)
def test_the_class_and_the_route_decide_what_happens_next(kind: FaultClass, api: str, then: Next) -> None:
    assert what_next(kind, api) is then


@given(st.integers(-64, 255), st.lists(st.text(max_size=200), max_size=20))
def test_any_text_has_a_class_and_a_sentence(code: int, stderr: list[str]) -> None:
    kind, what = classify(code, stderr)
    assert isinstance(kind, FaultClass)
    assert what


@given(st.text(max_size=300))
def test_plain_words_are_never_empty_where_the_line_is_not(line: str) -> None:
    assert plain(line) or not line.strip()


def test_decoration_and_noise_are_left_out() -> None:
    stderr = [
        "[info] a",
        "[mp4 @ 0x1] [error] b",
        "[fatal] Conversion failed!",
        "[warning] c",
        "[AVIOContext @ 0x2] [error] d",
    ]
    assert errors_in(stderr) == ["b", "d"]


def test_what_is_wrong_outweighs_what_is_said_about_it_afterwards() -> None:
    stderr = [
        "Svt[error]: Instance 1: Source Height must be at least 64",
        "[libsvtav1 @ 0x5] [error] Error setting encoder parameters: bad parameter (0x80001005)",
        "[error] Error initializing output stream 0:0 -- Error while opening encoder for output stream #0:0",
        "Svt[error]: deinit called without sending EOS!",
        "[error] Conversion failed!",
    ]
    assert classify(1, stderr)[1] == stderr[0]
    assert classify(1, stderr[1:])[1] == "Conversion failed!"


@pytest.mark.parametrize(
    "line",
    [
        "[null @ 0x5] [error] Application provided invalid, non monotonically increasing dts to muxer: 4 >= 4",
        "x265 [error]: unable to set thread affinity for NUMA node mask",
    ],
    ids=["time stamps that round to one", "threads that a container may not bind"],
)
def test_what_harms_nothing_is_no_complaint(line: str) -> None:
    assert errors_in([line]) == []
