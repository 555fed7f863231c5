"""What the survey remembers from one start to the next, and by what it knows that it still holds."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from transcoder.machine import Build, Device, Entry
from transcoder.proof import Verdict
from transcoder.version import __version__

_SYSTEM = (f"/usr/lib/{sys.implementation._multiarch}", "/usr/lib64", "/usr/lib")
_LIBRARIES = ("libva.so.2", "libva-drm.so.2", "libvpl.so.2")
_RUNTIMES = ("libmfx-gen.so.1.2", "libmfxhw64.so.1")
_VARIABLES = ("LIBVA_", "ONEVPL_", "AMD_DEBUG", "MESA_")


@dataclass(frozen=True, slots=True)
class OfSoftware:
    """What is remembered of an ffmpeg: its build, and what its trials on the CPU showed."""

    build: Build
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class OfDevice:
    """What is remembered of a device: what its VA driver lists, and what the trials on it showed."""

    va_driver: str | None
    entries: tuple[Entry, ...] | None
    verdicts: tuple[Verdict, ...]


Held = TypeVar("Held", OfSoftware, OfDevice)


def path(folder: str | None, key: str) -> str | None:
    """The file for a key; None without a folder."""
    return folder and os.path.join(folder, f"survey-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")


def of_program(program: str) -> str:
    """What changes with the program and with this version."""
    real = os.path.realpath(program)
    return f"{__version__} {_state(real)}"


def of_device(device: Device, environment: Mapping[str, str] = os.environ) -> str:
    """What changes with the device, its drivers, and the variables that choose among them. Not its node's number."""
    variables = sorted(f"{name}={value}" for name, value in environment.items() if name.startswith(_VARIABLES))
    facts = (device.id, device.vendor, device.driver, os.uname().release, *variables)
    return " ".join(map(str, (*facts, *map(_state, _runtimes(environment)))))


def read(path: str | None, kind: type[Held]) -> Held | None:
    """What is remembered there; None where there is nothing, or nothing whole."""
    try:
        with open(path or "", "rb") as file:
            held: Held = _adapters()[kind].validate_json(file.read(), strict=True)
            return held
    except (OSError, ValueError, ValidationError):
        return None


def write(path: str | None, held: OfSoftware | OfDevice) -> None:
    """Best effort: a read-only home only costs the next start some trials."""
    if path is None:
        return
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(draft, "wb") as file:
            file.write(_adapters()[type(held)].dump_json(held))
        os.replace(draft, path)
    except OSError:
        return


@cache
def _adapters() -> dict[type, TypeAdapter[Any]]:
    """Made when first used: that takes milliseconds."""
    return {kind: TypeAdapter(kind) for kind in (OfSoftware, OfDevice)}


def vpl_runtimes(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The runtimes that oneVPL's dispatcher may load, as files with their versions."""
    named = (path for path in _vpl(environment) if os.path.basename(path).startswith(("libvpl", "libmfx")))
    return tuple(sorted({os.path.realpath(path) for path in named if os.path.exists(path)}))


def _runtimes(environment: Mapping[str, str]) -> Iterator[str]:
    """The files of drivers and of oneVPL's runtimes that ffmpeg may load."""
    drivers = environment.get("LIBVA_DRIVERS_PATH") or ":".join(f"{folder}/dri" for folder in _SYSTEM)
    yield from _listed(drivers, "", "_drv_video.so")
    yield from _vpl(environment)
    yield from (f"{folder}/{name}" for folder in _SYSTEM for name in _LIBRARIES)


def _vpl(environment: Mapping[str, str]) -> Iterator[str]:
    for name in ("ONEVPL_PRIORITY_PATH", "ONEVPL_SEARCH_PATH"):
        yield from _listed(environment.get(name, ""), "lib", "")
    yield from (f"{folder}/{name}" for folder in _SYSTEM for name in _RUNTIMES)


def _listed(folders: str, start: str, end: str) -> Iterable[str]:
    for folder in filter(None, folders.split(":")):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        yield from (f"{folder}/{name}" for name in names if name.startswith(start) and name.endswith(end))


def _state(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError:
        return ""
    return f"{path} {state.st_ino} {state.st_size} {state.st_mtime_ns}"
