"""Look at the machine: which ffmpeg this is, which devices there are, and what really works on them.

What fails its trial is never planned. What was found is remembered for the same ffmpeg, device, driver and kernel.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from transcoder import backends, recall
from transcoder.children import run
from transcoder.devices import asked, discover
from transcoder.errors import FfmpegMissing
from transcoder.faults import FaultClass
from transcoder.machine import SOFTWARE, Ability, Build, Device, Machine, Refusal, Trial
from transcoder.policy import Policy
from transcoder.proof import Proving, Verdict
from transcoder.recall import OfDevice, OfSoftware

OLDEST = (5, 1)
"""The oldest ffmpeg that has every option used here (-fps_mode came with 5.1)."""


def survey(policy: Policy, cache_folder: str | None = None, threads: int = 0, *, fresh: bool = False) -> Machine:
    """What this machine can make, on the CPU and on every device; remembered in `cache_folder` unless that is None.

    `threads` are the CPUs that an encoder may use, 0 for every one. `fresh` does not believe what is remembered.

    Raises:
        FfmpegMissing: ffmpeg or ffprobe is missing or too old.
    """
    with _proving(policy) as proving:
        machine = _software(proving, policy, cache_folder, threads, fresh)
        return _with_devices(proving, machine, policy, cache_folder, fresh)


def survey_software(
    policy: Policy, cache_folder: str | None = None, threads: int = 0, *, fresh: bool = False
) -> Machine:
    """The part of `survey` that is soon done: what the CPU can make.

    Raises:
        FfmpegMissing: ffmpeg or ffprobe is missing or too old.
    """
    with _proving(policy) as proving:
        return _software(proving, policy, cache_folder, threads, fresh)


def survey_devices(
    machine: Machine, policy: Policy, cache_folder: str | None = None, *, fresh: bool = False
) -> Machine:
    """The other part: that machine with its devices and what they can do.

    Raises:
        FfmpegMissing: ffmpeg or ffprobe is missing.
    """
    with _proving(policy) as proving:
        return _with_devices(proving, machine, policy, cache_folder, fresh)


def try_again(machine: Machine, policy: Policy, device_id: str, codec: str | None = None) -> tuple[Refusal, ...]:
    """Try anew whether a device still encodes what it has proven: one trial for each codec, or for this one.

    Nothing is remembered, and nothing that is remembered is believed. Gives what failed; nothing where all is well.

    Raises:
        FfmpegMissing: ffmpeg or ffprobe is missing.
    """
    proven = {able for able in machine.abilities if able.device == device_id and able.does == "encode"}
    chosen = [
        min((able for able in proven if able.codec == one), key=lambda able: (able.depth, able.api, able.mode or ""))
        for one in sorted({able.codec for able in proven})
        if codec in (None, one)
    ]
    there = next((one for one in discover(policy) if one.id == device_id), None)
    before = machine.device(device_id)
    if there is None or before is None or there.trouble:
        why = str(there.trouble) if there and there.trouble else "the device is gone"
        return tuple(Refusal(able, why) for able in chosen)
    trials = _trials(machine.build, replace(before, node=there.node))
    with _proving(policy) as proving:
        return _refused(proving.verdicts([trial for trial in trials if trial.ability in chosen]))


def cpus() -> int:
    """How many CPUs this process may use: its affinity, cut to the cgroup's quota (v2, then v1), at least 1."""
    allowed = len(os.sched_getaffinity(0))
    limit = quota()
    return max(1, min(allowed, round(limit) or 1)) if limit else allowed


def quota() -> float | None:
    """CPUs by the cgroup's quota (v2, then v1); None without one."""
    return _quota_v2() or _quota_v1()


def _proving(policy: Policy) -> Proving:
    _found(policy.ffprobe, "TRANSCODER_FFPROBE")
    return Proving(_found(policy.ffmpeg, "TRANSCODER_FFMPEG"), policy.trial_limit, cpus())


def _software(proving: Proving, policy: Policy, folder: str | None, threads: int, fresh: bool) -> Machine:
    program = _found(policy.ffmpeg, "TRANSCODER_FFMPEG")
    path = recall.path(folder, recall.of_program(program))
    held = None if fresh else recall.read(path, OfSoftware)
    build = held.build if held else _build(program, policy.trial_limit)
    known = {one.ability: one for one in held.verdicts} if held else {}
    trials = _trials(build, None)
    missing = [trial for trial in trials if trial.ability not in known]
    known |= {one.ability: one for one in proving.verdicts(missing)}
    verdicts = tuple(known[trial.ability] for trial in trials)
    if missing or not held:
        recall.write(path, OfSoftware(build, lasting(verdicts)))
    return Machine(build, _proven(verdicts), threads or cpus(), refusals=_refused(verdicts))


@dataclass(frozen=True, slots=True)
class _Looked:
    """A device, where what is found on it is remembered, what of that is known, and all that there is to try."""

    device: Device
    path: str | None
    known: Mapping[Ability, Verdict]
    trials: tuple[Trial, ...]

    @property
    def missing(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.ability not in self.known]


