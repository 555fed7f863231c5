"""Bad input: a clear error that names the thing and a way on, nothing at the target, no scratch, no child left.

Everything here goes through `job.transcode`, as the worker and `transcoder run` do.
"""

from __future__ import annotations

import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from tests.conftest import MakeClip
from tests.local import MACHINE, Place, Yes, children, everything_below, program
from transcoder import errors
from transcoder.errors import (
    FfmpegMissing,
    InputMissing,
    InputRefused,
    InputUnreadable,
    JobCancelled,
    NoRouteWorked,
    SpecError,
    TranscoderError,
)
from transcoder.events import Published
from transcoder.faults import FaultClass
from transcoder.plan import plan
from transcoder.policy import Policy
from transcoder.probe import probe
from transcoder.survey import survey

pytestmark = pytest.mark.slow

BYSTANDER = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.below(tmp_path)


@pytest.fixture
def clip(make_clip: MakeClip) -> Path:
    return make_clip()


def ffmpeg(*words: object) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, words)], check=True, timeout=60)


T = TypeVar("T")


def survived(what: Callable[[], T]) -> T | TranscoderError:
    """What a call gives, or the error of ours that it ends with; every other exception fails the test."""
    try:
        return what()
    except TranscoderError as error:
        return error


def made_well(place: Place, result: Published, seconds: float | None = None) -> None:
    """The job is done and has left the target and the manifest, and nothing else."""
    names = sorted(path.name for path in place.out.iterdir())
    assert names == sorted(["job.transcoder.json", *(Path(one.path).name for one in result.outputs)])
    assert children() == []
    if seconds is not None:
        assert result.outputs[0].duration == pytest.approx(seconds, abs=0.15)


# What is not a media file at all


def test_a_missing_source_is_named(place: Place) -> None:
    place.refuses(place.spec(place.inside / "absent.mp4"), InputMissing)


def test_a_folder_is_not_a_source(place: Place) -> None:
    assert "folder" in place.refuses(place.spec(place.inside), InputMissing).what


def test_a_pipe_is_refused_and_never_waited_for(place: Place) -> None:
    os.mkfifo(place.inside / "pipe.mp4")
    assert "a pipe" in place.refuses(place.spec(place.inside / "pipe.mp4"), InputMissing).what


def test_a_socket_is_not_a_source(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.inside)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.mp4")
        assert "a socket" in place.refuses(place.spec(place.inside / "socket.mp4"), InputMissing).what


def test_a_device_is_not_a_source(place: Place) -> None:
    place.policy = replace(place.policy, roots=("/dev", *place.policy.roots))
    assert "a device" in place.refuses(place.spec("/dev/zero"), InputMissing).what


def test_an_empty_source_is_named(place: Place) -> None:
    (place.inside / "empty.mp4").touch()
    assert "empty" in place.refuses(place.spec(place.inside / "empty.mp4"), InputMissing).what


@pytest.mark.parametrize(
    "content",
    [b"Dear diary,\ntoday nothing happened.\n" * 40, bytes(20_000), random.Random(1).randbytes(20_000)],
    ids=["text", "zeros", "noise"],
)
def test_a_file_that_is_not_media_is_unreadable_whatever_its_name(place: Place, content: bytes) -> None:
    (place.inside / "clip.mp4").write_bytes(content)
    place.refuses(place.spec(place.inside / "clip.mp4"), InputUnreadable)


# Files that would open others


@pytest.fixture
def tempting(place: Place, clip: Path) -> Iterator[Path]:
    """A folder with a clip, and a web server nobody may speak to."""
    place.bring(clip, "clip.mp4")
    ffmpeg("-i", clip, "-c", "copy", place.inside / "clip.ts")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        (place.inside / "port").write_text(str(server.getsockname()[1]))
        yield place.inside
        with pytest.raises(TimeoutError):
            server.accept()


