"""The verbs of `transcoder bench`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from transcoder.bench.analysis import Analysis
    from transcoder.bench.contrasts import Contrast
    from transcoder.bench.destination import Destination
    from transcoder.bench.document import Document
    from transcoder.bench.result import Result

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure on this machine how stacks are best packed into containers.",
)


def _backend(name: str) -> str:
    """The name of a backend, or auto."""
    from transcoder import backends

    known = [*(backend.API for backend in backends.every()), "auto"]
    if name not in known:
        raise typer.BadParameter(f"one of {', '.join(known)}, not {name!r}")
    return name


Accel = Annotated[
    str,
    typer.Option(
        "--accel",
        metavar="API",
        callback=_backend,
        help="What encodes: vaapi, qsv, software, or `auto`: the GPU where there is one, and for `--profile gpu`.",
    ),
]
Engine = Annotated[
    Literal["docker", "podman", "processes"],
    typer.Option("--engine", help="What runs containers; `processes` does without any."),
]
Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="The image of all cells; this version's by default.")
]
Clip = Annotated[
    str | None, typer.Option("--clip", metavar="FILE", help="What is transcoded; made on the spot by default.")
]
Height = Annotated[int, typer.Option("--height", min=16, max=16384, help="Lines of the output, at most.")]
RunOptions = Annotated[
    list[str] | None,
    typer.Option("--run-option", metavar="WORD", help="A word for `docker run`; repeat it for several."),
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is no result of ours, too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]


_MOST_STACKS = 64
_MOST_NUMBERS = 4
"""Each number of stacks has a container for every stack of every packing, all up at the same time."""


def _numbers(text: str) -> tuple[int, ...]:
    """Several numbers of stacks."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or max(found) > _MOST_STACKS or len(set(found)) > _MOST_NUMBERS:
        raise typer.BadParameter(
            f"at most {_MOST_NUMBERS} numbers from 1 to {_MOST_STACKS}, with commas between: 2,4",
            param_hint="--stacks",
        )
    return found


