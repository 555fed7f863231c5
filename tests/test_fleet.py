"""Several real workers on one Redis, with GPUs in software: who gets which job, and what if a device fails."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import gpu, services
from tests.conftest import MakeClip
from transcoder import Client, JobSpec, Status, capacity
from transcoder.capacity import CapacityFile, Measurement
from transcoder.errors import NoRoute
from transcoder.ledger import Heard, Ledger

PREFER, REQUIRE, NEVER = (dict[str, Any](acceleration={"policy": name}) for name in ("prefer", "require", "never"))
ADDRESSES = {"renderD128": "0000:00:02.0", "renderD129": "0000:03:00.0"}
FIRST, SECOND = ADDRESSES.values()
SHORT: dict[str, Any] = {"TRANSCODER_FIRST_FRAME_LIMIT": "2", "TRANSCODER_TRIAL_LIMIT": "2"}
BRISK: Any = {**SHORT, "TRANSCODER_BREAKER_COOLDOWN": "1"}
SIMPLE = {"rc": "CQP", "encode": "h264 hevc", "decode": "none", "vpp": False}


@dataclass
class Fleet:
    """A Redis, workers by name, and a client."""

    redis: services.Redis
    gpus: gpu.Machine
    folder: Path
    source: Path
    stack: ExitStack
    client: Client
    workers: dict[str, services.Worker] = field(default_factory=dict)
    made: int = 0

    def add(self, node: str = "renderD128", **more: Any) -> gpu.Gpu:
        """A device that only encodes, so that there is little to try; by its node's name it has its address."""
        return self.gpus.add(node, {**SIMPLE, "pdev": ADDRESSES[node]}, **more)

    def worker(self, name: str, *words: str, concurrency: int = 1, ready: bool = True, **env: str) -> services.Worker:
        settings = {
            **self.gpus.environment,
            "TRANSCODER_DRI": str(self.gpus.nodes),
            "TRANSCODER_SYSFS": str(self.gpus.sysfs),
            "TRANSCODER_PROC": str(self.gpus.proc),
            "TRANSCODER_CACHE_FOLDER": str(self.folder / "cache"),
            **env,
        }
        roots = [self.folder, self.source.parent]
        started = services.worker(
            self.redis.url,
            self.folder / name,
            roots,
            *("--name", name, *words),
            concurrency=concurrency,
            **settings,
        )
        self.workers[name] = self.stack.enter_context(started)
        if ready and "software" not in words:
            self.until(lambda: any(queue.startswith("hw.") for queue in self.serves(name)))
        return self.workers[name]

    def heard(self, name: str) -> Heard:
        return next(one for one in self.client.workers() if one.told.name == name)

    def serves(self, name: str) -> list[str]:
        return [queue.split(".", 2)[2] for queue in self.heard(name).told.queues]

    def submit(self, source: Path | None = None, /, **fields: Any) -> str:
        self.made += 1
        target = str(self.folder / f"out{self.made}.mp4")
        outputs = [{"video": {"speed": "fast"}}]
        words = {"source": str(source or self.source), "target": target, "outputs": outputs, **fields}
        return self.client.submit(JobSpec.model_validate(words))

    def until(self, true: Callable[[], bool], within: float = 40) -> None:
        deadline = time.monotonic() + within
        while not true():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def record(self, job_id: str) -> Mapping[str, str]:
        with closing(Ledger(self.redis.url)) as ledger:
            return ledger.record(job_id).fields

    def end(self, job_id: str) -> Status:
        self.until(lambda: self.client.status(job_id).is_finished)
        return self.client.status(job_id)

    def made_on(self, job_id: str) -> str | None:
        status = self.end(job_id)
        assert status.state == "published", f"{status}\n{self.log()}"
        assert status.result is not None
        device: str | None = status.result["device"]
        return device

    def log(self) -> str:
        return "\n".join(f"== {name}\n{worker.log()}" for name, worker in self.workers.items())


@pytest.fixture
def fleet(redis: services.Redis, gpus: gpu.Machine, tmp_path: Path, make_clip: MakeClip) -> Iterator[Fleet]:
    source = make_clip("testsrc2=s=320x180:r=25:d=0.4", audio=False)
    with ExitStack() as stack:
        yield Fleet(redis, gpus, tmp_path, source, stack, Client(redis.url))


