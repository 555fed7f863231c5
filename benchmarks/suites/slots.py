"""How long a slot that becomes free stands empty while a job waits for it, between two workers' leases in one Redis.

One thread holds the only slot, another waits in the line with a connection of its own; they change places at every
turn, by the product's own leases. The time is from the moment before the slot is given back to that of holding it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.figures import bootstrap, quantile
from benchmarks.report import Row
from benchmarks.stand import Block, Stand
from transcoder.ledger import connect
from transcoder.slots import Capacity, Slots

BOUND = 0.005
DEVICE = Capacity("benchmark:device", "device", 1.0)
PATIENCE = 20.0


def run(stand: Stand) -> list[Row]:
    with ExitStack() as stack:
        both = [Slots(connect(stand.redis.url)) for _ in range(2)]
        for leases in both:
            stack.callback(leases.close)
        for turn in range(10):
            handover(both, turn)
        for turn in range(stand.times(100, 500)):
            stand.block("slots", {"taken": partial(_taken, both, turn)})
    return rows(stand.raw["slots"], stand.seed)


def _taken(both: Sequence[Slots], turn: int) -> Block:
    return {"taken": handover(both, turn)}


def handover(both: Sequence[Slots], turn: int) -> float:
    """Seconds for which the slot was free while the second waited for it.

    Raises:
        TimeoutError: it was not taken.
    """
    first, second = both[turn % 2], both[1 - turn % 2]
    waits, held = threading.Event(), threading.Event()
    at: list[float] = []

    def wait() -> None:
        with second.slot(DEVICE, 1.0, f"waits-{turn}", cancelled=lambda: False, waits=waits.set):
            at.append(time.monotonic())
            held.set()

    waiter = threading.Thread(target=wait, daemon=True)
    with first.slot(DEVICE, 1.0, f"holds-{turn}", cancelled=lambda: False, waits=lambda: None):
        waiter.start()
        if not waits.wait(PATIENCE):
            raise TimeoutError("the second job does not come to wait")
        time.sleep(0.01)  # until its question stands in Redis
        freed = time.monotonic()
    if not held.wait(PATIENCE):
        raise TimeoutError("the free slot is not taken")
    waiter.join()
    return at[0] - freed


def rows(blocks: Sequence[Block], seed: int) -> list[Row]:
    seconds = [block["taken"] for block in blocks]
    return [
        Row("slots", f"A free slot is taken by who waits, p{share * 100:.0f}",
            bootstrap(partial(quantile, share=share), seconds, seed=seed), "ms", len(seconds),
            BOUND if share > 0.5 else None)
        for share in (0.5, 0.95)
    ]  # fmt: skip
