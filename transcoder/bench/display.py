"""How far a benchmark is: a table that lives on a terminal, and a line for each step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from transcoder.bench.result import Cell, Run
from transcoder.screen import plain, span


class Show(Protocol):
    """What both have in common."""

    def phase(self, sentence: str) -> None:
        """What is done now."""

    def block(self, number: int, of: int | None, left: float) -> None:
        """A block begins."""

    def ran(self, run: Run) -> None:
        """A cell has run."""

    def note(self, sentence: str) -> None:
        """Something that stays."""


@contextmanager
def display() -> Iterator[Show]:
    """On stderr, as long as the benchmark runs."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield _Table(live)


def pace(run: Run) -> float:
    """Frames per second of all its stacks, by their whole times: for a first look; the analysis knows better."""
    return sum(stack.frames / max(1e-6, stack.ended - stack.started) for stack in run.stacks)


class _Seen:
    """The cells' paces so far."""

    def __init__(self) -> None:
        self._paces: dict[tuple[Cell, bool], list[float]] = {}

    def add(self, run: Run) -> None:
        if not run.warmup:
            self._paces.setdefault((run.cell, run.again), []).append(pace(run))

    def rows(self) -> list[tuple[str, int, float]]:
        """Name, runs and median frames per second of each, in order."""
        found = sorted(self._paces.items(), key=lambda one: (one[0][0].stacks, one[0][0].containers, one[0][1]))
        return [(f"{cell.name}{' again' * again}", len(paces), median(paces)) for (cell, again), paces in found]


class _Lines:
    def __init__(self) -> None:
        self._seen = _Seen()

    def phase(self, sentence: str) -> None:
        self.note(sentence)

    def block(self, number: int, of: int | None, left: float) -> None:
        rows = "  ".join(f"{name}: {fps:.1f}" for name, _, fps in self._seen.rows())
        self.note(f"{_heading(number, of, left)}{f'  fps {rows}' if rows else ''}")

    def ran(self, run: Run) -> None:
        self._seen.add(run)

    def note(self, sentence: str) -> None:
        print(plain(sentence), file=sys.stderr, flush=True)


class _Table:
    def __init__(self, live: Live) -> None:
        self._live = live
        self._seen = _Seen()
        self._heading = ""

    def phase(self, sentence: str) -> None:
        self._heading = sentence
        self._draw()

    def block(self, number: int, of: int | None, left: float) -> None:
        self.phase(_heading(number, of, left))

    def ran(self, run: Run) -> None:
        self._seen.add(run)
        self._draw()

    def note(self, sentence: str) -> None:
        self._live.console.print(Text(plain(sentence)), soft_wrap=True)

    def _draw(self) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("containers × stacks", "runs", "median fps"):
            table.add_column(column, justify="left" if column.startswith("c") else "right")
        for name, runs, fps in self._seen.rows():
            table.add_row(name, str(runs), f"{fps:.1f}")
        self._live.update(Group(Text(plain(self._heading)), table), refresh=True)


def _heading(number: int, of: int | None, left: float) -> str:
    return f"block {number}{f' of {of}' if of else ' of the pilot'}, {span(max(0.0, left))} left"