def test_a_worker_serves_one_device_and_the_cpus(fleet: Fleet) -> None:
    fleet.add("renderD128", encode="h264")
    second = fleet.add("renderD129")
    fleet.worker("one")
    fleet.worker("two", "--device", str(second.node), "--serves", "hardware")
    assert (fleet.heard("one").told.device, fleet.serves("one")) == (FIRST, ["hw.h264", "software"])
    two = fleet.serves("two")
    assert (fleet.heard("two").told.device, two) == (SECOND, ["hw.hevc10", "hw.hevc", "hw.h264"])
    assert fleet.made_on(fleet.submit(outputs=[{"video": {"codec": "hevc"}}])) == SECOND
    assert fleet.made_on(fleet.submit(**NEVER)) is None


def test_the_first_software_job_runs_before_the_devices_are_known(fleet: Fleet) -> None:
    fleet.add(setup_ms=1500)  # every trial takes that much longer
    fleet.worker("one", ready=False)
    assert fleet.serves("one") == ["software"]
    assert fleet.made_on(fleet.submit(**NEVER)) is None
    assert fleet.serves("one") == ["software"], "the survey was still going on"
    fleet.until(lambda: "hw.h264" in fleet.serves("one"))
    assert fleet.made_on(fleet.submit(**REQUIRE)) == FIRST


def test_a_worker_for_hardware_without_a_device_ends_and_says_why(fleet: Fleet) -> None:
    with pytest.raises(RuntimeError, match=r"no encoder was proved on any device") as ended:
        fleet.worker("one", "--serves", "hardware")
    assert "transcoder devices" in str(ended.value)
    assert "TranscoderError" not in str(ended.value)


def test_hardware_jobs_never_encode_in_software_while_a_gpu_has_a_free_place(fleet: Fleet) -> None:
    fleet.add()
    fleet.worker("cpu", "--serves", "software", concurrency=2)
    fleet.worker("gpu", "--serves", "hardware", concurrency=2)
    hard = [fleet.submit() for _ in range(6)]
    soft = [fleet.submit(**NEVER) for _ in range(3)]
    assert {fleet.made_on(job) for job in hard} == {FIRST}
    assert {fleet.made_on(job) for job in soft} == {None}


@pytest.mark.parametrize("policy", [PREFER, REQUIRE], ids=["prefer", "require"])
def test_a_broken_device_fails_no_job_is_left_alone_and_taken_back_when_it_is_repaired(
    fleet: Fleet, policy: dict[str, Any]
) -> None:
    broken = fleet.add("renderD128")
    fleet.add("renderD129")
    fleet.worker("broken", "--device", FIRST, "--serves", "hardware", TRANSCODER_BREAKER_COOLDOWN="1")
    fleet.worker("good", "--device", SECOND, concurrency=1)
    broken.configure(SIMPLE, **{"fault.encode": "status 24"})
    jobs = [fleet.submit(**policy) for _ in range(10)]
    devices = {fleet.made_on(job) for job in jobs}
    assert FIRST not in devices
    if policy is REQUIRE:
        assert devices == {SECOND}
    else:
        # enough faults for the breaker, if the jobs above were shared out otherwise
        while not fleet.heard("broken").told.left_alone:
            assert fleet.made_on(fleet.submit(**policy)) != FIRST
    fleet.until(lambda: "h264" in fleet.heard("broken").told.left_alone)
    assert "hw.h264" not in fleet.serves("broken")
    assert f'transcoder_breaker_open{{codec="h264",device="{FIRST}"}} 1.0' in fleet.workers["broken"].metrics()
    assert "left_alone" in fleet.workers["broken"].log()
    before = len(fleet.workers["broken"].log().split("fell_back"))
    assert {fleet.made_on(fleet.submit(**policy)) for _ in range(3)} == {SECOND}
    assert len(fleet.workers["broken"].log().split("fell_back")) == before, "it is left alone"

    broken.configure(SIMPLE)
    fleet.until(lambda: not fleet.heard("broken").told.left_alone)
    fleet.workers["good"].stop()
    assert fleet.made_on(fleet.submit(**REQUIRE)) == FIRST


def test_a_hung_device_is_tried_again_before_its_next_job(fleet: Fleet) -> None:
    hung = fleet.add()
    fleet.worker("cpu", "--serves", "software")
    fleet.worker("gpu", "--serves", "hardware", **BRISK)
    hung.configure(SIMPLE, **{"fault.encode": "hang"})
    assert fleet.made_on(fleet.submit()) is None
    fleet.until(lambda: bool(fleet.heard("gpu").told.left_alone))
    fleet.until(lambda: "trial_failed" in fleet.workers["gpu"].log())
    hung.configure(SIMPLE)
    fleet.until(lambda: not fleet.heard("gpu").told.left_alone)
    assert fleet.made_on(fleet.submit()) == FIRST


