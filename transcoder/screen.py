"""What the command line shows: live progress on stderr, tables and results on stdout, plain lines without a terminal.

Names of files may hold anything; what they hold is printed, never obeyed.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from transcoder.client import Status
    from transcoder.diagnosis import Finding
    from transcoder.machine import Ability, Machine

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Live(Protocol):
    """Where progress is shown."""

    def phase(self, name: str) -> None:
        """The job is in this phase now."""

    def pace(self, fraction: float | None, fps: float | None, speed: float | None, eta: float | None) -> None:
        """How far it is (0 to 1), frames per second, times real time, seconds left."""

    def note(self, sentence: str) -> None:
        """Something that stays on the screen."""


@contextmanager
def live(*, quiet: bool = False) -> Iterator[Live]:
    """A progress bar on a terminal; elsewhere a line a phase, or nothing if `quiet`."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(quiet=quiet)
        return
    columns = (
        TextColumn("{task.description:10}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[pace]}", style="cyan", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, pace="")

    def phase(self, name: str) -> None:
        # at once, since a phase may be over before the next frame of the animation
        self._progress.update(self._task, description=name, pace="", refresh=True)

    def pace(self, fraction: float | None, fps: float | None, speed: float | None, eta: float | None) -> None:
        total = None if fraction is None else 1.0
        pace = in_words(fps, speed, eta)
        self._progress.update(self._task, completed=fraction or 0.0, total=total, pace=pace, refresh=fraction == 1.0)

    def note(self, sentence: str) -> None:
        self._progress.console.print(Text(plain(sentence)), soft_wrap=True)


class _Lines:
    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ""

    def phase(self, name: str) -> None:
        if name != self._last:
            self.note(name)
        self._last = name

    def pace(self, fraction: float | None, fps: float | None, speed: float | None, eta: float | None) -> None:
        pass

    def note(self, sentence: str) -> None:
        if not self._quiet:
            print(plain(sentence), file=sys.stderr, flush=True)


def in_words(fps: float | None, speed: float | None, eta: float | None) -> str:
    """The pace of an encode."""
    words = [] if fps is None else [f"{fps:.0f} fps"]
    words += [] if speed is None else [f"{speed:.2f} × realtime"]
    words += [] if eta is None else [f"ETA {span(eta)}"]
    return "  ".join(words)


def span(seconds: float) -> str:
    """A length of time, as roughly as people say it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def plain(text: object) -> str:
    """The text with its control characters spelled out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(text))


def as_json(value: object) -> None:
    """The value on stdout, for programs."""
    print(json.dumps(value, indent=2, default=_values), flush=True)


def as_json_line(value: object) -> None:
    """The value on stdout as one line of a stream."""
    print(json.dumps(value, default=_values), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; lines with tabs for other programs, never cut short."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in (columns, *rows):
            print("\t".join(plain(cell) for cell in row))
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(plain(cell)) for cell in row))
    console.print(drawn)


def line(sentence: str) -> None:
    """A line on stdout, however wide the terminal."""
    print(plain(sentence))


def result(record: Mapping[str, Any]) -> None:
    """What a job has made, by which route, and why not by another."""
    table(
        ("file", "codec", "picture", "duration", "size"),
        [
            (
                output["path"],
                output["codec"] or ", ".join(output["audio"]),
                f"{output['width']}×{output['height']}" if output["width"] else "",
                f"{output['duration']:.2f} s",
                decimal(output["bytes"]),
            )
            for output in record["outputs"]
        ],
    )
    pace = in_words(record["fps"], record["speed"], None)
    where = record["device"] or "the CPU"
    line(f"verified, made by {record['route']} on {where} in {record['timings']['total']:.1f} s  {pace}")
    _tried(record["tried"])
    for warning in record["warnings"]:
        line(f"note: {warning}")


def status(job: Status) -> None:
    """Everything about a job, a line a fact; then what happened to it, and what came of it."""
    at = job.progress if job.phase == "encoding" else None
    facts = {
        "id": job.id,
        "state": job.state if job.phase == job.state else f"{job.state}, {job.phase}",
        "progress": at and f"{_percent(at.fraction)}  {in_words(at.fps, at.speed, at.eta_seconds)}",
        "queue": job.queue,
        "waits for": job.waiting_for,
        "profile": job.spec.get("profile"),
        "source": job.spec.get("source"),
        "target": job.spec.get("target"),
        "priority": job.spec.get("priority"),
        "metadata": ", ".join(f"{key}={value}" for key, value in job.spec.get("metadata", {}).items()),
        "attempts": job.attempts or None,
        "worker": job.owner,
        "error": job.error and job.error.get("what"),
        "do": job.error and job.error.get("next_step"),
    }
    for name, fact in facts.items():
        if fact not in (None, ""):
            line(f"{name:10} {fact}")
    for moment in job.history:
        line(f"{datetime.fromtimestamp(moment.at):%Y-%m-%d %H:%M:%S}  {moment.what} {moment.detail}".rstrip())
    if job.result:
        result(job.result)
    elif job.error:
        _tried(job.error.get("evidence", {}).get("tried", ()))


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


def _tried(routes: Sequence[Mapping[str, Any]]) -> None:
    for other in routes:
        lost = f" ({other['lost']:.1f} s lost)" if other.get("lost") else ""
        line(f"not by {other['route']}: {other['kind']}: {other['what']}{lost}")


