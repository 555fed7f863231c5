"""`make demo` is the first thing a user sees."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_demo_shows_a_verified_ladder_and_leaves_only_its_files() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = sorted((ROOT / "demo-output").glob("*.mp4"))
    assert len(outputs) > 1
    for output in outputs:
        assert output.name in done.stdout
    assert done.stdout.count("✔") == len(outputs)
    assert f"The files are in {ROOT / 'demo-output'}" in done.stdout
    assert not alive(services_of(done.stdout))


def services_of(text: str) -> list[int]:
    return [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(("Redis  ", "worker  "))]


def alive(pids: list[int]) -> list[int]:
    assert len(pids) == 2
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