PLAYLISTS = {
    "hls of a neighbour": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n",
    "hls of a remote file": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:{port}/clip.ts\n#EXT-X-ENDLIST\n",
    "hls of a secret": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "hls with a remote key": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n"
    '#EXT-X-KEY:METHOD=AES-128,URI="http://127.0.0.1:{port}/key"\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n',
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhttp://127.0.0.1:{port}/one.m3u8\n",
    "hls after a byte order mark": "\ufeff#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n",
    "ffconcat of a neighbour": "ffconcat version 1.0\nfile clip.mp4\n",
    "ffconcat of a remote file": "ffconcat version 1.0\nfile http://127.0.0.1:{port}/clip.mp4\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>http://127.0.0.1:{port}/clip.mp4</BaseURL></Representation></AdaptationSet></Period>'
    "</MPD>\n",
}


@pytest.mark.parametrize("name", ["clip-in-disguise.mp4", "list.m3u8", "list.ffconcat", "s.sdp", "m.mpd", "c.mkv"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_or_script_is_refused_under_every_name(tempting: Path, place: Place, kind: str, name: str) -> None:
    text = PLAYLISTS[kind].replace("{port}", (tempting / "port").read_text())
    (tempting / name).write_text(text)
    error = place.refuses(place.spec(tempting / name), InputRefused)
    assert re.search("HLS playlist|ffconcat script|SDP session|DASH manifest", error.what)


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_ffmpeg_itself_opens_no_playlist_that_took_the_place_of_the_source(
    tempting: Path, place: Place, kind: str
) -> None:
    source = place.bring(tempting / "clip.mp4", "swapped.mp4")
    spec = place.spec(source)
    (command,) = plan(spec, probe(str(source), place.policy), MACHINE).commands
    source.write_text(PLAYLISTS[kind].replace("{port}", (tempting / "port").read_text()))
    words = command.argv("ffmpeg", [str(place.out / "made.mp4")])
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=20)
    assert done.returncode != 0
    assert "whitelist" in done.stderr or "Invalid data" in done.stderr
    assert not (place.out / "made.mp4").exists()


def test_a_playlist_that_takes_the_place_of_the_source_after_the_probe_ends_the_job(
    tempting: Path, place: Place
) -> None:
    source = place.bring(tempting / "clip.mp4", "swapped.mp4")

    def swap() -> None:
        source.write_text(PLAYLISTS["ffconcat of a neighbour"])

    with pytest.raises(InputUnreadable, match=r"swapped\.mp4"):
        place.run(place.spec(source), permit=Yes(on_claim=swap))
    assert everything_below(place.out) == {}


# What is not video, or too much of it


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.mp4", "picture.mkv"])
def test_a_picture_is_not_a_video(place: Place, name: str) -> None:
    kind = ["-c:v", "mjpeg"] if name == "picture.jpg" else ["-c:v", "png"]
    source = place.inside / name
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x64:d=1", "-frames:v", 1, *kind, "-f", "image2", "-update", 1, source)
    assert "a picture" in place.refuses(place.spec(source), InputRefused).what


@pytest.mark.parametrize("size", ["16000x16000", "8194x8194"])
def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(place: Place, size: str) -> None:
    source = place.inside / "huge.mkv"
    ffmpeg("-f", "lavfi", "-i", f"color=black:s={size}:r=1:d=1,format=monob", "-c:v", "png", source)
    words = place.inside / "words"
    place.policy = replace(
        place.policy, ffprobe=program(place.inside, "ffprobe", f'echo "$*" >> {words}; exec ffprobe "$@"')
    )
    error = place.refuses(place.spec(source), InputRefused)
    assert f"-max_pixels {place.policy.max_pixels} " in words.read_text()
    assert size in error.what
    assert "TRANSCODER_MAX_PIXELS" in error.next_step


def test_a_file_without_video_is_unreadable_where_video_is_asked(place: Place) -> None:
    source = place.inside / "sound.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", source)
    error = place.refuses(place.spec(source), InputUnreadable, about="output 'main' asks for video")
    assert "audio-aac" in error.next_step


