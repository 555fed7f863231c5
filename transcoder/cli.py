"""The verbs of the command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from transcoder import profiles, screen, settings, signals, spec
from transcoder.errors import JobCancelled, NoRoute, SpecError, TargetExists, TargetUnwritable, TranscoderError
from transcoder.spec import JobSpec, Output
from transcoder.version import __version__

if TYPE_CHECKING:
    from transcoder.client import Client, Status
    from transcoder.command import Command
    from transcoder.events import Emit, Event
    from transcoder.settings import Settings


class Verbs(TyperGroup):
    """Gives Ctrl-C and a reader that is gone the same exit codes whatever the version of typer."""

    def invoke(self, ctx: Any) -> Any:
        """Run one verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise typer.Exit(141) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs; those of the benchmark are one, with verbs of its own."""
        return [*super().list_commands(ctx), "bench"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One verb. The benchmark's are imported when they are asked for."""
        if cmd_name != "bench":
            return super().get_command(ctx, cmd_name)
        from transcoder.bench import verbs

        return typer.main.get_command(verbs.app)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Transcode media on the GPU where there is one, and verify what is published.",
    epilog="Settings are environment variables: docs/settings.md. Exit codes: docs/exit-codes.md.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `submit` printed it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

Source = Annotated[str | None, typer.Argument(metavar="SRC", show_default=False, help="The file to read.")]
Destination = Annotated[
    str | None, typer.Argument(metavar="DST", show_default=False, help="The file to write, a folder, or a template.")
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", "-p", metavar="NAME", help="What to make: see `transcoder profiles`.")
]
SpecFile = Annotated[
    str | None, typer.Option("--spec", metavar="FILE", help="A whole spec as JSON instead of a profile; - is stdin.")
]
Accel = Annotated[
    Literal["prefer", "require", "never"] | None,
    typer.Option("--accel", help="Whether to use acceleration; `prefer`, the default, falls back to software."),
]
Apis = Annotated[
    list[str] | None, typer.Option("--api", metavar="API", help="Such as vaapi; repeat it for an order of preference.")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="/dev/dri/renderD128, or a PCI address.")
]
Priority = Annotated[int | None, typer.Option("--priority", metavar="0-9", help="9 goes first; 5 when left out.")]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Submitting the same token twice makes one job.")
]
Meta = Annotated[list[str] | None, typer.Option("--meta", metavar="KEY=VALUE", help="Words to keep with the job.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace targets that exist.")]
Salvage = Annotated[bool, typer.Option("--salvage", help="Publish what can be read of a source that is cut short.")]
Verify = Annotated[
    Literal["sampled", "full"] | None, typer.Option("--verify", help="How much of each output to decode.")
]

_TARGETS = """
    DST may be a file, whose ending then chooses the container (mp4, m4a, mkv, webm; else the profile's); a folder, for
    STEM-PROFILE.EXT in it, or STEM-NAME.EXT for each of several outputs; or a template with {stem}, {name}, {height},
    {profile} or {ext}.
"""


