"""What a run found: rows of goal, bound, figure and verdict; as a table, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.figures import Interval, Verdict, judge

SCHEMA = 1
"""Of the JSON. A reader that finds another number knows that it must look."""

Unit = Literal["ms", "s", "ratio", "percent", "MB", "kB"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. Times are kept in seconds, sizes in bytes; `bound` None is for a figure that only informs."""

    suite: str
    goal: str
    measured: Interval
    unit: Unit
    n: int
    bound: float | None = None
    verdict: Verdict | None = None
    note: str = ""

    @property
    def judged(self) -> Verdict | None:
        """The verdict given, or else the one that the interval allows."""
        if self.verdict or self.bound is None:
            return self.verdict
        return judge(self.measured, self.bound)

    def cells(self) -> tuple[str, ...]:
        """Goal, bound, measured, verdict."""
        bound = f"≤ {shown(self.bound, self.unit)}" if self.bound is not None else ""
        value, low, high = (
            shown(one, self.unit) for one in (self.measured.value, self.measured.low, self.measured.high)
        )
        between = f" [{low} – {high}]" if self.measured.low < self.measured.high else ""
        return (f"{self.goal}{f' ({self.note})' if self.note else ''}", bound, f"{value}{between}, n={self.n}",
                self.judged or "")  # fmt: skip


_SCALES = {
    "ms": (1e3, " ms"),
    "s": (1.0, " s"),
    "ratio": (1.0, ""),
    "percent": (100.0, " %"),
    "MB": (1e-6, " MB"),
    "kB": (1e-3, " kB"),
}


def shown(value: float, unit: Unit) -> str:
    """A figure with three significant digits at most, and its unit."""
    scale, name = _SCALES[unit]
    scaled = value * scale
    digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:.{digits}f}{name}"


HEAD = ("goal", "bound", "measured [95 % interval]", "verdict")


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([drawn[0], "  ".join("-" * width for width in widths), *drawn[1:]])


def markdown(rows: Sequence[Row], environment: dict[str, Any], command: str) -> str:
    """The same for people who read it in the repository."""
    facts = "\n".join(f"- {name}: {value}" for name, value in environment.items())
    table = "\n".join(f"| {' | '.join(row.cells())} |" for row in rows)
    head = f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}"
    return f"# A run of `{command}`\n\n{verdict_sentence(rows)}\n\n{head}\n{table}\n\n{facts}\n"


def verdict_sentence(rows: Sequence[Row]) -> str:
    """How many bounds are met, and which are not."""
    judged = [row for row in rows if row.judged]
    missed = [row.goal for row in judged if row.judged == "not met"]
    open_ = [row.goal for row in judged if row.judged == "cannot tell"]
    met = len(judged) - len(missed) - len(open_)
    parts = [f"{met} of {len(judged)} bounds met"]
    parts += [f"not met: {'; '.join(missed)}"] if missed else []
    parts += [f"cannot tell: {'; '.join(open_)}"] if open_ else []
    return ". ".join(parts) + "."


def as_json(rows: Sequence[Row], environment: dict[str, Any], seed: int, raw: dict[str, Any]) -> dict[str, Any]:
    """Everything: environment, seed, each figure, and every observation that it came from."""
    return {
        "schema": SCHEMA,
        "environment": environment,
        "seed": seed,
        "rows": [{**asdict(row), "verdict": row.judged} for row in rows],
        "observations": raw,
    }
