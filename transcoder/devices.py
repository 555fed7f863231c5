"""The GPUs of this machine: what the kernel says of each, whether it opens, and what its VA driver lists."""

from __future__ import annotations

import errno
import grp
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
from transcoder.machine import Device, Entry, Node, Trouble
from transcoder.policy import Policy

_NODE = re.compile(r"renderD(\d+)")
_DRIVER_FILE = re.compile(r"libva error: .*_drv_video\.so")
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
        return replace(device, trouble=_failing(f"its VA driver did not answer within {limit:g} s"))
    if ended.returncode < 0:
        return replace(device, trouble=_failing(f"its VA driver died of signal {-ended.returncode} when asked"))
    said = listing(ended.stdout)
    if said.missing:
        return device
    if said.trouble is not None:
        return replace(device, trouble=_not_initialised(device, said.trouble, ended.lines))
    return replace(device, va_driver=said.vendor, entries=said.entries)


def node(device: Device, policy: Policy) -> Node:
    """What the file system says of the device's node, without opening it."""
    state = None
    with suppress(OSError):
        state = os.stat(device.node)
    return Node(
        group=state.st_gid if state else None,
        group_name=_group_name(state.st_gid) if state else None,
        mode=stat.S_IMODE(state.st_mode) if state else None,
        by_path=_link_to(device.node, f"{policy.dri}/by-path"),
        product=_read(f"{policy.sysfs}/class/drm/{os.path.basename(device.node)}/device/device"),
    )


def _group_name(number: int) -> str | None:
    with suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return None


def _link_to(node: str, folder: str) -> str | None:
    """The link that udev made for this node, which stays when the nodes are numbered anew."""
    with suppress(OSError):
        links = (f"{folder}/{name}" for name in sorted(os.listdir(folder)))
        return next((link for link in links if os.path.realpath(link) == os.path.realpath(node)), None)
    return None


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
        trouble=_opened(node) if mapped else _unmapped(node),
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


def _unmapped(node: str) -> Trouble:
    return Trouble("unmapped", "the host has it, and it is not mapped into this container", _map(node))


def _opened(node: str) -> Trouble | None:
    """What is wrong with opening it, and what mends that; None when it opens."""
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as refused:
        return _MENDING.get(refused.errno or 0, _other)(node, refused)
    return None


def _denied(node: str, refused: OSError) -> Trouble:
    try:
        state = os.stat(node)
    except OSError:
        folder = os.path.dirname(node)
        what = f"permission denied: the folder {folder} lets this process in nowhere"
        return Trouble("folder mode", what, f"chmod o+x {folder}")
    groups = sorted({os.getegid(), *os.getgroups()})
    ours = f"group {state.st_gid} owns it, with mode {stat.S_IMODE(state.st_mode):04o}"
    if state.st_gid in groups or not state.st_mode & stat.S_IRGRP or not state.st_mode & stat.S_IWGRP:
        mend = f"let that group read and write it (chmod g+rw {node}, or a rule of udev)"
        return Trouble("mode", f"permission denied ({ours})", mend)
    held = ", ".join(map(str, groups))
    what = f"permission denied ({ours}; this process has {held})"
    return Trouble("group", what, f'in Compose, group_add: ["{state.st_gid}"]')


def _forbidden(node: str, refused: OSError) -> Trouble:
    return Trouble("cgroup", "the container may not use this device number, although the node is there", _map(node))


def _unbound(node: str, refused: OSError) -> Trouble:
    what = f"no kernel driver serves it ({refused.strerror})"
    return Trouble("unbound", what, "load one on the host (i915, xe, amdgpu), and see dmesg")


def _gone(node: str, refused: OSError) -> Trouble:
    return Trouble("gone", "it is listed and leads nowhere", _map(node))


def _folder(node: str, refused: OSError) -> Trouble:
    what = "it is a folder, which Docker makes where the host has no such node"
    return Trouble("folder", what, f"take the volume out; {_map(node)}")


def _other(node: str, refused: OSError) -> Trouble:
    return Trouble("unopened", f"it cannot be opened ({refused.strerror})", "see dmesg on the host")


_MENDING: dict[int, Callable[[str, OSError], Trouble]] = {
    errno.EACCES: _denied,
    errno.EPERM: _forbidden,
    errno.ENODEV: _unbound,
    errno.ENXIO: _unbound,
    errno.ENOENT: _gone,
    errno.EISDIR: _folder,
}


def _map(node: str) -> str:
    return f'in Compose, devices: ["{node}:{node}"]'


def _failing(what: str) -> Trouble:
    return Trouble("driver", what, "see dmesg on the host, and try another VA driver (LIBVA_DRIVER_NAME)")


_PACKAGES = {
    "0x8086": "intel-media-va-driver, or i965-va-driver for one older than Broadwell",
    "0x1002": "mesa-va-drivers",
}


def _not_initialised(device: Device, why: str, stderr: tuple[str, ...]) -> Trouble:
    """With libva's last complaint about a driver's file; without one there is no file of its name."""
    words = [line.partition("libva error: ")[2] for line in stderr if _DRIVER_FILE.search(line)]
    if words:
        return _failing(f"its VA driver does not start, {why}, {words[-1]}")
    every = "the one of this GPU (intel-media-va-driver, i965-va-driver, mesa-va-drivers)"
    package = _PACKAGES.get(device.vendor or "", every)
    return Trouble("no driver", f"no VA driver for it starts, {why}", f"install {package}; vainfo shows more")
