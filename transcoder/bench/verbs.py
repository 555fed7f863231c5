"""The verbs of `transcoder bench`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure on this machine how stacks are best packed into containers.",
)


@app.callback()
def _every() -> None:
    """Keeps `topology` a verb of its own, however few there are."""


def _numbers(text: str) -> tuple[int, ...]:
    """Several numbers of stacks."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter("numbers from 1, with commas between: 2,4", param_hint="--stacks")
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
    accel: Annotated[
        Literal["vaapi", "qsv", "software", "auto"],
        typer.Option("--accel", help="What encodes; `auto` is the GPU where there is one, and for `gpu`."),
    ] = "auto",
    engine: Annotated[
        Literal["docker", "podman", "processes"],
        typer.Option("--engine", help="What runs containers; `processes` does without any."),
    ] = "docker",
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="The image of all cells; this version's by default.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="FILE", help="What is transcoded; made on the spot by default.")
    ] = None,
    height: Annotated[int, typer.Option("--height", min=16, max=16384, help="Lines of the output, at most.")] = 720,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the order in the blocks.")] = 1,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="The result; UTC-topology.json here by default.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", min=1, metavar="SECONDS", help="How long it may take; by the profile.")
    ] = None,
    run_option: Annotated[
        list[str] | None,
        typer.Option("--run-option", metavar="WORD", help="A word for `docker run`; repeat it for several."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.1, metavar="S", help="How long one run is; by the profile.")
    ] = None,
    pilot: Annotated[int, typer.Option("--pilot", min=1, metavar="N", help="Blocks of the pilot.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    from transcoder import screen
    from transcoder.bench import runner
    from transcoder.bench.display import display

    path = out or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-topology.json"
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
    )
    with display() as show:
        result = runner.topology(asked, path, show)
    if json:
        screen.as_json(result)
    screen.line(path)
