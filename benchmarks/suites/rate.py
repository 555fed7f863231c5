"""No-op jobs through four workers against four of bare Celery, submit_many against raw writes, and Redis' memory.

In every block each arm runs as many jobs through its own four workers, while the others' are stopped. The jobs are all
there before the workers may go on; the time is that until the last job has begun. Every job must come exactly once.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bare, material, stamps
from benchmarks.figures import Interval, ratio
from benchmarks.report import Row
from benchmarks.stand import Block, Stand, spec
from benchmarks.suites.hop import bare_environment, same_options, stamped_worker
from tests import services
from transcoder import ledger, queue
from transcoder.client import Client
from transcoder.spec import Acceleration, JobSpec

RATE_BOUND, SUBMIT_BOUND = 1 / 0.75, 2.0
WORKERS = 4
PATIENCE = 120.0


def run(stand: Stand) -> list[Row]:
    room = stand.room("rate")
    heard = stamps.Stamps(room / "stamps")
    options = same_options(stand.redis.url)
    environment = {stamps.VARIABLE: heard.path, "TRANSCODER_CACHE_FOLDER": str(stand.folder / "cache")}
    with ExitStack() as stack:
        ours = [stack.enter_context(stamped_worker(stand, room, environment)) for _ in range(WORKERS)]
        theirs = [stack.enter_context(_bare_worker(stand, room, heard, options, at)) for at in range(WORKERS)]
        client = stack.enter_context(_client(stand))
        task = bare.app_for(stand.redis.url, options).tasks[bare.TASK]
        for number in range(WORKERS):
            task.apply_async((str(number),), priority=ledger.step(5))
        begun(heard, [str(number) for number in range(WORKERS)])  # they are there
        jobs = stand.times(500, 2500)
        arms = {
            "ours": partial(_ours, stand, client, heard, ours, jobs),
            "bare": partial(_bare, task, heard, theirs, jobs, "bare"),
            "again": partial(_bare, task, heard, theirs, jobs, "again"),
            "raw": partial(_raw, stand, jobs),
        }
        _signal([*ours, *theirs], signal.SIGSTOP)
        for _ in range(stand.times(4, 6)):
            stand.block("rate", arms)
        _signal([*ours, *theirs], signal.SIGCONT)
    heard.close()
    return rows(stand.raw["rate"], jobs, stand.seed)


def begun(heard: stamps.Stamps, ids: Sequence[str], patience: float = PATIENCE) -> float:
    """Wait until each of these jobs has begun. Gives the moment at which the last did, by the monotonic clock.

    Raises:
        RuntimeError: one began twice, or one that nobody sent.
        TimeoutError: nothing came for so long.
    """
    missing, times, last = set(ids), Counter[str](), 0
    while missing:
        name, at = heard.next(patience)
        times[name] += 1
        missing.discard(name)
        last = max(last, at)
    if wrong := [name for name, often in times.items() if often > 1 or name not in set(ids)]:
        raise RuntimeError(f"{len(wrong)} jobs came twice or from nowhere, {wrong[0]} among them")
    return last / 1e9


def _ours(stand: Stand, client: Client, heard: stamps.Stamps, workers: Sequence[services.Service], jobs: int) -> Block:
    asked = [no_op(stand) for _ in range(jobs)]
    before = _memory(stand)
    began = time.monotonic()
    accepted = client.submit_many(asked)
    submitted = time.monotonic() - began
    ids = [one for one in accepted if isinstance(one, str)]
    if len(ids) != jobs:
        raise RuntimeError(f"{jobs - len(ids)} jobs were refused")
    with going(workers):
        went = time.monotonic()
        took = begun(heard, ids) - went
        _wait_until_published(stand, ids)
    return {"ours.submit": submitted, "ours.run": took, "ours.memory": (_memory(stand) - before) / jobs}


def _wait_until_published(stand: Stand, ids: Sequence[str]) -> None:
    """All of them have ended well, at their first attempt."""
    with ledger.connect(stand.redis.url) as redis:
        deadline = time.monotonic() + PATIENCE
        while redis.zcard("transcoder:state:queued") or redis.zcard("transcoder:state:running"):
            if time.monotonic() > deadline:
                raise RuntimeError("the jobs do not end")
            time.sleep(0.05)
        pipe = redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(f"transcoder:job:{job_id}", "state", "attempt")
        if wrong := [ends for ends in pipe.execute() if ends != ["published", "1"]]:
            raise RuntimeError(f"{len(wrong)} jobs did not end at their first attempt: {wrong[0]}")


def _bare(task: Any, heard: stamps.Stamps, workers: Sequence[services.Service], jobs: int, name: str) -> Block:
    ids = [secrets.token_hex(8) for _ in range(jobs)]
    for job_id in ids:
        task.apply_async((job_id,), priority=ledger.step(5))
    with going(workers):
        went = time.monotonic()
        return {f"{name}.run": begun(heard, ids) - went}


def _raw(stand: Stand, jobs: int) -> Block:
    """What submit_many leaves in Redis for as many jobs, written by plain commands in pipelines of the same length."""
    made = []
    for _ in range(jobs):
        job_id, asked = secrets.token_hex(8), no_op(stand)
        made.append((job_id, ledger._submission(job_id, asked, queue.message(job_id, asked.priority))))
    kept = ("spec", "schema", "priority", "source", "target", "profile", "policy", "software")
    with ledger.connect(stand.redis.url) as redis:
        began = time.monotonic()
        for start in range(0, jobs, ledger._PAGE):
            pipe = redis.pipeline(transaction=False)
            for job_id, words in made[start : start + ledger._PAGE]:
                now = time.time()
                record = {name: str(words[name]) for name in kept}
                pipe.hset(f"raw:job:{job_id}", mapping=record | {"state": "queued", "created": now, "updated": now})
                pipe.hset(f"raw:message:{job_id}", mapping={"text": str(words["message"]), "step": str(words["step"])})
                pipe.set(f"raw:target:{job_id}", job_id)
                for index in ("jobs", "queued", "waiting", "rising"):
                    pipe.zadd(f"raw:{index}", {job_id: now})
                pipe.rpush(f"raw:history:{job_id}", json.dumps([now, "queued", ""]))
                pipe.lpush("raw:list", str(words["message"]))
            pipe.execute()
        took = time.monotonic() - began
        for page in _pages(list(redis.scan_iter("raw:*", count=1000))):
            redis.delete(*page)
    return {"raw.submit": took}


def _pages(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + 1000] for start in range(0, len(keys), 1000))


def no_op(stand: Stand) -> JobSpec:
    """A job for which a worker of the benchmark does nothing.

    It is software's from the start: while all workers stand still, others would go to a queue that nobody serves.
    """
    asked = spec(material.FOLDER / "no-op.mp4", str(stand.folder / f"{secrets.token_hex(8)}.mp4"), 720)
    return asked.model_copy(update={"acceleration": Acceleration(policy="never")})


@contextmanager
def going(workers: Sequence[services.Service]) -> Iterator[None]:
    """These workers go on, and stand still again afterwards."""
    _signal(workers, signal.SIGCONT)
    try:
        yield
    finally:
        time.sleep(0.2)  # until their last words are said
        _signal(workers, signal.SIGSTOP)


def _signal(workers: Sequence[services.Service], number: signal.Signals) -> None:
    for worker in workers:
        os.kill(worker.pid, number)


@contextmanager
def _bare_worker(
    stand: Stand, room: Path, heard: stamps.Stamps, options: dict[str, Any], number: int
) -> Iterator[services.Service]:
    command = (sys.executable, "-m", "benchmarks.bare")
    environment = bare_environment(stand.redis.url, heard, options)
    service = services.Service(command, room / f"bare-{number}.log", environment)
    service.start()
    try:
        yield service
    finally:
        service.kill()


@contextmanager
def _client(stand: Stand) -> Iterator[Client]:
    client = Client(stand.redis.url)
    try:
        yield client
    finally:
        client.close()


def _memory(stand: Stand) -> float:
    with ledger.connect(stand.redis.url) as redis:
        return float(redis.info("memory")["used_memory"])


def rows(blocks: Sequence[Block], jobs: int, seed: int) -> list[Row]:
    def over(first: str, second: str) -> Interval:
        return ratio([(block[first], block[second]) for block in blocks], seed)

    def rate(arm: str) -> float:
        return jobs * len(blocks) / sum(block[f"{arm}.run"] for block in blocks)

    memory = [block["ours.memory"] for block in blocks]
    counted = f"{rate('ours'):.0f} / {rate('bare'):.0f} jobs a second; {jobs * len(blocks):,} jobs, each exactly once"
    return [
        Row("rate", "Time of no-op jobs through four workers / bare Celery", over("ours.run", "bare.run"), "ratio",
            len(blocks), RATE_BOUND, note=counted),
        Row("rate", "Noise floor of that: bare / bare", over("again.run", "bare.run"), "ratio", len(blocks)),
        Row("rate", "submit_many / the same records by plain pipelined writes", over("ours.submit", "raw.submit"),
            "ratio", len(blocks), SUBMIT_BOUND),
        Row("rate", "Redis memory for a finished no-op job, kept for TRANSCODER_RETENTION",
            Interval(sum(memory) / len(memory), min(memory), max(memory)), "kB", len(blocks)),
    ]  # fmt: skip
