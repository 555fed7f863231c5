"""The fleet under fire: starts it, feeds it, breaks it and mends it again, all from one thread."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis as redis_py

from tests import gpu, services
from tests.chaos.relay import Relay
from tests.chaos.schedule import DEVICE, KILLS, STOPS, Blow, Order
from tests.chaos.watcher import Watcher
from transcoder import Client, JobSpec
from transcoder.errors import BrokerUnavailable, JobUnknown, TranscoderError, TransitionRefused
from transcoder.ledger import FINISHED, STEPS
from transcoder.placement import QUEUES, queue_name

TICK = 0.03
AHEAD = 24
"""Jobs that are accepted and not finished, at most."""
LISTS: Final = tuple(queue_name(name) + step for name in QUEUES for step in STEPS)
SIMPLE = {"rc": "CQP", "encode": "h264", "decode": "none", "vpp": False}
NODES: Final = {"gpu1": "renderD128", "gpu2": "renderD129"}
WRONG_CLOCK: Final = "cpu2"
"""It has no GPU, so that no other library is loaded into it."""
WORKERS: Final = (*NODES, "cpu1", WRONG_CLOCK)
SETTINGS: Final = {
    "TRANSCODER_LOG_FORMAT": "json",
    "TRANSCODER_FIRST_FRAME_LIMIT": "3",
    "TRANSCODER_STALL_LIMIT": "3",
    "TRANSCODER_TRIAL_LIMIT": "5",
    "TRANSCODER_PREFER_WAIT": "5",
    "TRANSCODER_RETRY_DELAY": "0.5",
    "TRANSCODER_RETRY_MOST": "3",
    "TRANSCODER_RETRIES": "10",
    "TRANSCODER_BREAKER_COOLDOWN": "1",
    "TRANSCODER_GRACE": "3",
    "TRANSCODER_DEVICE_BUDGET": "4000000",  # two or three of the jobs
    "TRANSCODER_SOFTWARE_BUDGET": "6000000",
}
# what has "poison" in its name kills every ffmpeg that encodes it
FFMPEG = 'case "$*" in *poison*.transcoder-*) kill -SEGV $$;; esac\nexec ffmpeg "$@"'
DONE = tuple(f"transcoder:state:{state}" for state in sorted(FINISHED))
OLD = b"what stood there before"


class Victim(services.Worker):
    """A worker that may be killed at any moment, and is started anew a moment later."""

    def __init__(
        self, name: str, relay: Relay, arena: Arena, words: Sequence[str], settings: Mapping[str, str]
    ) -> None:
        url = f"redis://{services.LOOPBACK}:{relay.port}/0"
        super().__init__(
            *(url, arena.folder / name, [arena.folder]),
            concurrency=2,
            settings=settings,
            words=words,
            module="tests.chaos.worker",
        )
        self.name = name
        self.relay = relay

    def start(self) -> None:
        services.Service.start(self)  # nobody waits for it


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker was killed, or stopped, at that Unix time."""

    owner: str
    at: float
    kind: str


