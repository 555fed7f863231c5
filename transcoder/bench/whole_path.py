"""Cells that take the product's whole path: a job through a queue to a worker in the container, verified, published."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep

from transcoder.bench.result import Cell, StackRun
from transcoder.bench.rig import Housed, Rig, Seen
from transcoder.bench.working import forwarded
from transcoder.children import dying_with_parent
from transcoder.client import Client, Status
from transcoder.errors import BenchmarkFailed, BrokerUnavailable
from transcoder.spec import JobSpec

SERVER = "redis-server"

_READY_LIMIT = 180.0
_POLL = 0.1
_ANSWER_LIMIT = 30.0

Spec = Callable[[str], JobSpec]
"""The job that writes this file."""


def available() -> bool:
    """Whether there is a Redis to be run here."""
    return shutil.which(SERVER) is not None


class Broker:
    """A Redis of our own on a socket in the shared folder, without a port; it dies with us.

    Each cell has a database of it, so that no worker takes another cell's jobs.
    """

    def __init__(self, rig: Rig) -> None:
        self._path, self.inside = rig.clip("redis.sock")
        settings = {
            "port": "0",
            "unixsocket": self._path,
            "unixsocketperm": "777",
            "dir": rig.folder,
            "save": "",
            "databases": "1024",
        }
        words = [SERVER, *(word for name, value in settings.items() for word in (f"--{name}", value))]
        with open(f"{rig.folder}/redis.log", "ab") as log:
            self._process = subprocess.Popen(
                dying_with_parent(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._port = forwarded(self._path)
        self._clients: list[Client] = []

    def client(self) -> tuple[Client, int]:
        """A client of a database that nobody else has, and its number."""
        number = len(self._clients)
        self._clients.append(Client(f"redis://127.0.0.1:{self._port}/{number}"))
        return self._clients[-1], number

    def close(self) -> None:
        """End it."""
        for client in self._clients:
            client.close()
        self._process.kill()
        self._process.wait()


class WorkingCell:
    """A cell whose container has a worker with as many places as the cell has stacks."""

    def __init__(self, rig: Rig, broker: Broker, cell: Cell) -> None:
        began = monotonic()
        self._rig = rig
        self._client, database = broker.client()
        self._housed: Housed = rig.house(cell)
        self.cell = cell
        self._agent = self._housed.agent
        self._agent.ask(ask="work", stacks=cell.stacks, redis=broker.inside, database=database, roots=rig.inside)
        self._agent.answer(_ANSWER_LIMIT)
        self._wait_until_ready()
        self.start = monotonic() - began
        self._runs = 0

    def _wait_until_ready(self) -> None:
        until = monotonic() + _READY_LIMIT
        while monotonic() < until:
            with suppress(BrokerUnavailable):
                if any(one.live and one.told.queues for one in self._client.workers()):
                    return
            sleep(_POLL)
        raise BenchmarkFailed(
            f"the worker of {self.cell.name} took no jobs within {_READY_LIMIT:g} s", "`transcoder doctor` may say why."
        )

    def run(self, spec: Spec, *, limit: float) -> Seen:
        """Submit as many jobs as it has stacks, all at once, and wait for their end."""
        self._runs += 1
        ours, inside = self._rig.clip(f"{self._agent.name}-jobs-{self._runs}")
        os.mkdir(ours)
        if self._rig.engine.inside and not os.geteuid():
            os.chown(ours, *self._rig.user)
        self._agent.ask(ask="watch")
        self._agent.answer(_ANSWER_LIMIT)
        epoch = time.time()
        numbers = self._client.submit_many([spec(f"{inside}/out-{place}.mp4") for place in range(self.cell.stacks)])
        found = [self._ended(number, epoch + limit) for number in numbers]
        self._agent.ask(ask="used")
        used = self._agent.answer(_ANSWER_LIMIT)
        shutil.rmtree(ours, ignore_errors=True)
        stacks = tuple(stack_run(one, epoch, used, self.cell.stacks) for one in found)
        return Seen(stacks, 0.0, used["cpu_user"] + used["cpu_system"])

    def _ended(self, number: object, until: float) -> Status:
        if not isinstance(number, str):
            raise BenchmarkFailed(f"a job of {self.cell.name} was refused: {number}")
        while not (now := self._client.status(number)).is_finished:
            if time.time() > until:
                raise BenchmarkFailed(f"a job of {self.cell.name} did not end in time", "The machine is too busy.")
            sleep(_POLL)
        return now


def stack_run(job: Status, epoch: float, used: dict[str, float], stacks: int) -> StackRun:
    """What a job's record says of it; times count from `epoch`, and each has its share of what the worker used."""
    result = job.result or {}
    outputs = result.get("outputs") or [{}]
    return StackRun(
        container=0,
        started=max(0.0, job.created - epoch),
        ended=(job.finished or time.time()) - epoch,
        frames=outputs[0].get("frames") or 0,
        cpu_user=used["cpu_user"] / stacks,
        cpu_system=used["cpu_system"] / stacks,
        pss=int(used["pss"] / stacks),
        engines=(result.get("gpu") or {}).get("engines", {}),
        digest=outputs[0].get("sha256") or "",
        trouble="" if job.state == "published" else str((job.error or {}).get("what", job.state)),
    )
