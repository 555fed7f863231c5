"""From scratch to final names: fsync, rename, and the manifest last. Until the manifest stands nothing is promised.

A scratch folder lies in the folder of the first target, so that a rename never crosses file systems. Once every
output is verified an intent is written into it; whoever finds a folder with an intent completes it, and one without
is removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transcoder.errors import JobCancelled, TargetExists, TargetUnwritable
from transcoder.policy import Policy
from transcoder.roots import refuse_leading_out

_log = logging.getLogger(__name__)
_INTENT = "intent.json"
_LOCK = "lock"
_LONGEST_NAME = 255
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder of this attempt's own; `paths` are where ffmpeg writes, one for each target."""

    folder: str
    paths: tuple[str, ...]
    targets: tuple[str, ...]


def refuse_targets(targets: Sequence[str], source: str, policy: Policy, *, overwrite: bool) -> None:
    """Check every target before any work is done.

    Raises:
        PathRefused: outside the media roots.
        TargetExists: it exists and may not be replaced, or is the source.
        TargetUnwritable: its folder is missing or read-only, its name too long, or the folders span file systems.
    """
    for target in targets:
        refuse_leading_out(target, policy.roots)
        _refuse_folder(os.path.dirname(target))
        _refuse_name(target)
        if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
            raise TargetExists(f"the target {target!r} is the source itself", "Name another target.")
        if os.path.lexists(target) and not overwrite:
            raise TargetExists(f"the target {target!r} exists", "Name another target, or allow --overwrite.")
        if os.path.isdir(target):
            raise TargetUnwritable(f"the target {target!r} is a folder", "Name a file in it.")
    if len({os.stat(os.path.dirname(target)).st_dev for target in targets}) > 1:
        raise _crosses(targets[0], targets[-1])


@contextmanager
def scratch(job_id: str, attempt: int, targets: Sequence[str], extensions: Sequence[str]) -> Iterator[Scratch]:
    """A scratch folder for one attempt, gone afterwards whatever happens.

    Raises:
        TargetExists: another process is at work on this very job.
        TargetUnwritable: it cannot be made.
    """
    folder = os.path.join(os.path.dirname(targets[0]), f".transcoder-{job_id}-{attempt}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        raise _busy(job_id) from None
    except OSError as error:
        raise _unwritable(os.path.dirname(folder), error) from None
    lock = _lock(folder)
    try:
        paths = tuple(os.path.join(folder, f"{number}.{ending}") for number, ending in enumerate(extensions))
        yield Scratch(folder, paths, tuple(targets))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def recover(job_id: str, targets: Sequence[str], policy: Policy) -> Json | None:
    """Complete or undo what an interrupted attempt at this job left beside the target.

    Returns the manifest where the interrupted attempt had verified outputs, which now stand under their names.

    Raises:
        TargetExists: the attempt is not interrupted: another process is at work on it.
    """
    around = os.path.dirname(targets[0])
    manifest = None
    for name in sorted(os.listdir(around)) if os.path.isdir(around) else ():
        if not name.startswith(f".transcoder-{job_id}-"):
            continue
        folder = os.path.join(around, name)
        lock = _lock_or_none(folder)
        if lock is None:
            raise _busy(job_id)
        try:
            manifest = _complete(folder, policy) or manifest
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    return manifest


def put(held: Scratch, manifest: Json, policy: Policy, *, overwrite: bool) -> None:
    """Give every output its name, then the manifest its own (named in its result), each whole at every moment.

    Raises:
        TargetExists: somebody else made a target meanwhile.
        TargetUnwritable: the file system refuses.
    """
    for made in held.paths:
        _own(made, policy)
        _sync(made)
    moves = [[os.path.basename(made), target] for made, target in zip(held.paths, held.targets, strict=True)]
    intent = {"moves": moves, "overwrite": overwrite, "content": manifest}
    _write(os.path.join(held.folder, _INTENT), intent)
    _carry_out(held.folder, intent, policy)


def manifest_path(job_id: str, targets: Sequence[str], policy: Policy) -> str:
    """Where the manifest of a job stands: beside its first target, or in the folder for manifests."""
    return os.path.join(policy.manifest_folder or os.path.dirname(targets[0]), f"{job_id}.transcoder.json")


def sha256(path: str, cancelled: Callable[[], bool]) -> str:
    """The checksum of a file.

    Raises:
        JobCancelled: `cancelled` said so.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if cancelled():
                raise JobCancelled("the job was cancelled before publishing")
    return digest.hexdigest()


def _carry_out(folder: str, intent: Json, policy: Policy) -> None:
    """Rename what is not renamed yet, then the manifest. May be repeated after an interruption."""
    done: list[str] = []
    for name, target in intent["moves"]:
        made = os.path.join(folder, name)
        if not os.path.lexists(made):
            continue
        try:
            _rename(made, target, overwrite=intent["overwrite"])
        except FileExistsError:
            # an unfinished ladder is taken back: none of it was promised
            for other in done:
                os.unlink(other)
            raise TargetExists(f"the target {target!r} came into being meanwhile", "Name another target.") from None
        except OSError as error:
            raise _crosses(made, target) if error.errno == errno.EXDEV else _unwritable(target, error) from None
        done.append(target)
    for place in sorted({os.path.dirname(target) for _, target in intent["moves"]}):
        _sync(place)
    _place_manifest(folder, intent, policy)


def _place_manifest(folder: str, intent: Json, policy: Policy) -> None:
    path = intent["content"]["result"]["manifest"]
    same = os.path.dirname(path) == os.path.dirname(folder)
    draft = os.path.join(folder, "manifest.json") if same else f"{path}.part"
    try:
        _write(draft, intent["content"])
        _own(draft, policy)
        os.replace(draft, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    _sync(os.path.dirname(path))


def _complete(folder: str, policy: Policy) -> Json | None:
    """Carry out the intent of an interrupted attempt; None where there is none or its files are gone."""
    try:
        with open(os.path.join(folder, _INTENT), encoding="utf-8") as file:
            intent = json.load(file)
    except (OSError, ValueError):
        return None
    whole = all(
        os.path.lexists(os.path.join(folder, name)) or os.path.lexists(target) for name, target in intent["moves"]
    )
    if not whole:
        return None
    _carry_out(folder, intent, policy)
    content: Json = intent["content"]
    return content


def _rename(made: str, target: str, *, overwrite: bool) -> None:
    """Rename in one step; without `overwrite` an existing target is left alone, however late it came."""
    if overwrite:
        os.replace(made, target)
        return
    if _renameat2(made, target):
        return
    os.link(made, target)  # file systems without RENAME_NOREPLACE (NFS): a link refuses an existing name as well
    os.unlink(made)


def _renameat2(made: str, target: str) -> bool:
    """renameat2(2) with RENAME_NOREPLACE; False where the kernel or the file system does not know it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(made), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), target)


