"""A folder of an attempt's own, beside its first target: claimed while its owner lives, cleared away by who comes next.

It lies in the target's folder so that a rename never crosses file systems. Its lock file names the targets it is for
and is locked by the owner, so that two jobs never write one file, and a folder whose owner is gone has a free lock.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep, time

from transcoder.errors import TargetExists, TransitionRefused
from transcoder.targets import unwritable

_log = logging.getLogger(__name__)
_LOCK = "lock"

INTENT = "intent.json"
"""The file in a scratch folder that says its outputs are verified, and where they go."""

UNDONE = "undone.json"
"""The same once its attempt has failed: what was renamed is being taken back."""

STALE = 3600.0
"""Seconds without any change after which another job's folder with a free lock is taken for abandoned."""

_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder of this attempt's own; `paths` are where ffmpeg writes, one for each target."""

    folder: str
    paths: tuple[str, ...]
    targets: tuple[str, ...]

    def still_there(self) -> None:
        """Check that no later attempt has taken the folder away: then all that goes wrong here comes from that.

        Raises:
            TransitionRefused: one has.
        """
        if not os.path.isdir(self.folder):
            raise taken_over(self.targets[0])


@contextmanager
def scratch(job_id: str, attempt: int, targets: Sequence[str], extensions: Sequence[str]) -> Iterator[Scratch]:
    """A scratch folder for one attempt, gone afterwards whatever happens.

    Raises:
        TargetExists: another process is at work on this very job, or on one of these targets.
        TargetUnwritable: it cannot be made.
    """
    around = os.path.dirname(targets[0])
    folder = os.path.join(around, f".transcoder-{job_id}-{attempt}")
    with _one_at_a_time(around):
        _refuse_claimed(around, targets)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            raise _busy(job_id) from None
        except OSError as error:
            raise unwritable(around, error) from None
        try:
            lock = _claim(folder, targets)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise unwritable(folder, error) from None
    try:
        paths = tuple(os.path.join(folder, f"{number}.{ending}") for number, ending in enumerate(extensions))
        yield Scratch(folder, paths, tuple(targets))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def abandoned(job_id: str, attempt: int, around: str) -> Generator[str]:
    """The scratch folders that earlier attempts at a job left in `around`, each removed once it was looked at.

    Each is renamed first: an owner that still lives has lost the job to this attempt and can publish nothing any more.
    A free lock is no proof that it is dead, since some network file systems lock only within one host.

    Raises:
        TargetExists: another process is at work on this attempt or a later one.
        TargetUnwritable: the file system refuses.
    """
    with _one_at_a_time(around):
        for folder, number in _left(around, job_id):
            lock = _lock_or_none(folder)
            if lock is None and number >= attempt:
                raise _busy(job_id)
            ours = _taken_away(folder, attempt) if number < attempt else folder
            try:
                yield ours
            finally:
                shutil.rmtree(ours, ignore_errors=True)
                if lock is not None:
                    os.close(lock)


def _left(around: str, job_id: str) -> list[tuple[str, int]]:
    """The scratch folders of a job with the numbers of their attempts; those taken away carry the taker's behind."""
    pattern = re.compile(rf"\.transcoder-{re.escape(job_id)}-(\d+)(?:~\d+)*")
    with suppress(OSError):
        found = ((name, pattern.fullmatch(name)) for name in sorted(os.listdir(around)))
        return [(os.path.join(around, name), int(match[1])) for name, match in found if match]
    return []


def _taken_away(folder: str, attempt: int) -> str:
    taken = f"{folder}~{attempt}"
    with suppress(FileNotFoundError):  # its owner has just removed it
        os.rename(folder, taken)
    return taken


@contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Only one process at a time sets up or clears away scratch in a folder.

    Where the folder cannot be locked (NFS), or stays locked by somebody else, it is done without.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # missing or unreadable: said better by what comes next
        yield
        return
    try:
        deadline = monotonic() + _PATIENCE
        while not _locked(handle) and monotonic() < deadline:
            sleep(0.01)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Take the lock if it is free; True as well where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.warning("this file system cannot lock: %s", error.strerror)
    return True


def _claim(folder: str, targets: Sequence[str]) -> int:
    """The lock of a new scratch folder, taken, with the targets in it."""
    handle = os.open(os.path.join(folder, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        _locked(handle)
        os.write(handle, json.dumps(list(targets)).encode())
    except OSError:
        os.close(handle)
        raise
    return handle


def _refuse_claimed(around: str, targets: Sequence[str]) -> None:
    """No living attempt at any job has a scratch folder here for one of the targets.

    Raises:
        TargetExists: one has.
    """
    for name in os.listdir(around) if os.access(around, os.R_OK) else ():
        if not name.startswith(".transcoder-"):
            continue
        try:
            handle = os.open(os.path.join(around, name, _LOCK), os.O_RDWR)
        except OSError:
            continue
        with os.fdopen(handle, "rb") as claim:
            if _locked(handle):
                _clear_away(os.path.join(around, name))
                continue
            try:
                claimed = json.load(claim)
            except ValueError:
                continue
        if taken := set(targets).intersection(claimed):
            raise TargetExists(
                f"another process is writing the target {min(taken)!r}", "Wait for it, or name another target."
            )


def _clear_away(folder: str) -> None:
    """Remove what another job's dead attempt left, unless it can still be completed, or something moved there lately.

    A free lock alone does not prove death: some network file systems lock only within one host.
    """
    with suppress(OSError):
        names = os.listdir(folder)
        touched = max(os.stat(path).st_mtime for path in (folder, *(os.path.join(folder, name) for name in names)))
        if not {INTENT, UNDONE}.intersection(names) and time() - touched > STALE:
            shutil.rmtree(folder, ignore_errors=True)


def _lock_or_none(folder: str) -> int | None:
    """The lock of a scratch folder whose owner is gone; None while the owner lives."""
    try:
        handle = os.open(os.path.join(folder, _LOCK), os.O_RDWR)
    except FileNotFoundError:  # interrupted before it was locked, or while it was removed
        return os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        raise unwritable(folder, error) from None
    if _locked(handle):
        return handle
    os.close(handle)
    return None


def taken_over(target: str) -> TransitionRefused:
    """The error of an attempt that lost the job to a later one."""
    return TransitionRefused(
        f"another process took over the job that makes {target!r}", "Look at the job's record; it goes on there."
    )


def _busy(job_id: str) -> TargetExists:
    return TargetExists(
        f"another process is at work on this job ({job_id})", "Wait for it, or stop it; then run it again."
    )