@app.command(
    help="""Measure whether it matters how stacks are packed into containers: bare, all in one, one in each.

    Every cell runs the same bytes: bare cells the image's own root file system (as root). Blocks are shuffled, the
    reference is in each one twice, and the answer is one of equivalent, different and inconclusive. Ctrl-C keeps what
    was measured. `quick` takes 3 minutes, `full` and `gpu` about 25.

    \b
    transcoder bench topology
    transcoder bench topology --profile gpu --accel vaapi
    transcoder bench topology --profile full --stacks 2,4 --clip film.mp4
    """
)
def topology(
    *,
    profile: Annotated[
        Literal["quick", "full", "gpu"], typer.Option("--profile", help="How much is measured.")
    ] = "quick",
    stacks: Annotated[
        str | None, typer.Option("--stacks", metavar="N,N", help="How many stacks run together; by the profile.")
    ] = None,
    accel: Accel = "auto",
    engine: Engine = "docker",
    image: Image = None,
    clip: Clip = None,
    height: Height = 720,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the order in the blocks.")] = 1,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="The result; UTC-topology.json here by default.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            min=1,
            metavar="SECONDS",
            help="How long all of it may take, by the profile; set-up and three blocks are made in any case.",
        ),
    ] = None,
    run_option: RunOptions = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.1, metavar="S", help="How long one run is; by the profile.")
    ] = None,
    pilot: Annotated[int, typer.Option("--pilot", min=1, metavar="N", help="Blocks of the pilot.")] = 8,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Cells with the product's whole path: queue, worker, verification."),
    ] = None,
    overwrite: Replace = False,
    json: AsJson = False,
) -> None:
    from transcoder import screen
    from transcoder.bench import runner
    from transcoder.bench.destination import Destination
    from transcoder.bench.display import display

    asked = runner.Asked(
        profile=profile,
        stacks=_numbers(stacks) if stacks else None,
        accel=accel,
        engine=engine,
        image=image,
        clip=clip and os.path.abspath(clip),
        height=height,
        seed=seed,
        budget=budget,
        seconds=seconds,
        pilot=pilot,
        options=tuple(run_option or ()),
        worker=worker,
    )
    if len(runner.cells(asked)) == 1:
        raise typer.BadParameter(
            "one cell alone has nothing to be held against: ask for 2 stacks, or for an engine as root",
            param_hint="--stacks",
        )
    kept = Destination(out or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-topology.json", overwrite=overwrite)
    with _keeping(kept, json=json), display() as show:
        result = runner.topology(asked, kept, show)
    screen.as_json(result) if json else _conclude(result, kept.path)


@contextmanager
def _keeping(kept: Destination, *, json: bool, capacity: str | None = None) -> Iterator[None]:
    """Whatever ends a benchmark: what this one measured is in its file, and is shown; programs are told where.

    What was cut short becomes no worker's budget.
    """
    try:
        yield
    except BaseException as ended:  # Ctrl-C and signals among them; it goes on its way
        if kept.last and all(run.warmup for run in kept.last.runs):
            typer.echo(f"nothing was measured yet but warm-ups, which are in {kept.path}", err=True)
        elif kept.last and json:
            typer.echo(f"what was measured is in {kept.path}", err=True)
        elif kept.last:
            _conclude(kept.last, kept.path)
        elif isinstance(ended, KeyboardInterrupt | SystemExit):
            typer.echo("nothing was measured yet, and nothing written", err=True)
        if kept.last and kept.last.partial and capacity:
            typer.echo(f"nothing was written to {capacity}, since it was ended before its time", err=True)
        raise


def _conclude(result: Result, path: str) -> None:
    """The verdict, the cells, what makes it doubtful, and where all of it is."""
    from transcoder import screen
    from transcoder.bench.analysis import analyse

    found = analyse(result)
    for sentence in (found.headline, *found.further):
        screen.line(sentence)
    if result.kind == "density":
        screen.table(("cell", "slowest, × real time", "runs"), _levels(result))
    else:
        screen.table(_COLUMNS, [*_again(found), *_rows(found)])
    for sentence in (*found.troubles, *result.notes):
        screen.line(f"note: {sentence}")
    screen.line(path)


_COLUMNS = ("cell", "fps", "ratio", "90 % interval", "verdict", "CPU s/1,000", "p95 s", "MiB")


def _levels(result: Result) -> Iterator[tuple[str, ...]]:
    for found in result.density:
        for level in found.levels:
            yield (level.cell.name, f"{level.slowest:.2f}", str(level.runs))


def _rows(found: Analysis) -> Iterator[tuple[str, ...]]:
    from transcoder.bench.plots import figures

    ratios = {one.cell: one for one in found.contrasts if one.metric == "fps" and not one.again}
    for row in found.rows:
        measured = (figures(row.cpu), figures(row.latency95), figures(row.pss / (1 << 20)))
        yield (row.cell.name, figures(row.fps[1]), *_ratio(ratios.get(row.cell)), *measured)


def _again(found: Analysis) -> Iterator[tuple[str, ...]]:
    """The reference against itself: what differs here is noise."""
    for one in found.contrasts:
        if one.again and one.metric == "fps":
            yield (f"{one.cell.name} again", "", *_ratio(one), "", "", "")


def _ratio(contrast: Contrast | None) -> tuple[str, str, str]:
    if contrast is None:
        return "1", "", "reference"
    if contrast.ratio is None:
        return "", "", contrast.verdict
    return (
        f"{contrast.ratio.value:.3f}",
        f"{contrast.ratio.low90:.3f}–{contrast.ratio.high90:.3f}",
        contrast.verdict,
    )


@app.command(
    help="""Find the largest number of streams that this device, or the CPUs, make in real time.

    More and more at once, in one container and in one each, until the slowest falls behind; then that number and the
    next are measured again. Besides, by Intel's rule (98 % of real time) and Livepeer's (a second of video in 0.8 s).
    --capacity writes what a worker takes as its budget (TRANSCODER_CAPACITY_FILE). Ctrl-C keeps what was measured.

    \b
    transcoder bench density
    transcoder bench density --accel vaapi --device 0000:03:00.0 --clip film.mp4 --height 1080 --capacity capacity.json
    """
)
def density(
    *,
    accel: Accel = "auto",
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="The GPU: /dev/dri/renderD128 or a PCI address.")
    ] = None,
    engine: Engine = "docker",
    image: Image = None,
    clip: Clip = None,
    codec: Annotated[Literal["h264", "hevc", "av1", "vp9"], typer.Option("--codec", help="What is made.")] = "h264",
    height: Height = 720,
    stacks_max: Annotated[int, typer.Option("--stacks-max", min=1, max=1024, help="Most streams to try.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=3, help="Runs that confirm a number.")] = 3,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, metavar="S", help="Of the clip in a run; so long it takes at N.")
    ] = 10.0,
    packing: Annotated[
        Literal["one", "each", "both"], typer.Option("--packing", help="All in one container, one in each, or both.")
    ] = "both",
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="The result; UTC-density.json here by default.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option("--capacity", metavar="FILE", help="Write the budget of this device into it.")
    ] = None,
    run_option: RunOptions = None,
    overwrite: Replace = False,
    json: AsJson = False,
) -> None:
    from transcoder import screen, settings
    from transcoder.bench import density_runner
    from transcoder.bench.density import Limits
    from transcoder.bench.destination import Destination
    from transcoder.bench.display import display

    if device:
        os.environ[settings.variable("device")] = device  # agents that are processes read it as a worker would
    asked = density_runner.Asked(
        accel=accel,
        engine=engine,
        image=image,
        clip=clip and os.path.abspath(clip),
        codec=codec,
        height=height,
        limits=Limits(stacks_max, repeats),
        seconds=seconds,
        packings=density_runner.PACKINGS if packing == "both" else (packing,),
        options=tuple(run_option or ()),
    )
    kept = Destination(out or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-density.json", overwrite=overwrite)
    if capacity and os.path.abspath(capacity) == os.path.abspath(kept.path):
        raise typer.BadParameter("it is the file of --out", param_hint="--capacity")
    with _keeping(kept, json=json, capacity=capacity), display() as show:
        result = density_runner.measure(asked, kept, capacity, show)
    screen.as_json(result) if json else _conclude(result, kept.path)
    if capacity:
        typer.echo(f"wrote {capacity}: {density_runner.described(result)}", err=json)
    if not density_runner.measurement(result).streams:
        typer.echo("warning: not even one stream is made in real time: jobs would run one by one", err=True)


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are no reports of ours, too.")]
Page = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Where the page goes.")]
Marked = Annotated[
    str | None,
    typer.Option("--markdown", metavar="FILE", help="Where Markdown goes, its plots as SVG beside it; else to stdout."),
]


@app.command(
    help="""Draw a result as one page: the verdict first, then ratios, cells, plots, design and environment.

    The page is RESULT.html beside the result, unless --html says otherwise; it holds everything and loads nothing.
    Markdown goes to stdout, or with its plots to --markdown. A file that is no report of ours is never replaced.

    \b
    transcoder bench report 20260101T120000Z-topology.json
    transcoder bench report result.json --html page.html --markdown docs/benchmark.md
    """
)
def report(
    result: Annotated[str, typer.Argument(metavar="RESULT", help="What `topology` or `density` wrote.")],
    *,
    html: Page = None,
    markdown: Marked = None,
    overwrite: Overwrite = False,
) -> None:
    from transcoder.bench import files
    from transcoder.bench.report import report

    document = report(*files.analysed(result, files.read(result)))
    _publish(document, html or f"{result.removesuffix('.json')}.html", markdown, overwrite=overwrite)


@app.command(
    help="""Compare two results by what can be compared: each cell's ratio in B over that in A, with its interval.

    Another clip, codec or acceleration is refused. Frames per second are shown side by side, for orientation only.

    \b
    transcoder bench compare tuesday.json friday.json --html compared.html
    """
)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The result to compare with.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The result to compare.")],
    *,
    html: Page = None,
    markdown: Marked = None,
    overwrite: Overwrite = False,
) -> None:
    from transcoder.bench import files
    from transcoder.bench.compare import Side, compare, refuse_unlike

    read = [(name, files.read(name)) for name in (a, b)]
    refuse_unlike(*read)
    names = [os.path.basename(name) for name in (a, b)]
    if names[0] == names[1]:
        names = [a, b] if a != b else ["A", "B"]
    sides = [Side(name, *files.analysed(name, result)) for name, (_, result) in zip(names, read, strict=True)]
    _publish(compare(*sides), html, markdown, overwrite=overwrite)


def _publish(document: Document, html: str | None, markdown: str | None, *, overwrite: bool) -> None:
    """Write what has a file, and Markdown to stdout where it has none."""
    from urllib.parse import quote

    from transcoder.bench import document as documents
    from transcoder.bench import files
    from transcoder.bench.plots import standalone

    if html:
        files.write(html, documents.html(document), overwrite=overwrite)
        typer.echo(html, err=True)
    if not markdown:
        typer.echo(documents.markdown(document), nl=False)
        return
    pictures = {figure.name: f"{markdown.removesuffix('.md')}-{figure.name}.svg" for figure in document.figures}
    for figure in document.figures:
        files.write(pictures[figure.name], standalone(figure.wide), overwrite=overwrite)
    links = {name: quote(os.path.basename(path)) for name, path in pictures.items()}
    files.write(markdown, documents.markdown(document, links), overwrite=overwrite)
    typer.echo(markdown, err=True)
