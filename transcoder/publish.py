"""From scratch to final names: fsync, rename, and the manifest last. Until the manifest stands nothing is promised.

Once every output is verified an intent is written into the scratch folder; whoever finds a folder with an intent
completes it, or takes it back, and one without is removed.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from glob import escape, glob
from typing import Any

from transcoder.errors import JobCancelled, TargetExists, TargetUnwritable
from transcoder.policy import Policy
from transcoder.roots import refuse_leading_out
from transcoder.scratch import INTENT, UNDONE, Scratch, abandoned, taken_over
from transcoder.targets import crosses, unwritable

_log = logging.getLogger(__name__)
_BEFORE = ".before"
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100

Json = Mapping[str, Any]


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
    manifest = None
    with closing(abandoned(job_id, attempt, os.path.dirname(targets[0]))) as folders:
        for folder in folders:
            manifest = _complete(folder, targets, policy) or manifest
    if policy.manifest_folder and attempt > 1:
        _remove_drafts(manifest_path(job_id, targets, policy))
    return manifest or _standing(job_id, attempt, targets, policy)


def put(held: Scratch, manifest: Json, policy: Policy, *, overwrite: bool) -> None:
    """Give every output its name, then the manifest its own (named in its result), each whole at every moment.

    Raises:
        TargetExists: somebody else made a target meanwhile.
        TransitionRefused: a later attempt took the job over.
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
        _write(os.path.join(held.folder, INTENT), intent)
        _sync(held.folder)
    except OSError as error:
        held.still_there()
        raise unwritable(held.targets[0], error) from None
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
        while block := file.read(1 << 18):
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
        if not _may_undo(folder):
            raise taken_over(target) from None
        _take_back(folder, intent)
        raise _refused(folder, target, error) from None
    _sync(os.path.dirname(path))


def _draft(folder: str, path: str) -> str:
    """Where the manifest is written: in scratch, or beside its place where that is another folder.

    The name tells who has the folder, since an attempt that lost it may still hold its own draft open: what it writes
    when it wakes up must not go into the file that became the manifest.
    """
    holder = folder.rpartition("-")[2]
    if os.path.dirname(path) == os.path.dirname(folder):
        return os.path.join(folder, f"manifest.{holder}.json")
    return f"{path}.{holder}.part"


def _remove_drafts(path: str) -> None:
    """Those that earlier attempts left beside the manifest's place."""
    for draft in glob(f"{escape(path)}.*.part"):
        with suppress(FileNotFoundError):
            os.unlink(draft)


def _moved(target: str, inode: int) -> bool:
    """The output stands under its name already; after an interrupted link it is in scratch as well."""
    return os.path.lexists(target) and os.lstat(target).st_ino == inode


def _may_undo(folder: str) -> bool:
    """Say in the folder that all is taken back, unless a later attempt took the folder away to go on with it."""
    try:
        os.replace(os.path.join(folder, INTENT), os.path.join(folder, UNDONE))
    except FileNotFoundError:
        return False
    except OSError:  # a file system that refuses everything
        return os.path.exists(os.path.join(folder, INTENT))
    return True


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


def _complete(folder: str, targets: Sequence[str], policy: Policy) -> Json | None:
    """Carry out the intent of an interrupted attempt; None where there is none of ours, or its files are gone."""
    undone = _read(folder, UNDONE)
    intent = undone or _read(folder, INTENT)
    moves = intent["moves"] if intent else ()
    # nobody else's word moves a file: only the outputs of this job, to the targets of this job
    if not intent or [target for _, target, _ in moves] != list(targets) or any("/" in name for name, _, _ in moves):
        return None
    content: Json = intent["content"]
    path = content["result"]["manifest"]
    if _read(*os.path.split(path)) == content:  # promised: nothing is done again, nor taken back where that would fail
        with suppress(OSError):
            _sync(os.path.dirname(path))
        return content
    if undone or not all(
        os.path.lexists(os.path.join(folder, name)) or _moved(target, inode) for name, target, inode in moves
    ):
        _take_back(folder, intent)
        return None
    _carry_out(folder, intent, policy)
    return content


def _read(folder: str, name: str) -> Json | None:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            content: Json = json.load(file)
    except (OSError, ValueError):
        return None
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


def _refused(folder: str, target: str, error: OSError | TargetUnwritable) -> TargetExists | TargetUnwritable:
    """What to say of a rename that failed."""
    if isinstance(error, TargetUnwritable):
        return error
    if isinstance(error, FileExistsError):
        return TargetExists(f"the target {target!r} came into being meanwhile", "Name another target.")
    return crosses(folder, target) if error.errno == errno.EXDEV else unwritable(target, error)
