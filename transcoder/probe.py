"""Look at the input: the only ffprobe of sources, with a time limit and a guard against files that open others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from transcoder import media
from transcoder.command import GUARDED
from transcoder.errors import FfmpegMissing, InputMissing, InputRefused, InputUnreadable
from transcoder.faults import plain
from transcoder.media import Media
from transcoder.policy import Policy
from transcoder.roots import refuse_leading_out

_EDGE = 64 * 1024
_BEATS = 120
"""How many of a Matroska file's first pictures are held against the rate that it names."""
_REAP_LIMIT = 10.0
# with -max_pixels ffprobe forgets the size that it found too large
_TOO_LARGE = re.compile(r"Picture size (\d+x\d+) exceeds specified max pixel count")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one state of a file from another: size in bytes, time of change, hash of both its ends."""

    size: int
    modified_ns: int
    inode: int
    ends_sha256: str


def probe(path: str, policy: Policy) -> Media:
    """What the source is.

    Raises:
        PathRefused: outside the media roots, by words or by links.
        InputMissing: not there, not a regular file, or empty.
        InputRefused: a playlist, script, picture or text in a media file's clothes, or too many pixels.
        InputUnreadable: not media, or damaged where it matters.
        FfmpegMissing: there is no ffprobe.
    """
    refuse_leading_out(path, policy.roots)
    _refuse_unless_regular(path)
    found = media.read(report(path, policy, ("-show_format", "-show_streams", "-show_chapters")))
    _refuse_size(path, found, policy)
    return _with_hdr(path, _with_true_rate(path, found, policy), policy)


def report(path: str, policy: Policy, entries: Sequence[str]) -> media.Json:
    """Ffprobe's JSON about a file, for the entries named.

    Raises:
        InputRefused, InputUnreadable, FfmpegMissing: as in `probe`.
    """
    with watched(_words(path, policy, entries), policy.probe_limit, path) as child:
        out, err = child.communicate()
    said = err.decode("utf-8", "replace")
    if size := _TOO_LARGE.search(said):
        raise _too_large(path, size[1], policy)
    if child.returncode != 0:
        raise _unreadable(path, said)
    try:
        answer = json.loads(out)
    except ValueError:
        raise InputUnreadable(f"ffprobe's report on {path!r} is not JSON", "Check the file with `ffprobe`.") from None
    if not answer.get("streams") and "-show_streams" in entries:
        raise InputUnreadable(f"{path!r} has no streams", "Check the file with `ffprobe`.")
    return dict(answer)


def fingerprint(path: str, policy: Policy) -> Fingerprint:
    """The present state of the source.

    Raises:
        PathRefused: outside the media roots, by words or by links.
        InputMissing: it is not there, not a regular file, or empty.
    """
    refuse_leading_out(path, policy.roots)
    _refuse_unless_regular(path)
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            ends = hashlib.sha256(file.read(_EDGE))
            file.seek(max(0, state.st_size - _EDGE))
            ends.update(file.read(_EDGE))
    except OSError as error:
        what = f"the source {path!r} cannot be read: {error.strerror}"
        raise InputMissing(what, _MISSING, of_this_host=True) from None
    return Fingerprint(state.st_size, state.st_mtime_ns, state.st_ino, ends.hexdigest())


def head(path: str) -> bytes:
    """The first bytes of a file, to say what it is when it is not media; none where it is gone by now."""
    try:
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError:
        return b""


@contextmanager
def watched(words: Sequence[str], limit: float, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is killed with all its own after `limit` seconds, and reaped whatever happens.

    Raises:
        InputUnreadable: it was killed for its slowness.
        FfmpegMissing: the program is not there.
    """
    try:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise FfmpegMissing(
            f"{words[0]} cannot be started: {error.strerror}",
            "Install ffmpeg (5.1 or newer), or point TRANSCODER_FFPROBE at ffprobe.",
        ) from None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(child)

    timer = threading.Timer(limit, expire)
    timer.daemon = True
    timer.start()
    try:
        yield child
    finally:
        timer.cancel()
        _kill(child)
        for pipe in (child.stdout, child.stderr):
            if pipe:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it is slow enough to say so
            child.wait(timeout=_REAP_LIMIT)
        if expired.is_set() and child.returncode in (None, -signal.SIGKILL):
            raise InputUnreadable(
                f"ffprobe did not finish with {path!r} within {limit:g} s",
                "Check the file and its storage; TRANSCODER_PROBE_LIMIT sets the limit.",
            )


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole group while the child is not reaped: only until then its number is its own."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


