"""Jobs from end to end, with real ffmpeg: what comes out is what was asked, seen by ffprobe and by its pictures.

What goes in is good here; tests/test_bad_input.py has the rest.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeClip
from tests.local import Yes
from transcoder import job
from transcoder.errors import FfmpegMissing, InputRefused, InputUnreadable, SpecError, TranscoderError
from transcoder.events import Advanced, Event, Planned, Probing, Published, Publishing, Started, Verifying
from transcoder.machine import Machine
from transcoder.manifest import Attempt
from transcoder.policy import Policy
from transcoder.spec import read
from transcoder.survey import survey

pytestmark = pytest.mark.slow

SMALL = "testsrc2=s=160x90:r=25:d=1"
SOUND = "sine=frequency=440:sample_rate=48000"
CODECS = ("h264", "hevc", "av1", "vp9")
ENDINGS = {"h264": "mp4", "hevc": "mp4", "av1": "mp4", "vp9": "webm"}


@pytest.fixture(scope="module")
def machine() -> Machine:
    """This machine, really tried, with two threads for each encoder."""
    return replace(survey(Policy(("/",))), threads=2)


@dataclass
class Site:
    """A folder that jobs run in, and all that they said."""

    folder: Path
    machine: Machine
    events: list[Event]

    def run(
        self, source: Path, *outputs: dict[str, Any], limits: dict[str, float] | None = None, **fields: Any
    ) -> Published:
        """One job with these outputs (one of h264 where none are given), everything decoded at the end."""
        name = "{name}.{ext}" if len(outputs) > 1 else "made.{ext}"
        asked = [quick(output) for output in outputs or ({},)]
        spec = {"source": str(source), "target": str(self.folder / name), "outputs": asked, "verify": "full", **fields}
        patience = {"first_frame_limit": 60.0, "stall_limit": 60.0, **(limits or {})}
        policy = Policy((str(self.folder), str(source.parent)), **patience)  # type: ignore[arg-type]
        return job.transcode(read(spec), Attempt("test"), self.machine, policy, self.events.append, Yes())

    def one(self, source: Path, **output: Any) -> Seen:
        """The only file that a job with this output makes."""
        (made,) = self.run(source, output).outputs
        return Seen(Path(made.path))

    def file(self, name: str) -> Path:
        return self.folder / name


def quick(output: dict[str, Any]) -> dict[str, Any]:
    """The output at the fastest speed: what is tested here does not hang on it."""
    video = output.get("video", {})
    return output if video is None else {**output, "video": {"speed": "fast", **video}}


@pytest.fixture
def site(tmp_path: Path, machine: Machine) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder, machine, [])


def ffmpeg(*words: object) -> str:
    """Run ffmpeg; its stderr."""
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-y", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


@dataclass(frozen=True)
class Seen:
    """A file through the eyes of ffprobe, not of the code under test."""

    path: Path

    def probe(self, *entries: str) -> dict[str, Any]:
        command = ["ffprobe", "-v", "error", "-of", "json", *entries, str(self.path)]
        found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        return found

    def streams(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.probe("-show_streams")["streams"] if one["codec_type"] == kind]

    @property
    def video(self) -> dict[str, Any]:
        (stream,) = self.streams("video")
        return stream

    @property
    def size(self) -> tuple[int, int]:
        return self.video["width"], self.video["height"]

    def sides(self, stream: str = "v:0") -> dict[str, dict[str, Any]]:
        """Side data of the stream and its first frame, by type."""
        found = self.probe("-select_streams", stream, "-show_streams", "-show_frames", "-read_intervals", "%+#1")
        every = found["streams"][0].get("side_data_list", []) + found["frames"][0].get("side_data_list", [])
        return {side["side_data_type"]: side for side in every}

    def packets(self, stream: str = "v:0") -> list[dict[str, Any]]:
        found = self.probe("-select_streams", stream, "-show_entries", "packet=pts_time,duration_time,flags")["packets"]
        return [packet for packet in found if "D" not in packet["flags"]]

    def times(self, stream: str = "v:0") -> list[float]:
        """When each picture is shown, in order."""
        return sorted(float(packet["pts_time"]) for packet in self.packets(stream))

    def keys(self) -> list[float]:
        return sorted(float(packet["pts_time"]) for packet in self.packets() if packet["flags"].startswith("K"))

    def end(self, stream: str) -> float:
        return max(float(one["pts_time"]) + float(one.get("duration_time", 0)) for one in self.packets(stream))

    def mean(self, box: tuple[int, int, int, int] | None = None) -> tuple[float, ...]:
        """The mean sample of Y', Cb and Cr in the first picture, in a box of (left, top, width, height).

        As stored, in 8 bits and 4:2:0: no matrix or range is applied.
        """
        command = ["ffmpeg", "-v", "error", "-i", str(self.path), "-frames:v", "1", "-f", "rawvideo", "-"]
        data = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        across, down = self.size
        assert len(data) == across * down * 3 // 2
        left, top, width, height = box or (0, 0, across, down)
        means, start = [], 0
        for step in (1, 2, 2):
            line = across // step
            rows = range(top // step, (top + height) // step)
            samples = [
                data[start + row * line + left // step : start + row * line + (left + width) // step] for row in rows
            ]
            means.append(sum(map(sum, samples)) / sum(map(len, samples)))
            start += line * (down // step)
        return tuple(means)

    def likeness(self, reference: Path, filters: str = "null") -> float:
        """The mean SSIM beside a reference that goes through some filters."""
        graph = f"[0:v]setpts=N/25/TB[a];[1:v]{filters},setpts=N/25/TB[b];[a][b]ssim"
        said = ffmpeg("-i", self.path, "-noautorotate", "-i", reference, "-lavfi", graph, "-f", "null", "-")
        return float(said.rsplit("All:", 1)[1].split()[0])


# Every codec, depth and container


@pytest.mark.parametrize(
    ("codec", "depth", "container", "audio"),
    [
        (codec, depth, container, "opus" if container == "webm" else "aac")
        for codec in CODECS
        for depth in (8, 10)
        for container in ("mp4", "mkv", "webm")
        if container != "webm" or codec in ("av1", "vp9")
    ],
)
def test_every_codec_is_made_in_every_container(
    site: Site, make_clip: MakeClip, codec: str, depth: int, container: str, audio: str
) -> None:
    clip = make_clip(SMALL)
    made = site.one(clip, container=container, video={"codec": codec, "depth": depth}, audio={"codec": audio})
    assert made.video["codec_name"] == codec
    assert made.video["pix_fmt"] == ("yuv420p" if depth == 8 else "yuv420p10le")
    assert made.size == (160, 90)
    assert [stream["codec_name"] for stream in made.streams("audio")] == [audio]
    assert since_first(made.times()) == pytest.approx([number / 25 for number in range(25)], abs=0.0011)
    assert made.times()[0] < 0.03
    assert made.likeness(clip, f"format={made.video['pix_fmt']}") > 0.9


@pytest.mark.parametrize("mode", ["bitrate", "constant", "quality"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_rate_control_works_for_every_codec(site: Site, make_clip: MakeClip, codec: str, mode: str) -> None:
    rate = {"mode": mode, "quality": 40} if mode == "quality" else {"mode": mode, "bitrate": 150_000}
    clip = make_clip("testsrc2=s=160x90:r=25:d=3,noise=alls=20:allf=t", audio=False)
    made = site.one(clip, container="mkv", video={"codec": codec, "rate": rate})
    if mode != "quality":
        bitrate = made.path.stat().st_size * 8 / 3
        assert 75_000 < bitrate < 260_000


@pytest.mark.parametrize("codec", CODECS)
def test_every_speed_works_for_every_codec(site: Site, make_clip: MakeClip, codec: str) -> None:
    clip = make_clip("testsrc2=s=64x64:r=25:d=0.2", audio=False)
    for speed in ("fast", "balanced", "quality"):  # a job each: SVT-AV1 1.4 hangs with several presets in one process
        made = site.run(clip, {"container": "mkv", "video": {"codec": codec, "speed": speed}}, overwrite=True)
        assert made.outputs[0].frames == 5


# Time


JITTER = r"testsrc2=s=160x90:r=25:d=2,settb=1/90000,setpts=N*3600+mod(N*N*37\,1200)"
GAPS = r"testsrc2=s=160x90:r=50:d=2,select=not(mod(n\,3))+lt(mod(n\,17)\,3)"
VARIABLE = {
    "jitter": (JITTER, ("-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-video_track_timescale", "90000")),
    "gaps": (GAPS, ("-fps_mode", "vfr")),
    "jitter in Matroska": (JITTER, ("-fps_mode", "passthrough", "-enc_time_base", "1:1000", "-f", "matroska")),
    "gaps in Matroska": (GAPS, ("-fps_mode", "vfr", "-f", "matroska")),
    "gaps in MPEG-TS": (GAPS, ("-fps_mode", "vfr", "-f", "mpegts", "-c:a", "aac")),
}


@pytest.mark.parametrize(
    ("codec", "kind", "container"),
    [
        *((codec, kind, container) for codec in CODECS for kind, container in (("jitter", "mp4"), ("gaps", "mkv"))),
        *(("h264", kind, container) for kind in VARIABLE for container in ("mp4", "mkv")),
    ],
)
def test_a_variable_rate_is_kept_frame_for_frame(
    site: Site, make_clip: MakeClip, codec: str, kind: str, container: str
) -> None:
    lavfi, extra = VARIABLE[kind]
    clip = make_clip(lavfi, extra=extra)
    made = site.one(clip, container=container, video={"codec": codec})
    assert since_first(made.times()) == pytest.approx(since_first(Seen(clip).times()), abs=0.0011)
    assert made.times()[0] < 0.05


@pytest.mark.parametrize("codec", ["h264", "copy"])
@pytest.mark.parametrize("container", ["mkv", "webm", "mp4"])
def test_a_source_with_missing_pictures_is_whole_in_every_container(
    site: Site, make_clip: MakeClip, container: str, codec: str
) -> None:
    holes = "testsrc2=s=160x90:r=30:d=3,select='not(mod(n,7))+gt(mod(n,30),20)'"
    encoder = ("-c:v", "libvpx") if container == "webm" else ("-c:v", "libx264")
    clip = make_clip(holes, container=container, audio=False, extra=(*encoder, "-fps_mode", "vfr"))
    made = site.one(clip, container="mkv", video={"codec": codec})
    assert len(made.times()) == len(Seen(clip).times()) < 50


@pytest.mark.parametrize("codec", CODECS)
def test_a_variable_rate_does_not_fool_the_bitrate(site: Site, make_clip: MakeClip, codec: str) -> None:
    lavfi, extra = VARIABLE["jitter"]
    clip = make_clip(lavfi.replace("d=2", "d=3") + ",noise=alls=20:allf=t", audio=False, extra=extra)
    rate = {"mode": "bitrate", "bitrate": 150_000}
    made = site.one(clip, container="mkv", video={"codec": codec, "rate": rate})
    assert 75_000 < made.path.stat().st_size * 8 / 3 < 260_000


@pytest.mark.parametrize(("rate", "cap", "frames"), [("50", 25, 50), ("60000/1001", 30, 60), ("50", 30, 60)])
@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_rate_is_capped(site: Site, make_clip: MakeClip, codec: str, rate: str, cap: int, frames: int) -> None:
    clip = make_clip(f"testsrc2=s=160x90:r={rate}:d=2")
    made = site.one(clip, container="mkv", video={"codec": codec, "max_fps": cap})
    times = made.times()
    assert abs(len(times) - frames) <= 1
    assert min(later - sooner for sooner, later in pairwise(times)) > 0.95 / cap
    assert Fraction(made.video["avg_frame_rate"]) <= cap


def test_a_variable_rate_is_capped_to_even_steps(site: Site, make_clip: MakeClip) -> None:
    lavfi, extra = VARIABLE["gaps"]
    times = site.one(make_clip(lavfi, extra=extra), video={"max_fps": 10}).times()
    assert since_first(times) == pytest.approx([number / 10 for number in range(len(times))], abs=0.0011)
    assert len(times) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_last_picture_that_stands_for_a_second_is_kept(
    site: Site, make_clip: MakeClip, codec: str, container: str
) -> None:
    slides = r"testsrc2=s=160x90:r=1:d=6,select=not(eq(n\,2))"
    clip = make_clip(slides, audio=False, extra=("-fps_mode", "vfr"))
    made = site.one(clip, container=container, video={"codec": codec})
    assert made.times() == pytest.approx([0, 1, 3, 4, 5], abs=0.0011)
    assert float(made.probe("-show_format")["format"]["duration"]) == pytest.approx(6, abs=0.05)


def skew(seen: Seen) -> float:
    """How far the beginning of the sound is from that of the picture, in seconds."""
    return seen.times("a:0")[0] - seen.times()[0]


@pytest.mark.parametrize(("codec", "container"), [(codec, "ts") for codec in CODECS] + [("h264", "mkv")])
def test_a_source_that_begins_late_begins_at_zero_and_in_step(
    site: Site, make_clip: MakeClip, codec: str, container: str
) -> None:
    clip = make_clip(SMALL, container=container, extra=("-output_ts_offset", "1000.5"))
    made = site.one(clip, container="mkv", video={"codec": codec})
    # AAC's priming samples lie before zero
    assert abs(min(made.times()[0], made.times("a:0")[0])) < 0.03
    assert len(made.times()) == 25
    assert skew(made) == pytest.approx(skew(Seen(clip)), abs=0.03)


def test_sound_that_begins_after_the_picture_still_does(site: Site, make_clip: MakeClip) -> None:
    silent, clip = make_clip(SMALL, audio=False), site.file("late.mkv")
    ffmpeg("-i", silent, "-itsoffset", "0.5", "-f", "lavfi", "-i", f"{SOUND}:d=1", "-c:v", "copy", clip)
    for container in ("mp4", "mkv"):
        made = site.run(clip, {"container": container}).outputs[0]
        assert first_sound(Path(made.path)) == pytest.approx(first_sound(clip), abs=0.06)
        assert Seen(Path(made.path)).times()[0] == pytest.approx(0, abs=0.001)


def test_a_picture_that_begins_after_the_sound_still_does(site: Site, make_clip: MakeClip) -> None:
    silent, clip = make_clip(SMALL, audio=False), site.file("late.mkv")
    ffmpeg("-f", "lavfi", "-i", f"{SOUND}:d=2", "-itsoffset", "0.6", "-i", silent, "-c:v", "copy", clip)
    for codec in CODECS:
        made = site.one(clip, container="mkv", video={"codec": codec, "rate": {"mode": "quality", "quality": 30}})
        assert made.times()[0] == pytest.approx(0.6, abs=0.03)
        assert len(made.times()) == 25
        made.path.unlink()


def first_sound(path: Path) -> float:
    """When it first gets loud, as a player has it: with edit lists and priming samples honoured."""
    said = ffmpeg("-i", path, "-af", "aresample=async=1:first_pts=0,silencedetect=n=-40dB:d=0.05", "-f", "null", "-")
    ends = [line for line in said.splitlines() if "silence_end" in line]
    return float(ends[0].split("silence_end: ")[1].split()[0]) if ends else 0.0


def test_an_edit_list_is_honoured(site: Site, make_clip: MakeClip) -> None:
    clip, cut = make_clip("testsrc2=s=160x90:r=25:d=3"), site.file("cut.mp4")
    ffmpeg("-ss", "1.2", "-i", clip, "-c", "copy", cut)
    seen = Seen(cut)
    made = site.one(cut)
    assert made.end("v:0") == pytest.approx(1.8, abs=0.05)
    assert made.end("a:0") == pytest.approx(1.8, abs=0.05)
    assert made.likeness(clip, "trim=start=1.2") > 0.9
    assert len(made.times()) == len([time for time in seen.times() if time >= 0])


def test_every_frame_of_an_open_end_is_there(site: Site, make_clip: MakeClip) -> None:
    for frames in (1, 2):
        clip = make_clip(f"testsrc2=s=64x64:r=25:d={frames / 25}", audio=False)
        for codec in CODECS:
            made = site.one(clip, container="mkv", video={"codec": codec})
            assert len(made.times()) == frames, (codec, frames)
            made.path.unlink()


# Shape


@pytest.mark.parametrize("codec", CODECS)
def test_odd_sizes_become_even(site: Site, make_clip: MakeClip, codec: str) -> None:
    clip = make_clip("testsrc=s=639x359:r=25:d=0.2", pix_fmt="yuv444p", audio=False)
    made = site.one(clip, container="mkv", video={"codec": codec})
    assert made.size == (638, 358)
    assert made.likeness(clip, "crop=638:358:0:0,format=yuv420p") > 0.9


def turned(clip: Path, degrees: int, to: Path) -> Path:
    """The same pictures under a display matrix that turns them clockwise."""
    data = bytearray(clip.read_bytes())
    matrix = {
        90: (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30),
        180: (-1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30),
        270: (0, -1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30),
    }[degrees]
    track = data.index(b"tkhd") + 4
    struct.pack_into(">9i", data, track + 4 + 4 * 4 + 4 + 8 + 8, *matrix)
    to.write_bytes(data)
    return to


TURNS = {90: "transpose=clock", 180: "hflip,vflip", 270: "transpose=cclock"}


@pytest.mark.parametrize(("degrees", "box"), [(90, {}), (180, {}), (270, {}), (90, {"width": 60, "height": 60})])
def test_a_turned_picture_stands_upright(site: Site, make_clip: MakeClip, degrees: int, box: dict[str, int]) -> None:
    clip = turned(make_clip(SMALL), degrees, site.file("turned.mp4"))
    assert "Display Matrix" in Seen(clip).sides()
    made = site.one(clip, video={"codec": "h264", **box})
    lying, standing = ((60, 34), (34, 60)) if box else ((160, 90), (90, 160))
    assert made.size == (lying if degrees == 180 else standing)
    assert "Display Matrix" not in made.sides()
    assert "rotate" not in made.video.get("tags", {})
    width, height = made.size
    assert made.likeness(clip, f"{TURNS[degrees]},scale={width}:{height}") > 0.9


def test_a_copied_picture_keeps_its_turn(site: Site, make_clip: MakeClip) -> None:
    clip = turned(make_clip(SMALL), 90, site.file("turned.mp4"))
    assert site.one(clip, video={"codec": "copy"}).sides()["Display Matrix"]["rotation"] == -90


@pytest.mark.parametrize("codec", CODECS)
def test_an_anamorphic_picture_keeps_its_shape(site: Site, make_clip: MakeClip, codec: str) -> None:
    clip = make_clip("testsrc2=s=720x576:r=25:d=0.2,setsar=64/45", audio=False)
    kept = site.one(clip, container="mkv", video={"codec": codec})
    assert kept.size == (720, 576)
    assert Fraction(kept.video["sample_aspect_ratio"].replace(":", "/")) == Fraction(64, 45)
    kept.path.unlink()
    fitted = site.one(clip, container="mkv", video={"codec": codec, "width": 512, "height": 512})
    assert fitted.size == (512, 288)
    assert fitted.video["sample_aspect_ratio"] == "1:1"


WAVES = "color=s=160x120:r=50:d=1,geq=lum='128+100*sin((X-8*N)/12)':cb=128:cr=128"
COMB = f"{WAVES},tinterlace=mode=interleave_top,setfield=tff"


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_an_interlaced_picture_is_deinterlaced_frame_for_frame(site: Site, make_clip: MakeClip, codec: str) -> None:
    clip = make_clip(COMB, extra=("-flags", "+ilme+ildct"), audio=False)
    assert Seen(clip).video["field_order"] in ("tt", "tb")
    made = site.one(clip, container="mkv", video={"codec": codec})
    assert len(made.times()) == 25
    assert made.video["field_order"] in ("progressive", "unknown")
    assert combing(made.path) == 0
    assert combing(clip) == 25


def combing(path: Path) -> int:
    """How many frames look interlaced."""
    said = ffmpeg("-i", path, "-vf", "idet", "-f", "null", "-")
    counts = re.findall(r"Multi frame detection: TFF: *(\d+) BFF: *(\d+)", said)
    return sum(int(top) + int(bottom) for top, bottom in counts)


# Colour


def video_range(red: int, green: int, blue: int, kr: float = 0.2126, kb: float = 0.0722) -> tuple[float, ...]:
    """8-bit Y', Cb, Cr of an R'G'B' colour in video range, by the definition (BT.709 unless told)."""
    r, g, b = red / 255, green / 255, blue / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    return 16 + 219 * y, 128 + 224 * (b - y) / (2 * (1 - kb)), 128 + 224 * (r - y) / (2 * (1 - kr))


COLOURS = [(255, 0, 0), (32, 192, 64), (20, 40, 250), (255, 255, 255), (0, 0, 0)]


RGB = [
    *((colour, "rgb24", "png") for colour in COLOURS),
    *(
        (COLOURS[1], pix_fmt, vcodec)
        for pix_fmt, vcodec in (("bgr0", "ffv1"), ("argb", "qtrle"), ("rgb24", "libx264rgb"))
    ),
]


@pytest.mark.parametrize(
    ("colour", "pix_fmt", "vcodec"), RGB, ids=lambda value: value if isinstance(value, str) else ""
)
def test_rgb_becomes_video_range_with_the_right_colours(
    site: Site, make_clip: MakeClip, colour: tuple[int, int, int], pix_fmt: str, vcodec: str
) -> None:
    hexed = "0x{:02x}{:02x}{:02x}".format(*colour)
    clip = make_clip(
        f"color=c={hexed}:s=64x64:r=25:d=0.2,format={pix_fmt}",
        vcodec=vcodec, pix_fmt=pix_fmt, container="mov" if vcodec == "qtrle" else "mkv", audio=False,
    )  # fmt: skip
    made = site.one(clip, container="mkv", video={"codec": "h264"})
    assert made.video["color_range"] == "tv"
    assert made.video["color_space"] == "bt709"
    assert made.mean() == pytest.approx(video_range(*colour), abs=2.5)


BT709 = ("bt709",) * 3


@pytest.mark.parametrize(("codec", "tags"), [*((codec, BT709) for codec in CODECS), ("h264", None)], ids=str)
def test_full_range_becomes_video_range_with_the_same_colours(
    site: Site, make_clip: MakeClip, codec: str, tags: tuple[str, str, str] | None
) -> None:
    samples = (200, 90, 160)  # as stored: full-range Y', Cb, Cr
    matrix = "bt709" if tags else "unknown"
    paint = "geq=lum={}:cb={}:cr={},setparams=range=pc:colorspace={}".format(*samples, matrix)
    named = () if tags is None else ("-color_primaries", tags[0], "-color_trc", tags[1], "-colorspace", tags[2])
    clip = make_clip(
        f"color=s=64x64:r=25:d=0.2,format=yuv420p,{paint}", extra=("-color_range", "pc", *named), audio=False
    )
    assert Seen(clip).video["pix_fmt"] == "yuvj420p"
    assert Seen(clip).mean() == pytest.approx(samples, abs=2)
    made = site.one(clip, container="mkv", video={"codec": codec})
    y, cb, cr = samples
    wanted = (16 + y * 219 / 255, 128 + (cb - 128) * 224 / 255, 128 + (cr - 128) * 224 / 255)
    assert made.video.get("color_range", "tv") == "tv"
    assert made.video["pix_fmt"] == "yuv420p"
    assert made.mean() == pytest.approx(wanted, abs=2.5)
    assert made.video.get("color_space") == (None if tags is None else "bt709")


@pytest.mark.parametrize(("codec", "container"), [(codec, "mp4") for codec in CODECS] + [("vp9", "mkv")])
def test_colour_tags_and_samples_of_standard_definition_are_kept(
    site: Site, make_clip: MakeClip, codec: str, container: str
) -> None:
    paint = "setparams=color_primaries=bt470bg:color_trc=bt470bg:colorspace=bt470bg:range=tv"
    tags = ("-color_primaries", "bt470bg", "-color_trc", "gamma28", "-colorspace", "bt470bg", "-color_range", "tv")
    clip = make_clip(f"smptebars=s=256x160:r=25:d=0.2,{paint}", extra=tags, audio=False, container="mkv")
    made = site.one(clip, container=container, video={"codec": codec, "width": 128, "height": 128})
    assert (made.video["color_primaries"], made.video["color_transfer"]) == ("bt470bg", "bt470bg")
    assert made.video["color_space"] == "bt470bg"
    assert made.mean((4, 4, 8, 16)) == pytest.approx(Seen(clip).mean((8, 8, 16, 32)), abs=3)


MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
X265 = "log-level=error:repeat-headers=1:colorprim=bt2020:colormatrix=bt2020nc"
HDR_TAGS = ("-color_primaries", "bt2020", "-colorspace", "bt2020nc", "-color_range", "tv", "-tag:v", "hvc1")


@pytest.fixture
def hdr10(make_clip: MakeClip) -> Path:
    params = f"{X265}:transfer=smpte2084:hdr10=1:master-display={MASTERING}:max-cll=1000,400"
    extra = ("-preset", "ultrafast", "-color_trc", "smpte2084", *HDR_TAGS, "-x265-params", params)
    return make_clip(SMALL, vcodec="libx265", pix_fmt="yuv420p10le", extra=extra)


@pytest.fixture
def hlg(make_clip: MakeClip) -> Path:
    extra = ("-preset", "ultrafast", "-color_trc", "arib-std-b67", *HDR_TAGS)
    params = ("-x265-params", f"{X265}:transfer=arib-std-b67")
    return make_clip(SMALL, vcodec="libx265", pix_fmt="yuv420p10le", extra=(*extra, *params))


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", ["hevc", "av1", "vp9"])
def test_hdr10_is_kept_whole(site: Site, hdr10: Path, codec: str, container: str) -> None:
    if codec == "vp9" and site.machine.build.numbers < (7, 1):
        with pytest.raises(FfmpegMissing, match="no working encoder for vp9"):
            site.one(hdr10, container=container, video={"codec": codec})
        return
    made = site.one(hdr10, container=container, video={"codec": codec})
    assert made.video["pix_fmt"] == "yuv420p10le"
    assert (made.video["color_primaries"], made.video["color_transfer"]) == ("bt2020", "smpte2084")
    assert (made.video["color_space"], made.video["color_range"]) == ("bt2020nc", "tv")
    mastering = made.sides()["Mastering display metadata"]
    wanted = {"red_x": 0.68, "green_y": 0.69, "blue_x": 0.15, "white_point_x": 0.3127, "max_luminance": 1000}
    assert {name: float(Fraction(mastering[name])) for name in wanted} == pytest.approx(wanted, rel=0.001)
    assert float(Fraction(mastering["min_luminance"])) == pytest.approx(0.005, rel=0.02)
    light = made.sides()["Content light level metadata"]
    assert (light["max_content"], light["max_average"]) == (1000, 400)


@pytest.mark.parametrize("codec", ["hevc", "av1", "vp9"])
def test_hlg_is_kept(site: Site, hlg: Path, codec: str) -> None:
    made = site.one(hlg, container="mp4", video={"codec": codec})
    assert made.video["pix_fmt"] == "yuv420p10le"
    assert (made.video["color_primaries"], made.video["color_transfer"]) == ("bt2020", "arib-std-b67")


@pytest.mark.parametrize("video", [{"codec": "h264"}, {"codec": "hevc", "depth": 8}], ids=["h264", "8 bits"])
def test_hdr_that_would_be_washed_out_is_refused_where_it_shall_be_kept(
    site: Site, hdr10: Path, video: dict[str, Any]
) -> None:
    with pytest.raises(InputRefused, match="HDR"):
        site.one(hdr10, video={**video, "hdr": "keep"})
    assert list(site.folder.iterdir()) == []


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("kind", ["hdr10", "hlg"])
def test_hdr_becomes_sdr_that_says_so_and_keeps_its_brightness(
    site: Site, request: pytest.FixtureRequest, kind: str, codec: str
) -> None:
    clip = request.getfixturevalue(kind)
    made = site.one(clip, video={"codec": codec, "hdr": "sdr", "depth": 8})
    tags = [made.video[name] for name in ("color_primaries", "color_transfer", "color_space", "color_range")]
    assert tags == ["bt709", "bt709", "bt709", "tv"]
    assert "Mastering display metadata" not in made.sides()
    assert 40 < made.mean()[0] < 215


def test_edges_are_cut_off(site: Site, make_clip: MakeClip) -> None:
    halves = "color=black:s=64x64:r=25:d=1,drawbox=x=32:y=0:w=32:h=64:color=white:t=fill"
    made = site.one(make_clip(halves, audio=False), video={"crop": {"left": 40, "top": 16}})
    assert made.size == (24, 48)
    assert made.mean()[0] > 200


def dolby_vision(clip: Path, profile: int, to: Path) -> Path:
    """The same hevc in mp4 under a Dolby Vision configuration record."""
    record = struct.pack(">IBBHB", 0, 1, 0, profile << 9 | 1 << 3 | 0b101, (1 if profile == 8 else 0) << 4)[4:]
    box = struct.pack(">I4s", 32, b"dvcC") + record.ljust(24, b"\0")
    data = clip.read_bytes()
    at, end = 0, len(data)
    sizes = []
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hvc1"):
        while data[at + 4 : at + 8] != name:
            at += struct.unpack_from(">I", data, at)[0]
        sizes.append(at)
        end = at + struct.unpack_from(">I", data, at)[0]
        at += 16 if name == b"stsd" else 8
    assert data.index(b"mdat") < sizes[0], "the samples lie before the index: their offsets stay"
    changed = bytearray(data[:end] + box + data[end:])
    for place in sizes:
        struct.pack_into(">I", changed, place, struct.unpack_from(">I", data, place)[0] + len(box))
    to.write_bytes(changed)
    return to


def test_dolby_vision_profile_5_is_refused(site: Site, hdr10: Path) -> None:
    clip = dolby_vision(hdr10, 5, site.file("dv.mp4"))
    for video in ({"codec": "hevc"}, {"codec": "copy"}):
        with pytest.raises(InputRefused, match="Dolby Vision profile 5"):
            site.one(clip, video=video)


def test_dolby_vision_profile_8_is_hdr10_for_us(site: Site, hdr10: Path) -> None:
    clip = dolby_vision(hdr10, 8, site.file("dv.mp4"))
    made = site.one(clip, video={"codec": "hevc"})
    assert made.video["color_transfer"] == "smpte2084"
    assert not any("DOVI" in kind for kind in made.sides())


# Ladders


def since_first(times: list[float]) -> list[float]:
    """In seconds after the first: Matroska moves all streams when sound begins before zero (AAC's priming)."""
    return [time - times[0] for time in times]


def rungs(codec: str, *heights: int, **video: Any) -> list[dict[str, Any]]:
    return [
        {"name": f"{height}p", "container": "mkv", "video": {"codec": codec, "height": height, "gop": 0.5, **video}}
        for height in heights
    ]


SPRINGY = "testsrc2=s=160x90:r=25:d=3"
CUTS = f"{SPRINGY},hue=h='360*floor(t/0.7)/5':b='4*mod(floor(t/0.7),2)'"
LADDERS = {
    "steady": (CUTS, ()),
    "variable": (JITTER.replace("d=2", "d=3"), VARIABLE["jitter"][1]),
    "23.976": (CUTS.replace("r=25", "r=24000/1001"), ()),
}


@pytest.mark.parametrize("kind", LADDERS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_rungs_of_a_ladder_have_key_frames_at_the_same_times(
    site: Site, make_clip: MakeClip, codec: str, kind: str
) -> None:
    lavfi, extra = LADDERS[kind]
    result = site.run(make_clip(lavfi, extra=extra), *rungs(codec, 90, 80, 64))
    made = [Seen(Path(output.path)) for output in result.outputs]
    assert [seen.size[1] for seen in made] == [90, 80, 64]
    keys = [seen.keys() for seen in made]
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 6
    times = made[0].times()
    if codec == "av1" and site.machine.build.numbers < (6,):  # which cannot force SVT-AV1: it counts frames
        distance = times.index(keys[0][1])
        due = times[::distance]
    else:
        due = [next(time for time in times if time - times[0] >= number / 2 - 0.002) for number in range(6)]
    assert keys[0] == due


def test_a_ladder_is_one_decode(site: Site, make_clip: MakeClip) -> None:
    site.run(make_clip(SPRINGY), *rungs("h264", 90, 60))
    (planned,) = (event for event in site.events if isinstance(event, Planned))
    assert planned.commands[-1].argv().count("-i") == 1


def test_the_outputs_of_one_job_may_be_many(site: Site, make_clip: MakeClip) -> None:
    outputs = [{"name": f"o{number}", "video": {"height": 16, "gop": 0.2}} for number in range(32)]
    result = site.run(make_clip(SPRINGY), *outputs, verify="sampled")
    assert [output.frames for output in result.outputs] == [75] * 32


def test_rungs_above_the_source_are_left_out_and_said(site: Site, make_clip: MakeClip) -> None:
    result = site.run(make_clip(SMALL), *rungs("h264", 1080, 90, 60, upscale="skip"))
    assert [output.name for output in result.outputs] == ["90p", "60p"]
    assert any("1080p: larger than the source" in warning for warning in result.warnings)


def test_where_all_rungs_are_above_the_source_the_smallest_stands_in(site: Site, make_clip: MakeClip) -> None:
    result = site.run(make_clip(SMALL), *rungs("h264", 1080, 720, upscale="skip"))
    assert [(output.name, output.height) for output in result.outputs] == [("720p", 90)]


def test_outputs_of_one_job_may_differ_in_everything(site: Site, make_clip: MakeClip) -> None:
    result = site.run(
        make_clip(SMALL),
        {"name": "a", "video": {"codec": "hevc", "depth": 10, "height": 60}},
        {"name": "b", "container": "webm", "video": {"codec": "vp9"}, "audio": {"codec": "opus"}},
        {"name": "c", "video": None, "audio": {"codec": "aac", "channels": 1}},
        {"name": "d", "container": "mkv", "video": {"codec": "copy"}, "audio": {"codec": "copy"}},
        {"name": "e", "container": "mkv", "video": {"codec": "h264", "max_fps": 10}, "audio": None},
    )
    shapes = [(one.codec, one.height, one.depth, one.frames, one.audio) for one in result.outputs]
    assert shapes == [
        ("hevc", 60, 10, 25, ("aac",)),
        ("vp9", 90, 8, 25, ("opus",)),
        (None, None, None, None, ("aac",)),
        ("h264", 90, 8, 25, ("aac",)),
        ("h264", 90, 8, 10, ()),
    ]
    assert [Path(one.path).name for one in result.outputs] == ["a.mp4", "b.webm", "c.m4a", "d.mkv", "e.mkv"]


def test_two_outputs_with_one_name_are_refused(site: Site, make_clip: MakeClip) -> None:
    outputs = [{"name": "a", "video": {"height": 90}}, {"name": "b", "video": {"height": 90}}]
    with pytest.raises(SpecError, match=r"'a' and 'b' would both be .*90\.mp4"):
        site.run(make_clip(SMALL), *outputs, target=str(site.file("{height}.mp4")))


# Sound


def heard(layout: str, make_clip: MakeClip, codec: str = "flac", container: str = "mkv") -> Path:
    sound = f"sine=frequency=440:sample_rate=48000,aformat=channel_layouts={layout}"
    return make_clip(SMALL, audio=sound, container=container, extra=("-c:a", codec))


LAYOUTS = ["mono", "stereo", "2.1", "3.0", "4.0", "quad", "5.0", "5.0(side)", "5.1", "5.1(side)", "6.1", "7.1",
           "7.1(wide)", "hexagonal"]  # fmt: skip


@pytest.mark.parametrize("codec", ["aac", "opus"])
def test_every_layout_can_be_encoded(site: Site, make_clip: MakeClip, codec: str) -> None:
    clip = site.file("layouts.mkv")
    tones = [f"sine=r=48000:d=1,aformat=channel_layouts={layout}" for layout in LAYOUTS]
    inputs = [word for tone in tones for word in ("-f", "lavfi", "-i", tone)]
    maps = [word for number in range(1 + len(tones)) for word in ("-map", number)]
    ffmpeg("-i", make_clip(SMALL, audio=False), *inputs, *maps, "-c:v", "copy", "-c:a", "pcm_s16le", clip)
    made = site.one(clip, container="mkv", audio={"codec": codec})
    before, now = Seen(clip).streams("audio"), made.streams("audio")
    assert [stream["codec_name"] for stream in now] == [codec] * len(LAYOUTS)
    assert [stream["channels"] for stream in now] == [stream["channels"] for stream in before]
    for number in range(len(LAYOUTS)):
        assert made.end(f"a:{number}") == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("codec", ["aac", "opus"])
@pytest.mark.parametrize(
    ("layout", "asked", "channels"), [("5.1", 2, 2), ("5.1(side)", 1, 1), ("mono", 2, 1), ("7.1", 6, 6)]
)
def test_channels_are_mixed_down_and_never_up(
    site: Site, make_clip: MakeClip, layout: str, asked: int, channels: int, codec: str
) -> None:
    made = site.one(heard(layout, make_clip, "pcm_s16le"), container="mkv", audio={"codec": codec, "channels": asked})
    assert [stream["channels"] for stream in made.streams("audio")] == [channels]


@pytest.mark.parametrize(("rate", "codec"), [(8000, "aac"), (44100, "opus"), (96000, "aac"), (96000, "opus")])
def test_every_sample_rate_can_be_encoded(site: Site, make_clip: MakeClip, rate: int, codec: str) -> None:
    clip = make_clip(SMALL, audio=f"sine=sample_rate={rate}", container="mkv", extra=("-c:a", "pcm_s16le"))
    made = site.one(clip, container="mkv", audio={"codec": codec})
    (stream,) = made.streams("audio")
    assert int(stream["sample_rate"]) == (48000 if codec == "opus" else rate)


@pytest.mark.parametrize("codec", ["aac", "opus"])
@pytest.mark.parametrize("bitrate", [6_000, 24_000, 1_000_000])
def test_every_bitrate_that_may_be_asked_works(site: Site, make_clip: MakeClip, codec: str, bitrate: int) -> None:
    made = site.one(heard("mono", make_clip), container="mkv", audio={"codec": codec, "bitrate": bitrate})
    assert len(made.streams("audio")) == 1


@pytest.fixture
def languages(make_clip: MakeClip, site: Site) -> Path:
    """A picture with English in stereo, German in 5.1 and French in mono."""
    clip = site.file("languages.mkv")
    tones = [f"sine=f={tone}:r=48000:d=1,aformat=channel_layouts={layout}" for tone, layout in
             ((400, "stereo"), (600, "5.1"), (800, "mono"))]  # fmt: skip
    inputs = [word for tone in tones for word in ("-f", "lavfi", "-i", tone)]
    maps = [word for number in range(4) for word in ("-map", number)]
    tags = [word for number, tag in enumerate(("eng", "deu", "fra"))
            for word in (f"-metadata:s:a:{number}", f"language={tag}")]  # fmt: skip
    titles = ["-metadata:s:a:1", "title=Kommentar"]
    disposed = ["-disposition:a:0", "0", "-disposition:a:1", "default"]
    ffmpeg(
        "-i",
        make_clip(SMALL, audio=False),
        *inputs,
        *maps,
        "-c:v",
        "copy",
        "-c:a",
        "aac",
        *tags,
        *titles,
        *disposed,
        clip,
    )
    return clip


@pytest.mark.parametrize(("codec", "container"), [("aac", "mp4"), ("opus", "mkv"), ("copy", "mp4"), ("copy", "mkv")])
def test_every_language_comes_along_with_its_name(site: Site, languages: Path, codec: str, container: str) -> None:
    made = site.one(languages, container=container, audio={"codec": codec})
    streams = made.streams("audio")
    assert [stream["tags"]["language"] for stream in streams] == ["eng", "deu", "fra"]
    assert [stream["channels"] for stream in streams] == [2, 6, 1]
    assert [stream["disposition"]["default"] for stream in streams] == [0, 1, 0]


@pytest.mark.parametrize(("streams", "tags"), [("first", ["eng"]), ([2], ["fra"]), ([2, 0], ["fra", "eng"])])
def test_streams_are_chosen_by_number(site: Site, languages: Path, streams: object, tags: list[str]) -> None:
    made = site.one(languages, audio={"streams": streams})
    assert [stream["tags"]["language"] for stream in made.streams("audio")] == tags


def test_a_stream_that_is_not_there_is_named(site: Site, languages: Path) -> None:
    with pytest.raises(InputUnreadable, match="3 audio streams; number 7"):
        site.one(languages, audio={"streams": [7]})


def test_a_silent_source_makes_a_silent_output(site: Site, make_clip: MakeClip) -> None:
    assert site.one(make_clip(SMALL, audio=False)).streams("audio") == []


def test_copied_sound_is_the_same_bytes(site: Site, make_clip: MakeClip) -> None:
    clip = make_clip(SMALL)
    made = site.one(clip, container="mkv", audio={"codec": "copy"})
    assert digest(made.path, "a") == digest(clip, "a")


def digest(path: Path, kind: str) -> str:
    """The hash of a stream's packets, without their times."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", f"0:{kind}", "-c", "copy", "-f", "streamhash", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.mark.parametrize("codec", ["aac", "opus"])
def test_sound_alone_is_an_m4a(site: Site, make_clip: MakeClip, codec: str) -> None:
    made = site.one(make_clip(SMALL), video=None, audio={"codec": codec}, subtitles="drop")
    assert made.path.name == "made.m4a"
    assert made.streams("video") == []
    assert made.end("a:0") == pytest.approx(1.0, abs=0.06)


def test_sound_alone_can_come_from_a_file_of_sound(site: Site) -> None:
    song = site.file("song.wav")
    ffmpeg("-f", "lavfi", "-i", f"{SOUND}:d=2", song)
    made = site.one(song, video=None)
    assert made.end("a:0") == pytest.approx(2.0, abs=0.06)


# Subtitles, chapters, tags


SRT = "1\n00:00:00,100 --> 00:00:00,500\nHello, world\n\n2\n00:00:00,600 --> 00:00:00,900\nÄgypten\n"


@pytest.fixture
def texted(make_clip: MakeClip, site: Site) -> Callable[[str], Path]:
    def make(codec: str) -> Path:
        words, clip = site.file("words.srt"), site.file(f"{codec}.{'mp4' if codec == 'mov_text' else 'mkv'}")
        words.write_text(SRT)
        ffmpeg(
            "-i", make_clip(SMALL), "-i", words, "-map", "0", "-map", "1", "-c", "copy", "-c:s", codec,
            "-metadata:s:s:0", "language=eng", clip,
        )  # fmt: skip
        return clip

    return make


@pytest.mark.parametrize(
    ("codec", "container", "becomes"),
    [
        ("srt", "mkv", "subrip"), ("srt", "mp4", "mov_text"), ("srt", "webm", "webvtt"),
        ("ass", "mkv", "ass"), ("ass", "mp4", "mov_text"), ("ass", "webm", "webvtt"),
        ("mov_text", "mkv", "subrip"), ("mov_text", "mp4", "mov_text"), ("mov_text", "webm", "webvtt"),
    ],
)  # fmt: skip
def test_subtitles_of_text_come_along(
    site: Site, texted: Callable[[str], Path], codec: str, container: str, becomes: str
) -> None:
    web = {"video": {"codec": "vp9"}, "audio": {"codec": "opus"}} if container == "webm" else {}
    made = site.one(texted(codec), container=container, **web)
    (stream,) = made.streams("subtitle")
    assert (stream["codec_name"], stream["tags"]["language"]) == (becomes, "eng")
    text = site.file("out.srt")
    ffmpeg("-i", made.path, "-map", "0:s", text)
    assert "Hello, world" in text.read_text()
    assert "Ägypten" in text.read_text()
    # Matroska moves all streams alike when AAC's priming lies before zero
    first = made.times()[0]
    assert any(time - first == pytest.approx(0.6, abs=0.025) for time in made.times("s:0"))


def test_subtitles_are_dropped_where_that_is_asked(site: Site, texted: Callable[[str], Path]) -> None:
    assert site.one(texted("srt"), subtitles="drop").streams("subtitle") == []


@pytest.fixture
def book(make_clip: MakeClip, site: Site) -> Path:
    """A clip with chapters, a title of the file, and a picture with a name and a language."""
    page, clip = site.file("chapters.txt"), site.file("book.mkv")
    chapters = "".join(
        f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={start + 500}\ntitle={title}\n"
        for start, title in ((0, "Begin"), (500, "End = of; it"))
    )
    page.write_text(";FFMETADATA1\ntitle=The Film\n" + chapters.replace("End = of; it", "End \\= of\\; it"))
    ffmpeg(
        "-i", make_clip(SMALL), "-i", page, "-map_metadata", "1", "-map_chapters", "1", "-map", "0", "-c", "copy",
        "-metadata:s:v:0", "language=ita", "-metadata:s:v:0", "title=Il film", clip,
    )  # fmt: skip
    return clip


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", ["h264", "copy"])
def test_chapters_title_and_languages_are_kept(site: Site, book: Path, codec: str, container: str) -> None:
    made = site.one(book, container=container, video={"codec": codec})
    found = made.probe("-show_chapters", "-show_format")
    assert [one["tags"]["title"] for one in found["chapters"]] == ["Begin", "End = of; it"]
    assert [float(one["start_time"]) for one in found["chapters"]] == [0.0, 0.5]
    assert found["format"]["tags"]["title"] == "The Film"
    assert made.video["tags"]["language"] == "ita"
    if container == "mkv":
        assert made.video["tags"]["title"] == "Il film"


# Containers


def boxes(path: Path) -> list[str]:
    """The names of an mp4's outer boxes, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += struct.unpack_from(">I", data, at)[0]
    return names


@pytest.mark.parametrize("video", [{"codec": "h264"}, {"codec": "copy"}, None], ids=["encoded", "copied", "sound"])
def test_an_mp4_begins_with_its_index(site: Site, make_clip: MakeClip, video: dict[str, str] | None) -> None:
    names = boxes(site.one(make_clip(SMALL), video=video).path)
    assert names.index("moov") < names.index("mdat")


@pytest.mark.parametrize("codec", ["hevc", "copy"])
def test_hevc_in_mp4_bears_the_tag_that_apple_plays(site: Site, hdr10: Path, codec: str) -> None:
    source = site.file("source.mkv")
    ffmpeg("-i", hdr10, "-c", "copy", source)
    assert site.one(source, video={"codec": codec}).video["codec_tag_string"] == "hvc1"


@pytest.mark.parametrize(
    ("before", "after"), [("mp4", "mkv"), ("mkv", "mp4"), ("ts", "mp4"), ("ts", "mkv"), ("mov", "mkv")]
)
def test_a_remux_is_the_same_bytes(site: Site, make_clip: MakeClip, before: str, after: str) -> None:
    clip = make_clip("testsrc2=s=160x90:r=25:d=1", container=before, extra=("-c:a", "aac"))
    made = site.one(clip, container=after, video={"codec": "copy"}, audio={"codec": "copy"})
    assert decoded(made.path) == decoded(clip)
    assert since_first(made.times()) == pytest.approx(since_first(Seen(clip).times()), abs=0.0011)


def decoded(path: Path) -> str:
    """The hash of every decoded picture, without times."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:v", "-fps_mode", "passthrough"]
    return subprocess.run(
        [*command, "-f", "rawvideo", "-f", "hash", "-"], capture_output=True, text=True, check=True, timeout=30
    ).stdout


@pytest.mark.parametrize("after", ["mkv", "mp4"])
def test_an_avi_without_time_stamps_can_be_remuxed(site: Site, make_clip: MakeClip, after: str) -> None:
    clip = make_clip(SMALL, vcodec="mpeg4", container="avi", extra=("-bf", "2", "-c:a", "libmp3lame"))
    made = site.one(clip, container=after, video={"codec": "copy"}, audio={"codec": "copy"})
    assert made.times() == sorted(set(made.times()))
    assert len(made.times()) == 25


def test_a_remux_that_the_container_cannot_hold_is_refused(site: Site, make_clip: MakeClip) -> None:
    with pytest.raises(InputRefused, match=r"webm cannot hold the video of .* \(h264\)"):
        site.one(make_clip(SMALL), container="webm", video={"codec": "copy"}, audio={"codec": "opus"})


# The story


def test_the_story_is_told_in_order_and_its_result_is_the_manifest(site: Site, bbb: Path) -> None:
    result = site.run(bbb, {"video": {"codec": "h264", "height": 90}}, verify="sampled")
    kinds = [type(event) for event in site.events]
    milestones = [
        kind for number, kind in enumerate(kinds) if kind is not Advanced or kinds[number - 1] is not Advanced
    ]
    assert milestones == [Probing, Planned, Started, Advanced, Verifying, Publishing, Published]
    advanced = [event for event in site.events if isinstance(event, Advanced)]
    fractions = [event.fraction for event in advanced if event.fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.9
    (output,) = result.outputs
    assert (output.frames, output.width, output.height, output.codec) == (132, 160, 90, "h264")
    assert output.bytes == Path(output.path).stat().st_size
    written = json.loads(Path(result.manifest).read_text())
    assert written["result"]["outputs"][0]["sha256"] == output.sha256
    assert result.timings.encode > 0
    assert sorted(path.name for path in site.folder.iterdir()) == ["made.mp4", "test.transcoder.json"]


def test_the_command_in_the_manifest_can_be_pasted(site: Site, make_clip: MakeClip) -> None:
    result = site.run(make_clip(SMALL), {"video": {"codec": "h264"}})
    argv = json.loads(Path(result.manifest).read_text())["argv"]
    Path(result.outputs[0].path).unlink()
    subprocess.run([*argv, "-v", "error"], check=True, timeout=30, stdin=subprocess.DEVNULL)
    assert len(Seen(Path(result.outputs[0].path)).times()) == 25


def test_a_job_without_an_encoder_says_which(site: Site, make_clip: MakeClip) -> None:
    site.machine = replace(site.machine, abilities=frozenset())
    with pytest.raises(TranscoderError, match="no working encoder for h264"):
        site.run(make_clip(SMALL))


@pytest.fixture(autouse=True)
def nothing_half_done(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """No scratch folder is left, whatever the test did."""
    yield
    assert list(tmp_path.rglob(".transcoder-*")) == []
