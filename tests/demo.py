"""`make demo`: a ladder job on a real clip, through a real queue and a real worker, that all end with it."""

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from tests import clips, services
from transcoder import Client, Status, screen
from transcoder.profiles import profile

PROFILE = "ladder-h264"
OUTPUT = Path(__file__).resolve().parent.parent / "demo-output"


def main() -> int:
    started = time.monotonic()
    published = demonstrate()  # and stops what it started
    if published:
        screen.line(f"The files are in {OUTPUT}")
    screen.line(f"Redis and the worker are stopped. It took {time.monotonic() - started:.1f} s.")
    return 0 if published else 1


def demonstrate() -> bool:
    source = clips.clip("bigbuckbunny.mp4")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="transcoder-demo-")))
        redis = stack.enter_context(services.private_redis(scratch / "redis"))
        screen.line(f"Redis   ready, private, on port {redis.port}, process {redis.pid}")
        worker = stack.enter_context(services.worker(redis.url, scratch / "worker", [OUTPUT, clips.FOLDER]))
        screen.line(f"worker  ready, process {worker.pid}")
        client = Client(redis.url)
        job_id = client.submit(profile(PROFILE).spec(source=str(source), target=str(OUTPUT / "{name}.{ext}")))
        screen.line(f"job     {job_id}, {source.name} by the profile {PROFILE}")
        sys.stdout.flush()  # what follows goes to stderr first
        last = show(client.watch(job_id))
        if last is None or last.result is None:
            screen.line(f"The job ended otherwise than published: {last and last.error}")
            screen.line("The worker's log:")
            for line in worker.log().splitlines():
                screen.line(line)
            return False
        print()
        Console().print(table(last.result))
        print()
    return True


def show(statuses: Iterable[Status]) -> Status | None:
    """The live progress bar, the same as that of `transcoder watch`. Gives the last status."""
    last = None
    with screen.live() as bar:
        for last in statuses:
            bar.phase(last.phase)
            if last.phase == "encoding" and (at := last.progress):
                bar.pace(at.fraction, at.fps, at.speed, at.eta_seconds)
    return last


def table(result: dict[str, Any]) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("output", "codec", "picture", "size", "route", "device", "fps", "× realtime", "verified"):
        numeric = column in {"size", "fps", "× realtime"}
        drawn.add_column(column, overflow="fold", justify="right" if numeric else "left")
    for output in result["outputs"]:
        drawn.add_row(
            Path(output["path"]).name,
            output["codec"],
            f"{output['width']}×{output['height']}",
            decimal(output["bytes"]),
            result["route"],
            Path(result["device"] or "CPU").name,
            f"{result['fps']:.0f}",  # the rungs are made by one command, at one pace
            f"{result['speed']:.2f}",
            "✔" if result["verified"] else "no",
        )
    return drawn


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # everything is stopped by now
        sys.exit(130)
