"""What ffmpeg says and how it ends become one class, which decides what happens next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoder.faults import (
    Evidence,
    Fault,
    FaultClass,
    Next,
    Stage,
    blames_device,
    classify,
    errors_in,
    harm,
    last_words,
    plain,
    stage,
    what_next,
)
from transcoder.machine import SOFTWARE

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
        (FaultClass.BLOCKED, "vaapi", Next.LATER),
        (FaultClass.BLOCKED, "software", Next.LATER),
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
        "[AVHWDeviceContext @ 0x5] [error] libva: vaGetDriverNames() failed with unknown libva error",
        "libva error: [error] libva: /dri/iHD_drv_video.so init failed",
    ],
    ids=["time stamps that round to one", "threads that a container may not bind", "a driver's name", "a driver"],
)
def test_what_harms_nothing_is_no_complaint(line: str) -> None:
    assert errors_in([line]) == []


# What devices say: ffmpeg 5.1's and 7.1's lines as they are, with the component that says them


CONFIG, CAPABILITY, HARDWARE, TRANSIENT = (
    FaultClass.CONFIG,
    FaultClass.CAPABILITY,
    FaultClass.HARDWARE,
    FaultClass.TRANSIENT,
)
INIT = "[error] Failed to set value 'vaapi=va:/dev/dri/renderD128' for option 'init_hw_device': Input/output error"
LIBVA = "[AVHWDeviceContext @ 0x5] [error] libva: /usr/lib/dri/iHD_drv_video.so init failed"
OPENING = (
    "[vost#0:0/h264_vaapi @ 0x5] [error] Error while opening encoder - maybe incorrect parameters such as bit_rate."
)
NO_DECODER = "[h264 @ 0x5] [error] Failed setup for format vaapi: hwaccel initialisation returned error."
FORMATS = "[error] Impossible to convert between the formats supported by the filter 'a' and the filter 'auto_scale_0'"
SURFACE = "[AVHWFramesContext @ 0x5] [error] Failed to create surface: 2 (resource allocation failed)."
POOL = "[AVHWFramesContext @ 0x5] [error] Unable to allocate a surface from internal buffer pool."
RECON = "[h264_vaapi @ 0x5] [error] Failed to initialise reconstructed frame context: -12."
LOST = (
    "[h264 @ 0x5] [error] get_buffer() failed",
    "[h264 @ 0x5] [error] no frame!",
    "[vist#0:0/h264 @ 0x5] [dec:h264 @ 0x6] [error] Error submitting packet to decoder: Invalid data found when "
    "processing input",
)
EIO_FILTER = "[vf#0:0 @ 0x5] [error] Error while filtering: Input/output error"
VA = "[AVHWDeviceContext @ 0x5] [error] "
ENC, DEC, VPP = "[h264_vaapi @ 0x5] [error] ", "[h264 @ 0x5] [error] ", "[Parsed_scale_vaapi_0 @ 0x5] [error] "
QENC, QDEC, QVPP = "[h264_qsv @ 0x5] [error] ", "[h264_qsv @ 0x5] [error] ", "[Parsed_vpp_qsv_0 @ 0x5] [error] "

Row = tuple[int, tuple[str, ...], FaultClass, Stage | None]
DEVICES: dict[str, Row] = {
    "no node": (234, (VA + "No VA display found for device /dev/dri/renderD128.", INIT), CONFIG, "device"),
    "no default device": (187, (VA + "No VA display found for any default device.",), CONFIG, "device"),
    "not DRM": (187, (VA + "Cannot open a VA display from DRM device /dev/null.",), CONFIG, "device"),
    "no driver": (251, (VA + "Failed to initialise VAAPI connection: -1 (unknown libva error).",), CONFIG, "device"),
    "driver's init": (
        251,
        (LIBVA, VA + "Failed to initialise VAAPI connection: 18 (invalid parameter).", INIT),
        CONFIG,
        "device",
    ),
    "driver short of memory": (
        251,
        (VA + "Failed to initialise VAAPI connection: 2 (resource allocation failed).", INIT),
        CONFIG,
        "device",
    ),
    "no device for -hwaccel": (
        234,
        (DEC + "No device available for decoder: device type vaapi needed for codec h264.",),
        CONFIG,
        "device",
    ),
    "no runtime": (171, ("[AVHWDeviceContext @ 0x5] [error] Error creating a MFX session: -9.",), CONFIG, "device"),
    "no child": (171, ("[AVHWDeviceContext @ 0x5] [error] Error setting child device handle: -17",), CONFIG, "device"),
    "no profile": (218, (ENC + "No usable encoding profile found.", OPENING), CAPABILITY, "encode"),
    "no entrypoint": (
        218,
        (ENC + "No usable encoding entrypoint found for profile VAProfileH264High (7).", OPENING),
        CAPABILITY,
        "encode",
    ),
    "no rate control": (
        234,
        (ENC + "Driver does not support VBR RC mode (supported modes: CQP).", OPENING),
        CAPABILITY,
        "encode",
    ),
    "too large to encode": (
        234,
        (ENC + "Hardware does not support encoding at size 8192x4320 (constraints: width 16-4096 height 16-4096).",),
        CAPABILITY,
        "encode",
    ),
    "encoder's configuration": (
        251,
        (ENC + "Failed to create encode pipeline configuration: 2 (resource allocation failed).", OPENING),
        TRANSIENT,
        "encode",
    ),
    "encoder's context, busy": (
        251,
        (ENC + "Failed to create encode pipeline context: 34 (HW busy now).", OPENING),
        TRANSIENT,
        "encode",
    ),
    "encoder's context, many": (
        251,
        (ENC + "Failed to create encode pipeline context: 11 (list argument exceeds maximum number).", OPENING),
        CAPABILITY,
        "encode",
    ),
    "encoder's context, size": (
        251,
        (ENC + "Failed to create encode pipeline context: 19 (the requested resolution is not supported).", OPENING),
        CAPABILITY,
        "encode",
    ),
    "encoder's context": (
        251,
        (ENC + "Failed to create encode pipeline context: 1 (operation failed).", OPENING),
        HARDWARE,
        "encode",
    ),
    "QSV's parameters": (
        218,
        (QENC + "some encoding parameters are not supported by the QSV runtime. Please double check the input.",),
        CAPABILITY,
        "encode",
    ),
    "QSV unsupported": (218, (QENC + "Error initializing the encoder: unsupported (-3)",), CAPABILITY, "encode"),
    "QSV's values": (
        234,
        (QENC + "Error initializing the encoder: invalid video parameters (-15)",),
        CAPABILITY,
        "encode",
    ),
    "QSV's memory": (
        244,
        (QENC + "Error initializing the encoder: failed to allocate memory (-4)",),
        TRANSIENT,
        "encode",
    ),
    "no decoder": (
        218,
        (
            DEC + "Failed to create decode configuration: 13 (the requested VAEntryPoint is not supported).",
            NO_DECODER,
            FORMATS,
        ),
        CAPABILITY,
        "decode",
    ),
    "no decoder for the profile": (
        218,
        (DEC + "No support for codec hevc profile 2.", NO_DECODER, FORMATS),
        CAPABILITY,
        "decode",
    ),
    "too large to decode": (
        218,
        (DEC + "Hardware does not support image size 8192x4320 (constraints: width 16-4096).", NO_DECODER, FORMATS),
        CAPABILITY,
        "decode",
    ),
    "decoder's context, busy": (
        218,
        (DEC + "Failed to create decode context: 34 (HW busy now).", NO_DECODER, FORMATS),
        TRANSIENT,
        "decode",
    ),
    "formats": (218, (FORMATS,), CAPABILITY, None),
    "no VPP": (
        251,
        (VPP + "Failed to create processing pipeline config: 12 (the requested VAProfile is not supported).",),
        CAPABILITY,
        "filter",
    ),
    "VPP's context": (
        251,
        (VPP + "Failed to create processing pipeline context: 1 (operation failed).",),
        HARDWARE,
        "filter",
    ),
    "VPP at work": (
        251,
        (VPP + "Failed to start picture processing: 1 (operation failed).", EIO_FILTER),
        HARDWARE,
        "filter",
    ),
    "QSV without VPP": (218, (QVPP + "Failed to create a qsvvpp: unsupported (-3)",), CAPABILITY, "filter"),
    "QSV's VPP at work": (251, (QVPP + "Error running VPP: GPU Hang (-21)",), HARDWARE, "filter"),
    "surfaces of the encoder": (244, (SURFACE, POOL, RECON), TRANSIENT, "encode"),
    "surfaces of an upload": (
        244,
        (SURFACE, POOL, "[Parsed_hwupload_1 @ 0x5] [error] Failed to configure output pad on Parsed_hwupload_1"),
        TRANSIENT,
        "device",
    ),
    "surfaces of the decoder": (0, (SURFACE, *LOST), TRANSIENT, "decode"),
    "a buffer of the encoder": (
        251,
        (
            ENC + "Failed to create parameter buffer (type 23): 2 (resource allocation failed).",
            ENC + "Encode failed: -5.",
        ),
        HARDWARE,
        "encode",
    ),
    "a buffer of the decoder": (
        251,
        (DEC + "Failed to create parameter buffer (type 0): 2 (resource allocation failed).", *LOST[2:]),
        HARDWARE,
        "decode",
    ),
    "encode": (251, (ENC + "Failed to end picture encode issue: 24 (internal encoding error).",), HARDWARE, "encode"),
    "sync": (251, (ENC + "Failed to sync to output buffer completion: 1 (operation failed).",), HARDWARE, "encode"),
    "sync of a picture": (
        251,
        (ENC + "Failed to sync to picture completion: 1 (operation failed).",),
        HARDWARE,
        "encode",
    ),
    "map": (251, (ENC + "Failed to map output buffers: 1 (operation failed).",), HARDWARE, "encode"),
    "QSV's encode": (251, (QENC + "Error during encoding: device failed (-17)",), HARDWARE, "encode"),
    "QSV's encode hangs": (251, (QENC + "Error during encoding: GPU Hang (-21)",), HARDWARE, "encode"),
    "QSV's decoder": (0, (QDEC + "Error initializing the MFX video decoder: device failed (-17)",), HARDWARE, "decode"),
    "QSV's decode": (0, (QDEC + "Error during QSV decoding.: GPU Hang (-21)",), HARDWARE, "decode"),
    "QSV's encode fails": (171, (QENC + "Error during encoding: unknown error (-1)",), HARDWARE, "encode"),
    "QSV's decoder is gone": (
        69,
        (
            QDEC + "Error querying IO surface: unsupported (-3)",
            "[vist#0:0/h264 @ 0x5] [dec:h264_qsv @ 0x6] [error] Error submitting packet to decoder: Function not "
            "implemented",
            QDEC + "get_buffer() failed",
        ),
        CAPABILITY,
        "decode",
    ),
    "session of QSV's decoder": (
        69,
        (
            QDEC + "Error setting a HW handle: device failed (-17)",
            QDEC + "Error initializing an MFX session",
            QDEC + "Error decoding header",
        ),
        HARDWARE,
        "decode",
    ),
    "session of QSV's encoder": (
        251,
        (QENC + "Error setting a HW handle: device failed (-17)", OPENING),
        HARDWARE,
        "encode",
    ),
    "VPP of QSV is gone": (218, (QVPP + "Error querying VPP params: unsupported (-3)",), CAPABILITY, "filter"),
    "QSV's header": (0, (QDEC + "Error decoding stream header: unsupported (-3)",), CAPABILITY, "decode"),
    "decode": (
        0,
        (
            DEC + "Failed to end picture decode issue: 23 (internal decoding error).",
            DEC + "hardware accelerator failed to decode picture",
            "[vist#0:0/h264 @ 0x5] [dec:h264 @ 0x6] [error] Error submitting packet to decoder: Input/output error",
        ),
        HARDWARE,
        "decode",
    ),
    "download": (
        251,
        (
            "[AVHWFramesContext @ 0x5] [error] Failed to sync surface 0x18: 34 (HW busy now).",
            "[hwdownload @ 0x5] [error] Failed to download frame: -5.",
        ),
        HARDWARE,
        "decode",
    ),
    "upload": (
        251,
        (
            "[AVHWFramesContext @ 0x5] [error] Failed to derive image from surface 0x18: 1 (operation failed).",
            "[hwupload @ 0x5] [error] Failed to upload frame: -5.",
        ),
        HARDWARE,
        "device",
    ),
}


@pytest.mark.parametrize("modern", [True, False], ids=["7.1", "5.1"])
@pytest.mark.parametrize("row", DEVICES.values(), ids=DEVICES)
def test_what_a_device_says_tells_the_class_the_cause_and_the_stage(row: Row, modern: bool) -> None:
    code, lines, kind, where = row
    after = ("[error] Conversion failed!",)
    stderr = (
        "[info] Stream mapping:",
        *lines,
        "[out#0/mp4 @ 0x5] [error] Nothing was written into output file",
        *after,
    )
    found, what = classify(code if modern else 1, stderr)
    assert found is kind
    assert what == plain(next(line for line in lines if line != LIBVA))
    assert stage(Fault(found, what, Evidence((), code, stderr))) == where


@pytest.mark.parametrize("row", DEVICES.values(), ids=DEVICES)
def test_success_with_such_words_is_none_unless_software_stepped_in(row: Row) -> None:
    _, lines, kind, _ = row
    if NO_DECODER in lines:
        assert harm([line for line in lines if line != FORMATS]) is None
    else:
        assert harm(lines) == (kind, plain(next(line for line in lines if line != LIBVA)))


@pytest.mark.parametrize(
    "line",
    [
        "[h264 @ 0x55] [error] mmco: unref short failure",
        "[vist#0:0/h264 @ 0x5] [dec:h264 @ 0x6] [error] Error submitting packet to decoder: Invalid data found when "
        "processing input",
        "[error] Error while decoding stream #0:0: Invalid data found when processing input",
        "[h264_vaapi @ 0x5] [warning] Driver does not support some wanted packed headers (wanted 0xd, found 0).",
    ],
)
def test_what_a_source_or_a_driver_mentions_is_no_harm(line: str) -> None:
    assert harm([line]) is None


def test_a_decoder_that_software_replaced_does_not_hide_an_encoder_that_failed() -> None:
    failed = ENC + "Failed to end picture encode issue: 24 (internal encoding error)."
    assert harm([SURFACE, POOL, NO_DECODER, failed]) == (HARDWARE, plain(failed))
    assert harm([failed, SURFACE, POOL, NO_DECODER]) == (HARDWARE, plain(failed))


def test_a_crash_is_told_by_what_a_device_said_before_it_and_not_by_a_damaged_source() -> None:
    assert classify(-11, [SURFACE])[0] is TRANSIENT, "ffmpeg 7.1 crashes where an upload finds no surface"
    assert classify(-11, ["[h264 @ 0x5] [error] Invalid data found when processing input"])[0] is FaultClass.CRASHED


@pytest.mark.parametrize("kind", sorted(set(FaultClass) - {CONFIG, CAPABILITY, HARDWARE, TRANSIENT}))
def test_other_faults_have_no_stage(kind: FaultClass) -> None:
    assert stage(Fault(kind, "the output does not decode: encode", Evidence(stderr=(VPP + "x",)))) is None


def test_a_fault_without_evidence_is_placed_by_its_words() -> None:
    assert stage(Fault(HARDWARE, "Failed to end picture encode issue: 24 (internal encoding error).")) == "encode"


@pytest.mark.parametrize("kind", FaultClass)
def test_only_what_a_device_did_wrong_counts_against_it(kind: FaultClass) -> None:
    counts = {"config", "hardware", "stalled", "crashed", "mismatch"}
    assert blames_device(kind, "vaapi") == blames_device(kind, "qsv") == (kind in counts)
    assert not blames_device(kind, SOFTWARE)


@pytest.mark.parametrize(
    "line",
    [
        "[in#0/mov @ 0x5] [error] Error during demuxing: Input/output error",
        "[in#0 @ 0x5] [error] Error opening input: Input/output error",
        "[error] file:/media/a.mp4: Stale file handle",
    ],
)
def test_a_storage_that_fails_is_blocked_not_damaged(line: str) -> None:
    assert classify(251, [line, "[error] Invalid data found when processing input"]) == (
        FaultClass.BLOCKED,
        plain(line),
    )


def test_the_last_words_for_people_are_no_chatter() -> None:
    chatter = ["[verbose] Statistics", "x265 [info]: done", "[out#0 @ 0x5] [info] video:1kB"]
    telling = ["[h264 @ 0x5] [error] a", "[warning] b", "amdgpu: the CS has been rejected"]
    assert last_words([*chatter, *telling, *chatter], 60) == tuple(telling)
    assert last_words([*chatter, *telling, *chatter], 2) == tuple(telling[1:])
    assert last_words(chatter, 2) == tuple(chatter[1:])
    assert last_words([], 2) == ()