_MISSING = "Check the path as the worker sees it (volumes, mounts) and its permissions."


def _words(path: str, policy: Policy, entries: Sequence[str]) -> tuple[str, ...]:
    guard = [word for name, value in GUARDED for word in (f"-{name}", value or "")]
    limits = ("-max_pixels", str(policy.max_pixels))
    return (policy.ffprobe, "-v", "error", *guard, *limits, *entries, "-of", "json", "-i", f"file:{path}")


def _refuse_unless_regular(path: str) -> None:
    try:
        state = os.stat(path)
    except OSError as error:
        what = f"the source {path!r} cannot be used: {error.strerror}"
        raise InputMissing(what, _MISSING, of_this_host=True) from None
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    if not stat.S_ISREG(state.st_mode):
        kind = next((name for test, name in kinds.items() if test(state.st_mode)), "a device")
        raise InputMissing(f"the source {path!r} is {kind}, not a file", "Name one media file.")
    if state.st_size == 0:
        raise InputMissing(f"the source {path!r} is empty", "Copy it again; 0 bytes arrived.")
    if not os.access(path, os.R_OK):
        raise InputMissing(f"the source {path!r} may not be read by this user", _MISSING, of_this_host=True)


def _unreadable(path: str, stderr: str) -> InputRefused | InputUnreadable:
    what = media.disguise(head(path))
    if what == "text" or (what is None and "not on whitelist" not in stderr):
        last = [plain(line) for line in stderr.splitlines() if line.strip()]
        said = last[0] if last else "ffprobe gave no reason"
        return InputUnreadable(
            f"{path!r} is not media that ffmpeg can read: {said.replace(f'file:{path}: ', '')}",
            "Check that the file was copied whole; `ffprobe` shows what is in it.",
        )
    return InputRefused(
        f"{path!r} is {_described(what)}, which is not accepted as a source",
        "Give the audio or video file itself; playlists and scripts would open other files.",
    )


def _described(what: str | None) -> str:
    if what is None:
        return "in a format outside the list of accepted ones"
    return f"an {what}" if what[0] in "HS" else f"a {what}"


def _refuse_size(path: str, found: Media, policy: Policy) -> None:
    for stream in found.video:
        if stream.width * stream.height > policy.max_pixels:
            raise _too_large(path, f"{stream.width}x{stream.height}", policy)
        if stream.width < 2 or stream.height < 2:
            raise InputUnreadable(
                f"the video stream of {path!r} has no picture size that ffprobe could find",
                "Bring a whole copy: it is damaged, or cut short before its first picture.",
            )


def _too_large(path: str, size: str, policy: Policy) -> InputRefused:
    return InputRefused(
        f"the picture of {path!r} is {size}, more than {policy.max_pixels:,} pixels",
        "Raise TRANSCODER_MAX_PIXELS if that is wanted.",
    )


def _with_true_rate(path: str, found: Media, policy: Policy) -> Media:
    """Matroska names one rate, kept or not: the first pictures tell. The base rate is then not known."""
    stream = found.main_video
    if stream is None or stream.rate is None or not found.format.startswith("matroska"):
        return found
    first = (
        "-select_streams",
        str(stream.index),
        "-read_intervals",
        f"%+#{_BEATS}",
        "-show_entries",
        "packet=pts_time",
    )
    if not media.off_beat(report(path, policy, first), stream.rate):
        return found
    return replace(found, video=(replace(stream, base_rate=None), *found.video[1:]))


def _with_hdr(path: str, found: Media, policy: Policy) -> Media:
    """HDR10 metadata lies in the frames where the container does not repeat it; one frame tells."""
    stream = found.main_video
    if stream is None or stream.colour.hdr != "PQ" or stream.mastering:
        return found
    mastering, light = first_frame_hdr(path, policy)
    shown = replace(stream, mastering=mastering, light_level=light or stream.light_level)
    return replace(found, video=(shown, *found.video[1:]))


def first_frame_hdr(path: str, policy: Policy) -> tuple[media.Mastering | None, media.LightLevel | None]:
    """Mastering display and light level as the first frame of the first video stream carries them."""
    entries = ("-select_streams", "v:0", "-read_intervals", "%+#1", "-show_frames")
    frames = report(path, policy, entries).get("frames") or [{}]
    return media.read_hdr(frames[0])