def _write(path: str, content: Json) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _own(path: str, policy: Policy) -> None:
    os.chmod(path, 0o666 & ~policy.umask)
    if policy.owner is not None:
        try:
            os.chown(path, *policy.owner)
        except OSError as error:
            raise TargetUnwritable(
                f"outputs cannot be given to owner {policy.owner[0]}:{policy.owner[1]}: {error.strerror}",
                "Run as root or as that user, or unset TRANSCODER_OWNER.",
            ) from None


def _sync(path: str) -> None:
    """Fsync a file or folder; some network file systems cannot for folders, which is logged, not fatal."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise _unwritable(path, error) from None
        _log.warning("this file system cannot fsync %s", path)
    finally:
        os.close(handle)


def _lock(folder: str) -> int:
    handle = os.open(os.path.join(folder, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _lock_or_none(folder: str) -> int | None:
    """The lock of a scratch folder whose owner is gone; None while the owner lives."""
    handle = os.open(os.path.join(folder, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _refuse_folder(folder: str) -> None:
    try:
        state = os.stat(folder)
    except OSError as error:
        raise TargetUnwritable(
            f"the target's folder {folder!r} cannot be used: {error.strerror}", "Make the folder first."
        ) from None
    if not stat.S_ISDIR(state.st_mode):
        raise TargetUnwritable(f"{folder!r} is not a folder", "Name a target in a folder.")
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise TargetUnwritable(
            f"the target's folder {folder!r} cannot be written by user {os.geteuid()}",
            "Give this user write permission, or mount the volume read-write.",
        )


def _refuse_name(target: str) -> None:
    if not os.path.basename(target):
        raise TargetUnwritable(f"the target {target!r} names a folder", "Name a file in it.")
    if len(os.fsencode(os.path.basename(target))) > _LONGEST_NAME:
        raise TargetUnwritable(
            f"the target's name is longer than {_LONGEST_NAME} bytes: {os.path.basename(target)[:40]!r}…",
            "Choose a shorter name.",
        )


def _busy(job_id: str) -> TargetExists:
    return TargetExists(
        f"another process is at work on this job ({job_id})", "Wait for it, or stop it; then run it again."
    )


def _crosses(one: str, other: str) -> TargetUnwritable:
    return TargetUnwritable(
        f"{one!r} and {other!r} lie on different file systems, between which no file can be renamed in one step",
        "Put all outputs of a job on one file system.",
    )


def _unwritable(path: str, error: OSError) -> TargetUnwritable:
    return TargetUnwritable(f"{path!r} cannot be written: {error.strerror}", "Check space and permissions there.")
