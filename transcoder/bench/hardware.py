"""Which GPU the containers of a benchmark are given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from transcoder import devices, settings
from transcoder.bench.engines import TARGETS, granted
from transcoder.errors import NoRoute


@dataclass(frozen=True, slots=True)
class Given:
    """What containers are given of the GPU: nodes and the groups that own them; `target` is the image's."""

    nodes: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    target: str = "software"


def hardware(accel: str, options: Sequence[str]) -> Given:
    """The GPU for the cells: what the user's words for `docker run` name, else the first here that opens.

    Raises:
        NoRoute: there is none, and it is asked for.
    """
    if accel == "software":
        return Given()
    target = accel if accel in TARGETS else "vaapi"
    named = [what for what, _ in granted(options).devices]
    if named:
        return Given((), tuple(sorted({os.stat(node).st_gid for node in named})), target)
    site = settings.read()
    policy = site.policy(default_roots=(os.getcwd(),))
    found = [one for one in devices.discover(policy) if site.device in (None, one.id, one.node)]
    usable = [one for one in found if one.trouble is None or one.trouble.kind in ("group", "mode")]
    if usable:
        node = usable[0].node
        return Given((node,), (os.stat(node).st_gid,), target)
    if accel == "auto":
        return Given()
    why = "; ".join(f"{one.node}: {one.trouble}" for one in found if one.trouble) or f"none in {policy.dri}"
    raise NoRoute(
        f"there is no GPU that a container could be given ({why})",
        "`transcoder doctor` says what is wrong with it; --accel software measures the CPUs.",
    )