def test_a_worker_that_was_told_to_end_serves_nothing_more(fleet: Fleet, make_clip: MakeClip) -> None:
    fleet.add(rate=3_000_000)
    fleet.worker("gpu", "--serves", "hardware", concurrency=1, TRANSCODER_GRACE="60")
    last = fleet.submit(make_clip("testsrc2=s=320x180:r=25:d=20", audio=False), **REQUIRE)
    fleet.until(lambda: fleet.client.status(last).phase == "encoding")
    os.kill(fleet.workers["gpu"].pid, signal.SIGTERM)
    fleet.until(lambda: fleet.serves("gpu") == [])
    with pytest.raises(NoRoute, match=r"no live worker serves hw\.h264"):
        fleet.submit(**REQUIRE)
    assert fleet.made_on(last) == FIRST


def test_what_requires_an_ability_that_nobody_has_is_refused_at_once(fleet: Fleet) -> None:
    fleet.worker("cpu", "--serves", "software")
    asked = time.monotonic()
    with pytest.raises(NoRoute, match=r"no live worker serves hw\.h264: the 1 live worker serves software") as refused:
        fleet.submit(**REQUIRE)
    assert time.monotonic() - asked < 1
    assert refused.value.exit_code == 12
    assert "transcoder workers" in refused.value.next_step


def test_a_job_that_prefers_hardware_waits_for_it_and_then_goes_to_software(fleet: Fleet, make_clip: MakeClip) -> None:
    fleet.add(encode_rate=2_000_000)
    long = make_clip("testsrc2=s=320x180:r=25:d=20", audio=False)
    for name, serves in (("gpu", "hardware"), ("cpu", "software")):
        fleet.worker(name, "--serves", serves, TRANSCODER_PREFER_WAIT="4", TRANSCODER_ORDER="arrival")
    busy = fleet.submit(long)
    fleet.until(lambda: fleet.client.status(busy).phase == "encoding")
    waiting, required = fleet.submit(), fleet.submit(**REQUIRE)
    told = fleet.client.status(waiting).waiting_for or ""
    assert told.startswith(
        "a free place on a worker that serves hw.h264 (1 live, 1 other waiting); goes to software in"
    )
    assert "goes to" not in (fleet.client.status(required).waiting_for or "")
    assert fleet.made_on(waiting) is None
    status = fleet.client.status(waiting)
    assert (status.started or 0) - status.created >= 4
    assert "goes to software: no free place on hardware" in [moment.detail for moment in status.history]
    assert not fleet.client.status(busy).is_finished
    lines = [line for worker in fleet.workers.values() for line in worker.metrics().splitlines()]
    hops = [line for line in lines if line.startswith("transcoder_hops_total{") and not line.endswith(" 0.0")]
    assert hops == ['transcoder_hops_total{queue="hw.h264",reason="waited"} 1.0']
    fleet.client.cancel(busy)
    assert fleet.made_on(required) == FIRST


def test_a_job_goes_to_software_at_once_where_it_ends_sooner_there(fleet: Fleet, make_clip: MakeClip) -> None:
    fleet.add(encode_rate=2_000_000)
    long = make_clip("testsrc2=s=320x180:r=25:d=20", audio=False)
    for name, serves in (("gpu", "hardware"), ("cpu", "software")):
        fleet.worker(name, "--serves", serves)
    busy = fleet.submit(long)
    fleet.until(lambda: fleet.client.status(busy).phase == "encoding")
    missing, short = fleet.submit(fleet.folder / "missing.mp4"), fleet.submit()
    assert fleet.made_on(short) is None, "all that hardware has before it is what runs there"
    status = fleet.client.status(short)
    assert (status.started or 0) - status.created < 20, "a minute before it would have gone unknown"
    assert "goes to software: it ends sooner there" in [moment.detail for moment in status.history]
    long_too = fleet.submit(long)
    fleet.until(lambda: "effort" in fleet.record(long_too))
    time.sleep(2)
    assert [fleet.client.status(one).state for one in (missing, long_too)] == ["queued"] * 2
    fleet.client.cancel(busy)
    fleet.client.cancel(missing)
    assert fleet.made_on(long_too) == FIRST


def test_jobs_that_prefer_hardware_leave_a_queue_that_nobody_serves_any_more(fleet: Fleet) -> None:
    fleet.add(encode_rate=100_000)
    fleet.worker("cpu", "--serves", "software")
    fleet.worker("gpu", "--serves", "hardware")
    busy, waiting = fleet.submit(), fleet.submit()
    fleet.until(lambda: fleet.client.status(busy).phase == "encoding")
    fleet.client.cancel(waiting)
    waiting = fleet.submit()
    fleet.workers["gpu"].kill()
    assert fleet.made_on(waiting) is None
    status = fleet.client.status(waiting)
    assert 5 <= (status.started or 0) - status.created < 25, "long before it would have waited for a minute"


