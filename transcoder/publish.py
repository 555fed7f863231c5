"""From scratch to final names: fsync, rename, and the manifest last. Until the manifest stands nothing is promised.

A scratch folder lies in the folder of the first target, so that a rename never crosses file systems. Its lock file
says which targets it is for, and is locked while its owner lives. Once every output is verified an intent is written
into it; whoever finds a folder with an intent completes it, or takes it back, and one without is removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from transcoder.errors import JobCancelled, TargetExists, TargetUnwritable
from transcoder.policy import Policy
from transcoder.roots import refuse_leading_out

_log = logging.getLogger(__name__)
_INTENT = "intent.json"
_LOCK = "lock"
_BEFORE = ".before"
_LONGEST_NAME = 255
_PATIENCE = 10.0
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
        _refuse_folder(os.path.dirname(target), "the target's folder")
        _refuse_name(target)
        if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
            raise TargetExists(f"the target {target!r} is the source itself", "Name another target.")
        if os.path.isdir(target):
            raise TargetUnwritable(f"the target {target!r} is a folder", "Name a file in it.")
        if os.path.lexists(target) and not overwrite:
            raise TargetExists(f"the target {target!r} exists", "Name another target, or allow --overwrite.")
    if policy.manifest_folder:
        _refuse_folder(policy.manifest_folder, "the folder of manifests")
    if len({os.stat(os.path.dirname(target)).st_dev for target in targets}) > 1:
        raise _crosses(targets[0], targets[-1])


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
            raise _unwritable(around, error) from None
        try:
            lock = _claim(folder, targets)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(folder, error) from None
    try:
        paths = tuple(os.path.join(folder, f"{number}.{ending}") for number, ending in enumerate(extensions))
        yield Scratch(folder, paths, tuple(targets))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def recover(job_id: str, attempt: int, targets: Sequence[str], policy: Policy) -> Json | None:
    """Complete or undo what an earlier attempt at this job left beside the target.

    Returns the manifest where the earlier attempt had verified outputs, which now stand under their names.

    Raises:
        PathRefused: a target lies outside the media roots.
        TargetExists: another process is at work on this attempt, or somebody else made a target meanwhile.
        TargetUnwritable: the file system refuses.
    """
    for target in targets:
        refuse_leading_out(target, policy.roots)
    around = os.path.dirname(targets[0])
    manifest = None
    with _one_at_a_time(around):
        for folder, number in _left(around, job_id):
            lock = _lock_or_none(folder)
            if lock is None and number >= attempt:
                raise _busy(job_id)
            # an owner that lives has lost the job: without the folder it can publish nothing any more
            ours = _taken_away(folder, attempt) if lock is None else folder
            try:
                manifest = _complete(ours, policy) or manifest
            finally:
                shutil.rmtree(ours, ignore_errors=True)
                if lock is not None:
                    os.close(lock)
    return manifest or _standing(job_id, attempt, targets, policy)


def put(held: Scratch, manifest: Json, policy: Policy, *, overwrite: bool) -> None:
    """Give every output its name, then the manifest its own (named in its result), each whole at every moment.

    Raises:
        TargetExists: somebody else made a target meanwhile, or took the job over.
        TargetUnwritable: the file system refuses.
    """
    try:
        for made in held.paths:
            _own(made, policy)
            _sync(made)
        moves = [
            [os.path.basename(made), target, os.stat(made).st_ino]
            for made, target in zip(held.paths, held.targets, strict=True)
        ]
        intent = {"moves": moves, "overwrite": overwrite, "content": manifest}
        _write(os.path.join(held.folder, _INTENT), intent)
        _sync(held.folder)
    except OSError as error:
        raise _unwritable(held.targets[0], error) from None
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
                raise JobCancelled(
                    "the job was cancelled before publishing", "Submit it again if it is wanted after all."
                )
    return digest.hexdigest()


def _carry_out(folder: str, intent: Json, policy: Policy) -> None:
    """Rename what is not renamed yet, then the manifest. May be repeated after an interruption.

    The manifest is written first and renamed last: where there is no room for it, nothing is renamed at all.
    """
    path = intent["content"]["result"]["manifest"]
    draft = _draft(folder, path)
    target = path
    try:
        _write(draft, intent["content"])
        _own(draft, policy)
        for name, target, inode in intent["moves"]:
            if not _moved(target, inode):
                _rename(os.path.join(folder, name), target, overwrite=intent["overwrite"])
        target = path
        for place in sorted({os.path.dirname(other) for _, other, _ in intent["moves"]}):
            _sync(place)
        os.replace(draft, path)
    except (OSError, TargetUnwritable) as error:
        if not os.path.exists(os.path.join(folder, _INTENT)):
            raise TargetExists(
                f"another process took over while {target!r} was published",
                "Look at the job's record; it goes on there.",
            ) from None
        _take_back(folder, intent)
        raise _refused(folder, target, error) from None
    _sync(os.path.dirname(path))


def _draft(folder: str, path: str) -> str:
    """Where the manifest is written: in scratch, or beside its place where that is another folder."""
    same = os.path.dirname(path) == os.path.dirname(folder)
    return os.path.join(folder, "manifest.json") if same else f"{path}.part"


def _moved(target: str, inode: int) -> bool:
    """The output stands under its name already; after an interrupted link it is in scratch as well."""
    return os.path.lexists(target) and os.lstat(target).st_ino == inode


def _take_back(folder: str, intent: Json) -> None:
    """Undo the renames: none of it was promised. What was overwritten comes back where a link to it could be kept."""
    with suppress(OSError):
        os.unlink(_draft(folder, intent["content"]["result"]["manifest"]))
    for name, target, inode in intent["moves"]:
        before = os.path.join(folder, name + _BEFORE)
        with suppress(OSError):
            if _moved(target, inode):
                if os.path.lexists(before):
                    os.replace(before, target)
                else:
                    os.unlink(target)


def _complete(folder: str, policy: Policy) -> Json | None:
    """Carry out the intent of an interrupted attempt; None where there is none, or its files are gone."""
    try:
        with open(os.path.join(folder, _INTENT), encoding="utf-8") as file:
            intent = json.load(file)
    except (OSError, ValueError):
        return None
    moves = intent["moves"]
    if not all(os.path.lexists(os.path.join(folder, name)) or _moved(target, inode) for name, target, inode in moves):
        _take_back(folder, intent)
        return None
    _carry_out(folder, intent, policy)
    content: Json = intent["content"]
    return content


def _standing(job_id: str, attempt: int, targets: Sequence[str], policy: Policy) -> Json | None:
    """The manifest of an earlier attempt that published everything and died before it could say so."""
    try:
        with open(manifest_path(job_id, targets, policy), encoding="utf-8") as file:
            content: Json = json.load(file)
        made = {one["path"]: one["bytes"] for one in content["result"]["outputs"]}
        sizes = {target: os.path.getsize(target) for target in targets}
        return content if content["job"] == job_id and content["attempt"] < attempt and made == sizes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _left(around: str, job_id: str) -> list[tuple[str, int]]:
    """The scratch folders of a job with the numbers of their attempts; those taken away carry the taker's behind."""
    pattern = re.compile(rf"\.transcoder-{re.escape(job_id)}-(\d+)(?:~\d+)?")
    with suppress(OSError):
        found = ((name, pattern.fullmatch(name)) for name in sorted(os.listdir(around)))
        return [(os.path.join(around, name), int(match[1])) for name, match in found if match]
    return []


