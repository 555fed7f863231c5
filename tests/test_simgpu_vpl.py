"""The software GPU by way of oneVPL, with the real dispatcher and ffmpeg: QSV's pictures, failures and time."""

import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.gpu import QSV, VAAPI, Gpu, Machine, Qsv

pytestmark = [pytest.mark.vpl]

H264 = ("-c:v", "h264_qsv", "-global_quality", "12")
HEVC = ("-c:v", "hevc_qsv", "-global_quality", "12")
UP = "format=nv12,hwupload=extra_hw_frames=64"
HALF = "vpp_qsv=w=160:h=96"


@pytest.fixture
def device(gpus: Machine) -> Qsv:
    return gpus.add().qsv()


@pytest.fixture(scope="session")
def small(make_clip: MakeClip) -> Path:
    return make_clip("testsrc2=s=320x192:r=25:d=2", audio=False, extra=("-bf", "2"))


@pytest.fixture(scope="session")
def noise(make_clip: MakeClip) -> Path:
    """Four seconds that cost any bitrate."""
    return make_clip("testsrc2=s=320x192:r=25:d=4,noise=alls=30", audio=False, extra=("-preset", "ultrafast"))


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True, timeout=60)


def probe(path: Path, *entries: str) -> list[str]:
    show = ["-show_entries", f"stream={','.join(entries)}", "-of", "default=nk=1:nw=1"]
    words = run("ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", *show, path).stdout.split()
    return words[: len(entries)]  # MPEG-TS says it twice


def frames(path: Path) -> int:
    found = probe(path, "nb_read_frames")
    return int(found[0]) if found else 0


def key_packets(path: Path) -> list[int]:
    flags = run("ffprobe", "-v", "error", "-show_entries", "packet=flags", "-of", "csv=p=0", path).stdout.split()
    return [i for i, flag in enumerate(flags) if flag.startswith("K")]


def likeness(output: Path, source: Path, filters: str) -> float:
    """SSIM of the worst picture against what software makes of the source."""
    graph = f"[1:v]{filters}[r];[0:v]format=yuv420p[o];[r]format=yuv420p[s];[o][s]ssim=stats_file=-"
    done = run("ffmpeg", "-v", "info", "-i", output, "-i", source, "-lavfi", graph, "-f", "null", "-")
    each = [float(number) for number in re.findall(r"All:([\d.]+) ", done.stdout)]
    assert len(each) == frames(source)
    return min(each)


def combed(path: Path) -> int:
    """How many pictures have lines of two moments."""
    seen = run("ffmpeg", "-v", "info", "-i", path, "-vf", "idet", "-f", "null", "-").stderr
    return int(re.findall(r"Multi frame detection: TFF:\s*(\d+)", seen)[-1])


def hashes(text: str) -> list[str]:
    return [line.split(",")[-1].strip() for line in text.splitlines() if not line.startswith("#")]


def pixels(*words: str | Path) -> list[str]:
    """One hash a picture, of what software makes."""
    return hashes(run("ffmpeg", "-v", "error", *words, "-an", "-f", "framemd5", "-").stdout)


def shown(device: Gpu, *words: str | Path) -> list[str]:
    """One hash a picture, of what the device makes."""
    out = device.node.with_name("shown.md5")
    device.ffmpeg(*words, "-an", "-f", "framemd5", out)
    return hashes(out.read_text())


def chain(filters: str, source: Path, target: Path, *encoder: str, decode: Sequence[str] = ()) -> list[str | Path]:
    return [*decode, "-i", source, "-an", "-noautoscale", "-vf", filters, *(encoder or H264), target]


def counter(device: Gpu, name: str) -> int:
    return sum(int(client[name].split()[0]) for client in device.clients() if name in client)


