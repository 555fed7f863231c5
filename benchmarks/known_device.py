"""`python -m benchmarks.known_device`: does the benchmark find what is known?

grid     density against the analytic number of streams, and the curve's engines and rate against the device's
queue    a worker with the capacity file that density wrote: how many jobs at a time, and how fast the slowest
cost     a cost of 5 % that each container has is found by topology, and none is claimed where there is none
stopped  software encoders that are stopped for a twentieth of the time, by SIGSTOP, where each has its own container

packing  `transcoder bench topology` in containers that share a device of two engines; as root, with a container engine

All but `stopped` are of a GPU in software.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

from tests import gpu, services
from tests.containers import stack
from transcoder import Client, JobSpec
from transcoder.bench import density_runner, design, runner
from transcoder.bench.analysis import analyse
from transcoder.bench.contrasts import throughput
from transcoder.bench.density import Limits
from transcoder.bench.destination import Destination
from transcoder.bench.display import display
from transcoder.bench.result import Profile, Run
from transcoder.vitals import family

WIDTH, HEIGHT, FPS = 256, 144, 25
"""Whole macroblocks, since the device takes as long as its surface is large; small, so that the CPUs have room."""
STREAM = WIDTH * HEIGHT * FPS
ENCODES: dict[str, object] = {"encode": "h264", "decode": "none", "vpp": False, "rc": "CQP"}
COST = 0.05
PERIOD = 0.1


@dataclass(frozen=True, slots=True)
class Known:
    """A device: its engines, and how many streams one of them encodes and decodes in real time (0: at no cost)."""

    engines: int
    encode: float
    decode: float = 0.0

    @property
    def each(self) -> float:
        """Streams that one engine makes: a picture takes it the time to decode and the time to encode."""
        return 1 / (1 / self.encode + (1 / self.decode if self.decode else 0))

    @property
    def single(self) -> float:
        """× real time of one stream alone: decoder and encoder each have one engine at most, and two if there are."""
        paces = [self.encode, *([self.decode] if self.decode else [])]
        return min(paces) if self.engines > 1 else self.each

    @property
    def streams(self) -> int:
        """0 where one stream alone is too slow, however many engines there are: it has one."""
        return math.floor(self.engines * self.each) if self.single >= 1 else 0

    def settings(self) -> dict[str, object]:
        decodes = {"decode": "h264", "decode_rate": round(self.decode * STREAM)} if self.decode else {}
        return {**ENCODES, **decodes, "engines": self.engines, "encode_rate": round(self.encode * STREAM)}


GRID = (
    Known(1, 1.5),
    Known(1, 2.4),
    Known(1, 5.5),
    Known(2, 1.25),
    Known(2, 2.2),
    Known(2, 0.7),
    Known(3, 1.4),
    Known(3, 2.15),
    Known(1, 0.8),
    Known(2, 3.0, 6.0 / 1.3),
    Known(1, 4.0, 8.0),
)
"""Each is at least 5 % from where one stream more or less would be right."""


class Silent:
    """Nobody is told how far it is."""

    def phase(self, sentence: str) -> None: ...
    def block(self, number: int, of: int | None, left: float) -> None: ...
    def ran(self, run: Run) -> None: ...
    def note(self, sentence: str) -> None: ...


@dataclass
class Room:
    """A folder with a machine of its own and the clip; this process and what it starts see that machine's GPU.

    `names` are the variables by which they do.
    """

    folder: Path
    machine: gpu.Machine
    clip: Path
    names: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.known_device", description=__doc__)
    parser.add_argument("what", choices=("grid", "queue", "cost", "stopped", "packing"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of the clip in a run of density")
    parser.add_argument("--packing", choices=density_runner.PACKINGS, default="one")
    parser.add_argument("--first", type=int, default=0, help="row of the grid to begin with")
    parser.add_argument("--runs", type=int, default=20, help="of topology, with the cost and without")
    parser.add_argument("--budget", type=float, help="seconds of one of them, of packing by its profile")
    parser.add_argument("--profile", choices=get_args(Profile), default="quick", help="of packing")
    parser.add_argument("--out", default="known-packing.json", help="of packing: the result")
    parser.add_argument(
        "--beside-others", action="store_true", help="also where other programs keep the CPUs busy (not to be quoted)"
    )
    asked = parser.parse_args(argv)
    if asked.beside_others:
        vars(design)["BUSY"] = 1.01
    print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} CPUs")
    {"grid": grid, "queue": queue, "cost": cost, "stopped": stopped, "packing": packing}[asked.what](asked)
    return 0


def grid(asked: argparse.Namespace) -> None:
    print("engines  encode  decode  |  N analytic  found  confirmed  |  rate found/known  K × rate found/known  |  s")
    right = 0
    for known in GRID[asked.first :]:
        began = time.monotonic()
        with room(known, asked.seconds + 1) as here:
            found, single, total = searched(here, asked, None)
        right += found.streams == known.streams
        print(
            f"{known.engines:7}  {known.encode:6.3g}  {known.decode:6.3g}  |  {known.streams:10}  {found.streams:5}  "
            f"{found.confirmed!s:9}  |  {single / known.single:16.3f}  {total / (known.engines * known.each):20.3f}  "
            f"|  {time.monotonic() - began:.0f}",
            flush=True,
        )
    print(f"right: {right} of {len(GRID[asked.first :])}")


def searched(here: Room, asked: argparse.Namespace, capacities: str | None) -> tuple[Any, float, float]:
    """What density found, × real time of one stream alone, and of all together where the device is full."""
    limits, packings = Limits(64), (asked.packing,)
    wanted = density_runner.Asked(
        accel="vaapi", engine="processes", clip=str(here.clip), limits=limits, seconds=asked.seconds, packings=packings
    )
    result = density_runner.measure(wanted, Destination(str(here.folder / "density.json")), capacities, Silent())
    runs = [(run.cell.stacks, sum(throughput(run)[0]) / FPS) for run in result.runs if not run.warmup]
    fullest = max(streams for streams, _ in runs)
    full = [total for streams, total in runs if streams > fullest / 2]
    return result.density[0], next(total for streams, total in runs if streams == 1), median(full)


def queue(asked: argparse.Namespace) -> None:
    """Each job plays for 8 s; N of them at a time are made in less, if the budget is right."""
    print("engines  encode  |  N found  at a time, most  waited  |  slowest of the first N, × real time")
    for known in (Known(1, 2.4), Known(2, 1.25), Known(2, 2.2)):
        with room(known, 8.0) as here, services.private_redis(here.folder / "redis") as redis:
            path = str(here.folder / "capacity.json")
            found, _, _ = searched(here, asked, path)
            words: dict[str, Any] = {**here.names, "TRANSCODER_CAPACITY_FILE": path}
            roots = [here.folder]
            width = found.streams + 2
            with services.worker(
                redis.url, here.folder / "one", roots, "--serves", "hardware", concurrency=width, **words
            ):
                most, waited, slowest = through_the_queue(Client(redis.url), here, found.streams)
        print(
            f"{known.engines:7}  {known.encode:6.3g}  |  {found.streams:7}  {most:15}  {waited:6}  |  {slowest:.3f}",
            flush=True,
        )


def through_the_queue(client: Client, here: Room, streams: int) -> tuple[int, int, float]:
    """One job more than fits: how many encoded at a time at most, how many waited, how fast the slowest was."""
    asked = [
        JobSpec.model_validate(
            {
                "source": str(here.clip),
                "target": str(here.folder / f"out{number}.mp4"),
                "outputs": [{"audio": None, "video": {"speed": "fast"}}],
                "acceleration": {"policy": "require"},
            }
        )
        for number in range(streams + 1)
    ]
    jobs = [client.submit(one) for one in asked]
    most = 0
    while not all(client.status(job).is_finished for job in jobs):
        most = max(most, sum(client.status(job).phase == "encoding" for job in jobs))
        time.sleep(0.02)
    ends = [client.status(job) for job in jobs]
    waits = ["waiting" in [moment.what for moment in end.history] for end in ends]
    paces = [
        8.0 / end.result["timings"]["encode"]
        for end, waited in zip(ends, waits, strict=True)
        if end.result and not waited
    ]
    return most, sum(waits), min(paces)


def cost(asked: argparse.Namespace) -> None:
    """Two stacks; where a container costs, a stack in one of its own has a device that is 5 % slower."""
    print("seed  injected  |  ratio (95 % interval)  verdict  |  excludes 1  blocks  s")
    wrong = {0.0: 0, COST: 0}
    for seed in range(asked.runs):
        for share in (0.0, COST):
            began = time.monotonic()
            with room(Known(1, 12.0), 20.0) as here, dearer(here, share):
                wanted = runner.Asked(
                    stacks=(2,), accel="vaapi", engine="processes", clip=str(here.clip), seed=seed, seconds=1.0,
                    budget=asked.budget or 60,
                )  # fmt: skip
                found = analyse(runner.topology(wanted, Destination(str(here.folder / "topology.json")), Silent()))
            contrast = next(
                one for one in found.contrasts if one.metric == "fps" and not one.again and one.cell.containers == 2
            )
            ratio = contrast.ratio
            assert ratio
            excludes = not ratio.low95 <= 1 <= ratio.high95
            # what counts as a claim is the verdict: a difference that is within the margin is none
            wrong[share] += not excludes if share else contrast.verdict == "different"
            print(
                f"{seed:4}  {share:8.0%}  |  {ratio.value:.4f} ({ratio.low95:.4f}–{ratio.high95:.4f})  "
                f"{contrast.verdict:12}  |  {excludes!s:10}  {ratio.blocks:6}  {time.monotonic() - began:.0f}",
                flush=True,
            )
    for share, count in wrong.items():
        print(f"injected {share:.0%}: right in {asked.runs - count} of {asked.runs}")


def stopped(asked: argparse.Namespace) -> None:
    """Two stacks in software; those of the cell that has two agents stand still now and then."""
    with tempfile.TemporaryDirectory(prefix="known-device-") as folder, standing_still(COST):
        wanted = runner.Asked(stacks=(2,), accel="software", engine="processes", budget=asked.budget, seconds=1.0)
        result = runner.topology(wanted, Destination(f"{folder}/topology.json"), Silent())
    found = analyse(result)
    print(found.headline)
    for one in found.contrasts:
        if one.metric == "fps" and one.ratio:
            name = f"{one.cell.name} {'again' if one.again else 'stopped'}"
            ratio = one.ratio
            print(f"{name:16}  {ratio.value:.4f} (95 % {ratio.low95:.4f}–{ratio.high95:.4f})  {one.verdict}")


def packing(asked: argparse.Namespace) -> None:
    known = Known(2, 6.0)
    with tempfile.TemporaryDirectory(prefix="known-device-") as folder:
        clip = made_clip(Path(folder) / "clip.mp4", 60)
        os.chmod(folder, 0o755)
        built = gpu.build_in(stack.simgpu_image(), stack.CACHE / "simgpu-trixie")
        device = gpu.DeviceMachine(Path(folder) / "machine", built).add("renderD128", known.settings())
        wanted = runner.Asked(
            profile=asked.profile, accel="vaapi", image=stack.image("vaapi"), clip=str(clip), budget=asked.budget,
            worker=False, options=tuple(device.docker()),
        )  # fmt: skip
        out = Destination(asked.out)
        with display() as show:
            result = runner.topology(wanted, out, show)
        # its words for the engine name folders that are gone by now
        out.write(result.model_copy(update={"design": result.design.model_copy(update={"options": None})}))
        print(analyse(result).headline)


@contextmanager
def standing_still(share: float) -> Iterator[None]:
    """Stop the stacks that have an agent of their own for that share of every tenth of a second."""
    over = threading.Event()

    def now_and_then() -> None:
        while not over.wait(PERIOD * (1 - share)):
            stacks = alone()
            try:
                for pid in stacks:
                    send(pid, signal.SIGSTOP)
                time.sleep(PERIOD * share)
            finally:
                for pid in stacks:
                    send(pid, signal.SIGCONT)

    thread = threading.Thread(target=now_and_then)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def alone() -> list[int]:
    """The ffmpegs of this benchmark that run now, unless one agent has two of them."""
    found = {}
    for pid in family(os.getpid()):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if Path(words[0]).name == "ffmpeg" and "/out-" in words[-2]:
                found[pid] = words[-2]
    return [] if any("/out-1." in output for output in found.values()) else list(found)


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def dearer(here: Room, share: float) -> Iterator[None]:
    """Let every stack that has a container of its own see the same device at a lower rate.

    The agents of a topology of two stacks are numbered: 1 has both, 2 and 3 have one each. What they write lies in a
    folder of that name, by which this ffmpeg knows them. Both configurations name one folder of state, so that all
    book the same engine.
    """
    plain = here.machine.configs / "renderD128"
    settings = {**Known(1, 12.0).settings(), "state": here.folder / "state"}
    slower = here.folder / "slower"
    slower.mkdir()
    device = gpu.Gpu(here.machine, "renderD128")
    device.configure({**settings, "encode_rate": round(12.0 * STREAM / (1 + share))})
    (slower / "renderD128").write_text(plain.read_text())
    device.configure(settings)
    program = here.folder / "ffmpeg"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *-2/out-*|*-3/out-*) export SIMGPU_CONFIG="{slower}" ;; esac\nexec ffmpeg "$@"\n'
    )
    program.chmod(0o755)
    with environment({"TRANSCODER_FFMPEG": str(program)}):
        yield


@contextmanager
def room(known: Known, seconds: float) -> Iterator[Room]:
    """A machine with that device, a clip that plays so long, and an environment in which both are found."""
    with tempfile.TemporaryDirectory(prefix="known-device-") as folder:
        built = gpu.build(gpu.SOURCES.parent.parent / ".cache" / "simgpu")
        machine = gpu.Machine(Path(folder) / "machine", built)
        machine.add("renderD128", known.settings())
        clip = made_clip(Path(folder) / "clip.mp4", seconds)
        names = {
            **machine.environment,
            "TRANSCODER_DRI": str(machine.nodes),
            "TRANSCODER_SYSFS": str(machine.sysfs),
            "TRANSCODER_PROC": str(machine.proc),
            "TRANSCODER_CACHE_FOLDER": str(Path(folder) / "cache"),
        }
        with environment(names):
            yield Room(Path(folder), machine, clip, names)


def made_clip(path: Path, seconds: float) -> Path:
    source = f"testsrc2=s={WIDTH}x{HEIGHT}:r={FPS}:d={seconds:g}"
    words = ["ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264"]
    subprocess.run([*words, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


@contextmanager
def environment(names: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    raise SystemExit(main())
