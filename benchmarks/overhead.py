"""`make bench`: every suite against its bounds, as a table, with every observation in a JSON file."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine_room, report
from benchmarks.report import Row
from benchmarks.stand import Stand
from tests import services

SUITES = ("path", "hop", "start", "ladder", "memory", "growth", "real", "rate", "slots", "takeover")
RESULTS = Path(__file__).resolve().parent.parent / ".cache" / "benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write. The exit code says that it ran, not that the bounds are met: machines differ."""
    asked = _arguments(argv)
    seed = time.time_ns() % 1_000_000 if asked.seed is None else asked.seed
    suites = asked.suite or SUITES
    with tempfile.TemporaryDirectory(prefix="transcoder-bench-", dir=asked.folder) as folder:
        about = machine_room.environment(Path(folder))
        with services.private_redis(Path(folder) / "redis") as redis:
            stand = Stand(Path(folder), redis, seed, asked.quick)
            rows = [row for name in suites for row in _measured(name, stand)]
        about["load_after"] = round(os.getloadavg()[0], 2)
    print(f"\n{report.text(rows)}\n\n{report.verdict_sentence(rows)}")
    command = " ".join(["python -m benchmarks.overhead", *(sys.argv[1:] if argv is None else argv)])
    found = report.as_json(rows, about, seed, stand.raw)
    _write(asked.out, asked.name, found, report.markdown(rows, about, command))
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.overhead", description="Measure what we add to ffmpeg and Celery.")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, wider intervals")
    parser.add_argument("--seed", type=int, help="of the orders and the resampling (default: by the clock)")
    parser.add_argument("--folder", help="where jobs work and publish (default: the folder for temporary files)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON and the Markdown go")
    parser.add_argument("--name", default="latest", help="their name there")
    return parser.parse_args(argv)


def _measured(name: str, stand: Stand) -> list[Row]:
    stand.say(f"{name} …")
    began = time.monotonic()
    rows: list[Row] = importlib.import_module(f"benchmarks.suites.{name}").run(stand)
    stand.say(f"{name}: {time.monotonic() - began:.0f} s")
    return rows


def _write(folder: Path, name: str, found: dict[str, Any], page: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)
    print(f"Every observation is in {folder / name}.json")


if __name__ == "__main__":
    sys.exit(main())
