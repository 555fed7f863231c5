"""transcoder: a submitted spec becomes a verified file, on the GPU where there is one.

The way of a job:

    submit(spec) -> queue -> worker -> job.transcode:
    probe(source) -> Media; plan(spec, media, machine) -> Commands, best first;
    ffmpeg.run(command) -> Progress...; verify(outputs); publish: files renamed into place, the manifest last
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transcoder.errors import TranscoderError
from transcoder.spec import JobSpec
from transcoder.version import __version__

if TYPE_CHECKING:
    from transcoder.client import Client, Status

__all__ = ["Client", "JobSpec", "Status", "TranscoderError", "__version__"]


def __getattr__(name: str) -> Any:
    """The client on first use: it brings Redis, which `transcoder run` does without."""
    if name in ("Client", "Status"):
        from transcoder import client

        return getattr(client, name)
    raise AttributeError(f"module 'transcoder' has no attribute '{name}'")
