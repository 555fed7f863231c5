"""The settings of this site: environment variables, read once, at the edge.

Plain pydantic and a short reader of our own instead of pydantic-settings: that takes 105 ms to import, twice as long
as Celery, parses lists as JSON (so that TRANSCODER_MEDIA_ROOTS=/media would be an error) and passes over typos.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from tempfile import gettempdir
from textwrap import fill
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from transcoder import capacity
from transcoder.capacity import CapacityFile
from transcoder.errors import SettingsError
from transcoder.policy import Policy

PREFIX = "TRANSCODER_"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP)(_\w+)?$")


def _folder(text: str) -> str:
    return _absolute(text, "a folder")


def _absolute(text: str, what: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"{what} is an absolute path without '..'")
    return os.path.normpath(text)


def _split(text: str) -> tuple[str, ...]:
    return tuple(_folder(part) for part in text.split(":") if part)


def _folders(text: object) -> object:
    return _split(text) if isinstance(text, str) else text


def _seconds(text: object) -> object:
    if not isinstance(text, str):
        return text
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhd]?)", text)
    if not found:
        raise ValueError("a time is a number of seconds, or has a unit: 90s, 15m, 12h, 7d")
    return float(found[1]) * _UNITS[found[2]]


def _in_units(seconds: float) -> str:
    unit, length = next(((u, n) for u, n in reversed(_UNITS.items()) if seconds % n == 0), ("s", 1))
    return f"{seconds / length:g}{unit}"


def _octal(text: object) -> object:
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text):
        raise ValueError("a umask is octal, such as 022")
    return int(text.removeprefix("0o"), 8)


def _owner(text: object) -> object:
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"\d{1,10}:\d{1,10}", text):
        raise ValueError("an owner is two numbers, uid:gid, such as 1000:1000")
    uid, gid = text.split(":")
    return int(uid), int(gid)


def _redis(text: object) -> object:
    if isinstance(text, str) and not re.match(r"rediss?://[^/\s]", text):
        raise ValueError("the broker is Redis: redis://[user:password@]host:port/number, or rediss:// with TLS")
    return text


def _cache_folder() -> str:
    home = os.path.expanduser("~")
    # a container may run as a number that has no home
    above = f"{home}/.cache" if home.startswith("/") and home != "/" else f"{gettempdir()}/{os.getuid()}"
    named = os.environ.get("XDG_CACHE_HOME", "")
    return f"{named if named.startswith('/') else above}/transcoder"


Folder = Annotated[str, BeforeValidator(lambda text: _folder(text) if isinstance(text, str) else text)]
File = Annotated[str, BeforeValidator(lambda text: _absolute(text, "a file") if isinstance(text, str) else text)]
Folders = Annotated[tuple[str, ...], BeforeValidator(_folders), PlainSerializer(":".join)]
Places = Annotated[str, BeforeValidator(lambda text: ":".join(_split(text)) if isinstance(text, str) else text)]
Limit = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=366 * 86400), PlainSerializer(_in_units)]
Umask = Annotated[int, BeforeValidator(_octal), Field(ge=0, le=0o777), PlainSerializer(lambda mask: f"{mask:03o}")]
Owner = Annotated[tuple[int, int], BeforeValidator(_owner)]
Broker = Annotated[str, BeforeValidator(_redis)]


class Settings(BaseModel):
    """Every setting, each with its sentence; TRANSCODER_ and the name in capitals is its environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    broker_url: Broker = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="Redis, for the queue and the jobs' records: redis://[user:password@]host:port/number; "
        "rediss:// with TLS.",
    )
    media_roots: Folders | None = Field(
        None,
        description="Folders, separated by colons, that sources and targets must lie in. When unset, `run` takes "
        "the current folder and `worker` refuses to start.",
    )
    ffmpeg: str = Field("ffmpeg", min_length=1, description="The ffmpeg to run: a path, or a name found in PATH.")
    ffprobe: str = Field("ffprobe", min_length=1, description="The ffprobe to run: a path, or a name found in PATH.")
    concurrency: int = Field(
        0, ge=0, le=1024, description="Jobs that a worker runs at a time; 0 decides by the number of CPUs."
    )
    device: str | None = Field(
        None,
        max_length=255,
        description="The device that a worker serves, by path (/dev/dri/renderD128) or PCI address; when unset the "
        "first that proves it can encode. Several devices are several workers.",
    )
    serves: Literal["hardware", "software", "both"] | None = Field(
        None,
        description="What a worker takes jobs for: `hardware` its device only, `software` the CPUs only, `both`; when "
        "unset `both` where there is a device.",
    )
    prefer_wait: Limit = Field(
        60.0,
        description="How long a job that prefers hardware waits for a place there before it goes to software, where "
        "nobody knows how large the job is (TRANSCODER_ORDER).",
    )
    order: Literal["effort", "arrival"] = Field(
        "effort",
        description="Order of waiting jobs of one priority. `effort`: workers look into what waits for the pixels that "
        "it will cost; the longest begin first once they would otherwise end last, and software gets what ends sooner "
        "there. `arrival`: first come, first served, and after TRANSCODER_PREFER_WAIT to software. The same for all "
        "workers.",
    )
    software_slower: float = Field(
        5.0,
        ge=1,
        le=1000,
        description="How many times as long as hardware software takes for a job, on a place, when `effort` decides "
        "where it ends sooner.",
    )
    rise: Limit = Field(
        600.0,
        description="How long a job waits before it becomes one step more urgent, and as long again before the next, "
        "so that none waits for ever.",
    )
    device_budget: float = Field(
        500_000_000,
        gt=0,
        description="What a device bears at a time, in pixels per second of all jobs on it; four of 1080p60.",
    )
    software_budget: float = Field(
        0,
        ge=0,
        description="The same of the container's CPUs together; 0 takes 62,000,000 for each CPU of its quota, which is "
        "one 1080p30.",
    )
    capacity_file: File | None = Field(
        None,
        description="File with what the device and the CPUs were measured to bear, from `transcoder bench density "
        "--capacity FILE`; it stands in for those two budgets where they are not set.",
    )
    lease: Limit = Field(
        3.0,
        ge=1,
        description="How long nothing is heard of a running job before it is taken from its worker. More bears longer "
        "pauses of hosts and of the network; a killed worker's jobs wait that much longer.",
    )
    grace: Limit = Field(
        8.0,
        description="Time that running jobs have to finish when a worker is told to end (SIGTERM); those that cannot "
        "go back to the queue. Whoever kills it, such as Docker after its stop timeout, must wait 2 s longer.",
    )
    lost_workers: int = Field(
        10, ge=1, le=1000, description="Workers that may be lost while they have a job, before it fails."
    )
    retries: int = Field(
        5,
        ge=0,
        le=100,
        description="How often a job is tried again whose fault may pass: no memory, no space, storage that does not "
        "answer.",
    )
    retry_delay: Limit = Field(
        10.0, description="About how long it waits for that at first; four times as long each time."
    )
    retry_most: Limit = Field(300.0, description="Longest time that it waits between two tries.")
    breaker_faults: int = Field(
        3, ge=1, le=1000, description="Faults of a device, for one codec, after which it gets no more jobs for a while."
    )
    breaker_window: Limit = Field(600.0, description="Time within which these faults count.")
    breaker_cooldown: Limit = Field(
        60.0,
        description="Time for which it then gets none, before a trial decides; it doubles from trial to trial, to 15 "
        "minutes.",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPUs that one software encoder may use; 0 takes the container's quota."
    )
    profiles_folder: Folder | None = Field(
        None, description="Folder with profiles of your own, NAME.yaml; they stand before shipped ones of that name."
    )
    manifest_folder: Folder | None = Field(
        None, description="Folder for the manifests of published jobs; when unset each lies beside its outputs."
    )
    cache_folder: Folder = Field(
        default_factory=_cache_folder,
        description="Folder where what this machine can encode is remembered, so that the trials run once.",
    )
    umask: Umask = Field(0o022, description="Octal umask of published files and new folders.")
    owner: Owner | None = Field(
        None, description="Owner of published files, uid:gid; when unset it is the worker's. Changing it needs root."
    )
    probe_limit: Limit = Field(30.0, description="Longest time that ffprobe may take; after it the job is put off.")
    first_frame_limit: Limit = Field(
        120.0, description="Longest silence of ffmpeg before its first progress; then the route counts as stalled."
    )
    stall_limit: Limit = Field(60.0, description="Longest silence of ffmpeg after its first progress.")
    trial_limit: Limit = Field(
        20.0, description="Longest time that a trial of what the machine can do may take; one that hangs is killed."
    )
    wall_limit: Limit = Field(2 * 86400.0, description="Longest time that one run of ffmpeg may take.")
    cpu_limit: Limit = Field(
        14 * 86400.0, description="Most CPU time that one run of ffmpeg may take, of all its threads."
    )
    max_alloc: int = Field(
        1 << 30, ge=1 << 20, le=(1 << 31) - 1, description="Most bytes of memory that ffmpeg may take in one piece."
    )
    max_file: int = Field(1 << 40, ge=1 << 20, description="Most bytes that one output may have.")
    nice: int = Field(
        5, ge=0, le=19, description="Niceness of ffmpeg beside the worker, whose heart must beat while all CPUs encode."
    )
    max_pixels: int = Field(
        8192 * 8192, ge=1, description="Most pixels a picture of a source may have; larger ones are refused."
    )
    hardware_decode: bool = Field(
        True,
        description="`no` decodes on the CPU and only encodes on devices, so that hostile files never reach a GPU's "
        "driver.",
    )
    dri: Folder = Field("/dev/dri", description="Folder with the GPUs' render nodes; moved for tests.")
    sysfs: Folder = Field("/sys", description="Where the kernel describes them; moved for tests.")
    proc: Folder = Field("/proc", description="Where the kernel counts what processes do on them; moved for tests.")
    retention: Limit = Field(7 * 86400.0, description="How long the record of a finished job is kept.")
    metrics_port: int = Field(
        9464, ge=0, le=65535, description="Port of the worker's /metrics and /healthz; 0 opens none."
    )
    metrics_host: str = Field(
        "0.0.0.0", min_length=1, description="Address that this port is opened on; `::` is every one, IPv6 too."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`json` is one line of JSON an event, `text` is for people; `auto` is text on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged: `debug`, `info`, `warning` or `error`."
    )

    def policy(self, default_roots: tuple[str, ...] | None = None) -> Policy:
        """The rules for jobs. `default_roots` stand in where TRANSCODER_MEDIA_ROOTS is unset; None forbids that.

        Raises:
            SettingsError: there are no media roots.
        """
        roots = self.media_roots or default_roots
        if not roots:
            raise SettingsError(
                "TRANSCODER_MEDIA_ROOTS is not set: a worker touches no file outside the folders that it names",
                "Set it to the folders with your media, separated by colons: TRANSCODER_MEDIA_ROOTS=/media:/archive",
            )
        return Policy(
            roots=roots,
            ffmpeg=self.ffmpeg,
            ffprobe=self.ffprobe,
            probe_limit=self.probe_limit,
            first_frame_limit=self.first_frame_limit,
            stall_limit=self.stall_limit,
            wall_limit=self.wall_limit,
            cpu_limit=self.cpu_limit,
            max_alloc=self.max_alloc,
            max_file=self.max_file,
            nice=self.nice,
            max_pixels=self.max_pixels,
            manifest_folder=self.manifest_folder,
            umask=self.umask,
            owner=self.owner,
            hardware_decode=self.hardware_decode,
            trial_limit=self.trial_limit,
            dri=self.dri,
            sysfs=self.sysfs,
            proc=self.proc,
        )


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. A variable that is empty counts as unset.

    Raises:
        SettingsError: naming the variable and what it wants.
    """
    texts = {field: _text(variable(field), environment) for field in Settings.model_fields}
    try:
        return Settings.model_validate({field: text for field, text in texts.items() if text})
    except ValidationError as refused:
        raise _error(refused) from None


def read_capacities(path: str) -> CapacityFile:
    """What was measured here, from the file that TRANSCODER_CAPACITY_FILE names.

    Raises:
        SettingsError: it cannot be read, or is no capacity file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        why = wrong.strerror if isinstance(wrong, OSError) else "not a text"
        raise capacity.refused(f"cannot read {path}: {why}") from None
    return capacity.parse(text, path)


