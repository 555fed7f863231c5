"""Look at the machine: which ffmpeg this is, and which encoders really encode here. What fails is never planned."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from transcoder import backends
from transcoder.errors import FfmpegMissing
from transcoder.machine import Ability, Build, Machine, Trial
from transcoder.policy import Policy
from transcoder.version import __version__

OLDEST = (5, 1)
"""The oldest ffmpeg that has every option used here (-fps_mode came with 5.1)."""

_TRIAL_LIMIT = 20.0


def survey(policy: Policy, cache_folder: str | None = None, threads: int = 0) -> Machine:
    """What this machine can make; remembered in `cache_folder` for the same ffmpeg. `threads` 0 means every CPU.

    Raises:
        FfmpegMissing: ffmpeg or ffprobe is missing or too old.
    """
    program = _found(policy.ffmpeg, "TRANSCODER_FFMPEG")
    _found(policy.ffprobe, "TRANSCODER_FFPROBE")
    remembered = _cache_path(program, cache_folder)
    known = _recall(remembered) or _try_all(program)
    _remember(remembered, known)
    build, abilities = known
    return Machine(build, abilities, threads or cpus())


def cpus() -> int:
    """How many CPUs this process may use: its affinity, cut to the cgroup's quota (v2, then v1), at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota_v2() or _quota_v1()
    return max(1, min(allowed, round(quota) or 1)) if quota else allowed


Known = tuple[Build, frozenset[Ability]]


def _found(program: str, setting: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise FfmpegMissing(
            f"{program} is not to be found", f"Install ffmpeg 5.1 or newer (apt install ffmpeg), or set {setting}."
        )
    return path


def _try_all(program: str) -> Known:
    build = _build(program)
    trials = [trial for backend in backends.every() for trial in backend.trials(build)]
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        passed = pool.map(lambda trial: _passes(program, trial), trials)
        return build, frozenset(trial.ability for trial, good in zip(trials, passed, strict=True) if good)


def _build(program: str) -> Build:
    first = _said(program, "-version").split("\n", 1)[0]
    if not first.startswith("ffmpeg version "):
        raise FfmpegMissing(f"{program} is not ffmpeg: it says {first[:80]!r}", "Point TRANSCODER_FFMPEG at ffmpeg.")
    version = first.removeprefix("ffmpeg version ").split(" ")[0]
    found = re.match(r"n?(\d+)\.(\d+)", version)
    # a version without numbers is a build of the development branch, newer than any release
    numbers = (int(found[1]), int(found[2])) if found else ()
    if numbers and numbers < OLDEST:
        raise FfmpegMissing(
            f"{program} is version {version}; {OLDEST[0]}.{OLDEST[1]} or newer is needed",
            "Install a newer ffmpeg (Debian 12 has 5.1), or point TRANSCODER_FFMPEG at one.",
        )
    encoders = re.findall(r"^ [VAS][A-Z.]{5} ([a-zA-Z0-9]\S*)", _said(program, "-encoders"), re.M)
    return Build(version, numbers, frozenset(encoders))


def _said(program: str, option: str) -> str:
    try:
        done = subprocess.run(
            (program, "-hide_banner", option) if option != "-version" else (program, option),
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_LIMIT, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise FfmpegMissing(f"{program} {option} does not work: {error}", "Reinstall ffmpeg.") from None
    return done.stdout.decode("utf-8", "replace")


def _passes(program: str, trial: Trial) -> bool:
    try:
        done = subprocess.run(
            (program, *trial.words), stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _cache_path(program: str, folder: str | None) -> str | None:
    """A file name that changes with the program and with this version."""
    if folder is None:
        return None
    real = os.path.realpath(program)
    state = os.stat(real)
    key = f"{real} {state.st_ino} {state.st_size} {state.st_mtime_ns} {__version__}"
    return os.path.join(folder, f"survey-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")


def _recall(path: str | None) -> Known | None:
    try:
        with open(path or "", encoding="utf-8") as file:
            held = json.load(file)
        build = held["build"]
        return (
            Build(build["version"], tuple(build["numbers"]), frozenset(build["encoders"])),
            frozenset(Ability(**able) for able in held["abilities"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: str | None, known: Known) -> None:
    """Best effort: a read-only home only costs the next start some trials."""
    if path is None or _recall(path) == known:
        return
    build, abilities = known
    held: dict[str, Any] = {
        "build": {**asdict(build), "encoders": sorted(build.encoders)},
        "abilities": [asdict(able) for able in abilities],
    }
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(held, file)
        os.replace(draft, path)
    except OSError:
        return


def _quota_v2() -> float | None:
    """CPUs by cgroup v2's cpu.max, as a container sees its own group; None without a quota."""
    limit, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(limit) / int(period) if limit.isdigit() and period.strip().isdigit() else None


def _quota_v1() -> float | None:
    """CPUs by cgroup v1's CFS quota; None without one (-1)."""
    quota, period = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.strip().isdigit() and period.strip().isdigit() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
