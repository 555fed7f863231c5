"""`python -m benchmarks.survey`: what a survey takes beside the bare starts of its trials, and a warm one.

On a GPU in software, in rounds: every trial's ffmpeg alone, one after another, and the whole survey with nothing
remembered. The bound is 1.3 × (trials × the mean of one start ÷ CPUs); a warm survey shall take 5 ms at most.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import quantile, ratio
from tests import gpu
from transcoder import backends
from transcoder.machine import MADE, SAMPLE, Machine, Trial
from transcoder.policy import Policy
from transcoder.survey import cpus, survey

BOUND, WARM_BOUND_MS = 1.3, 5.0
BUILT = Path(__file__).resolve().parent.parent / ".cache" / "simgpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code says that it ran, not that the bounds are met: machines differ."""
    parser = argparse.ArgumentParser("benchmarks.survey", description="Measure what a survey adds to its trials.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="transcoder-bench-") as name:
        folder = Path(name)
        gpus = gpu.Machine(folder / "machine", gpu.build(BUILT))
        gpus.add()
        os.environ.update(gpus.environment)
        policy = Policy(("/",), dri=str(gpus.nodes), sysfs=str(folder / "sys"))
        _report(folder, policy, asked.rounds, asked.seed)
    return 0


def _report(folder: Path, policy: Policy, rounds: int, seed: int) -> None:
    machine = survey(policy, str(folder / "cache"))
    trials = _trials(machine)
    samples = _samples(trials, folder)
    pairs, loads = [], []
    for number in range(rounds):
        before = _cpu_seconds()
        bare = sum(_alone(trial, samples) for trial in trials) / cpus()
        between, began = _cpu_seconds(), time.monotonic()
        survey(policy)
        pairs.append((time.monotonic() - began, bare))
        loads.append((_cpu_seconds() - between, between - before))
        print(f"round {number + 1}: survey {pairs[-1][0]:.2f} s, bare starts ÷ CPUs {bare:.2f} s", file=sys.stderr)
    found = ratio(pairs, seed)
    start = sum(bare for _, bare in pairs) / rounds * cpus() / len(trials)
    print(f"trials after pruning: {len(trials)}, refused: {len(machine.refusals)}, CPUs: {cpus()}")
    print(f"one start: {1000 * start:.0f} ms, cold survey: {sum(wall for wall, _ in pairs) / rounds:.2f} s")
    print(f"survey ÷ (trials × one start ÷ CPUs): {found.value:.2f} [{found.low:.2f}, {found.high:.2f}], bound {BOUND}")
    work = ratio(loads, seed)
    print(f"the same in CPU seconds, which neighbours disturb less: {work.value:.2f} [{work.low:.2f}, {work.high:.2f}]")
    warm = [_warm(policy, folder) for _ in range(100)]
    print(f"warm: {quantile(warm, 0.5):.1f} ms, p95 {quantile(warm, 0.95):.1f} ms, bound {WARM_BOUND_MS:g} ms")


def _trials(machine: Machine) -> list[Trial]:
    return [
        trial
        for device in (None, *machine.devices)
        for backend in backends.every()
        for trial in backend.trials(machine.build, device)
    ]


def _samples(trials: Sequence[Trial], folder: Path) -> dict[tuple[str, int], str]:
    made = {}
    for trial in trials:
        able = trial.ability
        if able.device is None and able.does == "encode":
            made[able.codec, able.depth] = path = str(folder / f"{able.codec}-{able.depth}.mkv")
            _ffmpeg([word.replace(MADE, path) for word in trial.words])
    return made


def _alone(trial: Trial, samples: dict[tuple[str, int], str]) -> float:
    """Seconds that a trial takes by itself."""
    sample = samples[trial.sample] if trial.sample else ""
    words = [word.replace(MADE, "/dev/null").replace(SAMPLE, sample) for word in trial.words]
    began = time.monotonic()
    _ffmpeg(words)
    return time.monotonic() - began


def _ffmpeg(words: Sequence[str]) -> None:
    # x265 and SVT-AV1 talk whatever the level
    quiet = ("ffmpeg", "-hide_banner", "-nostdin", "-y", "-v", "quiet", *words)
    subprocess.run(quiet, stderr=subprocess.DEVNULL, check=False)


def _cpu_seconds() -> float:
    """Of this process and all that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _warm(policy: Policy, folder: Path) -> float:
    began = time.perf_counter()
    survey(policy, str(folder / "cache"))
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