def unknown(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """A sentence for each TRANSCODER_ variable that is no setting: a typo is the commonest mistake."""
    known = [name for field in Settings.model_fields for name in (variable(field), f"{variable(field)}_FILE")]
    strangers = sorted(
        name
        for name, text in environment.items()
        if name.startswith(PREFIX) and name not in known and not _of_kubernetes(name, text)
    )
    return tuple(f"{name} is no setting and does nothing{_meant(name, known)}" for name in strangers)


def documentation() -> str:
    """docs/settings.md, which a test keeps equal to this."""
    # a folder in the user's home is not the same on every machine
    defaults = Settings(cache_folder="/").model_dump() | {"cache_folder": "$XDG_CACHE_HOME/transcoder"}
    rows = "\n".join(
        f"| `{variable(field)}` | {'unset' if default is None else f'`{default}`'} "
        f"| {Settings.model_fields[field].description} |"
        for field, default in defaults.items()
    )
    return f"{_INTRODUCTION}\n{rows}\n"


def example() -> str:
    """The settings' part of compose/.env.example: each with its sentence, and its default as a comment."""
    # an empty value is unset: a folder in the user's home is not the same on every machine
    defaults = Settings(cache_folder="/").model_dump() | {"cache_folder": None}
    return "\n".join(
        f"{_commented(Settings.model_fields[field].description or '')}\n"
        f"#{variable(field)}={'' if default is None else default}\n"
        for field, default in defaults.items()
    )


def _commented(sentence: str) -> str:
    return fill(sentence, 118, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _text(name: str, environment: Mapping[str, str]) -> str | None:
    text, file = environment.get(name), environment.get(f"{name}_FILE")
    if not file:
        return None if text and _of_kubernetes(name, text) else text
    if text:
        raise SettingsError(f"both {name} and {name}_FILE are set", "Unset one of them.")
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as refused:
        why = refused.strerror if isinstance(refused, OSError) else "not a text"
        raise SettingsError(
            f"{name}_FILE: cannot read {file}: {why}", "Name a file with the value as its only line."
        ) from None


def _error(refused: ValidationError) -> SettingsError:
    wrong = {str(error["loc"][0]): error for error in refused.errors(include_url=False)}
    lines = (
        f"{variable(field)}{_value(field, error['input'])}: {_rule(error['msg'])}" for field, error in wrong.items()
    )
    wanted = (f"{variable(field)}: {Settings.model_fields[field].description}" for field in wrong)
    return SettingsError("\n".join(lines), "\n  ".join(wanted))


def _value(field: str, text: object) -> str:
    # the broker's address may hold a password
    return "" if field == "broker_url" else f" is {str(text)[:80]!r}"


def _rule(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "it should")


def _of_kubernetes(name: str, text: str) -> bool:
    """Whether Kubernetes made the variable for a service called transcoder or transcoder-something."""
    if name.endswith("_PORT") and not name.endswith("_SERVICE_PORT"):
        return "://" in text
    return _KUBERNETES.search(name) is not None


def _meant(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else "; docs/settings.md lists them all"


_INTRODUCTION = """\
# Settings

Environment variables, read once when a process starts. A variable that is empty counts as unset; one that begins with
`TRANSCODER_` and is not in this list is reported, with the name that was probably meant.

For each there is a variant ending in `_FILE` that names a file with the value as its only line, so that a secret can
come from `/run/secrets`: `TRANSCODER_BROKER_URL_FILE=/run/secrets/broker`. Passwords are never logged.

Times are seconds, or have a unit: `90s`, `15m`, `12h`, `7d`. Folders are absolute paths.

| Variable | Default | Meaning |
| --- | --- | --- |"""
