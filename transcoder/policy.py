"""The rules of this site, read from the settings at the edge: where files may lie, how long things may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and habits that every job on this worker obeys. Times in seconds, sizes in pixels.

    `roots` are the folders that sources and targets must lie in. `first_frame_limit` bounds the silence before the
    first progress, `stall_limit` the silence after it. `owner` is (uid, gid) of outputs, None to leave it.
    """

    roots: tuple[str, ...]
    ffmpeg: str = "ffmpeg"
    ffprobe: str = "ffprobe"
    probe_limit: float = 30.0
    first_frame_limit: float = 120.0
    stall_limit: float = 60.0
    max_pixels: int = 8192 * 8192
    manifest_folder: str | None = None
    umask: int = 0o022
    owner: tuple[int, int] | None = None
