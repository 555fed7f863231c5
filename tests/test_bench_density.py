"""How many streams a device bears: the search on values, and on the GPU in software, whose answer is known."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import gpu, services
from tests.conftest import MakeClip
from tests.test_bench_run import others
from transcoder import Client, JobSpec
from transcoder.bench import density
from transcoder.bench.contrasts import throughput
from transcoder.bench.density import Ask, Found, Limits, Seen
from transcoder.bench.density_runner import described, with_found
from transcoder.bench.result import (
    Cell,
    Density,
    Design,
    Device,
    DeviceKind,
    Environment,
    Result,
    Run,
    StackRun,
    Stamp,
    Workload,
)
from transcoder.capacity import CapacityFile
from transcoder.errors import MachineBusy, SettingsError, TargetUnwritable

GPU = "0000:03:00.0"
ONE = Cell(containers=1, stacks=1)

Curve = Callable[[int], float]
"""The slowest stream, × real time, at a number of streams."""


def search(curve: Curve, limits: Limits) -> list[Seen]:
    """Every run that the search asks for."""
    seen: list[Seen] = []
    while ask := density.following(seen, limits):
        seen.append(Seen(ask.streams, curve(ask.streams), ask.confirms))
        assert len(seen) < 10_000, "it never ends"
    return seen


def shared(rate: float, engines: int = 1) -> Curve:
    """Engines of which each makes `rate` streams in real time, shared fairly; one stream has one engine at most."""
    return lambda streams: rate * min(1.0, engines / streams)


def largest(curve: Curve, least: float, most: int) -> int:
    return next((n for n in range(most, 0, -1) if curve(n) >= least), 0)


def searched(seen: list[Seen]) -> list[int]:
    return [one.streams for one in seen if not one.confirms]


falling = st.lists(st.floats(0.01, 0.9), min_size=1, max_size=300).map(
    lambda steps: [4 * math.prod(1 - step / 20 for step in steps[: n + 1]) for n in range(len(steps))]
)


@settings(deadline=None)  # a machine may be busy
@given(falling, st.integers(3, 5))
def test_on_any_falling_curve_all_three_numbers_are_exact(speeds: list[float], repeats: int) -> None:
    limits = Limits(len(speeds), repeats)
    curve: Curve = lambda streams: speeds[streams - 1]  # noqa: E731
    found = density.found(search(curve, limits), limits)
    expected = [largest(curve, least, limits.most) for least in (1.0, 0.98, 1 / 0.8)]
    assert [found.streams, found.intel, found.livepeer] == expected
    assert found.confirmed
    assert found.capped == (expected[0] == limits.most)


@settings(deadline=None)  # a machine may be busy
@given(st.integers(1, 64), st.floats(0.3, 500), st.integers(3, 5))
def test_it_takes_runs_by_the_logarithm(engines: int, rate: float, repeats: int) -> None:
    limits = Limits(4096, repeats)
    seen = search(shared(rate, engines), limits)
    found = density.found(seen, limits)
    assert found.streams == largest(shared(rate, engines), 1.0, 4096)
    # twice for real time (there and back), once for each of the other rules, and what is confirmed
    assert len(seen) <= 4 * (math.log2(max(1, found.intel)) + 2) + 2 * repeats


@settings(deadline=None)  # a machine may be busy
@given(st.integers(1, 40), st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_noise_that_is_smaller_than_the_distance_to_the_boundary_changes_nothing(
    streams: int, share: float, chance: random.Random
) -> None:
    rate = streams + share
    noise = 0.99 * min(1 - streams / rate, (streams + 1) / rate - 1)
    curve: Curve = lambda n: rate / n * (1 + chance.uniform(-noise, noise))  # noqa: E731
    limits = Limits(100)
    found = density.found(search(curve, limits), limits)
    assert (found.streams, found.confirmed) == (streams, True)


@settings(deadline=None)  # a machine may be busy
@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=40), st.integers(1, 12))
def test_whatever_the_runs_say_it_ends_and_its_word_is_kept_by_the_median(speeds: list[float], most: int) -> None:
    limits = Limits(most)
    told = iter(speeds * 10_000)
    seen = search(lambda _: next(told), limits)
    found = density.found(seen, limits)
    assert 0 <= found.streams <= most
    assert max(one.streams for one in seen) <= most
    for streams, fast in ((found.streams, True), (found.streams + 1, False)):
        repeats = sorted(one.slowest for one in seen if one.streams == streams and one.confirms)
        if 1 <= streams <= most:
            assert len(repeats) >= 3
            assert (repeats[len(repeats) // 2] >= 1) is fast


def test_it_doubles_then_halves_then_confirms_in_turn() -> None:
    seen = search(shared(5.5), Limits(64))
    assert searched(seen)[:6] == [1, 2, 4, 8, 6, 5]
    assert [one.streams for one in seen if one.confirms] == [5, 6, 5, 6, 5, 6]


def test_a_lucky_run_of_the_search_is_found_out_by_the_repeats() -> None:
    lucky = {8: iter([1.3])}
    curve: Curve = lambda n: next(lucky.get(n, iter(())), shared(5.5)(n))  # noqa: E731
    seen = search(curve, Limits(64))
    assert 8 in {one.streams for one in seen if one.confirms}
    assert density.found(seen, Limits(64)).streams == 5


def test_an_unlucky_run_of_the_search_is_found_out_too() -> None:
    unlucky = {5: iter([0.7])}
    curve: Curve = lambda n: next(unlucky.get(n, iter(())), shared(5.5)(n))  # noqa: E731
    found = density.found(search(curve, Limits(64)), Limits(64))
    assert (found.streams, found.confirmed) == (5, True)


def test_repeats_that_are_not_of_one_mind_are_asked_for_three_times_as_often() -> None:
    mixed = iter([1.1, 1.1, 0.9, 1.1, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9])
    curve: Curve = lambda n: next(mixed) if n == 1 else 0.5  # noqa: E731
    seen = search(curve, Limits(64))
    assert len([one for one in seen if one.streams == 1 and one.confirms]) == 9
    found = density.found(seen, Limits(64))
    assert (found.streams, found.confirmed) == (1, False), "five of nine are no confirmation"


def test_a_larger_number_that_is_confirmed_beside_a_smaller_that_failed_leaves_the_answer_in_doubt() -> None:
    odd = {1: 3.0, 2: 2.0, 3: 1.5, 4: 0.9, 5: 1.1}
    first = iter([1.0])  # in the search 4 was fast enough, and 5 was not
    wrong = iter([0.9])
    curve: Curve = lambda n: next(first if n == 4 else wrong if n == 5 else iter(()), odd.get(n, 0.5))  # noqa: E731
    found = density.found(search(curve, Limits(64)), Limits(64))
    assert (found.streams, found.confirmed) == (3, False)


def test_not_even_one_stream_and_more_than_it_may_try() -> None:
    assert density.found(search(shared(0.4), Limits(64)), Limits(64)) == Found(0, 0, 0, confirmed=True, capped=False)
    assert density.found(search(shared(0.99), Limits(64)), Limits(64)) == Found(0, 1, 0, confirmed=True, capped=False)
    assert density.found(search(shared(99), Limits(12)), Limits(12)) == Found(12, 12, 12, confirmed=True, capped=True)


def test_a_search_that_was_ended_says_what_is_known() -> None:
    seen = search(shared(5.5), Limits(64))
    assert density.found([], Limits(64)) == Found(0, 0, 0, confirmed=False, capped=False)
    assert density.found(seen[:3], Limits(64)) == Found(4, 4, 4, confirmed=False, capped=False)
    assert density.following([], Limits(64)) == Ask(1)


def test_the_levels_are_the_medians_of_their_runs() -> None:
    seen = [Seen(2, 1.5), Seen(1, 3.0), Seen(2, 1.1, confirms=True), Seen(2, 1.2, confirms=True)]
    assert density.levels(seen) == ((1, 3.0, 1), (2, 1.2, 3))


@pytest.mark.parametrize("limits", [Limits(0), Limits(4, repeats=2)])
def test_limits_that_prove_nothing_are_refused(limits: Limits) -> None:
    with pytest.raises(ValueError, match="at least 1 stream and 3 repeats"):
        density.following([], limits)


def result(*found: Density, address: str = GPU, kind: DeviceKind = "real") -> Result:
    """A whole result, of 29.97 frames a second."""
    accel: Literal["software", "vaapi"] = "software" if kind == "software" else "vaapi"
    workload = Workload(accel=accel, clip="film", width=1920, height=1080, frames=300, frame_rate=30000 / 1001)
    design = Design(profile="gpu", engine="docker", seed=0, cells=(ONE,), reference=ONE)
    return Result(
        kind="density",
        made="2026-11-25T08:00:00+00:00",
        environment=Environment(cpus=4, ffmpeg="7.1", transcoder="0.1.0"),
        device=Device(kind=kind, name="a GPU", address=address),
        design=design,
        workload=workload,
        density=found,
    )


def borne(streams: int, containers: int = 1, *, pixel_rate: float = 1e9, capped: bool = False) -> Density:
    cell = Cell(containers=containers, stacks=max(1, streams))
    three: Any = {"streams": streams, "intel": streams, "livepeer": streams}
    return Density(cell=cell, **three, confirmed=True, capped=capped, levels=(), pixel_rate=pixel_rate)


def test_the_capacity_file_has_room_for_exactly_the_streams_that_were_made_in_real_time() -> None:
    found = with_found(CapacityFile(), result(borne(7), borne(6, containers=6))).devices[GPU]
    cost = 1920 * 1080 * 30000 / 1001
    assert sum([cost] * 6) <= found.pixels_per_second < sum([cost] * 7), "the packing that bore less decides"
    assert (found.streams, found.packing) == (6, "6 × 1")
    assert found.workload == "h264 1920x1080 at 29.97 fps, vaapi"


@given(st.integers(1, 500), st.floats(1, 240), st.integers(16, 8192), st.integers(16, 8192))
@settings(deadline=None)
def test_no_rounding_of_a_sum_keeps_the_last_stream_out(streams: int, fps: float, width: int, height: int) -> None:
    whole = result(borne(streams))
    load = whole.workload.model_copy(update={"width": width, "height": height, "frame_rate": fps})
    found = with_found(CapacityFile(), whole.model_copy(update={"workload": load})).devices[GPU]
    assert sum([width * height * fps] * streams) <= found.pixels_per_second
    assert sum([width * height * fps] * (streams + 1)) > found.pixels_per_second


def test_where_not_one_stream_is_real_time_the_budget_is_what_it_was_made_at() -> None:
    found = with_found(CapacityFile(), result(borne(0, pixel_rate=40e6))).devices[GPU]
    assert (found.streams, found.pixels_per_second) == (0, 40_000_001)


def test_the_last_line_says_what_the_capacity_file_says_of_the_device() -> None:
    assert described(result(borne(6))) == f"{GPU} bears 6 streams, 372,875,125 pixels a second"
    doubtful = result(borne(1, capped=True).model_copy(update={"confirmed": False}), address="", kind="software")
    assert described(doubtful) == "4 CPUs bear at least 1 stream, 62,145,855 pixels a second (not confirmed)"


def test_what_the_cpus_bear_is_written_with_their_number_and_a_lower_bound_as_one() -> None:
    before = with_found(CapacityFile(), result(borne(3)))
    found = with_found(before, result(borne(5, capped=True), address="", kind="software"))
    assert found.cpus is not None
    assert (found.cpus.cpus, found.cpus.streams, found.cpus.at_least) == (4, 5, True)
    assert found.devices == before.devices, "what it says of other devices stays"


@dataclass
class Bench:
    """`transcoder bench density` on a machine whose GPU is in software, with agents that are processes."""

    gpus: gpu.Machine
    folder: Path
    clip: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.gpus.environment,
            "TRANSCODER_DRI": str(self.gpus.nodes),
            "TRANSCODER_SYSFS": str(self.gpus.sysfs),
            "TRANSCODER_PROC": str(self.gpus.proc),
            "TRANSCODER_CACHE_FOLDER": str(self.folder / "cache"),
        }

    @property
    def capacity(self) -> Path:
        return self.folder / "capacity.json"

    def run(self, *words: str, prefix: Sequence[str] = ()) -> tuple[int, str, Result | None]:
        """Exit code, stderr, and the result where there is one."""
        out = self.folder / "result.json"
        command = [*prefix, sys.executable, "-m", "transcoder", "bench", "density", "--engine", "processes"]
        command += ["--accel", "vaapi", "--clip", str(self.clip), "--out", str(out), *words]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
        found = Result.model_validate_json(out.read_bytes()) if out.exists() else None
        return done.returncode, done.stdout + done.stderr, found

    def density(self, *words: str) -> Result:
        code, said, found = self.run(*words)
        assert code == 0, said
        assert found is not None
        assert not found.partial
        return found


def settled(result: Result, found: Density) -> bool:
    """Whether it is confirmed, or is not only because other tests had the CPUs meanwhile."""
    return found.confirmed or any("of the CPUs meanwhile" in note for note in result.notes)


@pytest.fixture
def bench(gpus: gpu.Machine, tmp_path: Path, make_clip: MakeClip) -> Bench:
    # a picture of whole macroblocks, since the device takes as long as its surface is large
    clip = make_clip("testsrc2=s=256x144:r=25:d=1", audio=False)
    return Bench(gpus, tmp_path, clip)


STREAM = 256 * 144 * 25
"""Pixels per second of one stream in real time."""
ENCODES: dict[str, object] = {"encode": "h264", "decode": "none", "vpp": False, "rc": "CQP"}


def test_the_number_of_streams_is_what_two_engines_make(bench: Bench) -> None:
    bench.gpus.add("renderD128", ENCODES, engines=2, encode_rate=round(1.75 * STREAM))
    whole = bench.density("--packing", "each", "--seconds", "1")
    found = whole.density[0]
    assert (found.streams, found.capped) == (3, False), found
    assert settled(whole, found)
    assert found.livepeer == 2 or (found.livepeer < 2 and not found.confirmed), "others may have had the CPUs"
    assert found.pixel_rate == pytest.approx(2 * 1.75 * STREAM, rel=0.1)
    assert found.levels[0].slowest == pytest.approx(1.75, rel=0.1), "one stream has one engine"


def test_a_device_that_takes_only_so_many_sessions_bears_so_many_streams(bench: Bench) -> None:
    bench.gpus.add("renderD128", ENCODES, engines=4, encode_rate=3 * STREAM, max_sessions=2)
    code, said, found = bench.run("--packing", "one", "--seconds", "2", "--capacity", str(bench.capacity))
    assert code == 0, said
    assert found is not None
    assert found.density[0].streams == 2
    assert settled(found, found.density[0])
    assert any("1 × 3 counts as too slow: ffmpeg ended with" in note for note in found.notes)
    assert json.loads(bench.capacity.read_text())["devices"][bench_address(bench)]["streams"] == 2


def bench_address(bench: Bench) -> str:
    return gpu.Gpu(bench.gpus, "renderD128").address


def test_a_simulated_device_that_takes_the_cpus_is_refused(bench: Bench) -> None:
    bench.gpus.add("renderD128", ENCODES)  # as fast as the CPU can
    one_cpu = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    code, said, found = bench.run("--packing", "one", "--capacity", str(bench.capacity), prefix=one_cpu)
    assert code == MachineBusy.exit_code, said
    assert "of the CPUs: they would be measured, and no device" in said
    assert not bench.capacity.exists()
    assert found is None or found.partial


def test_a_capacity_file_that_is_none_is_refused_before_anything_is_measured(bench: Bench) -> None:
    bench.capacity.write_text("{}")
    code, said, found = bench.run("--capacity", str(bench.capacity))
    assert code == SettingsError.exit_code, said
    assert found is None
    assert f"--capacity: {bench.capacity}" in said
    assert "Remove it, or name another with --capacity." in said
    assert bench.capacity.read_text() == "{}"


def test_a_capacity_file_that_cannot_be_written_is_named_before_anything_is_measured(bench: Bench) -> None:
    code, said, found = bench.run("--capacity", "/nowhere/capacity.json")
    assert code == TargetUnwritable.exit_code, said
    assert "--capacity /nowhere/capacity.json cannot be written" in said
    assert "Name another with --capacity." in said
    assert found is None


def test_one_stream_is_measured_once_for_both_packings_and_not_confirmed_while_others_have_the_cpus(
    bench: Bench,
) -> None:
    bench.gpus.add("renderD128", ENCODES, encode_rate=round(1.75 * STREAM))
    with others():
        code, said, found = bench.run("--stacks-max", "1", "--capacity", str(bench.capacity))
    assert code == 0, said
    assert found is not None
    assert [one.cell for one in found.density] == [ONE, ONE]
    assert len([run for run in found.runs if not run.warmup]) == max(one.levels[0].runs for one in found.density)
    assert not any(one.confirmed for one in found.density)
    assert any("other programs had" in note and "not confirmed" in note for note in found.notes)
    address = bench_address(bench)
    assert json.loads(bench.capacity.read_text())["devices"][address]["confirmed"] is False
    assert f"wrote {bench.capacity}: {address} bears " in said


def test_a_worker_takes_as_many_jobs_at_a_time_as_density_found_streams(bench: Bench, redis: services.Redis) -> None:
    device = bench.gpus.add("renderD128", ENCODES, encode_rate=round(2.4 * STREAM))
    found = bench.density("--packing", "one", "--seconds", "1", "--capacity", str(bench.capacity))
    assert found.density[0].streams == 2, found.density
    assert settled(found, found.density[0])
    device.configure(ENCODES, encode_rate=round(0.8 * STREAM))  # slow, so that all three are seen at once
    named: dict[str, Any] = {**bench.environment, "TRANSCODER_CAPACITY_FILE": str(bench.capacity)}
    roots = [bench.folder, bench.clip.parent]
    words = ("--serves", "hardware")
    with services.worker(redis.url, bench.folder / "one", roots, *words, concurrency=4, **named) as worker:
        client = Client(redis.url)
        jobs = [client.submit(hard(bench, number)) for number in range(3)]
        until(lambda: phases(client, jobs) == ["encoding", "encoding", "waiting"], worker)
        device.configure(ENCODES)
        until(lambda: all(client.status(job).is_finished for job in jobs), worker)
        assert {client.status(job).state for job in jobs} == {"published"}, worker.log()


def hard(bench: Bench, number: int) -> JobSpec:
    words = {"source": str(bench.clip), "target": str(bench.folder / f"out{number}.mp4")}
    return JobSpec.model_validate({**words, "acceleration": {"policy": "require"}})


def phases(client: Client, jobs: Sequence[str]) -> list[str]:
    return sorted(client.status(job).phase or "" for job in jobs)


def until(true: Callable[[], bool], worker: services.Worker, within: float = 40) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, worker.log()
        time.sleep(0.05)


def test_the_report_that_comes_when_the_device_is_closed_makes_no_stream_slower() -> None:
    stamps = tuple(Stamp(at=0.1 * number, frames=10 * number) for number in range(1, 11))
    late = Stamp(at=1.5, frames=100)  # all frames were made at 1 s
    stack = StackRun(container=0, started=0, ended=1.6, frames=100, stamps=(*stamps, late))
    run = Run(block=0, place=0, cell=Cell(containers=1, stacks=2), stacks=(stack, stack))
    assert throughput(run)[0] == pytest.approx((100, 100))
