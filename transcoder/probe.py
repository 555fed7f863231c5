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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic

from transcoder import media
from transcoder.children import offered_first, start, tied
from transcoder.command import GUARDED
from transcoder.errors import (
    FfmpegMissing,
    InputMissing,
    InputRefused,
    InputUnreadable,
    JobCancelled,
    TranscoderError,
)
from transcoder.faults import Evidence, Fault, FaultClass, plain
from transcoder.media import Media
from transcoder.policy import Policy
from transcoder.roots import refuse_leading_out
from transcoder.vitals import family, waits

_EDGE = 64 * 1024
_BEATS = 120
"""How many of a Matroska file's first pictures are held against the rate that it names."""
_REAP_LIMIT = 10.0
_TICK = 0.2
# with -max_pixels ffprobe forgets the size that it found too large
_TOO_LARGE = re.compile(r"Picture size (\d+x\d+) exceeds specified max pixel count")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one state of a file from another: size in bytes, time of change, hash of both its ends."""

    size: int
    modified_ns: int
    inode: int
    ends_sha256: str


def _never() -> bool:
    return False


def probe(path: str, policy: Policy, cancelled: Callable[[], bool] = _never) -> Media:
    """What the source is.

    Raises:
        PathRefused: outside the media roots, by words or by links.
        InputMissing: not there, not a regular file, or empty.
        InputRefused: a playlist, script, picture or text in a media file's clothes, or too many pixels.
        InputUnreadable: not media, or damaged where it matters; or ffprobe gave no answer, which may be otherwise
            later: then its evidence has the class of the fault.
        FfmpegMissing: there is no ffprobe.
        JobCancelled: `cancelled` said so.
    """
    refuse_leading_out(path, policy.roots)
    _refuse_unless_regular(path)
    try:
        found = media.read(report(path, policy, ("-show_format", "-show_streams", "-show_chapters"), cancelled))
        _refuse_size(path, found, policy)
        return _with_hdr(path, _with_true_rate(path, found, policy, cancelled), policy, cancelled)
    except Fault as fault:
        raise _unanswered(path, fault) from fault


def report(path: str, policy: Policy, entries: Sequence[str], cancelled: Callable[[], bool] = _never) -> media.Json:
    """Ffprobe's JSON about a file, for the entries named.

    Raises:
        InputRefused, InputUnreadable: what ffprobe says of the file, as in `probe`.
        Fault, JobCancelled, FfmpegMissing: as in `watched`.
    """
    with watched(_words(path, policy, entries), policy.probe_limit, cancelled) as child:
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
def watched(
    words: Sequence[str], limit: float, cancelled: Callable[[], bool] = _never
) -> Iterator[subprocess.Popen[bytes]]:
    """An ffprobe, to be read and waited for: killed with all its own after `limit` seconds, when this process dies, and
    when the job is cancelled; and reaped whatever happens.

    Raises:
        Fault: it gave no answer, which says nothing of the file. BLOCKED where storage made it wait at the limit,
            TRANSIENT where it was slow otherwise, or a signal ended it.
        JobCancelled: `cancelled` said so.
        FfmpegMissing: the program is not there.
    """
    child: subprocess.Popen[bytes] | None = None
    done = threading.Event()
    stopped: list[Fault | TranscoderError] = []

    def watch() -> None:
        deadline = monotonic() + limit
        while not done.wait(min(_TICK, max(0.0, deadline - monotonic()))):
            if child is None:
                continue
            if cancelled():
                stopped.append(JobCancelled("the job was cancelled while ffprobe looked at a file of it", _WANTED))
            elif monotonic() >= deadline:
                stopped.append(_too_slow(child, words, limit))
            else:
                continue
            return _kill(child)

    watcher = threading.Thread(target=watch, name="watch of ffprobe", daemon=True)
    watcher.start()  # before ffprobe, beside whose start a thread's takes two milliseconds
    try:
        child = _spawn(words)
        yield child
    finally:
        done.set()
        watcher.join()
        if child is not None:
            _reap(child)
    if stopped and child.returncode in (None, -signal.SIGKILL):
        raise stopped[0]
    if child.returncode in (126, 127):  # setpriv's words: ffprobe has no such codes
        raise _missing(words[0])
    if child.returncode < 0 or child.returncode > 128:  # of a script around it the shell says 128 and the signal
        number = -child.returncode if child.returncode < 0 else child.returncode - 128
        # a crash too: another ffprobe costs little, so that deaths need no count of their own beside the retries
        raise Fault(FaultClass.TRANSIENT, f"ffprobe died of signal {number}", Evidence(tuple(words), child.returncode))


def _reap(child: subprocess.Popen[bytes]) -> None:
    _kill(child)
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it is slow enough to say so
        child.wait(timeout=_REAP_LIMIT)


def _spawn(words: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        child = start(tied(words))
    except OSError:
        raise _missing("setpriv") from None
    offered_first(child.pid)
    return child


def _missing(program: str) -> FfmpegMissing:
    return FfmpegMissing(
        f"{program} cannot be started",
        "Install ffmpeg (5.1 or newer) and util-linux, or point TRANSCODER_FFPROBE at ffprobe.",
    )


def _too_slow(child: subprocess.Popen[bytes], words: Sequence[str], limit: float) -> Fault:
    """The fault of an ffprobe that still runs at its limit: what it waits for can only be seen before it is killed."""
    told, evidence = f"ffprobe did not end within {limit:g} s", Evidence(tuple(words))
    if wait := waits(family(child.pid)):
        return Fault(FaultClass.BLOCKED, f"{told}: it waits for {wait.path}, which does not deliver", evidence)
    return Fault(FaultClass.TRANSIENT, told, evidence)


def _unanswered(path: str, fault: Fault) -> InputUnreadable:
    """The error of a source of which ffprobe said nothing, with the class of the fault by which it is tried again."""
    slow = fault.evidence.returncode is None
    return InputUnreadable(
        f"the source {path!r} could not be looked at: {fault.what}",
        "Check its storage, and submit again once that answers; TRANSCODER_PROBE_LIMIT sets the limit."
        if slow
        else "That says nothing of the file. Look in the kernel's log for what ended it (out of memory?), then submit "
        "again.",
        {"fault": fault.kind.value, "argv": list(fault.evidence.argv), "returncode": fault.evidence.returncode},
    )


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole group while the child is not reaped: only until then its number is its own."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


_WANTED = "Submit it again if it is wanted after all."
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


def _with_true_rate(path: str, found: Media, policy: Policy, cancelled: Callable[[], bool]) -> Media:
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
    if not media.off_beat(report(path, policy, first, cancelled), stream.rate):
        return found
    return replace(found, video=(replace(stream, base_rate=None), *found.video[1:]))


def _with_hdr(path: str, found: Media, policy: Policy, cancelled: Callable[[], bool]) -> Media:
    """HDR10 metadata lies in the frames where the container does not repeat it; one frame tells."""
    stream = found.main_video
    if stream is None or stream.colour.hdr != "PQ" or stream.mastering:
        return found
    mastering, light = first_frame_hdr(path, policy, cancelled)
    shown = replace(stream, mastering=mastering, light_level=light or stream.light_level)
    return replace(found, video=(shown, *found.video[1:]))


def first_frame_hdr(
    path: str, policy: Policy, cancelled: Callable[[], bool] = _never
) -> tuple[media.Mastering | None, media.LightLevel | None]:
    """Mastering display and light level as the first frame of the first video stream carries them.

    Raises:
        InputRefused, InputUnreadable, Fault, JobCancelled, FfmpegMissing: as in `report`.
    """
    entries = ("-select_streams", "v:0", "-read_intervals", "%+#1", "-show_frames")
    frames = report(path, policy, entries, cancelled).get("frames") or [{}]
    return media.read_hdr(frames[0])
