"""The clip of a benchmark: looked at before anything is started, brought to the cells, or made in one of them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from transcoder.bench.rig import Housed, Rig
from transcoder.errors import InputMissing, InputUnreadable, TargetUnwritable, TranscoderError

_MAKE_LIMIT: Final = 300.0
_ANOTHER: Final = "Name another with --clip."


def look(clip: str | None) -> None:
    """Raises InputMissing where the clip that is named is no file that can be read."""
    if clip is None:
        return
    try:
        # a pipe is opened without waiting for who writes to it, and refused
        handle = os.open(clip, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as wrong:
        raise _unreadable(clip, wrong) from None
    try:
        state = os.fstat(handle)
    finally:
        os.close(handle)
    if stat.S_ISDIR(state.st_mode):
        raise InputMissing(f"the clip {clip} is a folder", "Name a file with --clip.")
    if not stat.S_ISREG(state.st_mode):
        raise InputMissing(f"the clip {clip} is no regular file", _ANOTHER)
    if not state.st_size:
        raise InputMissing(f"the clip {clip} is empty", _ANOTHER)


def bring(rig: Rig, first: Housed, clip: str | None, seconds: float) -> tuple[str, str]:
    """The clip's name, and its path as the cells see it; where none is named, so many seconds are made in a cell.

    Raises:
        InputMissing: it cannot be read.
        TargetUnwritable: there is no room for a copy of it in the folder that the cells share.
    """
    if clip:
        name = os.path.basename(clip)
        ours, inside = rig.clip(f"clip{os.path.splitext(name)[1]}")
        try:
            shutil.copyfile(clip, ours)
        except OSError as failed:
            if failed.errno == errno.ENOSPC:
                folder = os.path.dirname(rig.folder)
                what = f"the clip {clip} does not fit into {folder}, where all cells read it"
                raise TargetUnwritable(what, f"Name a smaller one with --clip, or make room in {folder}.") from None
            raise _unreadable(clip, failed) from None
        os.chmod(ours, 0o644)
        return name, inside
    _, inside = rig.clip("made.mp4")
    first.agent.ask(ask="make", argv=made(seconds, inside), limit=_MAKE_LIMIT)
    first.agent.answer(_MAKE_LIMIT + 10)
    return f"made ({seconds:g} s)", inside


@contextmanager
def named(clip: str | None, inside: str) -> Iterator[None]:
    """What is wrong with the copy is said of the user's file."""
    try:
        yield
    except TranscoderError as wrong:
        if clip is None:
            raise
        step = wrong.next_step.replace(inside, clip)
        if isinstance(wrong, InputUnreadable) and "profile" in step:  # a benchmark has only one
            step = "Name a clip with a picture."
        raise type(wrong)(wrong.what.replace(inside, clip), step, wrong.evidence) from None


def made(seconds: float, path: str) -> list[str]:
    """The words that make the default clip: moving edges over slow gradients with a camera's noise, always the same.

    1280 × 720 at 25 frames per second, H.264 with a key frame every two seconds.
    """
    size = f"size=1280x720:rate=25:duration={seconds:g}"
    sources = ["-f", "lavfi", "-i", f"gradients={size}:seed=1:speed=0.02", "-f", "lavfi", "-i", f"testsrc2={size}"]
    graph = "[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]blend=all_mode=average,noise=alls=6:allf=t:all_seed=1"
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-g", "50", "-pix_fmt", "yuv420p"]
    return ["ffmpeg", "-nostdin", "-v", "error", "-y", *sources, "-filter_complex", graph, *encoder, path]


def _unreadable(clip: str, wrong: OSError | ValueError) -> InputMissing:
    reason = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
    return InputMissing(f"the clip {clip} cannot be read: {reason}", _ANOTHER)
