"""The dialects of ffmpeg, one file each. A new accelerator is a new file here; nothing else names it."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Protocol

from transcoder.command import Command, Work
from transcoder.machine import Build, Device, Machine, Trial


class Backend(Protocol):
    """What a file of this folder offers, as a module: how to try it and how to say a job in its words."""

    API: str
    """Its name in routes, settings and metrics."""

    RANK: int
    """The order of preference, lowest first; software is 100."""

    NEEDS: str
    """What it needs of a machine, for people on whose machine none of its trials worked."""

    def trials(self, build: Build, device: Device | None) -> tuple[Trial, ...]:
        """The short runs that show what it can do on a device, or without one (None); none where it has no business."""
        ...

    def commands(self, work: Work, machine: Machine) -> tuple[Command, ...]:
        """The commands worth trying for this job, best first; none where an ability is missing."""
        ...


@cache
def every() -> tuple[Backend, ...]:
    """All backends, best first."""
    found = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return tuple(sorted(found, key=lambda backend: backend.RANK))