def test_a_file_without_sound_is_unreadable_where_only_sound_is_asked(place: Place, make_clip: MakeClip) -> None:
    source = place.bring(make_clip(audio=False))
    place.refuses(place.spec(source, outputs=[{"video": None}]), InputUnreadable, about="no audio")


def test_a_cover_picture_is_no_video(place: Place, tmp_path: Path) -> None:
    cover, source = tmp_path / "cover.png", place.inside / "song.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x64", "-frames:v", 1, cover)
    sound = ("-f", "lavfi", "-i", "sine=d=1")
    ffmpeg(*sound, "-i", cover, "-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic", source)
    error = place.refuses(place.spec(source), InputUnreadable, about="output 'main' asks for video")
    assert "only a cover picture" in error.what


# Cut short, damaged, or lying


def cut(path: Path, part: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    return path


LONG = "testsrc2=s=160x90:r=25:d=10"


def test_an_mp4_without_its_index_is_unreadable(place: Place, clip: Path) -> None:
    source = cut(place.bring(clip), 0.5)
    assert "moov" in place.refuses(place.spec(source), InputUnreadable).what


@pytest.mark.parametrize("container", ["faststart.mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_source_that_is_cut_short_is_unreadable(
    place: Place, make_clip: MakeClip, container: str, part: float
) -> None:
    kind = container.rpartition(".")[2]
    extra = ("-movflags", "+faststart") if kind == "mp4" else ()
    source = cut(place.bring(make_clip(LONG, container=kind, extra=extra)), part)
    if kind == "ts":  # a transport stream does not say how long it is: what is there is all of it
        made_well(place, place.run(place.spec(source)))
    else:
        error = place.refuses(place.spec(source), InputUnreadable)
        assert "--salvage" in error.next_step
        assert re.search(r"ends at \d+\.\d+ s of 10\.\d+ s|of 250 frames", error.what)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_salvage_publishes_what_can_be_read_and_says_so(place: Place, make_clip: MakeClip, container: str) -> None:
    extra = ("-movflags", "+faststart") if container == "mp4" else ()
    source = cut(place.bring(make_clip(LONG, container=container, extra=extra)), 0.5)
    result = place.run(place.spec(source, salvage=True))
    made_well(place, result)
    assert 3 < result.outputs[0].duration < 7
    assert any(warning.startswith("salvaged: main: ") for warning in result.warnings)


def test_salvage_does_not_make_a_file_of_nothing(place: Place, make_clip: MakeClip) -> None:
    source = place.bring(make_clip(LONG, extra=("-movflags", "+faststart")))
    head = source.read_bytes()
    source.write_bytes(head[: head.index(b"mdat") + 30])
    place.refuses(place.spec(source, salvage=True), InputUnreadable)


def lie_mp4(path: Path, factor: float) -> None:
    """Multiply every duration in an mp4's headers, those of edit lists too."""
    data = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20), (b"elst", 12)):
        for found in re.finditer(box, bytes(data)):
            at = found.start() + offset
            (length,) = struct.unpack_from(">I", data, at)
            struct.pack_into(">I", data, at, int(length * factor))
    path.write_bytes(data)


