"""What is wrong with a machine or a container, why it matters, and the line that mends it: facts in, findings out.

What each kind of finding means and why it matters stands in ailments.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from transcoder.ailments import CATALOGUE, FAILED, WARNED
from transcoder.machine import SOFTWARE, Ability, Device, Machine, Node, TroubleKind

Level: TypeAlias = Literal["fine", "note", "warning", "failure"]
LEVELS: tuple[Level, ...] = ("fine", "note", "warning", "failure")

FEW_FILES, MANY_FILES = 1024, 1 << 20
LOW_SPACE, NO_SPACE = 5 << 30, 256 << 20
"""Free bytes of a target's file system below which it is a warning, and a failure."""
CLOCK_LIMIT = 2.0
"""Seconds that the clock may differ from that of Redis."""
OLD_FFMPEG, WITH_VPL = (7,), (6,)
INTEL = "0x8086"
NOBODY = 65534
"""What the kernel shows instead of a group that the user namespace does not know (kernel.overflowgid)."""

_BEFORE_GEN12 = (
    *("01", "04", "0a", "0c", "0d", "0f", "16", "19", "1a", "22"),
    *("31", "3e", "45", "4e", "59", "5a", "87", "8a", "9b"),
)
"""How the PCI devices of Intel's older GPUs begin, by the kernel's include/drm/intel/pciids.h."""
_LOW_POWER, _ENCODE = "EncSliceLP", ("EncSlice", "EncSliceLP")
_VIDEO = ("h264", "hevc", "av1", "vp9")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings ask: see settings.py for each. `unknown` are sentences about variables that are no settings."""

    serves: str | None = None
    device: str | None = None
    dri: str = "/dev/dri"
    threads: int = 0
    media_roots: tuple[str, ...] = ()
    cache_folder: str = ""
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Process:
    """Who looks, and within which limits: `cpus` is the quota as a number, None without one; `allowed` the affinity.

    `nofile` is the soft limit of open files, None for no limit.
    """

    container: bool = False
    user: int = 1000
    group: int = 1000
    groups: tuple[int, ...] = ()
    nofile: int | None = 65536
    quota: float | None = None
    allowed: int = 1


@dataclass(frozen=True, slots=True)
class Broker:
    """What Redis says. Where it does not answer `refused` is why, and `denied` whether it was for want of a password.

    `skew` is how many seconds this clock is ahead of Redis', with `uncertainty`; `read_only` why it takes no writes.
    """

    address: str
    refused: str | None = None
    denied: bool = False
    version: str = ""
    appendonly: bool = True
    eviction: str = "noeviction"
    limited: bool = False
    read_only: str | None = None
    skew: float = 0.0
    uncertainty: float = 0.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A media root, or what is mounted below one. `free` in bytes.

    `unwritable` is why no folder can be made in it, `unmovable` why a file cannot be renamed out of a folder in it.
    `kept` is false where it lies in the container's own layer and goes with the container.
    """

    path: str
    missing: str | None = None
    unwritable: str | None = None
    unmovable: str | None = None
    free: int = 1 << 40
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Port:
    """The port of the metrics: whether a `worker` of ours answers there, else why it could not be opened."""

    number: int = 9464
    worker: bool = False
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Capacities:
    """The capacity file: why a worker would not take it, else what it names: device ids, `cpu`."""

    path: str
    refused: str = ""
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was looked at. `machine` is None where ffmpeg cannot be used, for `no_ffmpeg`: (what, what to do).

    `devices` are there all the same; `nodes` by device id. `cards` are display nodes beside them. `vpl` are the
    runtimes of oneVPL that ffmpeg may load. `cache` is why nothing can be remembered. `capacities` is None
    where no capacity file is set.
    """

    wanted: Wanted
    process: Process
    machine: Machine | None
    devices: tuple[Device, ...]
    nodes: tuple[tuple[str, Node], ...]
    cards: tuple[str, ...]
    vpl: tuple[str, ...]
    broker: Broker
    disks: tuple[Disk, ...]
    port: Port
    no_ffmpeg: tuple[str, str] = ("", "")
    cache: str | None = None
    capacities: Capacities | None = None

    def node(self, device: Device) -> Node:
        """What the file system says of the device's node."""
        return dict(self.nodes).get(device.id, Node())


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `about` is which, `mend` the line to write or the step to take.

    `kind` is its name in the catalogue; where all is well there is neither a `why` nor a `mend`.
    """

    kind: str
    level: Level
    about: str
    what: str
    why: str = ""
    mend: str = ""


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that there is to say, in the order of looking: what was found, and what is well."""
    judges = (_settings, _capacities, _ffmpeg, _gpus, _broker, _limits, _disks, _clock, _port)
    return tuple(chain.from_iterable(judge(facts) for judge in judges))


