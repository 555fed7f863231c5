"""What a benchmark does, and in which order: its cells, its balanced blocks, how many of them. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from transcoder.bench.result import Cell
from transcoder.bench.statistics import needed_blocks

PILOT_BLOCKS: Final = 8
BUSY: Final = 0.5
"""The share of the CPUs from which a simulated device is limited by them and not by its engines."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a block."""

    cell: Cell
    again: bool = False
    """Whether it is the reference's second run, which shows the noise (A/A)."""


def cells(stacks: Sequence[int], *, bare: bool = True, worker: bool = False) -> tuple[Cell, ...]:
    """Every packing of those numbers of stacks into equal containers, fewest first; each number's bare one before.

    `worker` adds, for each number, the product's whole path in one container.
    """
    found: list[Cell] = []
    for count in sorted(set(stacks)):
        found += [Cell(containers=0, stacks=count)] if bare else []
        found += [Cell(containers=some, stacks=count) for some in range(1, count + 1) if count % some == 0]
        found += [Cell(containers=1, stacks=count, worker=True)] if worker else []
    return tuple(found)


def reference(cell: Cell) -> Cell:
    """What a cell is held against: one container with as many stacks."""
    return Cell(containers=1, stacks=cell.stacks)


def whole(cells: Sequence[Cell]) -> Cell:
    """The reference of the largest number of stacks, which is in each block twice."""
    return reference(max(cells, key=lambda cell: cell.stacks))


def blocks(cells: Sequence[Cell], twice: Cell, seed: int) -> Iterator[tuple[Turn, ...]]:
    """Orders without end: each block has every cell once and `twice` once more.

    The orders are Williams squares, each with its turns dealt out and its blocks shuffled anew: within a square of as
    many blocks as turns (twice as many where turns are odd) every turn comes at every place equally often and follows
    every other equally often, so that what a cell leaves behind (heat, cache, a boosted clock) meets all alike
    (Williams, Australian Journal of Scientific Research 2, 1949).
    """
    generator = random.Random(seed)
    turns = [*(Turn(cell) for cell in cells), Turn(twice, again=True)]
    while True:
        generator.shuffle(turns)
        square = _williams(len(turns))
        generator.shuffle(square)
        for row in square:
            yield tuple(turns[place] for place in row)


def fixed_blocks(
    deviation: float, margin: float, *, seconds: float, left: float, pilot: int = PILOT_BLOCKS
) -> tuple[int, int]:
    """How many blocks the benchmark has in all, and how many the pilot asks for; fixed once, after the pilot.

    `deviation` is the standard deviation of a block's log ratio as the pilot saw it, `seconds` what a block lasts,
    `left` what is left of the time budget. The blocks of the pilot are among those that count: their number follows
    from their spread alone and never from which cell was ahead (an internal pilot: Wittes and Brittain, Statistics in
    Medicine 9, 1990), so that they favour neither verdict and a short benchmark need not throw half of itself away.
    The price, in a simulation of 5,000 benchmarks each: the tests' 5 % of false claims are 4 to 7 %.
    """
    wanted = max(pilot, needed_blocks(deviation, margin))
    affordable = pilot + max(0, math.floor(left / seconds))
    return min(wanted, affordable), wanted


def block_seconds(seen: Sequence[float], turns: int, guess: float) -> float:
    """What a block will last: the middle of those seen, or before the first its turns as long as guessed each."""
    return median(seen) if seen else turns * guess


def seconds_left(blocks: int, block: float, running: float = 0.0) -> float:
    """What that many blocks still take, of which the first has been running that long; a late one is nearly done."""
    return max(0.0, blocks * block - min(running, block)) if blocks else 0.0


def _williams(turns: int) -> list[list[int]]:
    """Rows in which each number follows each other equally often: 0, 1, n-1, 2, n-2 …, moved on by one per row."""
    first = [(place + 1) // 2 if place % 2 else (turns - place // 2) % turns for place in range(turns)]
    rows = [[(one + step) % turns for one in first] for step in range(turns)]
    return rows + [row[::-1] for row in rows] if turns % 2 else rows
