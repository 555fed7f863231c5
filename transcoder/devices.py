"""The GPUs of this machine: what the kernel says of each, whether it opens, and what its VA driver lists."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

from pydantic import TypeAdapter, ValidationError

from transcoder import children, vadriver
from transcoder.machine import Device, Entry
from transcoder.policy import Policy

_NODE = re.compile(r"renderD(\d+)")
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def discover(policy: Policy) -> tuple[Device, ...]:
    """Every render node that is here or that the kernel knows of, in the order of their numbers, opened once.

    One that cannot be used has a `trouble`. No driver is asked: see `asked`.
    """
    described = f"{policy.sysfs}/class/drm"
    here, known = _nodes(policy.dri), _nodes(described)
    return tuple(
        _device(f"{policy.dri}/{name}", f"{described}/{name}/device", mapped=name in here)
        for name in sorted(here | known, key=lambda name: int(name.removeprefix("renderD")))
    )


def asked(device: Device, limit: float) -> Device:
    """The device with what its VA driver lists; unchanged where libva is not installed.

    A child process asks, for `limit` seconds at most: a driver that fails, crashes or hangs is a `trouble`.
    """
    ended = children.run((sys.executable, "-I", "-S", vadriver.__file__, device.node), limit)
    if ended.returncode is None:
        return replace(device, trouble=f"its VA driver did not answer within {limit:g} s: {_LOOK}")
    if ended.returncode < 0:
        return replace(device, trouble=f"its VA driver died of signal {-ended.returncode} when asked: {_LOOK}")
    said = listing(ended.stdout)
    if said.missing:
        return device
    if said.trouble is not None:
        return replace(device, trouble=_not_initialised(said.trouble, ended.lines))
    return replace(device, va_driver=said.vendor, entries=said.entries)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a VA driver answered: its own name and its entries, or that libva is `missing`, or its `trouble`."""

    vendor: str | None = None
    entries: tuple[Entry, ...] = ()
    missing: str | None = None
    trouble: str | None = None


def listing(answer: bytes) -> Listing:
    """The answer of the child that asks; one that makes no sense is a trouble."""
    try:
        return _listings().validate_json(answer, strict=True)
    except ValidationError:
        return Listing(trouble="it gave no answer that can be read")


@cache
def _listings() -> TypeAdapter[Listing]:
    return TypeAdapter(Listing)


def _nodes(folder: str) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if _NODE.fullmatch(name)}
    except OSError:
        return set()


def _device(node: str, described: str, *, mapped: bool) -> Device:
    address = os.path.basename(os.path.realpath(described))
    driver = os.path.basename(os.path.realpath(f"{described}/driver"))
    return Device(
        id=address if _ADDRESS.fullmatch(address) else _number(node),
        node=node,
        vendor=_read(f"{described}/vendor"),
        driver=driver if os.path.exists(f"{described}/driver") else None,
        trouble=_opened(node) if mapped else f"the host has it, and it is not mapped into this container: {_map(node)}",
    )


def _number(node: str) -> str:
    """What tells a node without an address from others: its device number; its name where it has none."""
    with suppress(OSError):
        state = os.stat(node)
        if stat.S_ISCHR(state.st_mode):
            return f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}"
    return os.path.basename(node)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64).strip() or None
    except OSError:
        return None


def _opened(node: str) -> str | None:
    """What is wrong with opening it, and what mends that; None when it opens."""
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as refused:
        return _MENDING.get(refused.errno or 0, _other)(node, refused)
    return None


def _denied(node: str, refused: OSError) -> str:
    try:
        state = os.stat(node)
    except OSError:
        return f"permission denied: the folder {os.path.dirname(node)} lets this process in nowhere (chmod o+x)"
    groups = sorted({os.getegid(), *os.getgroups()})
    ours = f"group {state.st_gid} owns it, with mode {stat.S_IMODE(state.st_mode):04o}"
    if state.st_gid in groups or not state.st_mode & stat.S_IRGRP or not state.st_mode & stat.S_IWGRP:
        return f"permission denied ({ours}): let that group read and write it (chmod g+rw {node}, or a rule of udev)"
    held = ", ".join(map(str, groups))
    return f'permission denied ({ours}; this process has {held}): in Compose, group_add: ["{state.st_gid}"]'


def _forbidden(node: str, refused: OSError) -> str:
    return f"the container may not use this device number, although the node is there: {_map(node)}"


def _unbound(node: str, refused: OSError) -> str:
    return f"no kernel driver serves it ({refused.strerror}): load one on the host (i915, xe, amdgpu), and see dmesg"


def _gone(node: str, refused: OSError) -> str:
    return f"it is listed and leads nowhere: {_map(node)}"


def _folder(node: str, refused: OSError) -> str:
    return f"it is a folder, which Docker makes where the host has no such node: take the volume out; {_map(node)}"


def _other(node: str, refused: OSError) -> str:
    return f"it cannot be opened ({refused.strerror}): see dmesg on the host"


_MENDING: dict[int, Callable[[str, OSError], str]] = {
    errno.EACCES: _denied,
    errno.EPERM: _forbidden,
    errno.ENODEV: _unbound,
    errno.ENXIO: _unbound,
    errno.ENOENT: _gone,
    errno.EISDIR: _folder,
}
_LOOK = "see dmesg on the host, and try another VA driver (LIBVA_DRIVER_NAME)"


def _map(node: str) -> str:
    return f'in Compose, devices: ["{node}:{node}"]'


def _not_initialised(why: str, stderr: tuple[str, ...]) -> str:
    """With the last complaint of libva, which names the driver's file; without one there is no file of its name."""
    words = [line.partition("libva error: ")[2] for line in stderr if "libva error: " in line]
    if not words:
        return (
            f"no VA driver for it starts, {why}: install the one of this GPU (intel-media-va-driver, i965-va-driver, "
            "mesa-va-drivers); vainfo shows more"
        )
    return f"its VA driver does not start, {why}, {words[-1]}: {_LOOK}"