def worst(found: tuple[Finding, ...]) -> Level:
    """The gravest level."""
    return max((one.level for one in found), key=LEVELS.index, default="fine")


def exit_code(level: Level) -> int:
    """What `transcoder doctor` ends with: 0 where nothing is worse than a note."""
    return {"warning": WARNED, "failure": FAILED}.get(level, 0)


def _finding(kind: str, level: Level, about: str, what: str, mend: str) -> Finding:
    return Finding(kind, level, about, what, CATALOGUE[kind].why, mend)


def _fine(about: str, what: str) -> Finding:
    return Finding("fine", "fine", about, what)


# Settings and ffmpeg


def _settings(facts: Facts) -> Iterator[Finding]:
    for sentence in facts.wanted.unknown:
        yield _finding("setting-unknown", "warning", "settings", sentence, "Correct or unset the variable.")


def _capacities(facts: Facts) -> Iterator[Finding]:
    file = facts.capacities
    if file is None:
        return
    here = {"cpu", *(device.id for device in facts.devices)}
    if file.refused:
        mend = "transcoder bench density --capacity FILE measures anew; or unset TRANSCODER_CAPACITY_FILE"
        yield _finding("capacity-unusable", "failure", file.path, file.refused, mend)
    elif not here.intersection(file.named):
        mend = "transcoder bench density --capacity FILE on this machine; or unset TRANSCODER_CAPACITY_FILE"
        what = f"it names {', '.join(file.named) or 'nothing'}, and none of that is here"
        yield _finding("capacity-elsewhere", "note", file.path, what, mend)
    else:
        yield _fine(file.path, f"budgets for {', '.join(one for one in file.named if one in here)} are measured ones")