def plan(commands: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> None:
    """The commands that would be tried, best first, ready for pasting."""
    for number, command in enumerate(commands, 1):
        line(f"# {number}. {command['route']}: {command['reason']}")
        print(" ".join(_quoted(word) for word in command["argv"]))
    for sentence in left_out:
        line(f"# left out: {sentence}")


def devices(machine: Machine, folder: str) -> None:
    """The CPU and each device; what they can do and what was refused; and what would help where there is no device."""
    table(
        ("device", "node", "kernel driver", "driver", "trouble"),
        [
            ("CPU", "", "", f"ffmpeg {machine.build.version}", ""),
            *((one.id, one.node, one.driver or "", one.va_driver or "", one.trouble or "") for one in machine.devices),
        ],
    )
    line("")
    table(("device", "api", "does", "codec", "bits", "works", "low power", "refused"), _proofs(machine))
    if not machine.devices:
        line("")
        line(
            f"no GPU: there is no render node in {folder} (renderD128 …). In a container, map it: "
            f'in Compose, devices: ["{folder}:{folder}"]. On a host, its kernel driver is missing (i915, xe, amdgpu).'
        )


def devices_json(machine: Machine) -> None:
    """The same for programs."""
    as_json(
        {
            "ffmpeg": machine.build.version,
            "threads": machine.threads,
            "devices": machine.devices,
            "abilities": sorted((asdict(able) for able in machine.abilities), key=str),
            "refusals": [{**asdict(one.ability), "why": one.why} for one in machine.refusals],
        }
    )


def findings(found: Sequence[Finding]) -> None:
    """What was looked at and what was found; then what is not well, the gravest first, with why and what mends it."""
    table(("", "about", "found"), [(one.level, one.about, one.what) for one in found])
    ill = [one for one in found if one.level != "fine"]
    for one in sorted(ill, key=lambda one: _GRAVITY.index(one.level)):
        line("")
        line(f"{one.level}: {one.what}  [{one.kind}, {one.about}]")
        line(f"  why:  {one.why}")
        line(f"  mend: {one.mend}")


_GRAVITY = ("failure", "warning", "note")


def findings_json(found: Sequence[Finding]) -> None:
    """The same for programs."""
    from transcoder.diagnosis import exit_code, worst

    level = worst(tuple(found))
    as_json({"worst": level, "exit_code": exit_code(level), "findings": found})


def _proofs(machine: Machine) -> list[tuple[object, ...]]:
    """A row for each encoder, decoder and filter of a device: the rate controls that work, and those refused."""
    why = {one.ability: one.why for one in machine.refusals}
    places = [None, *(one.id for one in machine.devices)]
    every = sorted(
        {*machine.abilities, *why}, key=lambda able: (places.index(able.device), _kind(able), able.mode or "")
    )
    rows: list[tuple[object, ...]] = []
    useless = _useless(machine)
    for (device, api), reason in useless.items():
        rows.append((device or "CPU", api, "all", "", "", "no", "", reason))
    for _, group in groupby(every, key=lambda able: (able.device, _kind(able))):
        alike = list(group)
        if (alike[0].device, alike[0].api) in useless:
            continue
        first = alike[0]
        works = [able.mode or "yes" for able in alike if able in machine.abilities]
        refused = [(able.mode, why[able]) for able in alike if able in why and able not in machine.abilities]
        kind = (first.device or "CPU", first.api, first.does, first.codec, first.depth)
        rows.append((*kind, ", ".join(works) or "no", "yes" if first.low_power else "", _refused(refused)))
    return rows


def _useless(machine: Machine) -> dict[tuple[str | None, str], str]:
    """The APIs of which nothing works on a device, for one reason: that, and what they need."""
    from transcoder import backends

    works = {(able.device, able.api) for able in machine.abilities}
    reasons: dict[tuple[str | None, str], set[str]] = {}
    kinds: dict[tuple[str | None, str], set[object]] = {}
    for one in machine.refusals:
        place = (one.ability.device, one.ability.api)
        reasons.setdefault(place, set()).add(one.why)
        kinds.setdefault(place, set()).add((one.ability.does, one.ability.codec))
    needs = {backend.API: backend.NEEDS for backend in backends.every()}
    return {
        place: f"{next(iter(why))} It needs {needs[place[1]]}."
        for place, why in reasons.items()
        if place not in works and len(why) == 1 and len(kinds[place]) > 1
    }


def _kind(able: Ability) -> tuple[object, ...]:
    return (able.api, ("decode", "filter", "encode").index(able.does), able.codec, able.depth, able.low_power)


def _refused(modes: Sequence[tuple[str | None, str]]) -> str:
    """Each reason once, after the rate controls that it is given for."""
    reasons = {why: [mode for mode, other in modes if mode and other == why] for _, why in modes}
    return "; ".join(f"{', '.join(names)}: {why}" if names else why for why, names in reasons.items())


def _quoted(word: str) -> str:
    """The word for a shell; with control characters in the form that bash, zsh and ksh read and no terminal obeys."""
    if not _CONTROL.search(word):
        return shlex.quote(word)
    return "$'" + plain(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _values(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
