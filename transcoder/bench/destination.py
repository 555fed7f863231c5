"""Where results go: looked at before anything is started, then written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from transcoder.bench import files
from transcoder.bench.result import Result
from transcoder.errors import ResultUnusable, TargetExists, TargetUnwritable, TranscoderError

_ROOM: Final = 64 * 1024
"""Bytes that are tried: the result of a short benchmark."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

Read = Callable[[str], object]
"""Reads a file of the kind that is written; raises TranscoderError for another."""


class Destination:
    """The file of a benchmark's result. `last` is what was written into it, None while that is nothing."""

    def __init__(self, path: str, *, overwrite: bool = False) -> None:
        self.path = path
        self.overwrite = overwrite
        self.last: Result | None = None

    def look(self) -> None:
        """Raises TargetExists, TargetUnwritable where the result could not be written, as long as nothing is lost."""
        refuse(self.path, "--out", read=files.read, overwrite=self.overwrite)

    def write(self, result: Result) -> None:
        """Put the result in its file. Raises TargetUnwritable."""
        write(self.path, result.model_dump_json(indent=1) + "\n", "--out")
        self.last = result


def refuse(path: str, option: str, *, read: Read | None = None, overwrite: bool = False) -> None:
    """See that the file that `option` names can be written, by writing a draft of it, which is removed again.

    Raises:
        TargetExists: it is no regular file, or none that `read` can read and not to be overwritten.
        TargetUnwritable: it cannot be written, with the reason.
    """
    try:
        _refuse_other(path, option, read=read, overwrite=overwrite)
        _try(unfinished(path))
    except (OSError, ValueError) as refused:
        raise _unwritable(path, option, refused) from None


def write(path: str, text: str, option: str) -> None:
    """Whole or not at all: who reads it may do so at any moment. Raises TargetUnwritable."""
    draft = unfinished(path)
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except OSError as refused:
        with suppress(OSError):
            os.unlink(draft)
        raise _unwritable(path, option, refused) from None


def unfinished(path: str) -> str:
    """Where a file is written before it gets its name."""
    folder, name = os.path.split(os.path.abspath(path))
    return f"{folder}/.{name}.unfinished"


def _refuse_other(path: str, option: str, *, read: Read | None, overwrite: bool) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise TargetExists(f"{path} is there and is no regular file", f"Name another with {option}.")
    if read is None or overwrite:
        return
    try:
        read(path)
    except ResultUnusable:
        raise TargetExists(
            f"{path} is there and is no result of ours", f"Name another with {option}, or --overwrite to replace it."
        ) from None


def _try(draft: str) -> None:
    """Write as much as a result may be, and remove it."""
    try:
        with open(draft, "wb") as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with suppress(OSError):
            os.unlink(draft)


def _unwritable(path: str, option: str, refused: OSError | ValueError) -> TranscoderError:
    reason = refused.strerror if isinstance(refused, OSError) else str(refused)
    full = isinstance(refused, OSError) and refused.errno in _FULL
    another = f"ame another with {option}."
    return TargetUnwritable(
        f"{option} {path} cannot be written: {reason}", f"Make room, or n{another}" if full else f"N{another}"
    )