class TestWhatItIs:
    def test_the_dispatcher_finds_one_implementation_a_device(self, gpus: Machine) -> None:
        gpus.add("renderD128", pci_id="0x80869a49")
        gpus.add("renderD129", pci_id="0x808656a0", encode="h264", decode="none")
        gpus.add("renderD130", pci_id="0x808656a1", vpl=False)
        amd = gpus.add("renderD131", pci_id="0x1002744c")
        listed = subprocess.run(["vpl-inspect"], env=amd.environ(), capture_output=True, text=True, check=True).stdout
        assert "Total number of implementations found = 2" in listed
        assert sorted(re.findall(r"DeviceID: (\w+)/", listed)) == ["56a0", "9a49"]

    def test_a_session_is_on_the_device_it_was_given(self, gpus: Machine, small: Path, tmp_path: Path) -> None:
        gpus.add("renderD128", encode="none")
        second = gpus.add("renderD129", {"vendor": "Second"}).qsv()
        second.ffmpeg(*chain("format=nv12", small, tmp_path / "out.mp4"))

    def test_a_device_of_the_same_kind_may_lack_the_runtime(self, gpus: Machine, small: Path, tmp_path: Path) -> None:
        gpus.add("renderD128")
        failed = gpus.add("renderD129", vpl=False).qsv().try_ffmpeg(*chain("format=nv12", small, tmp_path / "out.mp4"))
        assert "Error setting child device handle: -3" in failed.stderr