def _taken_away(folder: str, attempt: int) -> str:
    taken = f"{folder}~{attempt}"
    with suppress(FileNotFoundError):  # its owner has just removed it
        os.rename(folder, taken)
    return taken


def _rename(made: str, target: str, *, overwrite: bool) -> None:
    """Rename in one step; without `overwrite` an existing target is left alone, however late it came."""
    if overwrite:
        with suppress(OSError):  # nothing there, or a file system without links
            os.link(target, made + _BEFORE)
        os.replace(made, target)
        return
    if _renameat2(made, target):
        return
    try:
        os.link(made, target)  # file systems without RENAME_NOREPLACE (NFS): a link refuses an existing name as well
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(made, target)  # without links too (storage mounted by FUSE): the claim on the target has to do
    else:
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
    try:
        os.chmod(path, 0o666 & ~policy.umask)
    except OSError as error:  # file systems with one mode for all (CIFS, exFAT)
        _log.warning("the mode of %s cannot be set: %s", path, error.strerror)
    if policy.owner is not None:
        try:
            os.chown(path, *policy.owner)
        except OSError as error:
            raise TargetUnwritable(
                f"{path!r} cannot be given to owner {policy.owner[0]}:{policy.owner[1]}: {error.strerror}",
                "Run as root or as that user, or unset TRANSCODER_OWNER.",
            ) from None


def _sync(path: str) -> None:
    """Fsync a file or folder; some network file systems cannot for folders, which is logged, not fatal."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        _log.warning("this file system cannot fsync %s", path)
    finally:
        os.close(handle)


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
                continue
            try:
                claimed = json.load(claim)
            except ValueError:
                continue
        if taken := set(targets).intersection(claimed):
            raise TargetExists(
                f"another process is writing the target {min(taken)!r}", "Wait for it, or name another target."
            )


def _lock_or_none(folder: str) -> int | None:
    """The lock of a scratch folder whose owner is gone; None while the owner lives."""
    try:
        handle = os.open(os.path.join(folder, _LOCK), os.O_RDWR)
    except FileNotFoundError:  # interrupted before it was locked, or while it was removed
        return os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(folder, error) from None
    if _locked(handle):
        return handle
    os.close(handle)
    return None


def _refuse_folder(folder: str, what: str) -> None:
    try:
        state = os.stat(folder)
    except OSError as error:
        raise TargetUnwritable(
            f"{what} {folder!r} cannot be used: {error.strerror}", "Make the folder first."
        ) from None
    if not stat.S_ISDIR(state.st_mode):
        raise TargetUnwritable(f"{what} {folder!r} is not a folder", "Name a folder.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise TargetUnwritable(
            f"{what} {folder!r} cannot be read and written by user {os.geteuid()}",
            "Give this user permission, or mount the volume read-write.",
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


def _refused(folder: str, target: str, error: OSError | TargetUnwritable) -> TargetExists | TargetUnwritable:
    """What to say of a rename that failed."""
    if isinstance(error, TargetUnwritable):
        return error
    if isinstance(error, FileExistsError):
        return TargetExists(f"the target {target!r} came into being meanwhile", "Name another target.")
    return _crosses(folder, target) if error.errno == errno.EXDEV else _unwritable(target, error)


def _unwritable(path: str, error: OSError) -> TargetUnwritable:
    return TargetUnwritable(f"{path!r} cannot be written: {error.strerror}", "Check space and permissions there.")
