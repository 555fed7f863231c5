"""Which paths may be used: those inside the media roots, by their words at submit and by their links on the worker."""

from __future__ import annotations

import os
from collections.abc import Sequence

from transcoder.errors import PathRefused


def refuse_outside(path: str, roots: Sequence[str]) -> None:
    """Check the words of an absolute path; nothing on disk is looked at.

    Raises:
        PathRefused: it has `..` in it or lies in none of the roots.
    """
    climbs = ".." in path.split("/")
    if climbs or not any(_inside(path, root) for root in roots):
        what = f"{path!r} is outside the media roots ({_listed(roots)})"
        raise PathRefused(what, _ADVICE, of_this_host=not climbs)


def refuse_leading_out(path: str, roots: Sequence[str]) -> None:
    """Check where a path leads once its links are followed; its last part need not exist.

    Raises:
        PathRefused: it leads out of the roots.
    """
    refuse_outside(path, roots)
    real = os.path.realpath(path)
    if not any(_inside(real, os.path.realpath(root)) for root in roots):
        what = f"{path!r} leads to {real!r}, outside the media roots ({_listed(roots)})"
        raise PathRefused(what, _ADVICE, of_this_host=True)


_ADVICE = "Move the file under a root, or add its folder to TRANSCODER_MEDIA_ROOTS."


def _inside(path: str, root: str) -> bool:
    folder = root.rstrip("/")
    return path == folder or path.startswith(folder + "/")


def _listed(roots: Sequence[str]) -> str:
    return ", ".join(roots) or "none are set"