def _with_devices(proving: Proving, machine: Machine, policy: Policy, folder: str | None, fresh: bool) -> Machine:
    program = recall.of_program(_found(policy.ffmpeg, "TRANSCODER_FFMPEG"))

    def look(device: Device) -> _Looked:
        path = recall.path(folder, f"{program} {recall.of_device(device)}")
        held = None if fresh or device.trouble else recall.read(path, OfDevice)
        known = {one.ability: one for one in held.verdicts} if held else {}
        if held:
            device = replace(device, va_driver=held.va_driver, entries=held.entries)
        elif not device.trouble:
            device = asked(device, policy.trial_limit)
        return _Looked(device, path, known, () if device.trouble else _trials(machine.build, device))

    looked = tuple(proving.pool.map(look, discover(policy)))
    missing = [trial for one in looked for trial in one.missing]
    _make_samples(proving, machine, missing)
    found = {one.ability: one for one in proving.verdicts(missing)}
    verdicts = [_of_device(one, found) for one in looked]
    every = tuple(verdict for several in verdicts for verdict in several)
    return replace(
        machine,
        devices=tuple(one.device for one in looked),
        abilities=frozenset(able for able in machine.abilities if able.device is None) | _proven(every),
        refusals=(*(one for one in machine.refusals if one.ability.device is None), *_refused(every)),
    )


def _of_device(looked: _Looked, found: Mapping[Ability, Verdict]) -> tuple[Verdict, ...]:
    """The verdicts on a device, with those just found; remembered."""
    verdicts = tuple(looked.known.get(trial.ability) or found[trial.ability] for trial in looked.trials)
    if looked.missing:
        device = looked.device
        recall.write(looked.path, OfDevice(device.va_driver, device.entries, lasting(verdicts)))
    return verdicts


def _make_samples(proving: Proving, machine: Machine, trials: Iterable[Trial]) -> None:
    """Let software make the files that these trials decode, as far as it has not just done so."""
    wanted = {trial.sample for trial in trials if not proving.has(trial.sample)}
    proving.verdicts(
        [
            trial
            for trial in _trials(machine.build, None)
            if trial.ability in machine.abilities
            and (able := trial.ability).api == SOFTWARE
            and able.does == "encode"
            and (able.codec, able.depth) in wanted
        ]
    )


def _trials(build: Build, device: Device | None) -> tuple[Trial, ...]:
    return tuple(trial for backend in backends.every() for trial in backend.trials(build, device))


def _proven(verdicts: Sequence[Verdict]) -> frozenset[Ability]:
    return frozenset(one.ability for one in verdicts if one.kind is None)


def _refused(verdicts: Sequence[Verdict]) -> tuple[Refusal, ...]:
    return tuple(Refusal(one.ability, one.why) for one in verdicts if one.kind is not None)


def lasting(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """What of the verdicts on the CPU or on one device is worth remembering.

    Not the refusals of an API that finds its devices by itself: they may be there later. An API that cannot start is
    no passing fault where the device works by another one: its runtime is not installed, which the key would show.
    """
    working = {one.ability.api for one in verdicts if one.kind is None}

    def lasts(one: Verdict) -> bool:
        if one.kind is FaultClass.CONFIG:
            return bool(working) and one.ability.api not in working
        return one.lasts and (one.kind is None or one.ability.device is not None or one.ability.api == SOFTWARE)

    return tuple(one for one in verdicts if lasts(one))


def _found(program: str, setting: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise FfmpegMissing(
            f"{program} is not to be found", f"Install ffmpeg 5.1 or newer (apt install ffmpeg), or set {setting}."
        )
    return path


def _build(program: str, limit: float) -> Build:
    first = _said(program, "-version", limit).split("\n", 1)[0]
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
    with ThreadPoolExecutor(2) as pool:
        lists = pool.map(lambda option: _said(program, option, limit), ("-encoders", "-filters"))
        encoders = re.findall(r"^ [VAS][A-Z.]{5} ([a-zA-Z0-9]\S*)", next(lists), re.M)
        filters = re.findall(r"^ [T.][S.][C.]? (\w+) +\S+->", next(lists), re.M)
    return Build(version, numbers, frozenset(encoders), frozenset(filters))


def _said(program: str, option: str, limit: float) -> str:
    words = (program, option) if option == "-version" else (program, "-hide_banner", option)
    try:
        ended = run(words, limit)
    except OSError as failed:
        raise FfmpegMissing(f"setpriv cannot be started: {failed.strerror}", "Install util-linux.") from None
    if ended.returncode:
        raise FfmpegMissing(f"{program} {option} does not work: it ended with {ended.returncode}", "Reinstall ffmpeg.")
    if ended.returncode is None:
        raise FfmpegMissing(f"{program} {option} does not end within {limit:g} s", "Reinstall ffmpeg.")
    return ended.stdout.decode("utf-8", "replace")


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