def test_a_device_is_shared_by_the_pixels_of_its_jobs(fleet: Fleet, make_clip: MakeClip) -> None:
    fleet.add(max_sessions=1)
    source = make_clip("testsrc2=s=320x180:r=25:d=3", audio=False)
    for name in ("one", "two"):
        fleet.worker(name, "--serves", "hardware", concurrency=2, TRANSCODER_DEVICE_BUDGET="2000000")
    jobs = [fleet.submit(source, **REQUIRE) for _ in range(6)]  # each 1,440,000 pixels a second
    waited = 0
    for job in jobs:
        assert fleet.made_on(job) == FIRST
        status = fleet.client.status(job)
        assert status.result is not None
        assert status.result["tried"] == [], "the device was never asked for a second session"
        waited += "waiting" in [moment.what for moment in status.history]
    assert waited >= 2
    assert f'transcoder_slot_used_pixels_per_second{{device="{FIRST}"}} 0.0' in fleet.workers["one"].metrics()


def of_capacity(folder: Path, streams: int) -> Any:
    """The setting for a file that says so many of the fleet's jobs fit on the first device."""
    measured = Measurement(
        pixels_per_second=streams * 1_440_000 + 1, streams=streams, workload="360p25", measured="now"
    )
    (folder / "capacity.json").write_text(capacity.text(CapacityFile(devices={FIRST: measured})))
    return {"TRANSCODER_CAPACITY_FILE": str(folder / "capacity.json")}


@pytest.mark.parametrize("streams", [1, 2])
def test_the_capacity_file_says_how_many_jobs_are_on_the_device_at_a_time(
    fleet: Fleet, make_clip: MakeClip, streams: int
) -> None:
    device = fleet.add(encode_rate=1_440_000)
    source = make_clip("testsrc2=s=320x180:r=25:d=3", audio=False)
    one = fleet.worker("one", "--serves", "hardware", concurrency=3, **of_capacity(fleet.folder, streams))
    jobs = [fleet.submit(source, **REQUIRE) for _ in range(3)]
    fleet.until(lambda: sorted(fleet.client.status(job).phase or "" for job in jobs) == expected(streams))
    fleet.until(lambda: on_device(one, "used") == streams * 1_440_000)  # the figures are a second old at most
    device.configure({**SIMPLE, "pdev": FIRST})  # as fast as it can: what there is to see was seen
    assert {fleet.made_on(job) for job in jobs} == {FIRST}
    waited = ["waiting" in [moment.what for moment in fleet.client.status(job).history] for job in jobs]
    assert waited.count(True) == 3 - streams
    assert f"{FIRST} bears {streams * 1_440_000 + 1:,} pixels/s ({fleet.folder}/capacity.json, measured" in one.log()
    assert f"{fleet.folder}/capacity.json does not name it" in one.log(), "the CPUs keep their default"


def on_device(worker: services.Worker, what: str) -> float | None:
    """Pixels per second of the first device, used or its budget, as the worker's metrics say."""
    begin = f'transcoder_slot_{what}_pixels_per_second{{device="{FIRST}"}} '
    return next(
        (float(line.removeprefix(begin)) for line in worker.metrics().splitlines() if line.startswith(begin)), None
    )


def expected(streams: int) -> list[str]:
    """The phases of three jobs of which so many are at work."""
    return [*["encoding"] * streams, *["waiting"] * (3 - streams)]


def test_a_variable_that_is_set_stands_before_the_capacity_file(fleet: Fleet) -> None:
    fleet.add()
    one = fleet.worker("one", **of_capacity(fleet.folder, 1), TRANSCODER_DEVICE_BUDGET="3000000")
    fleet.until(lambda: on_device(one, "budget") == 3_000_000)
    assert f"{FIRST} bears 3,000,000 pixels/s (TRANSCODER_DEVICE_BUDGET)" in one.log()


def test_a_worker_refuses_to_start_with_a_capacity_file_that_is_none(fleet: Fleet) -> None:
    (fleet.folder / "capacity.json").write_text('{"schema_version": 1, "devices": {"card0": {}}}')
    with pytest.raises(RuntimeError, match=r"capacity\.json: devices\.card0: 'card0' is no device") as ended:
        fleet.worker("one", TRANSCODER_CAPACITY_FILE=str(fleet.folder / "capacity.json"), ready=False)
    assert "transcoder bench density --capacity FILE" in str(ended.value)
    assert fleet.workers == {}