@app.callback(invoke_without_command=True)
def _every(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        screen.line(f"transcoder {__version__}")
        raise typer.Exit


@app.command(
    help=f"""Transcode one file here and now, without a queue.

    SRC and DST must lie in TRANSCODER_MEDIA_ROOTS, or in the current folder when that is unset. Ctrl-C leaves nothing
    behind; the same command again completes or undoes what a crash has left.
    {_TARGETS}
    \b
    transcoder run film.mov film.mp4 --profile h264-1080p
    transcoder run film.mov out/ -p ladder-h264 --accel require --api qsv --api vaapi
    transcoder run film.ts film.mkv -p remux --dry-run
    """
)
def run(
    source: Source = None,
    target: Destination = None,
    *,
    profile: ProfileName = None,
    spec_file: SpecFile = None,
    accel: Accel = None,
    api: Apis = None,
    device: Device = None,
    priority: Priority = None,
    token: Token = None,
    meta: Meta = None,
    overwrite: Overwrite = False,
    salvage: Salvage = False,
    verify: Verify = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands that would be tried, and do nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    from transcoder.job import transcode
    from transcoder.manifest import Attempt
    from transcoder.survey import survey

    site = _settings()
    fields = _fields(
        accel=accel,
        apis=api,
        device=device,
        priority=priority,
        token=token,
        meta=meta,
        overwrite=overwrite,
        salvage=salvage,
        verify=verify,
    )
    job = _asked(source, target, profile, spec_file, fields, site)
    policy = site.policy(default_roots=(os.getcwd(),))
    if dry_run:
        _plan(job, site, json)
        return
    with _interruptible() as permit, screen.live(quiet=json) as live:
        machine = survey(policy, site.cache_folder, site.threads)
        try:
            published = transcode(job, Attempt(job_id(job)), machine, policy, _shows(live, permit), permit)
        except JobCancelled:
            permit.leave()
    record = published.as_record()
    screen.as_json(record) if json else screen.result(record)


@app.command(
    help=f"""Put a job on the queue, and print its id.

    SRC and DST are paths as the worker sees them; relative ones are taken from the current folder.
    {_TARGETS}
    \b
    transcoder submit /media/film.mov /media/out/ --profile ladder-h264 --wait
    transcoder submit --spec job.json --priority 9
    """
)
def submit(
    source: Source = None,
    target: Destination = None,
    *,
    profile: ProfileName = None,
    spec_file: SpecFile = None,
    accel: Accel = None,
    api: Apis = None,
    device: Device = None,
    priority: Priority = None,
    token: Token = None,
    meta: Meta = None,
    overwrite: Overwrite = False,
    salvage: Salvage = False,
    verify: Verify = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Follow the job to its end, and end with its exit code. Ctrl-C stops waiting, not the job."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    site = _settings()
    fields = _fields(
        accel=accel,
        apis=api,
        device=device,
        priority=priority,
        token=token,
        meta=meta,
        overwrite=overwrite,
        salvage=salvage,
        verify=verify,
    )
    job = _asked(source, target, profile, spec_file, fields, site)
    client = _client()
    number = client.submit(job)
    if wait:
        if not json:
            print(f"job {number}", file=sys.stderr)
        _conclude(_follow(client.watch(number), quiet=json), json)
    elif json:
        screen.as_json({"id": number})
    else:
        screen.line(number)


@app.command(
    help="""List the newest jobs.

    \b
    transcoder jobs --state failed
    """
)
def jobs(
    state: Annotated[
        Literal["queued", "running", "published", "failed", "cancelled", "quarantined"] | None,
        typer.Option("--state", help="Only jobs in this state."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many, the newest first.")] = 50,
    json: AsJson = False,
) -> None:
    found = _client().jobs(state, limit)
    if json:
        screen.as_json(found)
        return
    now = time.time()
    screen.table(
        ("id", "state", "phase", "done", "queue", "profile", "source", "age"),
        [
            (
                one.id,
                one.state,
                one.phase,
                _done(one),
                one.queue or "",
                one.spec.get("profile", ""),
                one.spec["source"],
                screen.span(now - one.created),
            )
            for one in found
        ],
    )


@app.command()
def status(number: JobId, json: AsJson = False) -> None:
    """Tell everything about one job."""
    found = _client().status(number)
    screen.as_json(found) if json else screen.status(found)


@app.command()
def watch(
    number: JobId,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a change.")] = False,
) -> None:
    """Follow a job to its end.

    Ends with the job's exit code. Ctrl-C stops watching, not the job.
    """
    seen = _client().watch(number)
    if not json:
        _conclude(_follow(seen, quiet=False), as_json=False)
        return
    last = None
    for last in seen:
        screen.as_json_line(last)
    if last and (error := _error(last)):
        raise typer.Exit(error.exit_code)


@app.command()
def workers(json: AsJson = False) -> None:
    """List the workers: what each serves, how busy it is, and when it was last heard of.

    A codec under `left alone` failed on the device; it is tried again by itself.
    """
    from transcoder.placement import short

    found = _client().workers()
    if json:
        screen.as_json(
            [
                {
                    "owner": one.owner,
                    **asdict(one.told),
                    "queues": [short(name) for name in one.told.queues],
                    "running": one.running,
                    "live": one.live,
                    "heard_seconds_ago": round(one.ago, 1),
                }
                for one in found
            ]
        )
        return
    screen.table(
        ("name", "device", "queues", "jobs", "left alone", "last heard"),
        [
            (
                one.told.name,
                one.told.device or "",
                " ".join(short(name) for name in one.told.queues),
                f"{one.running} of {one.told.places}",
                " ".join(one.told.left_alone),
                f"{screen.span(one.ago)} ago" if one.live else f"{screen.span(one.ago)} ago: silent",
            )
            for one in found
        ],
    )


@app.command()
def cancel(number: JobId, json: AsJson = False) -> None:
    """Cancel a job.

    A queued one ends at once, a running one within a second. Nothing is published.
    """
    state = _client().cancel(number)
    if json:
        screen.as_json({"id": number, "state": state})
    else:
        screen.line(f"{number} is cancelled" if state == "cancelled" else f"{number} is being cancelled")


@app.command()
def retry(number: JobId, json: AsJson = False) -> None:
    """Submit a job that failed, was cancelled or rests in quarantine once more, and print the new job's id."""
    new = _client().retry(number)
    screen.as_json({"id": new, "retries": number}) if json else screen.line(new)


QueueName = Annotated[
    str, typer.Argument(metavar="QUEUE", help="hw.h264, hw.hevc, hw.hevc10, hw.av1, hw.vp9, software.")
]


@app.command()
def pause(name: QueueName) -> None:
    """Let no job of a queue begin from now on.

    Those that run go on, and new ones are accepted.
    """
    _client().pause(name)
    screen.line(f"{name} is paused: none of its jobs begins until `transcoder resume {name}`")


@app.command()
def resume(name: QueueName) -> None:
    """Let the jobs of a paused queue begin again."""
    _client().resume(name)
    screen.line(f"{name} goes on")


@app.command()
def quarantine(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many, the newest first.")] = 50,
    json: AsJson = False,
) -> None:
    """List the jobs on whose source ffmpeg died again and again, in software too where that is allowed.

    With --json each has its evidence: command, ffmpeg's last words, what the source is, the worker and its device.
    """
    found = _client().jobs("quarantined", limit)
    if json:
        screen.as_json(found)
        return
    screen.table(
        ("id", "source", "why", "age"),
        [(one.id, one.spec["source"], (one.error or {}).get("what", ""), _age(one)) for one in found],
    )


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker() -> None:
    """Take jobs off the queue and do them."""
    # only here to be listed: __main__ starts it without this module
    raise typer.BadParameter("`worker` comes first and its options follow", param_hint="worker")


@app.command(
    "profiles",
    help="""List the profiles, or print one.

    What is printed is a beginning for your own, in the folder TRANSCODER_PROFILES_FOLDER.

    \b
    transcoder profiles ladder-h264 > mine/ladder.yaml
    """,
)
def list_profiles(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one's file.")] = None,
    json: AsJson = False,
) -> None:
    folder = _settings().profiles_folder
    if name and not json:
        print(profiles.text(name, folder), end="")
        return
    found = [profiles.profile(name, folder)] if name else profiles.every(folder)
    if json:
        screen.as_json(found)
    else:
        screen.table(("profile", "what it makes"), [(one.name, one.description) for one in found])


@app.command(
    help="""Show the GPUs of this machine, what was proven to work on each, and what was refused and why.

    Every encoder is tried in every rate control that its driver lists, decoders and filters too. What was found is
    remembered until the device, its driver, ffmpeg or the kernel changes.

    \b
    transcoder devices --fresh
    transcoder devices --json | jq '.devices[].trouble'
    """
)
def devices(
    json: AsJson = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Try everything anew, whatever is remembered.")] = False,
) -> None:
    from transcoder.survey import survey

    site = _settings()
    with screen.live(quiet=True) as live:
        live.phase("trying")
        machine = survey(site.policy(default_roots=(os.getcwd(),)), site.cache_folder, site.threads, fresh=fresh)
    screen.devices_json(machine) if json else screen.devices(machine, site.dri)


@app.command(
    help="""Say what is wrong with this host or container for a worker, why it matters, and the line that mends it.

    Looks at GPUs, drivers, ffmpeg, Redis, limits, disks, the clock and the metrics' port, with the settings, the user
    and the groups that the worker would have. Ends with 0, 30 with a warning, 31 with a failure: docs/doctor.md.

    \b
    transcoder doctor
    docker compose run --rm worker doctor
    """
)
def doctor(json: AsJson = False) -> None:
    from transcoder.diagnosis import exit_code, findings, worst
    from transcoder.doctor import examine

    site = settings.read()  # what is wrong with variables is among the findings
    with screen.live(quiet=True) as live:
        live.phase("looking")
        found = findings(examine(site))
    screen.findings_json(found) if json else screen.findings(found)
    raise typer.Exit(exit_code(worst(found)))


@app.command(
    help="""Write the Compose overlay for the GPUs of this host: their nodes and the numbers of their groups.

    It belongs beside compose/compose.yaml. `per-gpu` gives each GPU a container of its own, in which the stacks run;
    `per-stack` gives each stack one, and those of a GPU share it; `shared` gives one GPU to the worker that is there.
    Where there is a choice to make the file says CHOOSE.

    \b
    transcoder compose --stacks 4 -o compose/compose.gpus.yaml
    docker run --rm --volume /dev/dri:/dev/dri:ro transcoder:0.1.0-software compose
    """
)
def compose(
    *,
    topology: Annotated[
        Literal["shared", "per-gpu", "per-stack"], typer.Option("--topology", help="What each container has.")
    ] = "per-gpu",
    stacks: Annotated[int, typer.Option("--stacks", min=1, max=1024, metavar="N", help="Jobs at a time on a GPU.")] = 1,
    api: Annotated[Literal["vaapi", "qsv"], typer.Option("--api", help="Which of the images to take.")] = "vaapi",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file; stdout when left out.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    from transcoder import devices, overlay

    policy = _settings().policy(default_roots=(os.getcwd(),))
    seen = [(one, devices.node(one, policy)) for one in devices.discover(policy)]
    fit, left_out = overlay.chosen(seen, api)
    if not fit:
        raise NoRoute(
            "\n  ".join((f"there is no GPU in {policy.dri} that a container could use by {api}", *left_out)),
            "Run it on the host, or in a container with /dev/dri as a volume. Without a GPU compose.yaml is enough.",
        )
    name = os.path.basename(output) if output else "compose.gpus.yaml"
    text = overlay.overlay(fit, left_out, overlay.Asked(topology, stacks, api, __version__, name))
    _write(output, text, overwrite=overwrite) if output else print(text, end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of a spec.

    It has the meaning, unit and default of every field.
    """
    screen.as_json(JobSpec.model_json_schema(by_alias=True))


def job_id(job: JobSpec) -> str:
    """The id of a job without a queue: the same spec again is the same job, which finds what a crash has left."""
    return hashlib.sha256(job.model_dump_json(by_alias=True).encode()).hexdigest()[:16]


def target_for(asked: str, profile: str, outputs: int) -> str:
    """The target of a spec from what DST says: an absolute path or template."""
    path = os.path.abspath(asked)
    if spec.PLACEHOLDER.search(asked) or not (asked.endswith("/") or os.path.isdir(path)):
        return path
    return f"{path.rstrip('/')}/{{stem}}-{'{name}' if outputs > 1 else profile}.{{ext}}"


_CONTAINERS = {"mp4": "mp4", "m4v": "mp4", "m4a": "mp4", "mkv": "mkv", "mka": "mkv", "webm": "webm"}


def contained(outputs: tuple[Output, ...], target: str) -> tuple[Output, ...]:
    """The outputs with the container that the target's ending names, where there is one output and it names one."""
    ending = os.path.splitext(target)[1].removeprefix(".")
    container = _CONTAINERS.get(ending.lower())
    if re.fullmatch(r"[A-Za-z0-9]{2,4}", ending) and container is None:
        raise SpecError(
            f"the target {target!r} ends in .{ending}, which is no container that can be made",
            f"Let it end in {', '.join(_CONTAINERS)}, or in .{{ext}}.",
        )
    if len(outputs) > 1 and container and any(output.container != container for output in outputs):
        raise SpecError(
            f"the target {target!r} ends in .{ending}, and the outputs are {outputs[0].container}",
            "Let it end in .{ext}.",
        )
    if len(outputs) > 1 or container in (None, outputs[0].container):
        return outputs
    values = {name: getattr(outputs[0], name) for name in Output.model_fields}
    return (spec.validated(Output, {**values, "container": container}),)


def _write(path: str, text: str, *, overwrite: bool) -> None:
    try:
        with open(path, "w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise TargetExists(f"{path} is there already", "Name another file, or give --overwrite.") from None
    except OSError as refused:
        raise TargetUnwritable(f"{path} cannot be written: {refused.strerror}", "Name another file.") from None


def _settings() -> Settings:
    for sentence in settings.unknown():
        print(f"warning: {sentence}", file=sys.stderr)
    return settings.read()


def _client() -> Client:
    from transcoder.client import Client

    _settings()  # for its warnings
    return Client.from_settings()


def _fields(
    *,
    accel: str | None,
    apis: Sequence[str] | None,
    device: str | None,
    priority: int | None,
    token: str | None,
    meta: Sequence[str] | None,
    overwrite: bool,
    salvage: bool,
    verify: str | None,
) -> dict[str, Any]:
    """The fields of a spec that the options name, and only those."""
    acceleration = {"policy": accel, "apis": apis, "device": device}
    fields = {
        "acceleration": {name: value for name, value in acceleration.items() if value},
        "priority": priority,
        "token": token,
        "metadata": dict(_pair(one) for one in meta or ()),
        "overwrite": overwrite or None,
        "salvage": salvage or None,
        "verify": verify,
    }
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"'{text}' is not KEY=VALUE", param_hint="--meta")
    return key, value


def _asked(
    source: str | None,
    target: str | None,
    profile: str | None,
    spec_file: str | None,
    fields: dict[str, Any],
    site: Settings,
) -> JobSpec:
    if spec_file:
        if profile:
            raise typer.BadParameter("a spec has its own outputs: give one of the two", param_hint="--profile, --spec")
        return _from_file(spec_file, source, target, fields)
    if not profile:
        raise typer.BadParameter("name one (`transcoder profiles` lists them), or give --spec", param_hint="--profile")
    if not source or not target:
        raise typer.BadParameter("both are needed", param_hint="SRC DST")
    found = profiles.profile(profile, site.profiles_folder)
    path = target_for(target, found.name, len(found.outputs))
    return found.spec(os.path.abspath(source), path, **{"outputs": contained(found.outputs, path), **fields})


def _from_file(name: str, source: str | None, target: str | None, fields: dict[str, Any]) -> JobSpec:
    """A spec from JSON, where SRC, DST and the options stand before what it says."""
    try:
        with open(sys.stdin.fileno() if name == "-" else name, encoding="utf-8", closefd=name != "-") as file:
            data = json.load(file)
    except (OSError, ValueError) as refused:
        why = refused.strerror if isinstance(refused, OSError) else refused
        raise SpecError(
            f"the spec {name} cannot be read: {why}", "It is one JSON object: see `transcoder schema`."
        ) from None
    if not isinstance(data, dict):
        raise SpecError(f"the spec {name} is not a JSON object", "`transcoder schema` prints every field.")
    paths = {"source": source or data.get("source"), "target": target or data.get("target")}
    given: dict[str, Any] = {
        field: os.path.abspath(path) for field, path in paths.items() if isinstance(path, str) and path
    }
    for field in ("acceleration", "metadata"):
        if field in fields and isinstance(data.get(field), dict):
            given[field] = {**data[field], **fields.pop(field)}
    return spec.read({**data, **given, **fields})


def _plan(job: JobSpec, site: Settings, as_json: bool) -> None:
    from transcoder.plan import plan
    from transcoder.probe import probe
    from transcoder.survey import survey
    from transcoder.targets import refuse_targets

    policy = site.policy(default_roots=(os.getcwd(),))
    source = probe(job.source, policy)
    machine = survey(policy, site.cache_folder, site.threads)
    allowed = machine if policy.hardware_decode else machine.decoding_in_software()
    found = plan(job, source, allowed, policy.max_pixels)
    refuse_targets(found.targets, job.source, policy, overwrite=job.overwrite)
    commands = [
        {
            "route": command.route.name,
            "api": command.route.api,
            "device": command.route.device,
            "argv": command.argv(policy.ffmpeg),
            "reason": command.reason,
        }
        for command in found.commands
    ]
    if as_json:
        screen.as_json({"commands": commands, "left_out": found.left_out})
    else:
        screen.plan(commands, found.left_out)


class _Interrupt:
    """The permit of a run: always yes, until a signal says that it shall end.

    Publishing is seen through: between the renames of two outputs is no good moment to leave.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self.publishing = False

    def hear(self, number: int, _frame: object) -> None:
        self._signal = number
        if not self.publishing:
            self.leave()

    def leave(self) -> NoReturn:
        raise SystemExit(128 + (self._signal or signal.SIGINT))

    def cancelled(self) -> bool:
        return self._signal is not None

    def fenced(self) -> None:
        pass

    def may_write(self, targets: Sequence[str]) -> None:
        pass

    def slot(self, command: Command) -> AbstractContextManager[None]:
        return nullcontext()

    def room(self, folder: str, need: int) -> AbstractContextManager[None]:
        return nullcontext()

    def still_ours(self) -> None:
        if self.cancelled():
            raise JobCancelled("the run was interrupted")


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """Ctrl-C, a plain kill and a terminal that closes end a run in order: ffmpeg is gone first, then its files."""
    permit = _Interrupt()
    with signals.heard((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), permit.hear):
        try:
            yield permit
        except SystemExit:
            print("interrupted: nothing is published and nothing is left behind", file=sys.stderr)
            raise


def _shows(live: screen.Live, permit: _Interrupt) -> Emit:
    """Shows a run's events."""
    from transcoder.events import Advanced, FellBack, Publishing, Started, phase

    def show(event: Event) -> None:
        permit.publishing = permit.publishing or isinstance(event, Publishing)
        match event:
            case Advanced(_, progress, fraction, eta):
                live.pace(fraction, progress.fps, progress.speed, eta)
            case FellBack(route, kind, what, _):
                live.note(f"{route.name} failed ({kind}): {what}")
            case Started(route):
                live.phase(f"encoding by {route.name}")
            case _ if (begun := phase(event)) and begun != "done":
                live.phase(begun)
            case _:
                pass

    return show


def _follow(seen: Iterable[Status], *, quiet: bool) -> Status:
    """Show a job until its end. Gives its last status."""
    last = None
    with screen.live(quiet=quiet) as live:
        for last in seen:
            live.phase(last.phase)
            if (at := last.progress) and last.phase == "encoding":
                live.pace(at.fraction, at.fps, at.speed, at.eta_seconds)
    if last is None:
        raise AssertionError("a watched job has at least one status")
    return last


def _conclude(last: Status, as_json: bool) -> None:
    """Print how a job ended, or raise the error that it ended with."""
    error = _error(last)
    if as_json:
        screen.as_json(last)
        raise typer.Exit(error.exit_code if error else 0)
    if error:
        raise error
    if last.result:
        screen.result(last.result)


def _error(last: Status) -> TranscoderError | None:
    from transcoder.client import error_of

    return None if last.state == "published" else error_of(last)


def _age(one: Status) -> str:
    return screen.span(time.time() - one.created)


def _done(one: Status) -> str:
    if one.phase != "encoding" or one.progress is None or one.progress.fraction is None:
        return ""
    return f"{one.progress.fraction:.0%}"