@dataclass
class Arena:
    """`accepted` are all jobs that were ever accepted, with what was ordered; `injected` counts faults by kind.

    `troubles` are the times, of Unix, at which Redis or somebody's way to it was away.
    """

    folder: Path
    gpus: gpu.Machine
    redis: services.Redis
    sources: Mapping[str, Path]
    small: Path
    accepted: dict[str, Order] = field(default_factory=dict)
    injected: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    kills: list[Kill] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    troubles: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk = self.folder / "out"
        self.traps = self.folder / "traps"
        self.clock = self.folder / "clock"
        for made in (self.disk, self.traps / "sprung"):
            made.mkdir(parents=True)
        self.client = Client(self.redis.url)
        self.plain = redis_py.Redis.from_url(self.redis.url, decode_responses=True, socket_timeout=1)
        self.watcher = Watcher([self.disk, self.small], frozenset({"filler"}))
        self.devices = {name: self.gpus.add(node) for name, node in NODES.items()}
        for name in self.devices:
            self.device_is(name)
        self.workers = {name: self._worker(name) for name in WORKERS}
        self.acts: list[tuple[float, int, Callable[[], None]]] = []
        self._order_of_acts = itertools.count()
        self._starting: dict[str, float] = {}
        self._waiting: list[Order] = []
        self._finished = 0
        self._retried: set[str] = set()
        self._unfired: list[tuple[float, Blow]] = []

    def _worker(self, name: str) -> Victim:
        ffmpeg = self.folder / "ffmpeg"
        ffmpeg.write_text(f"#!/bin/sh\n{FFMPEG}\n")
        ffmpeg.chmod(0o755)
        settings = {
            **self.gpus.environment,
            **SETTINGS,
            "TRANSCODER_DRI": str(self.gpus.nodes),
            "TRANSCODER_SYSFS": str(self.gpus.sysfs),
            "TRANSCODER_PROC": str(self.gpus.proc),
            "TRANSCODER_CACHE_FOLDER": str(self.folder / "cache"),
            "TRANSCODER_FFMPEG": str(ffmpeg),
            "CHAOS_TRAPS": str(self.traps),
        }
        words = ["--name", name]
        if name in NODES:
            words += ["--device", str(self.devices[name].node)]
        else:
            words += ["--serves", "software"]
        if name == WRONG_CLOCK:
            step_clock(self.clock, 0)
            settings |= {"LD_PRELOAD": str(build_clock(self.folder)), "CHAOS_CLOCK": str(self.clock)}
        return Victim(name, Relay(self.redis.port), self, words, settings)

    # The run

    def run(self, orders: Sequence[Order], blows: Sequence[Blow], within: float, say: Callable[[str], None]) -> None:
        """Submit all, break all, and wait until every job has ended.

        Raises:
            TimeoutError: that took longer than `within` seconds.
        """
        for order in orders:
            if order.shape == "over an old file":
                Path(self.spec(order).target).write_bytes(OLD)
        self.watcher.start()
        for worker in self.workers.values():
            worker.start()
        while not self._all_serve():
            time.sleep(TICK)
        self._waiting = list(orders)
        due = list(blows)
        deadline, told = time.monotonic() + within, time.monotonic()
        while self._waiting or self._finished < len(self.accepted) or due:
            self._tick()
            while due and self._finished >= due[0].after:
                self._unfired.append((time.monotonic() + 8, due.pop(0)))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._finished} of {len(self.accepted)} jobs finished, {len(due)} faults to come")
            if time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"{self._finished} of {len(self.accepted)} jobs finished, {self.injected.total()} faults")
            time.sleep(TICK)

    def _all_serve(self) -> bool:
        heard = {one.told.name: one.told.queues for one in self.client.workers()}
        return len(heard) == len(WORKERS) and all(queue_name("hw.h264") in heard[name] for name in NODES)

    def mend(self) -> None:
        """Make everything whole again, and let the fleet come to rest."""
        for trap in self.traps.iterdir():
            if trap.is_file():
                trap.unlink()
        self._unfired.clear()
        while self.acts:
            self._tick()
            time.sleep(TICK)
        for _ in range(round(3 / TICK)):
            self._tick()
            time.sleep(TICK)

    def rest(self, at_rest: Callable[[], Sequence[str]], within: float) -> Sequence[str]:
        """Wait until nothing is left; gives what is left after so many seconds."""
        deadline = time.monotonic() + within
        while (left := at_rest()) and time.monotonic() < deadline:
            self._tick()
            time.sleep(0.2)
        return left

    def drain(self) -> None:
        """End every worker in order."""
        for worker in self.workers.values():
            if worker.running:
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self.workers.values():
            self.codes[worker.stop() or 0] += 1

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        with suppress(AttributeError):
            self.watcher.stop()
        self.client.close()
        self.plain.close()

    def _tick(self) -> None:
        now = time.monotonic()
        while self.acts and self.acts[0][0] <= now:
            heapq.heappop(self.acts)[2]()
        self._look_at_traps()
        self._start_again()
        self._count()
        self._submit()
        for entry in list(self._unfired):
            until, blow = entry
            hit = self._strike(blow)
            if hit or now > until:
                self._unfired.remove(entry)
            if hit and blow.kind not in (*KILLS, *STOPS):  # those count when a worker falls
                self.injected[blow.kind] += 1
            elif not hit and now > until:
                self.missed[blow.kind] += 1

    def _count(self) -> None:
        with suppress(redis_py.RedisError):
            pipe = self.plain.pipeline()
            for key in DONE:
                pipe.zcard(key)
            self._finished = sum(pipe.execute())

    def _submit(self) -> None:
        while self._waiting and len(self.accepted) - self._finished < AHEAD:
            order = self._waiting[0]
            try:
                job_id = self.client.submit(self.spec(order))
            except BrokerUnavailable:
                return  # once more, with the same token: it may have been recorded
            except TranscoderError as refused:
                self.refused[type(refused).__name__] += 1
            else:
                self.accepted[job_id] = order
            self._waiting.pop(0)

    def spec(self, order: Order) -> JobSpec:
        folder = {"disk": self.disk, "small": self.small}[order.volume]
        target = folder / f"job{order.number}.mp4"
        outputs: list[dict[str, Any]] = [{"video": {"speed": "fast"}}]
        match order.shape:
            case "ladder":
                target = folder / f"job{order.number}-{{name}}.mp4"
                outputs = [
                    {"name": str(height), "video": {"speed": "fast", "height": height}} for height in (180, 120, 90)
                ]
            case "sound alone":
                outputs = [{"video": None}]
        fields: dict[str, Any] = {
            "source": str(self.sources[order.source]),
            "target": str(target),
            "outputs": outputs,
            "priority": order.priority,
            "overwrite": order.shape == "over an old file",
            "token": f"order {order.number}",
            "acceleration": {"policy": order.policy},
        }
        return JobSpec.model_validate(fields)

    def _start_again(self) -> None:
        now = time.monotonic()
        for name, worker in self.workers.items():
            if worker.running:
                continue
            if name not in self._starting:
                assert worker.process is not None
                self.codes[worker.process.returncode] += 1
                self._starting[name] = now + 0.3 + 0.2 * len(self._starting)
            elif now > self._starting[name]:
                del self._starting[name]
                worker.start()

    # Faults

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.acts, (time.monotonic() + seconds, next(self._order_of_acts), act))

    def device_is(self, name: str, fault: str | None = None) -> None:
        faults = {"fault.encode": fault} if fault else {}
        self.devices[name].configure(SIMPLE, **faults)

    def _strike(self, blow: Blow) -> bool:
        """Inject it; False where there is nothing to be hit at this moment."""
        try:
            return self._struck(blow)
        except (redis_py.RedisError, BrokerUnavailable):
            return False

    def _struck(self, blow: Blow) -> bool:  # noqa: PLR0912 - one case a kind
        match blow.kind:
            case trap if trap in KILLS or trap in STOPS:
                if not (self.traps / trap).exists():
                    (self.traps / trap).touch()
                return True
            case "kill worker":
                return self._kill(self._victim(blow, busy=True), blow.kind)
            case "kill child":
                return self._kill_child(blow)
            case "stop worker":
                return self._stop(self._victim(blow, busy=True), blow.lasts)
            case "drain" | "drain now":
                return self._drain(self._victim(blow, busy=blow.kind == "drain now"), now=blow.kind == "drain now")
            case "clock stepped":
                step_clock(self.clock, round((blow.chance - 0.5) * 4 * 3600))
                return True
            case "redis killed" | "redis paused":
                return self._redis_away(blow)
            case "message doubled" | "message dropped":
                return self._message(blow)
            case "network cut" | "network silent":
                return self._network(self._victim(blow), blow)
            case "disk full":
                return self._fill_disk(blow.lasts)
            case "cancel" | "retry":
                return self._client_does(blow)
            case device if device in DEVICE:
                name = tuple(NODES)[int(blow.chance * len(NODES))]
                self.device_is(name, DEVICE[device])
                self.later(blow.lasts, lambda: self.device_is(name))
                return True
        raise AssertionError(blow.kind)

    def _victim(self, blow: Blow, *, busy: bool = False) -> Victim | None:
        """One of the workers that run, and, if it shall be busy, have a child at the moment."""
        parents = {parent for _, parent, _ in processes()} if busy else set()
        found = [one for one in self.workers.values() if one.running and (not busy or one.pid in parents)]
        return found[int(blow.chance * len(found))] if found else None

    def _kill(self, worker: Victim | None, kind: str) -> bool:
        if worker is None:
            return False
        self._fell(worker, kind)
        os.kill(worker.pid, signal.SIGKILL)
        return True

    def _fell(self, worker: Victim, kind: str, at: float | None = None) -> None:
        self.kills.append(Kill(f"{worker.name}-{worker.pid}-", at or time.time(), kind))

    def _kill_child(self, blow: Blow) -> bool:
        workers = {worker.pid for worker in self.workers.values() if worker.running}
        mortal = (["ffmpeg"], ["ffprobe"])
        found = [pid for pid, parent, words in processes() if parent in workers and words[:1] in mortal]
        if not found:
            return False
        with suppress(ProcessLookupError):
            os.kill(found[int(blow.chance * len(found))], signal.SIGKILL)
        return True

    def _stop(self, worker: Victim | None, lasts: float) -> bool:
        if worker is None:
            return False
        self._fell(worker, "stop worker")
        os.kill(worker.pid, signal.SIGSTOP)
        self.later(lasts, lambda pid=worker.pid: go_on(pid))  # type: ignore[misc]
        return True

    def _drain(self, worker: Victim | None, *, now: bool) -> bool:
        if worker is None:
            return False
        os.kill(worker.pid, signal.SIGTERM)
        if now:
            self.later(0.1, lambda: signal_to(worker.pid, signal.SIGTERM))
        return True

    def _redis_away(self, blow: Blow) -> bool:
        if not self.redis.running or not self.redis.answers():
            return False
        self.troubles.append((time.time(), time.time() + blow.lasts))
        if blow.kind == "redis killed":
            self.redis.kill()
            self.later(blow.lasts, self.redis.start)
        else:
            os.kill(self.redis.pid, signal.SIGSTOP)
            self.later(blow.lasts, lambda: go_on(self.redis.pid))
        return True

    def _message(self, blow: Blow) -> bool:
        full = [key for key in LISTS if self.plain.llen(key)]
        if not full:
            return False
        key = full[int(blow.chance * len(full))]
        if blow.kind == "message dropped":
            return self.plain.rpop(key) is not None
        text = self.plain.lindex(key, -1)
        return text is not None and bool(self.plain.rpush(key, str(text)))

    def _network(self, worker: Victim | None, blow: Blow) -> bool:
        if worker is None:
            return False
        if blow.kind == "network cut":
            worker.relay.cut()
        else:
            worker.relay.silence()
        self.troubles.append((time.time(), time.time() + blow.lasts))
        self.later(blow.lasts, worker.relay.mend)
        return True

    def _fill_disk(self, lasts: float) -> bool:
        filler = self.small / "filler"
        if filler.exists():
            return False
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        self.later(lasts, filler.unlink)
        return True

    def _client_does(self, blow: Blow) -> bool:
        states = ("running", "queued") if blow.kind == "cancel" else ("failed", "cancelled")
        there = [str(job) for state in states for job in self.plain.zrange(f"transcoder:state:{state}", 0, -1)]
        # tried again once more, a job would meet the target that the first new one has made
        found = [job for job in there if job not in self._retried]
        if not found:
            return False
        chosen = found[int(blow.chance * len(found))]
        with suppress(TransitionRefused, JobUnknown):
            if blow.kind == "cancel":
                self.client.cancel(chosen)
                return True
            self.accepted[self.client.retry(chosen)] = self.accepted[chosen]
            self._retried.add(chosen)
            return True
        return False

    def _look_at_traps(self) -> None:
        for sprung in list((self.traps / "sprung").iterdir()):
            what, pid, _ = sprung.name.rsplit(".", 2)
            fell = sprung.stat().st_ctime
            sprung.unlink()
            self.injected[what] += 1
            worker = next(one for one in self.workers.values() if one.process and one.pid == int(pid))
            self._fell(worker, what, fell)
            if what in STOPS:
                self.later(6.0, lambda pid=int(pid): go_on(pid))  # type: ignore[misc]