class TestPictures:
    @pytest.mark.parametrize(
        ("filters", "decode", "same"),
        [
            ("format=nv12", (), "null"),
            (f"{UP},{HALF}", (), "scale=160:96"),
            ("null", QSV, "null"),
            (f"{HALF}:format=nv12", QSV, "scale=160:96"),
            ("scale_qsv=w=160:h=96:format=nv12", QSV, "scale=160:96"),
            ("vpp_qsv=cw=160:ch=96:cx=32:cy=64", QSV, "crop=160:96:32:64"),
            # A second vpp_qsv is given the last picture and the end at once, and loses what it keeps back then.
            ("vpp_qsv=format=p010,vpp_qsv=format=nv12:async_depth=0", QSV, "null"),
            ("scale_vaapi=w=160:h=96:format=nv12,hwmap=derive_device=qsv,format=qsv", VAAPI, "scale=160:96"),
            (f"{UP},vpp_qsv=transpose=clock", (), "transpose=clock"),
            (f"{UP},vpp_qsv=transpose=cclock_hflip", (), "transpose=cclock_flip"),
            (f"{UP},vpp_qsv=transpose=vflip", (), "vflip"),
        ],
    )
    def test_h264_is_what_software_would_make(
        self, device: Qsv, small: Path, tmp_path: Path, filters: str, decode: Sequence[str], same: str
    ) -> None:
        out = tmp_path / "out.mp4"
        device.ffmpeg(*chain(filters, small, out, decode=decode))
        assert likeness(out, small, same) >= 0.98

    @pytest.mark.parametrize(("surface", "pix_fmt"), [("nv12", "yuv420p"), ("p010", "yuv420p10le")])
    def test_hevc_is_what_software_would_make(
        self, device: Qsv, small: Path, tmp_path: Path, surface: str, pix_fmt: str
    ) -> None:
        out = tmp_path / "out.mp4"
        device.ffmpeg(*chain(f"vpp_qsv=format={surface}", small, out, *HEVC, decode=QSV))
        assert probe(out, "codec_name", "width", "height", "pix_fmt") == ["hevc", "320", "192", pix_fmt]
        assert likeness(out, small, "null") >= 0.98

    @pytest.mark.parametrize("coder", [H264, HEVC], ids=["h264", "hevc"])
    def test_a_ladder_of_one_decoding(self, device: Qsv, small: Path, tmp_path: Path, coder: tuple[str, ...]) -> None:
        sizes = ((320, 192), (240, 144), (160, 96))
        split = "".join(f"[s{i}]" for i in range(3))
        graph = f"[0:v]split=3{split};" + ";".join(f"[s{i}]vpp_qsv=w={w}:h={h}[v{i}]" for i, (w, h) in enumerate(sizes))
        rungs: list[str | Path] = []
        for i in range(3):
            rungs += ["-map", f"[v{i}]", "-noautoscale", *coder, tmp_path / f"{i}.mp4"]
        device.ffmpeg(*QSV, "-i", small, "-filter_complex", graph, *rungs)
        for i, (width, height) in enumerate(sizes):
            assert likeness(tmp_path / f"{i}.mp4", small, f"scale={width}:{height}") >= 0.98

    @pytest.mark.parametrize(
        ("coding", "pix_fmt"),
        [
            (("libx264", "-bf", "3", "-x264-params", "slices=4:ref=4:weightp=2:b-pyramid=strict"), "yuv420p"),
            (("libx264", "-x264-params", "interlaced=1"), "yuv420p"),
            (("libx265", "-x265-params", "log-level=none:bframes=4:keyint=20"), "yuv420p"),
            (("libx265", "-x265-params", "log-level=none"), "yuv420p10le"),
        ],
        ids=["b-frames", "interlaced", "hevc", "hevc-10bit"],
    )
    def test_decoding_is_exact(self, device: Qsv, make_clip: MakeClip, coding: tuple[str, ...], pix_fmt: str) -> None:
        source = "mandelbrot=s=300x172:r=25,trim=duration=2"
        clip = make_clip(source, audio=False, vcodec=coding[0], pix_fmt=pix_fmt, extra=coding[1:])
        surface = "p010le" if pix_fmt.endswith("10le") else "nv12"
        expected = pixels("-i", clip, "-vf", f"format={surface}")
        assert len(set(expected)) >= 45
        assert shown(device, *QSV, "-i", clip, "-vf", f"hwdownload,format={surface}") == expected
        assert shown(device, *QSV[:4], "-c:v", f"{'hevc' if 'x265' in coding[0] else 'h264'}_qsv",
                     "-hwaccel_output_format", surface, "-i", clip) == expected  # fmt: skip

    @pytest.mark.parametrize("surface", ["nv12", "p010le", "bgra"])
    def test_what_goes_up_comes_down(self, device: Qsv, small: Path, surface: str) -> None:
        there_and_back = f"scale=302:170,format={surface},hwupload=extra_hw_frames=16,hwdownload,format={surface}"
        expected = pixels("-i", small, "-vf", f"scale=302:170,format={surface}")
        assert shown(device, "-i", small, "-vf", there_and_back) == expected

    def test_times_stay(self, device: Qsv, small: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.mkv"
        uneven = "select='not(eq(mod(n,3),1))'"
        device.ffmpeg(*chain(f"{uneven},{HALF}", small, out, *H264, "-fps_mode", "passthrough", decode=QSV))
        times = run("ffprobe", "-v", "error", "-show_entries", "packet=pts_time", "-of", "csv=p=0", out).stdout.split()
        assert [float(at) for at in times] == pytest.approx([n / 25 for n in range(50) if n % 3 != 1], abs=0.001)

    def test_a_change_of_size_in_the_stream(self, device: Qsv, make_clip: MakeClip, tmp_path: Path) -> None:
        both = tmp_path / "both.ts"
        sources = (f"testsrc2=s={size}:r=25:d=1" for size in ("320x192", "160x96"))
        parts = [make_clip(source, audio=False, container="ts") for source in sources]
        both.write_bytes(b"".join(part.read_bytes() for part in parts))
        filters = f"{HALF}:async_depth=0,hwdownload,format=nv12"
        found = shown(device, *QSV, "-i", both, "-noautoscale", "-vf", filters)
        assert len(found) == 50
        assert found[25:] == pixels("-i", parts[1], "-vf", "format=nv12")

    @pytest.mark.parametrize(("rate", "count"), [("frame", 25), ("field", 50)])
    def test_deinterlacing(self, device: Qsv, make_clip: MakeClip, tmp_path: Path, rate: str, count: int) -> None:
        out = tmp_path / "out.mp4"
        source = "mandelbrot=s=320x192:r=50,trim=duration=1,interlace"
        clip = make_clip(source, audio=False, extra=("-flags", "+ilme+ildct", "-top", "1"))
        device.ffmpeg(*chain(f"vpp_qsv=deinterlace=2:rate={rate}", clip, out, *H264, decode=QSV))
        assert frames(out) == count
        assert combed(clip) >= 20
        assert combed(out) == 0


class TestCoding:
    @pytest.mark.parametrize("coder", ["h264_qsv", "hevc_qsv"])
    @pytest.mark.parametrize(("peak", "most"), [(600, 1.2), (900, 1.25)], ids=["cbr", "vbr"])
    def test_bitrates_are_kept(
        self, device: Qsv, noise: Path, tmp_path: Path, coder: str, peak: int, most: float
    ) -> None:
        out = tmp_path / "out.mp4"
        rate = ("-b:v", "600k", "-maxrate", f"{peak}k", "-bufsize", "1200k")
        device.ffmpeg(*chain("format=nv12", noise, out, "-c:v", coder, *rate))
        assert 0.8 <= out.stat().st_size * 8 / 4 / 600e3 <= most

    @pytest.mark.parametrize("coder", ["h264_qsv", "hevc_qsv"])
    @pytest.mark.parametrize("option", ["-global_quality", "-q:v"], ids=["icq", "cqp"])
    def test_quality_has_its_price(self, device: Qsv, noise: Path, tmp_path: Path, coder: str, option: str) -> None:
        sizes = []
        for quality in ("20", "35"):
            device.ffmpeg(*chain("format=nv12", noise, tmp_path / "out.mp4", "-c:v", coder, option, quality))
            sizes.append((tmp_path / "out.mp4").stat().st_size)
        assert sizes[0] > 2 * sizes[1]

    def test_quality_has_a_ceiling(self, device: Qsv, noise: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.mp4"
        qvbr = ("-c:v", "h264_qsv", "-global_quality", "20", "-b:v", "300k", "-maxrate", "400k", "-bufsize", "400k")
        said = device.ffmpeg(*chain("format=nv12", noise, out, *qvbr))
        assert "constant quality with VBR algorithm (QVBR)" in said
        assert out.stat().st_size * 8 / 4 <= 500e3  # without the ceiling it is more than 1 Mbit/s

    @pytest.mark.parametrize("coder", [H264, HEVC], ids=["h264", "hevc"])
    def test_key_frames_where_they_are_wanted(
        self, device: Qsv, small: Path, tmp_path: Path, coder: tuple[str, ...]
    ) -> None:
        for forced, expected in (("1", [0, 10, 20, 30, 40]), ("0", [0])):
            out = tmp_path / f"{forced}.mp4"
            wanted = ("-force_key_frames", "expr:gte(n,n_forced*10)", "-forced_idr", forced)
            device.ffmpeg(*chain("format=nv12", small, out, *coder, *wanted))
            assert key_packets(out) == expected

    @pytest.mark.parametrize("coder", [H264, HEVC], ids=["h264", "hevc"])
    def test_a_group_of_pictures_has_its_length(
        self, device: Qsv, small: Path, tmp_path: Path, coder: tuple[str, ...]
    ) -> None:
        device.ffmpeg(*chain("format=nv12", small, tmp_path / "out.mp4", *coder, "-g", "20"))
        assert key_packets(tmp_path / "out.mp4") == [0, 20, 40]

    @pytest.mark.parametrize("coder", [H264, HEVC], ids=["h264", "hevc"])
    def test_size_and_colours_are_told(self, device: Qsv, small: Path, tmp_path: Path, coder: tuple[str, ...]) -> None:
        out, annex_b = tmp_path / "out.mp4", tmp_path / "out.ts"
        tags = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
        device.ffmpeg(*chain(f"scale=302:170,{tags},format=nv12,hwupload=extra_hw_frames=16", small, out, *coder))
        run("ffmpeg", "-v", "error", "-i", out, "-c", "copy", annex_b)  # has no other place for them than the stream
        for path in (out, annex_b):
            told = probe(path, "width", "height", "color_range", "color_space", "color_transfer", "color_primaries")
            assert told == ["302", "170", "tv", "bt709", "bt709", "bt709"]

    def test_an_odd_size_loses_its_last_line_and_column(self, device: Qsv, small: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.mp4"
        device.ffmpeg(*chain("scale=301:171,format=nv12,hwupload=extra_hw_frames=16", small, out))
        assert probe(out, "width", "height") == ["300", "170"]
        assert likeness(out, small, "scale=301:171,crop=300:170:0:0") >= 0.98

    @pytest.mark.parametrize("coder", [H264, HEVC], ids=["h264", "hevc"])
    def test_the_file_s_parameter_sets_are_the_stream_s(
        self, device: Qsv, small: Path, tmp_path: Path, coder: tuple[str, ...]
    ) -> None:
        out, annex_b = tmp_path / "out.mkv", tmp_path / "out.bin"
        device.ffmpeg(*chain("format=nv12", small, out, *coder, "-b:v", "0"))
        name = "h264" if coder is H264 else "hevc"
        run("ffmpeg", "-v", "error", "-i", out, "-c", "copy", "-bsf:v", "null", "-f", name, annex_b)
        units = re.split(rb"\x00\x00\x00?\x01", annex_b.read_bytes())
        sets = {7, 8} if name == "h264" else {32, 33, 34}
        found = {unit for unit in units if unit and (unit[0] & 31 if name == "h264" else unit[0] >> 1 & 63) in sets}
        assert len(found) == len(sets)
        for unit in found:
            assert out.read_bytes().count(unit) == 2  # in the file's header, and before its one IDR


SYSTEM = chain("format=nv12", Path("IN"), Path("OUT"), "-c:v", "h264_qsv", "-b:v", "1M")
UPLOAD = chain(f"{UP},{HALF}", Path("IN"), Path("OUT"), "-c:v", "h264_qsv", "-b:v", "1M")
FULL = chain(f"{HALF}:format=nv12", Path("IN"), Path("OUT"), "-c:v", "h264_qsv", "-b:v", "1M", decode=QSV)
DOWN = chain(f"{HALF},hwdownload,format=nv12", Path("IN"), Path("OUT"), "-c:v", "libx264", decode=QSV)
TEN = chain("format=p010,hwupload=extra_hw_frames=16", Path("IN"), Path("OUT"), *HEVC)
LOW = [*SYSTEM[:-1], "-low_power", "1", Path("OUT")]
AHEAD = [*SYSTEM[:-1], "-look_ahead", "1", Path("OUT")]

Failure = tuple[dict[str, object], list[str | Path], str, int]
FAILURES: list[Failure] = [
    # configuration, chain, what stderr says, exit code
    ({"vpl": False}, SYSTEM, "Error creating a MFX session: -9.", 171),
    ({"pci_id": "0x1002744c"}, SYSTEM, "Error creating a MFX session: -9.", 171),
    ({"broken": True}, SYSTEM, "Failed to initialise VAAPI connection: 1 (operation failed).", 251),
    ({"fault.vpl.init": "status -17"}, SYSTEM, "Error setting child device handle: -17", 171),
    ({"fault.vpl.init": "status -17 at 2"}, SYSTEM, "Error setting a HW handle: device failed (-17)", 251),
    ({"fault.vpl.init": "status -17 at 2"}, FULL, "Error initializing an MFX session", 69),
    ({"encode": "none"}, SYSTEM, "Current codec type is unsupported", 218),
    ({"rc": "CQP"}, SYSTEM, "Selected ratecontrol mode is unsupported", 218),
    ({}, AHEAD, "Selected ratecontrol mode is unsupported", 218),
    ({}, LOW, "Low power mode is unsupported", 218),
    ({"max_width": 256}, SYSTEM, "Current resolution is unsupported", 218),
    ({"max_width": 256}, UPLOAD, "Error querying VPP params: unsupported (-3)", 218),
    ({"max_width": 256}, FULL, "Error querying IO surface: unsupported (-3)", 69),
    ({"ten_bit": False}, TEN, "Failed to create surface: 14 (the requested RT Format is not supported).", 244),
    ({"vpp": False}, FULL, "Error querying VPP params: unsupported (-3)", 218),
    ({"decode": "none"}, FULL, "Error querying IO surface: unsupported (-3)", 69),
    ({"fault.config.encode": "status 2"}, SYSTEM, "Error initializing the encoder: device failed (-17)", 251),
    ({"fault.context.encode": "status 2"}, SYSTEM, "Error initializing the encoder: device failed (-17)", 251),
    ({"fault.context.process": "status 2"}, FULL, "Failed to create a qsvvpp: device failed (-17)", 251),
    ({"fault.context.decode": "status 2"}, FULL, "Error initializing the MFX video decoder: device failed (-17)", 69),
    ({"fault.surface": "status 2"}, UPLOAD, "Failed to create surface: 2 (resource allocation failed).", 244),
    ({"fault.vpl.encode": "status -17 at 10"}, SYSTEM, "Error during encoding: device failed (-17)", 251),
    ({"fault.vpl.encode": "status -21 at 10 once"}, UPLOAD, "Error during encoding: GPU Hang (-21)", 251),
    ({"fault.vpl.encode": "status -4 at 10"}, SYSTEM, "Error during encoding: failed to allocate memory (-4)", 244),
    ({"fault.vpl.encode": "status -1 at 10"}, SYSTEM, "Error during encoding: unknown error (-1)", 171),
    ({"fault.encode": "status 24 at 10"}, FULL, "Error during encoding: device failed (-17)", 251),
    ({"fault.encode": "vanish at 10"}, FULL, "Error during encoding: device failed (-17)", 251),
    ({"fault.vpl.process": "status -21 at 5"}, FULL, "Error running VPP: GPU Hang (-21)", 251),
    ({"fault.process": "status 1 at 5"}, UPLOAD, "Error running VPP: device failed (-17)", 251),
    ({"fault.vpl.copy": "status -17 at 5"}, UPLOAD, "Error uploading the surface", 171),
    ({"fault.vpl.copy": "status -17 at 5"}, DOWN, "Error downloading the surface", 171),
    ({"fault.vpl.decode": "status -17"}, FULL, "Error during QSV decoding.: device failed (-17)", 69),
    ({"fault.vpl.sync.process": "status -17 at 5"}, FULL, "Error running VPP: device failed (-17)", 251),
    ({"fault.vpl.sync.copy": "status -17 at 5"}, DOWN, "Error synchronizing the operation: -17", 171),
]


def filled(words: Sequence[str | Path], source: Path, target: Path) -> list[str | Path]:
    return [source if word == Path("IN") else target if word == Path("OUT") else word for word in words]


class TestFailures:
    @pytest.mark.parametrize("case", FAILURES, ids=lambda case: f"{case[0]} {case[2]}")
    def test_what_ffmpeg_says_and_returns(self, gpus: Machine, small: Path, tmp_path: Path, case: Failure) -> None:
        config, words, text, code = case
        done = gpus.add("renderD128", config).qsv().try_ffmpeg(*filled(words, small, tmp_path / "out.mp4"))
        assert text in done.stderr
        assert done.returncode == code

    @pytest.mark.parametrize(
        ("fault", "left"),
        [("status -17 at 10", 9), ("status -21 at 10 once", 49), ("drop at 10", 9), ("status -17", 0)],
    )
    def test_a_picture_lost_at_the_end_is_lost_without_a_word(
        self, gpus: Machine, small: Path, tmp_path: Path, fault: str, left: int
    ) -> None:
        device = gpus.add("renderD128", {"fault.vpl.sync.encode": fault}).qsv()
        said = device.ffmpeg(*filled(FULL, small, tmp_path / "out.mp4"))
        assert "[error]" not in said
        assert frames(tmp_path / "out.mp4") == left

    @pytest.mark.parametrize(
        ("fault", "left"),
        [
            ({"fault.vpl.decode": "status -17 at 10"}, 9),
            ({"fault.vpl.decode": "status -21 at 10 once"}, 49),
            ({"fault.decode": "status 23 at 10"}, 9),
        ],
    )
    def test_a_decoder_that_fails_hides_it_from_who_only_looks_at_the_exit_code(
        self, gpus: Machine, small: Path, tmp_path: Path, fault: dict[str, object], left: int
    ) -> None:
        device = gpus.add("renderD128", fault).qsv()
        said = device.ffmpeg(*filled(FULL, small, tmp_path / "out.mp4"))
        assert "[error] Error during QSV decoding.: " in said
        assert frames(tmp_path / "out.mp4") == left

    @pytest.mark.parametrize("where", ["decode", "process", "vpl.process", "encode", "vpl.encode"])
    def test_green_without_a_word(self, gpus: Machine, small: Path, tmp_path: Path, where: str) -> None:
        out = tmp_path / "out.mp4"
        gpus.add("renderD128", {f"fault.{where}": "green"}).qsv().ffmpeg(*filled(FULL, small, out))
        first = run("ffmpeg", "-v", "error", "-i", out, "-vf", "signalstats,metadata=print:file=-", "-f", "null", "-")
        means = [float(mean) for mean in re.findall(r"signalstats\.[YUV]AVG=([\d.]+)", first.stdout)]
        assert len(means) == 150
        assert max(means) < 20

    def test_damaged_without_a_word(self, gpus: Machine, small: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.mp4"
        gpus.add("renderD128", {"fault.vpl.encode": "truncate at 10"}).qsv().ffmpeg(*filled(FULL, small, out))
        done = subprocess.run(["ffmpeg", "-v", "error", "-i", out, "-f", "null", "-"], capture_output=True, check=False)
        assert done.stderr

    @pytest.mark.parametrize("where", ["vpl.init", "vpl.encode", "vpl.process", "vpl.decode", "vpl.sync", "encode"])
    def test_segmentation_fault(self, gpus: Machine, small: Path, tmp_path: Path, where: str) -> None:
        device = gpus.add("renderD128", {f"fault.{where}": "segfault at 3"}).qsv()
        assert device.try_ffmpeg(*filled(FULL, small, tmp_path / "out.mp4")).returncode == -signal.SIGSEGV

    @pytest.mark.parametrize("where", ["vpl.encode", "vpl.sync", "encode"])
    def test_a_hang_lasts_until_the_device_is_repaired(
        self, gpus: Machine, small: Path, tmp_path: Path, where: str
    ) -> None:
        device = gpus.add("renderD128", {f"fault.{where}": "hang at 10"}).qsv()
        process = device.start(*filled(SYSTEM, small, tmp_path / "out.mp4"))
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.5)
            process.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            device.configure()
            process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode == 255


class TestTime:
    def test_engines_take_their_time_and_the_counters_tell_it(self, gpus: Machine, small: Path, tmp_path: Path) -> None:
        device = gpus.add(encode_rate=160 * 96 * 50, vpp_rate=160 * 96 * 50, decode_rate=320 * 192 * 1000).qsv()
        start = time.monotonic()
        process = device.start(*filled(FULL, small, tmp_path / "out.mp4"))
        video = enhance = 0
        while process.poll() is None:
            video = max(video, counter(device, "drm-engine-video"))
            enhance = max(enhance, counter(device, "drm-engine-video-enhance"))
            time.sleep(0.02)
        process.communicate()
        assert process.returncode == 0
        assert 1 <= time.monotonic() - start < 5  # 50 pictures at 50 a second, in two engines at once
        assert video == pytest.approx(1.05e9, rel=0.1)  # coding and, a twentieth of it, decoding
        assert enhance == pytest.approx(1e9, rel=0.1)

    def test_a_slow_encoder_is_waited_for(self, gpus: Machine, small: Path, tmp_path: Path) -> None:
        device = gpus.add(encode_rate=320 * 192 * 0.4).qsv()  # ffmpeg waits a second at a time
        out = tmp_path / "out.mp4"
        start = time.monotonic()
        device.ffmpeg(*filled(SYSTEM, small, out)[:-1], "-frames:v", "1", out)
        assert time.monotonic() - start >= 2.5
        assert frames(out) == 1

    def test_sessions_are_counted_with_those_of_vaapi(self, gpus: Machine, small: Path, tmp_path: Path) -> None:
        device = gpus.add(max_sessions=1, encode_rate=160 * 96 * 20)
        encoder = ("-c:v", "h264_vaapi", "-rc_mode", "CQP")
        process = device.start("-re", "-i", small, "-vf", "format=nv12,hwupload", *encoder, "-f", "null", "-")
        try:
            deadline = time.monotonic() + 10
            while counter(device, "simgpu-sessions") < 1:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            refused = device.qsv().try_ffmpeg(*filled(SYSTEM, small, tmp_path / "out.mp4"))
            assert "Error initializing the encoder: device failed (-17)" in refused.stderr
        finally:
            process.kill()
            process.communicate()
        device.configure(max_sessions=1)
        device.qsv().ffmpeg(*filled(SYSTEM, small, tmp_path / "out.mp4"))
