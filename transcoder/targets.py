"""Which targets may be written: checked before any work is done."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from transcoder.errors import TargetExists, TargetUnwritable
from transcoder.faults import FaultClass
from transcoder.policy import Policy
from transcoder.roots import refuse_leading_out

_LONGEST_NAME = 255
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
"""What a volume may refuse now and allow later."""


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
        raise crosses(targets[0], targets[-1])


def crosses(one: str, other: str) -> TargetUnwritable:
    """The error of two paths between which no rename is possible."""
    return TargetUnwritable(
        f"{one!r} and {other!r} lie on different file systems, between which no file can be renamed in one step",
        "Put all outputs of a job on one file system.",
    )


def unwritable(path: str, error: OSError) -> TargetUnwritable:
    """The error of a path that the file system refuses to write."""
    passing = {"fault": FaultClass.OUTPUT.value} if error.errno in _PASSING else None
    what = f"{path!r} cannot be written: {error.strerror}"
    return TargetUnwritable(what, "Check space and permissions there.", passing)


def _refuse_folder(folder: str, what: str) -> None:
    try:
        state = os.stat(folder)
    except OSError as error:
        why = f"{what} {folder!r} cannot be used: {error.strerror}"
        raise TargetUnwritable(why, "Make the folder first.", of_this_host=True) from None
    if not stat.S_ISDIR(state.st_mode):
        raise TargetUnwritable(f"{what} {folder!r} is not a folder", "Name a folder.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise TargetUnwritable(
            f"{what} {folder!r} cannot be read and written by user {os.geteuid()}",
            "Give this user permission, or mount the volume read-write.",
            of_this_host=True,
        )


def _refuse_name(target: str) -> None:
    if not os.path.basename(target):
        raise TargetUnwritable(f"the target {target!r} names a folder", "Name a file in it.")
    if len(os.fsencode(os.path.basename(target))) > _LONGEST_NAME:
        raise TargetUnwritable(
            f"the target's name is longer than {_LONGEST_NAME} bytes: {os.path.basename(target)[:40]!r}…",
            "Choose a shorter name.",
        )