def build_clock(folder: Path) -> Path:
    built = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(built), str(source)], check=True, timeout=60)
    return built


def step_clock(file: Path, seconds: int) -> None:
    """Put the clock of one worker wrong by that much, from this moment; it has the file mapped."""
    with file.open("r+b" if file.exists() else "wb") as clock:
        clock.write(struct.pack("q", seconds))


def go_on(pid: int) -> None:
    signal_to(pid, signal.SIGCONT)


def signal_to(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def processes() -> list[tuple[int, int, list[str]]]:
    """Every process that this one can see: its id, its parent's, its words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_text(errors="replace").split("\0")[:-1]
                found.append((int(entry.name), parent, words))
    return found


def make_sources(folder: Path) -> dict[str, Path]:
    """Tiny clips: whole ones, one that is cut short, and one on which ffmpeg dies."""
    folder.mkdir()
    made = {
        "short": clip(folder / "short.mp4", "testsrc2=s=320x180:r=25:d=0.4"),
        "long": clip(folder / "long.mp4", "testsrc2=s=320x180:r=25:d=1.6"),
        "with sound": clip(folder / "sound.mp4", "testsrc2=s=192x108:r=25:d=0.8", "-f", "lavfi", "-i", "sine=d=0.8"),
        "cut short": folder / "cut.mp4",
        "poison": folder / "poison.mp4",
    }
    whole = made["long"].read_bytes()
    made["cut short"].write_bytes(whole[: len(whole) * 2 // 3])
    made["poison"].write_bytes(made["short"].read_bytes())
    return made


def clip(path: Path, source: str, *more: str) -> Path:
    words = ["-f", "lavfi", "-i", source, *more, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *words, "-movflags", "+faststart", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path
