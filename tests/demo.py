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
from rich.filesize import decimal as bytes_in_words
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from tests import clips, services
from transcoder import Client, Status
from transcoder.profiles import profile

PROFILE = "ladder-h264"
OUTPUT = Path(__file__).resolve().parent.parent / "demo-output"


def main() -> int:
    console = Console()
    started = time.monotonic()
    published = demonstrate(console)  # and stops what it started
    if published:
        console.print(f"The files are in {OUTPUT}", soft_wrap=True, highlight=False)
    console.print(f"Redis and the worker are stopped. It took {time.monotonic() - started:.1f} s.", highlight=False)
    return 0 if published else 1


def demonstrate(console: Console) -> bool:
    source = clips.clip("bigbuckbunny.mp4")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="transcoder-demo-")))
        redis = stack.enter_context(services.private_redis(scratch / "redis"))
        console.print(f"Redis   private, port {redis.port}, process {redis.pid}", highlight=False)
        worker = stack.enter_context(services.worker(redis.url, scratch / "worker", [OUTPUT, clips.FOLDER]))
        console.print(f"worker  ready, process {worker.pid}", highlight=False)
        client = Client(broker_url=redis.url)
        job_id = client.submit(profile(PROFILE).spec(source=str(source), target=str(OUTPUT / "{name}.{ext}")))
        console.print(f"job     {job_id}: {source.name} with the profile {PROFILE}", highlight=False)
        last = show(client.watch(job_id), console)
        if last is None or last.state != "published" or last.result is None:
            console.print(f"The job was not published: {last}", markup=False)
            console.print(f"The worker's log:\n{worker.log()}", markup=False, highlight=False)
            return False
        console.print(table(last.result))
    return True


def show(statuses: Iterable[Status], console: Console) -> Status | None:
    """The live progress bar. Gives the last status."""
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[pace]}", style="cyan"),
    )
    last = None
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("queued", total=1.0, pace="")
        for last in statuses:
            bar.update(task, description=last.phase)
            if last.progress is not None:
                bar.update(task, completed=last.progress.fraction or 0, pace=pace(last))
        if last is not None and last.state == "published":
            bar.update(task, completed=1.0)
    return last


def pace(status: Status) -> str:
    progress = status.progress
    if progress is None or progress.fps is None:
        return ""
    words = [f"{progress.fps:.0f} fps"]
    if progress.speed is not None:
        words.append(f"{progress.speed:.2f}×")
    if progress.eta_seconds is not None:
        words.append(f"ETA {progress.eta_seconds:.0f} s")
    return "  ".join(words)


def table(result: dict[str, Any]) -> Table:
    columns = ("output", "codec", "picture", "size", "route", "device", "fps", "× realtime", "verified")
    right = {"picture", "size", "fps", "× realtime"}
    drawn = Table(title=f"{clips.FOLDER.name}/bigbuckbunny.mp4 → {OUTPUT.name}")
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    for output in result["outputs"]:
        video = output["video"]
        drawn.add_row(
            Path(output["path"]).name,
            video["codec"],
            f"{video['width']}×{video['height']}",
            bytes_in_words(output["bytes"]),
            result["route"],
            result["device"] or "CPU",
            f"{result['fps']:.0f}",
            f"{result['speed']:.2f}",
            "✔",  # a job is published only when every output is
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main())
