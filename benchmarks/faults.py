"""`python -m benchmarks.faults`: the time that a job loses when its device fails, before the next route begins.

On a GPU in software, in rounds: a job whose device fails at the start, in the middle, or hangs; and beside the failure
at the start the same ffmpeg command alone, which is what the failure itself takes. The bound is that start and 50 ms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import bootstrap, quantile
from benchmarks.stand import Alone
from benchmarks.survey import BUILT
from tests import gpu
from transcoder import job
from transcoder.events import Event, Planned, Published
from transcoder.machine import Machine
from transcoder.manifest import Attempt
from transcoder.policy import Policy
from transcoder.spec import read
from transcoder.survey import survey

BOUND_MS, STALL_LIMIT = 50.0, 2.0
FAULTS = {
    "fails at the start": "fault.init = status 18",
    "fails in the middle": "fault.encode = status 24 at 60",
    "hangs in the middle": "fault.encode = hang at 60",
}


@dataclass(frozen=True)
class Site:
    """Where the jobs run."""

    folder: Path
    device: gpu.Gpu
    machine: Machine
    policy: Policy

    def job(self, fault: str) -> tuple[Published, Planned]:
        """A job of 100 frames whose device has that fault."""
        name, _, value = fault.partition(" = ")
        events: list[Event] = []
        asked = read({
            "source": str(self.folder / "clip.mp4"), "target": str(self.folder / "made.mp4"), "overwrite": True,
        })  # fmt: skip
        self.device.configure({name: value})
        try:
            done = job.transcode(asked, Attempt("bench"), self.machine, self.policy, events.append, Alone())
        finally:
            self.device.configure()
        return done, next(event for event in events if isinstance(event, Planned))

    def alone(self, planned: Planned, fault: str) -> float:
        """Seconds that the first command of the plan takes to fail by itself."""
        name, _, value = fault.partition(" = ")
        self.device.configure({name: value})
        began = time.monotonic()
        words = planned.commands[0].argv(outputs=[str(self.folder / "alone.mp4")])
        subprocess.run((*words[:1], "-y", *words[1:]), capture_output=True, check=False, stdin=subprocess.DEVNULL)
        self.device.configure()
        return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code says that it ran, not that the bound is met: machines differ."""
    parser = argparse.ArgumentParser("benchmarks.faults", description="Measure what a failing device costs a job.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="transcoder-bench-") as name:
        _report(_site(Path(name)), asked.rounds, asked.seed)
    return 0


def _site(folder: Path) -> Site:
    gpus = gpu.Machine(folder / "machine", gpu.build(BUILT))
    device = gpus.add()
    os.environ.update(gpus.environment)
    policy = Policy(
        (str(folder),), dri=str(gpus.nodes), sysfs=str(gpus.sysfs), proc=str(gpus.proc),
        stall_limit=STALL_LIMIT, first_frame_limit=10,
    )  # fmt: skip
    source = ("-f", "lavfi", "-i", "testsrc2=s=320x180:r=25:d=4", str(folder / "clip.mp4"))
    subprocess.run(("ffmpeg", "-v", "error", *source), check=True)
    return Site(folder, device, survey(policy), policy)


def _report(site: Site, rounds: int, seed: int) -> None:
    lost: dict[str, list[float]] = {name: [] for name in FAULTS}
    added = []
    for number in range(rounds):
        for name, fault in FAULTS.items():
            done, planned = site.job(fault)
            lost[name].append(1000 * done.tried[0].lost)
            if name == "fails at the start":
                added.append(lost[name][-1] - 1000 * site.alone(planned, fault))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for name, spent in lost.items():
        print(f"{name}: {quantile(spent, 0.5):.0f} ms lost, p95 {quantile(spent, 0.95):.0f} ms")
    found = bootstrap(lambda values: quantile(values, 0.5), added, seed=seed)
    print(f"beyond ffmpeg's own start: {found.value:.0f} ms [{found.low:.0f}, {found.high:.0f}], bound {BOUND_MS:g} ms")
    print(f"a hang is given up after a limit of {STALL_LIMIT:g} s; three limits are promised")


if __name__ == "__main__":
    sys.exit(main())