def lie_mkv(path: Path, factor: float) -> None:
    """Multiply the duration of the segment and those in the tags of its streams."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    (length,) = struct.unpack_from(">d", data, at)
    struct.pack_into(">d", data, at, length * factor)
    for found in re.finditer(rb"00:00:\d\d\.\d{9}", bytes(data)):
        seconds = float(found[0][6:]) * factor
        text = f"{int(seconds // 3600):02}:{int(seconds % 3600 // 60):02}:{seconds % 60:012.9f}"
        data[found.start() : found.end()] = text.encode()
    path.write_bytes(data)


def lie_mkv_about_the_file_alone(path: Path, factor: float) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    (length,) = struct.unpack_from(">d", data, at)
    struct.pack_into(">d", data, at, length * factor)
    path.write_bytes(data)


LIES = {"mp4": lie_mp4, "mkv": lie_mkv, "mkv, the file alone": lie_mkv_about_the_file_alone}
Lie = Callable[[Path, float], None]


@pytest.mark.parametrize("audio", [True, False], ids=["with sound", "silent"])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_of_an_hour_over_ten_seconds_is_unreadable(
    place: Place, make_clip: MakeClip, lie: str, audio: bool
) -> None:
    source = place.bring(make_clip(LONG, container=lie[:3], audio=audio))
    LIES[lie](source, 360)
    if lie == "mp4" and (probe(str(source), place.policy).duration or 0) < 11:
        made_well(place, place.run(place.spec(source)), 10)  # ffmpeg 7 does not read what lies, but the index alone
        return
    place.refuses(place.spec(source), InputUnreadable)
    result = place.run(place.spec(source, salvage=True))
    made_well(place, result, 10)
    assert any("salvaged" in warning for warning in result.warnings)


@pytest.mark.parametrize("fps", [None, 10])
@pytest.mark.parametrize("audio", [True, False], ids=["with sound", "silent"])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_shorter_than_the_body_loses_nothing(
    place: Place, make_clip: MakeClip, lie: str, audio: bool, fps: int | None
) -> None:
    source = place.bring(make_clip(LONG, container=lie[:3], audio=audio))
    LIES[lie](source, 0.5)
    spec = place.spec(source, outputs=[{"video": {"speed": "fast", "max_fps": fps}}])
    result = place.run(spec)
    # the edit list of an mp4 is not a claim but an order: what lies behind it is not shown
    made_well(place, result, 5 if lie == "mp4" else 10)


def test_a_damaged_middle_is_published_whole_with_a_warning(place: Place, make_clip: MakeClip) -> None:
    source = place.bring(make_clip(LONG, audio=False))
    whole = source.read_bytes()
    begin, end = whole.index(b"mdat"), whole.index(b"moov")
    for middle in range((begin + end) // 2, end, 97):  # not all damage is seen by a decoder
        spoilt = bytes(byte ^ 0xFF for byte in whole[middle : middle + 200])
        source.write_bytes(whole[:middle] + spoilt + whole[middle + 200 :])
        look = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(source), "-f", "null", "-"]
        if subprocess.run(look, capture_output=True, check=False, timeout=60).stderr:
            break
    result = place.run(place.spec(source))
    made_well(place, result, 10)
    assert (result.outputs[0].frames or 0) >= 248
    assert any("complained" in warning for warning in result.warnings)


# A source that changes under the job


def test_a_source_that_still_grows_is_unreadable(place: Place, make_clip: MakeClip) -> None:
    source = place.bring(make_clip(LONG, container="ts"))

    def grow() -> None:
        with source.open("ab") as file:
            file.write(bytes(188))

    spec = place.spec(source)
    with pytest.raises(InputUnreadable, match="changed while it was encoded") as caught:
        place.run(spec, permit=Yes(on_claim=grow))
    assert source.name in caught.value.what
    assert caught.value.next_step
    assert everything_below(place.out) == {}


def test_a_source_that_grows_all_the_time_is_unreadable(place: Place, make_clip: MakeClip) -> None:
    whole = make_clip(LONG, container="ts").read_bytes()
    source = place.inside / "growing.ts"
    source.write_bytes(whole[: len(whole) // 2])
    stop = threading.Event()

    def grow() -> None:
        with source.open("ab", buffering=0) as file:
            for at in range(len(whole) // 2, len(whole), 1880):
                file.write(whole[at : at + 1880])
                if stop.wait(0.02):
                    return

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        place.refuses(place.spec(source), InputUnreadable)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("keeping", ["nothing", "size and time"])
def test_a_source_that_is_replaced_while_it_is_encoded_is_unreadable(place: Place, clip: Path, keeping: str) -> None:
    source = place.bring(clip)

    def swap() -> None:
        state = source.stat()
        other = place.bring(clip, "other.mp4")
        data = bytearray(other.read_bytes())
        data[-8:] = bytes(8)
        other.write_bytes(data)
        if keeping == "size and time":
            os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.replace(source)

    spec = place.spec(source)
    with pytest.raises(InputUnreadable, match="changed while it was encoded"):
        place.run(spec, permit=Yes(on_claim=swap))
    assert everything_below(place.out) == {}


def test_a_source_that_is_gone_at_the_end_is_missing(place: Place, clip: Path) -> None:
    source = place.bring(clip)
    began = threading.Event()

    def remove() -> None:
        began.wait(10)
        source.unlink()

    remover = threading.Thread(target=remove)
    remover.start()
    original = place.events.append

    class Watching(list):  # type: ignore[type-arg]
        def append(self, event: object) -> None:
            if type(event).__name__ == "Verifying":
                began.set()
                remover.join()
            original(event)  # type: ignore[arg-type]

    place.events = Watching()
    place.refuses(place.spec(source), InputMissing)


# What must work


def shows(place: Place, source: Path, width: int, height: int, seconds: float, **output: object) -> None:
    result = place.run(place.spec(source, outputs=[{"video": {"speed": "fast"}, **output}]))
    made_well(place, result, seconds)
    assert (result.outputs[0].width, result.outputs[0].height) == (width, height)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_a_source_that_starts_late_works(place: Place, make_clip: MakeClip, container: str) -> None:
    source = place.bring(make_clip(container=container, extra=("-output_ts_offset", "100")))
    shows(place, source, 320, 180, 2)


def test_a_source_with_an_edit_list_shows_what_the_list_shows(place: Place, make_clip: MakeClip) -> None:
    source = place.inside / "cut.mp4"
    ffmpeg("-ss", "1.5", "-i", make_clip("testsrc2=s=320x180:r=25:d=4"), "-c", "copy", source)
    shows(place, source, 320, 180, 2.5)


def test_odd_sizes_become_even(place: Place, make_clip: MakeClip) -> None:
    clip = make_clip("testsrc2=s=317x179:r=25:d=1", pix_fmt="yuv444p")
    shows(place, place.bring(clip), 316, 178, 1)


@pytest.mark.parametrize(("turn", "size"), [(90, (180, 320)), (180, (320, 180)), (270, (180, 320))])
def test_a_rotated_source_stands_upright(place: Place, clip: Path, turn: int, size: tuple[int, int]) -> None:
    source = place.inside / "turned.mp4"
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout
    new = int(re.search(r"version \D?(\d+)", version)[1]) >= 6  # type: ignore[index]
    turned = ("-display_rotation", -turn, "-i", clip) if new else ("-i", clip, "-metadata:s:v", f"rotate={turn}")
    ffmpeg(*turned, "-c", "copy", source)
    shows(place, source, *size, 2)


# Names


ODD_NAMES = [
    "two words.mp4",
    'it\'s "quoted".mp4',
    "line\nbreak.mp4",
    "-dash.mp4",
    "%03d.mp4",
    "🎬 фильм é.mp4",
    "x" * 251 + ".mp4",
    "ü" * 125 + "x.mp4",
    "file:http:|concat,a;b=c&$HOME`id`\\n[0].mp4",
    "{}{nothing}*?.mp4",
    ".hidden.mp4",
    "tab\tand\x7f.mp4",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name[:12]))
def test_every_name_works_for_source_and_target(place: Place, clip: Path, name: str) -> None:
    result = place.run(place.spec(place.bring(clip, name), place.out / name))
    made_well(place, result, 2)
    assert (place.out / name).is_file()


def test_a_folder_with_an_odd_name_works(tmp_path: Path, clip: Path) -> None:
    folder = tmp_path / "-a 'b' %d\n[c];🎬"
    folder.mkdir()
    place = Place.below(folder)
    made_well(place, place.run(place.spec(place.bring(clip))), 2)


@pytest.mark.parametrize(
    ("name", "trouble"),
    [("bad\udcff.mp4", "unicode"), ("nul\0.mp4", "NUL"), ("../up.mp4", r"\.\.")],
    ids=["not UTF-8", "NUL", "dots"],
)
def test_a_name_that_cannot_travel_is_an_error_of_the_spec(place: Place, name: str, trouble: str) -> None:
    for field, fields in (("source", (f"/in/{name}", "/out/a.mp4")), ("target", ("/in/a.mp4", f"/out/{name}"))):
        with pytest.raises(SpecError, match=trouble) as caught:
            place.spec(*fields)
        assert caught.value.what.startswith(f"{field}: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 10**400, "many"])
@pytest.mark.parametrize("field", ["width", "max_fps", "gop"])
def test_numbers_that_make_no_sense_are_named(place: Place, field: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"outputs\.0\.video\.{field}: "):
        place.spec("/in/a.mp4", outputs=[{"video": {field: value}}])


# Programs that misbehave


def test_ffmpeg_that_is_not_there_is_named() -> None:
    for policy in (Policy(("/",), ffmpeg="/nowhere/ffmpeg"), Policy(("/",), ffprobe="/nowhere/ffprobe")):
        with pytest.raises(FfmpegMissing, match="/nowhere/ff") as caught:
            survey(policy)
        assert "TRANSCODER_FF" in caught.value.next_step


@pytest.mark.parametrize("version", ["4.4.2-0ubuntu0.22.04.1", "n4.3", "5.0.1", "2.8"])
def test_an_ffmpeg_that_is_too_old_says_its_version(tmp_path: Path, version: str) -> None:
    old = program(tmp_path, "ffmpeg", f'echo "ffmpeg version {version} Copyright (c) 2000-2022 the FFmpeg developers"')
    with pytest.raises(FfmpegMissing, match=re.escape(version)) as caught:
        survey(Policy(("/",), ffmpeg=old))
    assert "newer" in caught.value.next_step


@pytest.mark.parametrize("script", ["exit 127", "kill -SEGV $$", "echo nonsense", "head -c 200000 /dev/urandom"])
def test_a_program_that_is_no_ffmpeg_is_counted_on_for_nothing(tmp_path: Path, script: str) -> None:
    stub = program(tmp_path, "ffmpeg", script)
    outcome = survived(lambda: survey(Policy(("/",), ffmpeg=stub)))
    if isinstance(outcome, TranscoderError):
        assert type(outcome) is FfmpegMissing
        assert stub in outcome.what
        assert outcome.next_step
    else:
        assert outcome.abilities == frozenset()


@pytest.mark.parametrize("which", ["ffmpeg", "ffprobe"])
def test_a_program_that_is_gone_since_the_start_is_named(place: Place, clip: Path, which: str) -> None:
    programs = {"ffmpeg": place.policy.ffmpeg, "ffprobe": place.policy.ffprobe, which: f"/nowhere/{which}"}
    place.policy = replace(place.policy, ffmpeg=programs["ffmpeg"], ffprobe=programs["ffprobe"])
    place.refuses(place.spec(place.bring(clip)), FfmpegMissing, about=f"/nowhere/{which}")


@pytest.mark.parametrize(
    "script", ["exec sleep 60", "sleep 60", "sleep 60 & wait", "trap '' TERM; while :; do sleep 1; done"]
)
def test_an_ffprobe_that_hangs_is_killed_after_its_limit(place: Place, clip: Path, script: str) -> None:
    place.policy = replace(place.policy, ffprobe=program(place.inside, "ffprobe", script), probe_limit=0.5)
    began = time.monotonic()
    error = place.refuses(place.spec(place.bring(clip)), InputUnreadable)
    assert time.monotonic() - began < 5
    assert "0.5 s" in error.what
    assert "TRANSCODER_PROBE_LIMIT" in error.next_step
    assert error.evidence["fault"] == FaultClass.TRANSIENT, "it is tried again"
    assert stragglers(place) == []


def test_an_ffprobe_that_waits_for_storage_at_its_limit_says_for_which(place: Place, clip: Path) -> None:
    silent = place.inside / "silent"
    os.mkfifo(silent)
    place.policy = replace(
        place.policy, ffprobe=program(place.inside, "ffprobe", f"exec cat <>{silent}"), probe_limit=0.5
    )
    error = place.refuses(place.spec(place.bring(clip)), InputUnreadable)
    assert error.evidence["fault"] == FaultClass.BLOCKED
    assert f"it waits for {silent}, which does not deliver" in error.what
    assert stragglers(place) == []


@pytest.mark.parametrize("script", ["kill -9 $$", "kill -SEGV $$", "sh -c 'kill -9 $$'"])
def test_an_ffprobe_that_a_signal_ends_says_nothing_of_the_source(place: Place, clip: Path, script: str) -> None:
    place.policy = replace(place.policy, ffprobe=program(place.inside, "ffprobe", script))
    error = place.refuses(place.spec(place.bring(clip)), InputUnreadable)
    assert error.evidence["fault"] == FaultClass.TRANSIENT
    assert "ffprobe died of signal" in error.what
    assert "says nothing of the file" in error.next_step


def test_a_job_that_is_cancelled_while_ffprobe_hangs_stops_within_a_second(place: Place, clip: Path) -> None:
    place.policy = replace(place.policy, ffprobe=program(place.inside, "ffprobe", "sleep 60 & wait"))
    wanted = Yes()
    began = time.monotonic()
    wanted.cancelled = lambda: time.monotonic() - began > 0.5  # type: ignore[method-assign]
    with pytest.raises(JobCancelled):
        place.run(place.spec(place.bring(clip)), permit=wanted)
    assert time.monotonic() - began < 0.5 + 3 * 1
    assert stragglers(place) == []


@pytest.mark.parametrize("script", ["echo '{}'", "echo not json", "exit 3", "printf '\\377\\376'"])
def test_an_ffprobe_that_answers_nonsense_makes_the_source_unreadable(place: Place, clip: Path, script: str) -> None:
    place.policy = replace(place.policy, ffprobe=program(place.inside, "ffprobe", script))
    error = place.refuses(place.spec(place.bring(clip)), InputUnreadable)
    assert "fault" not in error.evidence, "it is not tried again"


def stragglers(place: Place) -> list[str]:
    """Processes, whoever is their parent, that speak of the test's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if str(place.inside) in words:
                found.append(words)
    return found


