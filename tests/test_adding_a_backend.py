"""A new backend is one file: NVENC dropped into a copy of the package, with nothing else touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transcoder.errors import NoRoute

ROOT = Path(__file__).parent.parent
SCRIPT = """
import json
from dataclasses import replace
from tests.values import MACHINE, SOURCE, planned
from transcoder import backends
from transcoder.machine import Ability, Build

nvenc = next(one for one in backends.every() if one.API == "nvenc")
build = Build("7.1", (7, 1), frozenset({"h264_nvenc"}))
required = {"policy": "require"}
machine = replace(MACHINE, abilities=MACHINE.abilities | {Ability("nvenc", "h264", 8, "h264_nvenc")})
print(json.dumps({
    "apis": [one.API for one in backends.every()],
    "trials": [" ".join(trial.words) for trial in nvenc.trials(build, None)],
    "routes": [one.route.name for one in planned(SOURCE, machine=machine).commands],
    "required": [one.route.name for one in planned(SOURCE, machine=machine, acceleration=required).commands],
    "unproven": [one.route.name for one in planned(SOURCE).commands],
    "argv": planned(SOURCE, machine=machine).commands[0].argv(),
}))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the package, and one file more in it."""
    for name in ("transcoder", "tests"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "simgpu", "golden", "test_*")
        )
    shutil.copy(ROOT / "tests" / "fixtures" / "nvenc.py", tmp_path / "transcoder" / "backends" / "nvenc.py")
    return tmp_path


def test_a_backend_is_one_file(package: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["apis"] == ["vaapi", "qsv", "nvenc", "software"]
    assert len(told["trials"]) == 1
    assert told["routes"] == ["nvenc-encode", "software"]
    assert told["required"] == ["nvenc-encode"]
    assert told["unproven"] == ["software"]
    assert "h264_nvenc" in told["argv"]


@pytest.mark.slow
def test_the_benchmark_knows_it(package: Path) -> None:
    def asked(accel: str) -> subprocess.CompletedProcess[str]:
        words = ["bench", "topology", "--engine", "processes", "--accel", accel, "--seconds", "0.1", "--out", "it.json"]
        command = [sys.executable, "-m", "transcoder", *words]
        return subprocess.run(command, cwd=package, capture_output=True, text=True, check=False, timeout=100)

    unknown, lacking = asked("nothing"), asked("nvenc")
    assert (unknown.returncode, lacking.returncode) == (2, NoRoute.exit_code), lacking.stderr
    assert "one of vaapi, qsv, nvenc, software, auto" in " ".join(unknown.stderr.replace("│", " ").split())


@pytest.mark.slow
def test_the_survey_tries_it_and_plans_without_it_where_it_fails(package: Path) -> None:
    clip = package / "clip.mp4"
    make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x64:d=0.2", str(clip)]
    subprocess.run(make, check=True, timeout=60)
    command = [
        sys.executable,
        "-m",
        "transcoder",
        "run",
        "clip.mp4",
        "out.mp4",
        "-p",
        "h264-720p",
        "--dry-run",
        "--json",
    ]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "nvenc" not in done.stdout
