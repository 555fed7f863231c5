"""The rules of this site, read from the settings at the edge: where files may lie, how long things may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and habits that every job on this worker obeys. Times in seconds, sizes in pixels.

    `roots` are the folders that sources and targets must lie in. `first_frame_limit` bounds the silence before the
    first progress, `stall_limit` the silence after it, `trial_limit` a trial of the survey. `wall_limit` and
    `cpu_limit` bound a whole run of ffmpeg, `max_alloc` one piece of its memory and `max_file` an output in bytes;
    `nice` is how far it stands behind the worker. `owner` is (uid, gid) of
    outputs, None to leave it. `hardware_decode` says whether a device may decode sources. `dri`, `sysfs` and `proc` are
    where devices and the kernel's words about them are.
    """

    roots: tuple[str, ...]
    ffmpeg: str = "ffmpeg"
    ffprobe: str = "ffprobe"
    probe_limit: float = 30.0
    first_frame_limit: float = 120.0
    stall_limit: float = 60.0
    wall_limit: float = 2 * 86400.0
    cpu_limit: float = 14 * 86400.0
    max_alloc: int = 1 << 30
    max_file: int = 1 << 40
    nice: int = 5
    max_pixels: int = 8192 * 8192
    manifest_folder: str | None = None
    umask: int = 0o022
    owner: tuple[int, int] | None = None
    hardware_decode: bool = True
    trial_limit: float = 20.0
    dri: str = "/dev/dri"
    sysfs: str = "/sys"
    proc: str = "/proc"
