"""A worker that kills or stops itself at a named point of a job's way, where a trap lies for it.

The product knows nothing of this: its functions are wrapped from outside. A trap is a file in CHAOS_TRAPS, named
"kill POINT" or "stop POINT"; the first worker that comes by moves it to `sprung`, under its process id, and falls.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer, local
from time import monotonic_ns
from types import ModuleType
from typing import Any

from transcoder import __main__ as product
from transcoder import ffmpeg, job, publish
from transcoder.held import Held

TRAPS = Path(os.environ["CHAOS_TRAPS"])
INTO_ENCODING = 0.12
"""Seconds after the start of ffmpeg at which a worker falls during an encode: the clips take a little longer."""

AROUND_THE_MANIFEST = ("before the manifest", "after the manifest")
_here = local()


def passes(point: str, fall_later: float = 0.0) -> None:
    for how, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        sprung = TRAPS / "sprung" / f"{how} {point}.{os.getpid()}.{monotonic_ns()}"
        try:
            os.rename(TRAPS / f"{how} {point}", sprung)
        except FileNotFoundError:
            continue
        if fall_later:
            Timer(fall_later, os.kill, (os.getpid(), number)).start()
        else:
            os.kill(os.getpid(), number)


def before(place: ModuleType | type, name: str, point: str) -> None:
    original = getattr(place, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        passes(point)
        return original(*args, **named)

    put_in(place, name, wrapped)


def put_in(place: ModuleType | type, name: str, wrapped: Callable[..., Any]) -> None:
    assert hasattr(place, name), f"{place.__name__} has no {name} any more: this suite needs another place to fall at"
    setattr(place, name, wrapped)


def within_encoding() -> None:
    run = ffmpeg.run

    def runs(*args: Any, **named: Any) -> Iterator[Any]:
        if "device" in named:  # else it decodes, to verify
            passes("during the encode", INTO_ENCODING)
        yield from run(*args, **named)

    put_in(ffmpeg, "run", runs)


def within_taking_over() -> None:
    recover = publish.recover

    def recovers(job_id: str, attempt: int, *more: Any) -> Any:
        if attempt > 1:
            passes("while taking over")
        return recover(job_id, attempt, *more)

    put_in(publish, "recover", recovers)


def within_publishing() -> None:
    """The points between renames; folders are synced before the manifest's rename, and once after it."""
    carry_out, rename, sync = publish._carry_out, publish._rename, publish._sync

    def carries_out(folder: str, intent: Any, policy: Any) -> None:
        passes("before the first rename")
        _here.renames, _here.syncs = len(intent["moves"]) - 1, 0
        carry_out(folder, intent, policy)

    def renames(made: str, target: str, *, overwrite: bool) -> None:
        rename(made, target, overwrite=overwrite)
        _here.renames -= 1
        if _here.renames >= 0:
            passes("between outputs of a ladder")

    def syncs(path: str) -> None:
        sync(path)
        if os.path.isdir(path) and not os.path.basename(path).startswith(".transcoder-"):
            # of a manifest that stands already the folder is only synced
            so_far = getattr(_here, "syncs", len(AROUND_THE_MANIFEST))
            if so_far < len(AROUND_THE_MANIFEST):
                passes(AROUND_THE_MANIFEST[so_far])
                _here.syncs = so_far + 1

    put_in(publish, "_carry_out", carries_out)
    put_in(publish, "_rename", renames)
    put_in(publish, "_sync", syncs)


def main() -> int:
    before(job, "probe", "before the probe")
    before(job, "verify", "before the verification")
    within_taking_over()
    before(publish, "put", "between verify and rename")
    before(Held, "finish", "before the record")
    within_encoding()
    within_publishing()
    return product.main()


if __name__ == "__main__":
    sys.exit(main())
