"""Look at everything that a worker needs, as the worker would find it: the facts that a diagnosis is made of.

What it makes to find out (a key in Redis, a folder in a media root, an open port) is gone at the end.
"""

from __future__ import annotations

import os
import resource
import secrets
import socket
import time
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress

import redis

from transcoder import devices, recall, settings, survey
from transcoder.diagnosis import Broker, Capacities, Disk, Facts, Port, Process, Wanted
from transcoder.errors import FfmpegMissing, SettingsError
from transcoder.ledger import connect, safe
from transcoder.machine import Device, Machine
from transcoder.policy import Policy
from transcoder.settings import Settings

_PATIENCE = 2.0
"""Seconds for a program on the port of the metrics to answer."""
_CONTAINERS = ("/.dockerenv", "/run/.containerenv")


def examine(site: Settings, environment: Mapping[str, str] = os.environ) -> Facts:
    """Look at everything; takes as long as the survey's trials, a moment when they are remembered."""
    policy = site.policy(default_roots=(os.getcwd(),))
    machine, found, no_ffmpeg = _machine(site, policy)
    process = _process(environment)
    return Facts(
        wanted=_wanted(site),
        process=process,
        machine=machine,
        devices=found,
        nodes=tuple((one.id, devices.node(one, policy)) for one in found),
        cards=_cards(site.dri),
        vpl=recall.vpl_runtimes(environment),
        broker=_broker(site.broker_url),
        disks=tuple(
            _disk(path, kept=mounted or not process.container) for path, mounted in _places(site.media_roots or ())
        ),
        port=_port(site.metrics_host, site.metrics_port),
        no_ffmpeg=no_ffmpeg,
        cache=_cache(site.cache_folder),
        capacities=_capacities(site.capacity_file) if site.capacity_file else None,
    )


def _wanted(site: Settings) -> Wanted:
    return Wanted(
        serves=site.serves,
        device=site.device,
        dri=site.dri,
        threads=site.threads,
        media_roots=site.media_roots or (),
        cache_folder=site.cache_folder,
        unknown=settings.unknown(),
    )


def _capacities(path: str) -> Capacities:
    try:
        found = settings.read_capacities(path)
    except SettingsError as refused:
        return Capacities(path, refused=refused.what)
    return Capacities(path, named=(*found.devices, *(["cpu"] if found.cpus else [])))


def _machine(site: Settings, policy: Policy) -> tuple[Machine | None, tuple[Device, ...], tuple[str, str]]:
    """What was surveyed; where ffmpeg cannot be used, the devices alone, and why it cannot."""
    try:
        machine = survey.survey(policy, site.cache_folder, site.threads)
    except FfmpegMissing as missing:
        found = devices.discover(policy)
        with suppress(OSError):  # setpriv is missing, too
            found = tuple(one if one.trouble else devices.asked(one, policy.trial_limit) for one in found)
        return None, found, (missing.what, missing.next_step)
    return machine, machine.devices, ("", "")


def _process(environment: Mapping[str, str]) -> Process:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Process(
        container=_inside(environment),
        user=os.geteuid(),
        group=os.getegid(),
        groups=tuple(sorted({os.getegid(), *os.getgroups()})),
        nofile=None if soft == resource.RLIM_INFINITY else soft,
        quota=survey.quota(),
        allowed=len(os.sched_getaffinity(0)),
    )


def _inside(environment: Mapping[str, str]) -> bool:
    """Whether this is a container: Docker and Podman leave a file, others a variable."""
    variables = ("container", "KUBERNETES_SERVICE_HOST")
    return any(map(os.path.exists, _CONTAINERS)) or any(environment.get(name) for name in variables)


def _cards(folder: str) -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(sorted(name for name in os.listdir(folder) if name.startswith("card")))
    return ()


# Redis


def _broker(url: str) -> Broker:
    address = safe(url)
    with closing(connect(url)) as client:
        try:
            began = time.time()
            seconds, micros = client.time()
            ended = time.time()
            said = client.info()
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as denied:
            return Broker(address, refused=str(denied), denied=True)
        except (redis.RedisError, OSError) as refused:
            return Broker(address, refused=str(refused))
        return Broker(
            address,
            version=str(said.get("redis_version", "")),
            appendonly=bool(said.get("aof_enabled")),
            eviction=str(said.get("maxmemory_policy", "noeviction")),
            limited=bool(said.get("maxmemory")),
            read_only=_refuses(client),
            skew=(began + ended) / 2 - (seconds + micros / 1e6),
            uncertainty=(ended - began) / 2,
        )


def _refuses(client: redis.Redis) -> str | None:
    """Why Redis takes no writes; None where it does."""
    try:
        client.set(f"transcoder:doctor:{secrets.token_hex(4)}", "", px=1)
    except redis.RedisError as refused:
        return str(refused)
    return None


# Disks


def _places(roots: tuple[str, ...]) -> list[tuple[str, bool]]:
    """The roots, or what is mounted below them, each with whether it is on a mount and outlives a container."""
    mounts = [path for path in _mounts() if path != "/"]
    places: dict[str, bool] = {}
    for root in map(os.path.realpath, roots):
        below = [path for path in mounts if path.startswith(f"{root}/")]
        within = any(root == path or root.startswith(f"{path}/") for path in mounts)
        places |= dict.fromkeys(below, True) if below and not within else {root: within}
    return [*places.items()]


def _mounts() -> list[str]:
    """The mount points of this process (proc_pid_mountinfo(5)), spaces and the like as they are."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return [os.fsdecode(_unescaped(line.split()[4])) for line in file]
    except OSError:
        return []


def _unescaped(path: bytes) -> bytes:
    for code, letter in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(code, letter)
    return path


def _disk(path: str, *, kept: bool) -> Disk:
    try:
        os.listdir(path)
        space = os.statvfs(path)
    except OSError as missing:
        return Disk(path, missing=missing.strerror, kept=kept)
    unwritable, unmovable = _publishing(path)
    return Disk(path, None, unwritable, unmovable, space.f_bavail * space.f_frsize, kept)


def _publishing(path: str) -> tuple[str | None, str | None]:
    """Do what publishing does, with an empty file: why no scratch folder can be made, why nothing moves out of it."""
    folder = os.path.join(path, f".transcoder-doctor-{secrets.token_hex(4)}")
    draft, moved = os.path.join(folder, "draft"), f"{folder}.moved"
    try:
        os.mkdir(folder, 0o700)
    except OSError as refused:
        return refused.strerror, None
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.rename(draft, moved)
        return None, None
    except OSError as refused:
        return None, refused.strerror
    finally:
        for file in (draft, moved):
            with suppress(OSError):
                os.unlink(file)
        with suppress(OSError):
            os.rmdir(folder)


def _cache(folder: str) -> str | None:
    """Why nothing can be written there; None where it can."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as refused:
        return refused.strerror
    return None if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"


# The port


def _port(host: str, number: int) -> Port:
    """Open it as a worker would; where it is taken, see whether a worker of ours has it."""
    if not number:
        return Port(0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(1)
    except OSError as refused:
        return Port(number, worker=True) if _is_ours(host, number) else Port(number, refused=refused.strerror)
    return Port(number)


def _is_ours(host: str, number: int) -> bool:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{here}]:{number}/metrics" if ":" in here else f"http://{here}:{number}/metrics"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_PATIENCE) as answer:
            return b"transcoder_" in answer.read(1 << 20)
    except (OSError, ValueError):
        return False
