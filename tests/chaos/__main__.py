"""Runs the suite once and prints a table; the exit code is 0 when nothing was lost, doubled or left."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

from tests import gpu, services
from tests.chaos import schedule
from tests.chaos.arena import Arena, make_sources
from tests.chaos.verdict import Verdict, judge, left_over

REAPING = ("sh", "-c", '"$@"; exit $?', "sh")
"""What killed workers leave behind goes to the first process, which must wait for it, as a shell does."""
SMALL_DISK = 8 << 20
BYTES_A_JOB = 64 << 10
"""What a job leaves on the small disk, if it is there; the reserve of a running one is the rest."""
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Mounts of its own, for the small disk, and processes of its own: what is left behind is seen, and dies with us."""


def main() -> int:
    asked = arguments()
    if not os.environ.get("CHAOS_APART"):
        return apart(asked.seed)
    print(f"chaos: {asked.jobs} jobs and {asked.faults} faults; the same again: {again(asked)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=asked.folder) as folder:
        good = fight(asked, Path(folder))
    print(f"chaos: {'nothing lost, doubled or left' if good else f'WRONG; the same again: {again(asked)}'}", flush=True)
    return 0 if good else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--faults", type=int, help="default: one for three jobs")
    parser.add_argument("--seed", type=int, default=random.randrange(100_000))
    parser.add_argument("--pause", type=float, default=10.0, help="seconds for which Redis stands still")
    parser.add_argument("--within", type=float, help="seconds after which it is given up (default: 3 a job, and 120)")
    parser.add_argument("--slowest", type=int, default=0, help="so many of the slowest recoveries are told in full")
    parser.add_argument("--folder", help="where its own folder is made")
    parser.add_argument("--logs", help="folder for the workers' logs, when something is wrong")
    asked = parser.parse_args()
    asked.faults = asked.jobs // 3 if asked.faults is None else asked.faults
    asked.within = asked.within or 120 + 3 * asked.jobs
    return asked


def again(asked: argparse.Namespace) -> str:
    pause = f" --pause {asked.pause:g}" if asked.pause != 10 else ""
    return f"python -m tests.chaos --jobs {asked.jobs} --faults {asked.faults} --seed {asked.seed}{pause}"


def apart(seed: int) -> int:
    if os.geteuid() != 0:
        print("chaos: it mounts a disk and needs root", file=sys.stderr)
        return 2
    words = [*APART, *REAPING, sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--seed", str(seed)]
    return subprocess.run(words, env={**os.environ, "CHAOS_APART": "1"}, check=False).returncode


def fight(asked: argparse.Namespace, folder: Path) -> bool:
    began = time.monotonic()
    built = gpu.build(gpu.SOURCES.parent.parent / ".cache" / "simgpu")
    small = folder / "small"
    small.mkdir()
    size = SMALL_DISK + BYTES_A_JOB * asked.jobs
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(small)], check=True)
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", str(small)], check=True)
        redis = stack.enter_context(services.private_redis(folder / "redis", appendonly=True))
        machine = gpu.Machine(folder / "machine", built)
        arena = Arena(folder, machine, redis, make_sources(folder / "sources"), small)
        try:
            verdict = outcome(asked, arena)
        finally:
            arena.close()
        report(asked, arena, verdict, time.monotonic() - began)
        if verdict.wrong and asked.logs:
            keep_logs(arena, Path(asked.logs))
    return not verdict.wrong


def outcome(asked: argparse.Namespace, arena: Arena) -> Verdict:
    orders = schedule.orders(asked.seed, asked.jobs)
    blows = schedule.blows(asked.seed, asked.jobs, asked.faults, asked.pause)
    stuck = ""
    try:
        arena.run(orders, blows, asked.within, lambda what: print(f"chaos: {what}", flush=True))
    except TimeoutError as late:
        stuck = str(late)
    arena.mend()
    left = arena.rest(lambda: left_over(arena), within=30)
    arena.drain()
    verdict = judge(arena)
    verdict.wrong += [f"left: {what}" for what in left]
    verdict.wrong += [f"left after the drain: {what}" for what in left_over(arena) if what not in left]
    verdict.wrong += [f"it took too long: {stuck}"] if stuck else []
    return verdict


def report(asked: argparse.Namespace, arena: Arena, verdict: Verdict, took: float) -> None:
    quiet = [one for one in verdict.recoveries if one.was_quiet(arena.troubles)]
    rows: list[tuple[str, object]] = [
        ("jobs accepted", len(arena.accepted)),
        *sorted(verdict.states.items()),
        *((f"  {what}", times) for what, times in sorted(verdict.errors.items())),
        *((f"refused at submit: {what}", times) for what, times in arena.refused.items()),
        ("faults injected", f"{arena.injected.total()} of {len(arena.injected)} kinds"),
        *((f"  {what}", times) for what, times in sorted(arena.injected.items())),
        *((f"  {what}, met nobody", times) for what, times in sorted(arena.missed.items())),
        ("workers ended with", ", ".join(f"{code}: {times}" for code, times in sorted(arena.codes.items()))),
        ("attempts beyond each job's first", verdict.attempts - len(arena.accepted)),
        ("encodes begun, for one published job", f"{verdict.encodes / max(1, verdict.published):.2f}"),
        ("a job's own time, p50 / p95", spread(verdict.own)),
        ("killed or stopped to taken back, p50 / p95", spread([one.taken_back for one in verdict.recoveries])),
        ("  with Redis and network whole", spread([one.taken_back for one in quiet])),
        ("killed or stopped to begun again, p50 / p95", spread([one.begun for one in verdict.recoveries])),
        ("  with Redis and network whole", spread([one.begun for one in quiet])),
        ("seconds in all", f"{took:.0f}"),
    ]
    for name, value in rows:
        print(f"  {name:<55} {value}")
    for slow in sorted(verdict.recoveries, key=lambda one: -one.begun)[: asked.slowest]:
        print(f"  slow: {slow.kill} {arena.accepted[slow.job.id]}")
        print(
            "".join(
                f"    {moment.at - slow.kill.at:8.2f} {moment.what} {moment.detail}\n" for moment in slow.job.history
            )
        )
    for what in verdict.wrong:
        print(f"  WRONG: {what}")


def spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"{len(seconds)} of them"
    cuts = quantiles(seconds, n=20, method="inclusive")
    return f"{cuts[9]:.1f} s / {cuts[18]:.1f} s ({len(seconds)} of them, longest {max(seconds):.1f} s)"


def keep_logs(arena: Arena, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, worker in arena.workers.items():
        (folder / f"{name}.log").write_text(worker.log())


if __name__ == "__main__":
    sys.exit(main())