# Each script gets ffmpeg's words. `$last` is the output's path; `real` runs ffmpeg with the words as they are.
STUB = """for last; do :; done
last=${last#file:}
real() { ffmpeg "$@"; }
"""
WRONG = {
    "nothing": ("exit 0", NoRouteWorked),
    "an empty file": (': > "$last"', NoRouteWorked),
    "text": ('echo hello > "$last"', NoRouteWorked),
    "half of the file": (
        'real "$@"; code=$?; [ -f "$last" ] && truncate -s $(($(stat -c %s "$last") * 6 / 10)) "$last"; exit $code',
        NoRouteWorked,
    ),
    "damaged pictures": (
        'real "$@"; code=$?; [ -f "$last" ] && tr "\\0" "\\377" < /dev/zero | head -c 900 | '
        'dd of="$last" bs=1 seek=$(($(stat -c %s "$last") / 2)) conv=notrunc status=none; exit $code',
        NoRouteWorked,
    ),
    "another size": (
        'case "$*" in *progress*-map*0:v:0*) ;; esac; case "$last" in *.mp4) '
        'exec ffmpeg -v error -f lavfi -i testsrc2=s=64x64:r=25:d=2 -f lavfi -i sine=r=48000:d=2 -y "$last";; '
        '*) real "$@";; esac',
        NoRouteWorked,
    ),
    "half of the time": (
        'case "$last" in *.mp4) exec ffmpeg -v error -f lavfi -i testsrc2=s=320x180:r=25:d=1 '
        '-f lavfi -i sine=r=48000:d=1 -pix_fmt yuv420p -y "$last";; *) real "$@";; esac',
        InputUnreadable,
    ),
    "no sound": (
        'case "$last" in *.mp4) exec ffmpeg -v error -f lavfi -i testsrc2=s=320x180:r=25:d=2 '
        '-pix_fmt yuv420p -y "$last";; *) real "$@";; esac',
        NoRouteWorked,
    ),
    "a crash": ("kill -SEGV $$", NoRouteWorked),
    "an unknown complaint": ("echo '[error] the moon is full' >&2; exit 1", NoRouteWorked),
    "endless complaints": ("yes '[error] no' | head -c 50000000 >&2; exit 1", NoRouteWorked),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_ffmpeg_makes_is_not_believed(place: Place, clip: Path, wrong: str) -> None:
    script, kind = WRONG[wrong]
    place.policy = replace(place.policy, ffmpeg=program(place.inside, "ffmpeg", STUB + script))
    error = place.refuses(place.spec(place.bring(clip)), kind)
    assert error.evidence["argv"], "it can be repeated by pasting"
    assert stragglers(place) == []


def test_an_ffmpeg_that_stands_still_is_killed(place: Place, clip: Path) -> None:
    stub = program(place.inside, "ffmpeg", "trap '' TERM; sleep 60 & sleep 60")
    place.policy = replace(place.policy, ffmpeg=stub, first_frame_limit=0.5)
    error = place.refuses(place.spec(place.bring(clip)), NoRouteWorked, about="0.5 s")
    assert error.evidence["fault"] == "stalled"
    assert stragglers(place) == []


# All the rest


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TranscoderError)]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all(code >= 3 for code in codes if code != TranscoderError.exit_code)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("seed", range(20))
def test_a_mutated_file_is_published_whole_or_refused(
    place: Place, make_clip: MakeClip, container: str, seed: int
) -> None:
    chance = random.Random(f"{container} {seed}")
    data = bytearray(make_clip("testsrc2=s=96x64:r=25:d=1", container=container).read_bytes())
    mutate(data, chance)
    source = place.inside / f"mutated.{container}"
    source.write_bytes(data)
    place.policy = replace(place.policy, probe_limit=10, first_frame_limit=10, stall_limit=10)
    outcome = survived(lambda: place.run(place.spec(source, salvage=chance.random() < 0.3)))
    if isinstance(outcome, TranscoderError):
        assert type(outcome) is not TranscoderError
        assert outcome.next_step
        assert everything_below(place.out) == {}
        assert children() == []
    else:
        made_well(place, outcome)
        assert (place.out / "made.mp4").stat().st_size == outcome.outputs[0].bytes > 0


def mutate(data: bytearray, chance: random.Random) -> None:
    """One to eight wounds: bytes changed, cut out, doubled, or filled; in the headers as often as elsewhere."""
    for _ in range(chance.randint(1, 8)):
        edges = (slice(0, 600), slice(max(0, len(data) - 3000), len(data)), slice(0, len(data)))
        span = range(len(data))[chance.choice(edges)]
        at, length = chance.choice(span), chance.choice((1, 1, 4, 4, 50, 500))
        match chance.randrange(5):
            case 0:
                data[at : at + length] = chance.randbytes(len(data[at : at + length]))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = bytes([chance.choice((0, 0xFF))]) * len(data[at : at + length])
            case _:
                data[at] ^= 1 << chance.randrange(8)