def _ffmpeg(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine is None:
        what, mend = facts.no_ffmpeg
        yield _finding("ffmpeg-missing", "failure", "ffmpeg", what, mend)
        return
    build, made = machine.build, _software(machine)
    yield _fine("ffmpeg", f"version {build.version}; software encodes {', '.join(made) or 'nothing'}")
    if build.numbers and build.numbers < OLD_FFMPEG:
        what = f"version {build.version} feeds the encoders of a ladder from one thread"
        yield _finding("ffmpeg-old", "note", "ffmpeg", what, "Use the images of this project, or Debian 13's ffmpeg.")
    if "h264" not in made:
        why = next((one.why for one in machine.refusals if one.ability.api == SOFTWARE), "it has no encoder for it")
        mend = "Install an ffmpeg with libx264 (Debian's has it), or point TRANSCODER_FFMPEG at one."
        yield _finding("ffmpeg-encoders", "warning", "ffmpeg", f"software cannot encode H.264: {why}", mend)
    if facts.devices and not any(name.endswith("_vaapi") for name in build.encoders):
        mend = "Install an ffmpeg built with --enable-vaapi (Debian's is), or point TRANSCODER_FFMPEG at one."
        what = "it is built without VAAPI, and there is a GPU"
        yield _finding("ffmpeg-vaapi", _gravity(facts), "ffmpeg", what, mend)


def _software(machine: Machine) -> list[str]:
    return [codec for codec in _VIDEO if machine.can(SOFTWARE, codec, 8)]


# GPUs


def _gravity(facts: Facts) -> Level:
    """How bad it is that a GPU cannot be used: as bad as the settings say that it is needed."""
    wanted = facts.wanted
    if wanted.serves == "software":
        return "note"
    return "failure" if wanted.serves == "hardware" or wanted.device else "warning"


def _gpus(facts: Facts) -> Iterator[Finding]:
    if not facts.devices:
        yield from _no_gpu(facts)
    working = [one for one in facts.devices if _encodes(facts, one)]
    for device in facts.devices:
        yield from _gpu(facts, device, spare=bool(working) and device not in working)
    yield from _chosen(facts)


def _encodes(facts: Facts, device: Device) -> tuple[Ability, ...]:
    if facts.machine is None:
        return ()
    return tuple(able for able in facts.machine.abilities if able.device == device.id and able.does == "encode")


def _no_gpu(facts: Facts) -> Iterator[Finding]:
    folder, level = facts.wanted.dri, _gravity(facts)
    if facts.cards:
        what = f"{', '.join(facts.cards)} is in {folder}, and no render node is"
        mend = f'map the render node instead: in Compose, devices: ["{folder}/renderD128:{folder}/renderD128"]'
        yield _finding("gpu-card-only", level, folder, what, mend)
        return
    mend = (
        f'on a host with a GPU, map it: in Compose, devices: ["{folder}/renderD128:{folder}/renderD128"]'
        if facts.process.container
        else "where there is a GPU, load its kernel driver (i915, xe, amdgpu), and see dmesg"
    )
    what = "there is no GPU: no render node, and the kernel describes none; software does all"
    yield _finding("gpu-none", "failure" if level == "failure" else "note", folder, what, mend)


def _chosen(facts: Facts) -> Iterator[Finding]:
    """Whether the device that the settings name is here."""
    named = facts.wanted.device
    if named is None or any(named in (one.id, one.node) for one in facts.devices):
        return
    here = ", ".join(f"{one.node} is {one.id}" for one in facts.devices) or "none is here"
    what = f"TRANSCODER_DEVICE names {named}, and there is no such device: {here}"
    mend = (
        f'in Compose, devices: ["{named}:{named}"]'
        if named.startswith("/") and facts.process.container
        else "Let TRANSCODER_DEVICE name one of these, or unset it."
    )
    yield _finding("gpu-chosen", "failure", named, what, mend)


def _gpu(facts: Facts, device: Device, *, spare: bool) -> Iterator[Finding]:
    """What there is to say of one device; `spare` where another one works."""
    demanded = facts.wanted.device in (device.id, device.node)
    level: Level = "note" if spare and not demanded else _gravity(facts)
    if device.trouble:
        kind, mend = _of_trouble(facts, device)
        yield _finding(kind, level, device.node, f"{_name(device)}: {device.trouble.what}", mend)
        return
    yield from _listed(facts, device, level)
    yield from _proved(facts, device, level)
    yield from _low_power(device)
    yield from _vpl(facts, device)


def _name(device: Device) -> str:
    return f"{device.id}, {device.driver}" if device.driver else device.id


_TROUBLES: dict[TroubleKind, str] = {
    "unmapped": "gpu-unmapped",
    "group": "gpu-group",
    "mode": "gpu-mode",
    "folder mode": "gpu-mode",
    "cgroup": "gpu-cgroup",
    "unbound": "gpu-unbound",
    "gone": "gpu-gone",
    "folder": "gpu-gone",
    "unopened": "gpu-unopened",
    "no driver": "va-driver-missing",
    "driver": "va-driver-fails",
}


def _of_trouble(facts: Facts, device: Device) -> tuple[str, str]:
    """The kind of finding, and what mends it here: in a container, or on a host."""
    if device.trouble is None:
        raise AssertionError("the device has no trouble")
    kind, mend = device.trouble.kind, device.trouble.mend
    if kind == "group":
        return _of_group(facts, device, mend)
    if kind == "no driver" and facts.process.container:
        mend = f"run the image with the drivers, transcoder:<version>-vaapi; in one of your own, {mend}"
    if kind == "unmapped":
        named = f"RENDER_NODE={device.node.rpartition('/')[2]} in .env, with compose.gpu.yaml of this project"
        inside = facts.process.container
        mend = f"{mend}; {named}" if inside else f"udev makes the node: restart it, or mknod {device.node}"
    return _TROUBLES[kind], mend


def _of_group(facts: Facts, device: Device, mend: str) -> tuple[str, str]:
    process, node = facts.process, facts.node(device)
    if node.group == NOBODY:
        rule = 'SUBSYSTEM=="drm", KERNEL=="renderD*", MODE="0666"'
        return "gpu-userns", f"on the host, a rule of udev: {rule}; with Podman and crun, --group-add keep-groups"
    if not process.container:
        return "gpu-group", f"sudo usermod -aG {node.group_name or node.group} $(id -un), and log in anew"
    given = [group for group in process.groups if group != process.group]
    line = f"{mend}; RENDER_GID={node.group} in .env, with the Compose files of this project"
    return ("gpu-group-wrong" if given else "gpu-group"), line


def _listed(facts: Facts, device: Device, level: Level) -> Iterator[Finding]:
    """What the VA driver lists, and whether there is an encoder in it."""
    if device.entries is None:
        what = f"{_name(device)}: libva is not installed, so that its VA driver cannot be asked"
        yield _finding("va-libva-missing", "note", device.node, what, "apt install libva2 libva-drm2")
        return
    missing = [codec for codec in ("h264", "hevc") if not device.listed(codec, 8, *_ENCODE)]
    if not missing:
        return
    mend = {
        INTEL: "the free Intel driver has no more on older GPUs: intel-media-va-driver-non-free does",
        "0x1002": "use a Mesa with these codecs: Debian's mesa-va-drivers, Fedora's mesa-va-drivers-freeworld",
    }.get(device.vendor or "", "use a driver that lists EncSlice or EncSliceLP for them: vainfo shows it")
    every = not any(one.entrypoint in _ENCODE for one in device.entries)
    lacks = "no encoder at all" if every else f"no encoder for {' and '.join(missing)}"
    what = f"{_name(device)}: its VA driver ({device.va_driver}) lists {lacks}"
    yield _finding("va-entrypoints", level if every else "note", device.node, what, mend)


def _proved(facts: Facts, device: Device, level: Level) -> Iterator[Finding]:
    """What the trials of the survey showed."""
    if facts.machine is None:
        return
    proved = _encodes(facts, device)
    if proved:
        apis = sorted({able.api for able in proved})
        yield _fine(device.node, "; ".join(f"{api} encodes {_codecs(proved, api)}" for api in apis))
    refused = [
        one
        for one in facts.machine.refusals
        if one.ability.device == device.id and one.ability.does == "encode" and one.ability.api == "vaapi"
    ]
    works = {(able.codec, able.depth) for able in proved}
    failing = [one for one in refused if (one.ability.codec, one.ability.depth) not in works]
    if failing:
        first, names = failing[0], sorted({f"{one.ability.codec} {one.ability.depth} bit" for one in failing})
        what = f"{_name(device)}: its driver lists {', '.join(names)}, and every trial failed: {first.why}"
        mend = "`transcoder devices --fresh` shows each trial; try another VA driver (LIBVA_DRIVER_NAME), see dmesg"
        yield _finding("va-trials", "note" if proved else level, device.node, what, mend)


def _codecs(proved: tuple[Ability, ...], api: str) -> str:
    return ", ".join(codec for codec in _VIDEO if any((able.api, able.codec) == (api, codec) for able in proved))


def _low_power(device: Device) -> Iterator[Finding]:
    """Intel's fixed-function encoders that list CQP alone wait for the HuC's firmware."""
    if device.vendor != INTEL:
        return
    for codec in _VIDEO:
        low = device.listed(codec, 8, _LOW_POWER)
        if not low or any(one.modes != frozenset({"CQP"}) for one in low):
            continue
        others = device.listed(codec, 8, "EncSlice")
        level: Level = "note" if any(one.modes - {"CQP"} for one in others) else "warning"
        what = f"{_name(device)}: {codec} in low power (EncSliceLP) lists CQP alone, no bitrate"
        yield _finding("huc-missing", level, device.node, what, _HUC)


_HUC = (
    "on the host: apt install firmware-misc-nonfree (Debian 13: firmware-intel-graphics); "
    "echo 'options i915 enable_guc=2' > /etc/modprobe.d/i915.conf; update-initramfs -u; reboot"
)


def before_gen12(product: str | None) -> bool:
    """Whether a PCI device of Intel (0x9a49) is older than Tiger Lake; an unknown one is taken for newer."""
    return bool(product) and str(product).removeprefix("0x").zfill(4)[:2].lower() in _BEFORE_GEN12


def _vpl(facts: Facts, device: Device) -> Iterator[Finding]:
    """Why QSV does not work on an Intel GPU on which VAAPI does."""
    machine = facts.machine
    if machine is None or device.vendor != INTEL or any(one.api == "qsv" for one in _encodes(facts, device)):
        return
    node, build = facts.node(device), machine.build
    if not any(name.endswith("_qsv") for name in build.encoders) or (build.numbers and build.numbers < WITH_VPL):
        mend = "Use an ffmpeg with --enable-libvpl: the image transcoder:<version>-qsv, or Debian 13's."
        what = f"{_name(device)}: ffmpeg {build.version} has no QSV by oneVPL"
        yield _finding("vpl-ffmpeg", "note", device.node, what, mend)
    elif before_gen12(node.product):
        what = f"{_name(device)}: the GPU ({node.product}) is older than what oneVPL's runtime serves (Tiger Lake)"
        mend = "Use VAAPI (--api vaapi, the image transcoder:<version>-vaapi); Debian 13 has no Media SDK."
        yield _finding("vpl-gpu-old", "warning" if facts.vpl else "note", device.node, what, mend)
    elif not facts.vpl:
        mend = "apt install libmfx-gen1.2, or the image transcoder:<version>-qsv"
        yield _finding("vpl-missing", "note", device.node, f"{_name(device)}: oneVPL's runtime is not installed", mend)
    else:
        reasons = (one.why for one in machine.refusals if (one.ability.api, one.ability.device) == ("qsv", device.id))
        what = f"{_name(device)}: no trial of QSV worked with {', '.join(facts.vpl)}: {next(reasons, 'none was made')}"
        mend = "Install a newer libmfx-gen1.2 and intel-media-va-driver (Debian's backports), or use VAAPI."
        yield _finding("vpl-old", "warning", device.node, what, mend)


# Redis and the clock


def _broker(facts: Facts) -> Iterator[Finding]:
    broker = facts.broker
    if broker.refused and broker.denied:
        mend = "Put the password into TRANSCODER_BROKER_URL: redis://:PASSWORD@HOST:6379/0, or into its _FILE."
        yield _finding("redis-denied", "failure", broker.address, f"Redis lets nobody in so: {broker.refused}", mend)
        return
    if broker.refused:
        mend = "Start Redis, or let TRANSCODER_BROKER_URL name where it is; in Compose both are in one network."
        what = f"Redis does not answer: {broker.refused}"
        yield _finding("redis-unreachable", "failure", broker.address, what, mend)
        return
    yield _fine(broker.address, f"Redis {broker.version} answers")
    if broker.read_only:
        mend = "Let TRANSCODER_BROKER_URL name the primary; see INFO, and the space on its disk and in its memory."
        yield _finding("redis-refuses", "failure", broker.address, f"it takes no writes: {broker.read_only}", mend)
    if not broker.appendonly:
        mend = (
            "redis-cli CONFIG SET appendonly yes; for good: appendonly yes in redis.conf, --appendonly yes in Compose"
        )
        what = "it keeps no append-only file"
        yield _finding("redis-volatile", "warning", broker.address, what, mend)
    if broker.eviction != "noeviction":
        mend = "redis-cli CONFIG SET maxmemory-policy noeviction; for good: in redis.conf, or as an option in Compose"
        limit = "its memory is limited" if broker.limited else "no limit of memory is set yet"
        what = f"maxmemory-policy is {broker.eviction}, and {limit}"
        level: Level = "failure" if broker.limited else "warning"
        yield _finding("redis-evicts", level, broker.address, what, mend)


def _clock(facts: Facts) -> Iterator[Finding]:
    broker = facts.broker
    if broker.refused:
        return
    if abs(broker.skew) <= CLOCK_LIMIT + broker.uncertainty:
        yield _fine("clock", f"within {CLOCK_LIMIT:g} s of Redis'")
        return
    what = f"this clock is {abs(broker.skew):.1f} s {'ahead of' if broker.skew > 0 else 'behind'} that of Redis"
    yield _finding("clock-off", "warning", "clock", what, "on both hosts: timedatectl set-ntp true (or chrony)")


# Limits of the process


def _limits(facts: Facts) -> Iterator[Finding]:
    process, threads = facts.process, facts.wanted.threads
    yield from _open_files(process)
    cpus = min(process.quota or process.allowed, process.allowed)
    yield _fine("CPUs", f"{cpus:g} for this process, of its affinity {process.allowed}")
    if process.quota is not None and process.quota < 1:
        what = f"the quota is {process.quota:g} of a CPU"
        yield _finding("cpu-quota", "warning", "CPUs", what, 'in Compose, cpus: "2" or more')
    if threads > max(1, cpus):
        what = f"TRANSCODER_THREADS is {threads}, and {cpus:g} CPUs are allowed"
        yield _finding("cpu-threads", "warning", "CPUs", what, "Unset TRANSCODER_THREADS: it follows the quota then.")
    if facts.cache:
        folder = facts.wanted.cache_folder
        what = f"nothing can be remembered in {folder}: {facts.cache}"
        mend = f"in Compose, tmpfs: [{folder}], or TRANSCODER_CACHE_FOLDER on a volume"
        yield _finding("cache-unwritable", "note", folder, what, mend)


def _open_files(process: Process) -> Iterator[Finding]:
    limit = process.nofile
    mend = (
        "in Compose, ulimits: {nofile: {soft: 65536, hard: 65536}}"
        if process.container
        else "ulimit -n 65536; for a service of systemd, LimitNOFILE=65536"
    )
    if limit is not None and limit < FEW_FILES:
        yield _finding("nofile-low", "warning", "nofile", f"{limit} files may be open", mend)
    elif limit is None or limit > MANY_FILES:
        said = "any number of" if limit is None else limit
        yield _finding("nofile-huge", "warning", "nofile", f"{said} files may be open", mend)
    else:
        yield _fine("nofile", f"{limit} files may be open")


# Disks


def _disks(facts: Facts) -> Iterator[Finding]:
    if not facts.wanted.media_roots:
        mend = "TRANSCODER_MEDIA_ROOTS=/media, or several folders with colons between"
        yield _finding("roots-unset", "failure", "media roots", "TRANSCODER_MEDIA_ROOTS is not set", mend)
    writable = [one for one in facts.disks if not one.missing and not one.unwritable]
    for disk in facts.disks:
        yield from _disk(facts, disk, spare=bool(writable))


def _disk(facts: Facts, disk: Disk, *, spare: bool) -> Iterator[Finding]:
    """What there is to say of one root; `spare` where another can be written."""
    if disk.missing:
        mend = (
            f'in Compose, volumes: ["/where/it/is:{disk.path}"]' if facts.process.container else f"mkdir -p {disk.path}"
        )
        yield _finding("disk-missing", "failure", disk.path, f"it cannot be looked into: {disk.missing}", mend)
        return
    if disk.unwritable:
        user, group = facts.process.user, facts.process.group
        what = f"user {user} can write nothing there ({disk.unwritable})"
        mend = (
            f"where targets shall be written: chown {user}:{group} the folder, or let the process be its owner "
            "(user in Compose; RUN_AS in .env of this project), and no :ro in its volumes"
        )
        yield _finding("disk-unwritable", "note" if spare else "failure", disk.path, what, mend)
        return
    if disk.unmovable:
        what = f"a file cannot be renamed out of a folder within it: {disk.unmovable}"
        mend = "Name the folders of one file system as roots, not a union of several (mergerfs: path-preserving off)."
        yield _finding("disk-scratch", "failure", disk.path, what, mend)
    if not disk.kept:
        mend = f'in Compose, volumes: ["media:{disk.path}"]'
        what = "it lies in the container's own layer, on no volume"
        yield _finding("disk-volatile", "warning", disk.path, what, mend)
    if disk.free < LOW_SPACE:
        what = f"{disk.free / 2**30:.1f} GiB are free"
        mend = "Make room, or let targets lie on another file system."
        yield _finding("disk-full", "failure" if disk.free < NO_SPACE else "warning", disk.path, what, mend)
    else:
        yield _fine(disk.path, f"can be written, {disk.free / 2**30:.0f} GiB free")


# The port


def _port(facts: Facts) -> Iterator[Finding]:
    port, about = facts.port, f"port {facts.port.number}"
    if not port.number:
        mend = "TRANSCODER_METRICS_PORT=9464, or unset it"
        yield _finding("port-closed", "note", "metrics", "TRANSCODER_METRICS_PORT is 0: no port is opened", mend)
    elif port.refused:
        mend = "TRANSCODER_METRICS_PORT=9465, or any port that is free; see TRANSCODER_METRICS_HOST, too"
        yield _finding("port-refused", "failure", about, f"it cannot be opened: {port.refused}", mend)
    else:
        yield _fine(about, "a worker answers there" if port.worker else "free for the metrics")
