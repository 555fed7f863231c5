"""Reports of results: what they say first, that they obey nothing they print, what they refuse, what they replace."""

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from transcoder.__main__ import main
from transcoder.bench import files
from transcoder.bench.analysis import Analysis, analyse
from transcoder.bench.compare import Side, compare, ratio_of, shifts, verdict_on
from transcoder.bench.contrasts import Contrast, Estimate, Metric, Row
from transcoder.bench.document import Bullets, Code, Document, Heading, Paragraph, Table, html, markdown
from transcoder.bench.plots import MARK, printable
from transcoder.bench.report import command_line, packing, report
from transcoder.bench.result import (
    Cell,
    Density,
    Design,
    Device,
    DeviceKind,
    Environment,
    Level,
    Result,
    Run,
    StackRun,
    Stamp,
    Workload,
)
from transcoder.errors import ResultUnusable, TargetExists, TargetUnwritable

GOLDEN = Path(__file__).parent / "golden"
BARE, ONE, EACH = Cell(containers=0, stacks=2), Cell(containers=1, stacks=2), Cell(containers=2, stacks=2)
HOSTILE = (
    "<script>alert(1)</script>",
    "</style></title><img src=x onerror=alert(1)>",
    "[click](http://evil.example) ![x](http://evil.example/p.png) <http://a.example> https://a.example www.a.example",
    "| a | b |\n| --- | --- |\n# heading\n- [x] item\n```\ncode",
    "`code` **bold** _em_ ~~gone~~ $math$ @someone &amp; &lt;b&gt; \\",
    "\x00\x1b[31mred\u202egnp.exe\ud800\u2028",
    "--> <!-- ]]> '\" -->",
)


def made(kind: Any = "topology", *, device: DeviceKind = "software", word: str = "small", **changes: Any) -> Result:
    """A small result; `word` stands wherever a result has words."""
    stack = StackRun(container=0, started=0.0, ended=2.0, frames=250, engines={word: 1.0})
    runs = [
        Run(block=n, place=0, cell=cell, stacks=(stack,), cpu_busy=0.4) for n in range(4) for cell in (BARE, ONE, EACH)
    ]
    levels = tuple(
        Level(cell=Cell(containers=1, stacks=n), streams=n, slowest=8.2 / n, runs=3) for n in (1, 2, 4, 8, 9)
    )
    density = Density(
        cell=Cell(containers=1, stacks=8),
        streams=8,
        intel=8,
        livepeer=6,
        confirmed=True,
        levels=levels,
        pixel_rate=1.5e8,
    )
    found = Result(
        kind=kind,
        made="2026-01-02T03:04:05Z",
        environment=Environment(host=word, cpu=word, cpus=2, engine=word, kernel=word),
        device=Device(kind=device, name=word),
        design=Design(profile="quick", engine="docker", seed=7, cells=(BARE, ONE, EACH), reference=ONE, blocks=4),
        workload=Workload(
            accel="software" if device == "software" else "vaapi",
            clip=word,
            width=1280,
            height=720,
            frames=250,
            frame_rate=25,
            argv=("ffmpeg", word),
        ),
        runs=tuple(runs),
        density=(density,) if kind == "density" else (),
        notes=(word,),
    )
    return found.model_copy(update=changes)


def concluded(
    headline: str = "Two containers against one: 0.998: equivalent within 3 %.",
    *,
    further: tuple[str, ...] = (),
    **ratios: float,
) -> Analysis:
    """What follows, made by hand: a contrast of each metric, at 1 unless said."""
    contrasts = [
        contrast(cell, metric, ratios.get(metric, 1.0) if not again else 1.001, again=again)
        for again in (True, False)
        for metric in get_args(Metric)
        for cell in ((ONE,) if again else (BARE, EACH))
    ]
    rows = tuple(
        Row(cell, 4, (123.4, 125.6, 127.8), 2.513, 0.98765, 2.0, 2.2, 13.37, 123_456_789.0, 0.2718, None, 1)
        for cell in (BARE, ONE, EACH)
    )
    return Analysis(headline, rows, tuple(contrasts), ("outputs differ in block 3",), further)


def contrast(cell: Cell, metric: Metric, value: float, *, again: bool = False) -> Contrast:
    ratio = Estimate(value, value * 0.989, value * 1.009, value * 0.986, value * 1.012, 4)
    verdict = verdict_on(ratio, 0.03)
    return Contrast(cell, ONE, metric, ratio, verdict, 0.01, 0.5, False, 0, 0.02, again, 0.004, 0.02)


def test_the_verdict_is_the_first_line_and_doubts_come_before_anything_else() -> None:
    document = report(made(), concluded())
    lines = markdown(document).splitlines()
    assert lines[0] == "# Two containers against one: 0.998: equivalent within 3 %."
    assert lines[2:5] == ["- **outputs differ in block 3**", "- **small**", ""]
    page = html(document)
    assert page.index("<h1>Two containers") < page.index('<ul class="loud">') < page.index("<h2>")


def test_the_page_is_headed_by_one_sentence_and_the_others_follow() -> None:
    document = report(made(), concluded("It is so.", further=("Bare was so.", "The noise was so.")))
    assert markdown(document).startswith("# It is so.\n\nBare was so. The noise was so.\n\n- **outputs differ")
    assert "<h1>It is so.</h1><p>Bare was so. The noise was so.</p>" in html(document)


def test_what_each_verdict_takes_is_said_once_beside_the_first() -> None:
    told = markdown(report(made(), concluded()))
    assert told.count("Inconclusive: neither, which says that more blocks are needed") == 1
    assert "by more than 3 % only where all of that interval is farther from 1 than that." in told
    assert "fewer than 8 blocks the intervals are Student's" in told
    assert told.index("Equivalent: the whole 90 %") < told.index("| cell | against | verdict |")


@pytest.mark.parametrize("kind", ["topology", "density"])
@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("real", "Device: real (small)."),
        ("simulated", "Device: simulated (small): it proves the packing logic and the statistics, not the driver."),
        ("software", "Device: none, software encoders (small)."),
    ],
)
def test_every_table_and_plot_says_what_the_device_was(kind: str, device: DeviceKind, words: str) -> None:
    document = report(made(kind, device=device), concluded())
    captions = [block.caption for block in document.blocks if isinstance(block, Table)]
    captions += [figure.caption for figure in document.figures]
    assert len(captions) >= 6
    assert all(words in caption for caption in captions)


def test_a_simulated_device_is_the_first_doubt_and_told_once() -> None:
    result = made(device="simulated", word="Simulated GPU driver")
    document = report(result, analyse(result, 100))
    [loud] = [block for block in document.blocks if isinstance(block, Bullets) and block.loud]
    assert loud.items[0].startswith("The GPU is simulated by a program: ")
    assert [item for item in loud.items if "proves" in item or "simulated" in item] == [loud.items[0]]
    assert "simulated Simulated" not in markdown(document)


def test_the_report_says_how_outputs_were_compared() -> None:
    bytewise, pictures = "compared byte by byte, by their SHA-256", "compared by their number of pictures alone"
    kinds: tuple[DeviceKind, ...] = get_args(DeviceKind)
    for kind in kinds:
        told = markdown(report(made(device=kind), concluded()))
        assert (bytewise in told, pictures in told) == (kind != "real", kind == "real")


def test_beside_ratios_of_other_numbers_of_stacks_it_says_that_their_noise_floor_is_not_known() -> None:
    words = "The noise floor is that of 2 stacks; of 4 and 8 it was not measured, and may be another."
    found = concluded()
    more = tuple(contrast(Cell(containers=n, stacks=n), metric, 1.0) for n in (4, 8) for metric in get_args(Metric))
    document = report(made(), replace(found, contrasts=(*found.contrasts, *more)))
    tables = [block.caption for block in document.blocks if isinstance(block, Table)]
    beside = [caption for caption in tables if "is the noise floor" in caption or "after Holm" in caption]
    assert len(beside) == 6
    figures = [figure.caption for figure in document.figures if figure.name.startswith("forest")]
    assert all(words in caption for caption in (*beside, *figures))
    assert "it was not measured" not in markdown(report(made(), found))


def test_where_engines_are_told_it_says_that_those_of_one_kind_are_added_up() -> None:
    words = "engines of one kind are added up: several that all work are above 100 %"
    found = concluded()
    busy = replace(found, rows=tuple(replace(row, engine_busy=1.9) for row in found.rows))
    captions = [block.caption for block in report(made(), busy).blocks if isinstance(block, Table)]
    assert [words in caption for caption in captions if caption.startswith(("Medians", "Share"))] == [True, True]
    stack = StackRun(container=0, started=0.0, ended=2.0, frames=250)
    none = made(runs=tuple(run.model_copy(update={"stacks": (stack,)}) for run in made().runs))
    assert words not in markdown(report(none, found)), "there is no GPU"


def test_a_report_reads_as_before() -> None:
    told = markdown(report(made(), concluded(fps=0.9)), {"forest-fps": "small-forest-fps.svg"})
    golden = GOLDEN / "bench-report.md"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(told)
    assert golden.read_text() == told


def test_numbers_in_tables_have_three_digits_at_most() -> None:
    for block in report(made(), concluded(fps=0.912345)).blocks:
        if isinstance(block, Table) and block.columns != ("what", "value"):
            for number in re.findall(r"\d[\d.,]*", " ".join(cell for row in block.rows for cell in row[block.words :])):
                assert len(re.sub(r"\D", "", number).lstrip("0").rstrip("0")) <= 3, number


def test_what_is_different_says_in_which_direction() -> None:
    told = markdown(report(made(), concluded(fps=0.9, cpu=1.2)))
    assert "| bare 2 | 1 × 2 | different: slower | 0.900 | −11 % … −9.2 % |" in told
    assert "different: more CPU" in told


def test_tails_are_drawn_with_their_own_margin() -> None:
    tables = [block for block in report(made(), concluded()).blocks if isinstance(block, Table)]
    assert [re.findall(r"within ± (\S+) %", table.caption) for table in tables if "p95" in table.caption] == [["5"]]


def test_fewer_than_three_blocks_are_said_in_words() -> None:
    found = concluded()
    few = replace(
        found, contrasts=tuple(replace(one, ratio=None, wider=math.inf, more_blocks=None) for one in found.contrasts)
    )
    document = report(made(), few)
    assert "| fewer than 3 blocks | – | too few to say | – |" in markdown(document)
    assert not [figure for figure in document.figures if figure.name.startswith("forest")]


def test_a_density_result_has_the_curve_and_the_three_rules() -> None:
    document = report(made("density"), concluded())
    [table] = [block for block in document.blocks if isinstance(block, Table) and "three rules" in block.caption]
    assert table.rows == (("all in one container", "8", "8", "6", "yes", "150"),)
    assert "saturation" in {figure.name for figure in document.figures}


def test_a_search_that_ended_early_gives_a_lower_bound() -> None:
    found = made("density")
    capped = found.model_copy(update={"density": (found.density[0].model_copy(update={"capped": True}),)})
    assert "| ≥ 8 |" in markdown(report(capped, concluded()))


def test_the_command_asks_the_same_again_with_all_that_the_result_knows() -> None:
    result = made(word="my film.mp4", environment=Environment(image="transcoder:mine sha256:12"))
    asked = result.design.model_copy(update={"budget": 25.5, "pilot_blocks": 3})
    worker = asked.model_copy(update={"cells": (*asked.cells, Cell(containers=1, stacks=2, worker=True))})
    told = (
        "transcoder bench topology --profile quick --seed 7 --stacks 2 --pilot 3 --budget 25.5 {} --height 720 "
        "--accel software --engine docker --image transcoder:mine --clip 'my film.mp4'"
    )
    assert command_line(result.model_copy(update={"design": asked})) == told.format("--no-worker")
    assert command_line(result.model_copy(update={"design": worker})) == told.format("--worker")
    processes = asked.model_copy(update={"engine": "processes"})
    assert "--image" not in command_line(result.model_copy(update={"design": processes}))


def test_the_command_of_a_density_has_its_packing_seconds_and_repeats() -> None:
    result = made("density", word="made (10 s)")
    assert command_line(result) == (
        "transcoder bench density --codec h264 --seconds 10 --packing one --height 720 --accel software --engine docker"
    )
    cell = result.density[0].cell
    anew = tuple(result.runs[0].model_copy(update={"block": 90 + n, "cell": cell}) for n in range(4))
    confirmed = result.model_copy(update={"runs": anew, "density": result.density * 2})
    assert "--packing both --repeats 4 " in command_line(confirmed)
    lone = tuple(run.model_copy(update={"cell": Cell(containers=1, stacks=1)}) for run in anew)
    assert "--repeats" not in command_line(confirmed.model_copy(update={"runs": lone})), "both packings have those"
    assert "(--repeats)" not in markdown(report(confirmed, concluded()))
    assert "(--repeats)" in markdown(report(result, concluded()))


def test_what_the_result_does_not_know_of_the_command_is_said() -> None:
    told = markdown(report(made(word="film.mp4"), concluded()))
    assert "The result does not know: words for the container engine (--run-option); the folder of the clip; " in told
    assert "(--seconds; each encoded 250 frames, fitted to this machine's speed)." in told


def test_the_command_has_the_words_for_the_engine_and_the_length_of_a_run() -> None:
    result = made(word="made (8 s)")
    asked = result.design.model_copy(update={"seconds": 2.5, "options": ("--cpus", "1", "-e", "A")})
    told = result.model_copy(update={"design": asked})
    assert " --seconds 2.5 " in command_line(told)
    assert command_line(told).endswith(" --run-option --cpus --run-option 1 --run-option -e --run-option A")
    page = markdown(report(told, concluded()))
    assert ", given --cpus 1 -e A." in page
    assert "The result does not know: the values of variables." in page
    none = asked.model_copy(update={"options": ()})
    assert "The result knows all of it." in markdown(report(result.model_copy(update={"design": none}), concluded()))


@pytest.mark.parametrize("word", HOSTILE)
def test_a_word_of_a_strangers_result_stays_one_word_of_the_command(word: str) -> None:
    words = shlex.split(command_line(made(word=word)))
    assert words[words.index("--clip") + 1] == word
    assert words[-2:] == ["--clip", word]


def test_a_clip_that_was_made_is_named_in_plain_words() -> None:
    told = markdown(report(made(word="made (8 s)"), concluded()))
    assert "Every stack encodes a clip made on the spot (8 s) (" in told


def test_the_design_says_that_a_pilot_was_cut_and_that_nothing_was_fixed() -> None:
    result = made()
    runs = tuple(run.model_copy(update={"pilot": True}) for run in result.runs)
    cut = result.design.model_copy(update={"blocks": 4, "wanted": 2502})
    told = markdown(report(result.model_copy(update={"runs": runs, "design": cut}), concluded()))
    assert "| blocks of the pilot | 4 of 8: cut by the time budget |" in told
    assert "| blocks, fixed from the pilot | nothing was fixed, as the pilot was cut |" in told
    assert "2502" not in told.replace(",", "")
    whole = cut.model_copy(update={"pilot_blocks": 4})
    told = markdown(report(result.model_copy(update={"runs": runs, "design": whole}), concluded()))
    assert "| blocks, fixed from the pilot | 4 |" in told
    assert "| blocks the pilot asked for | too few blocks in the pilot to say |" in told


def test_two_packings_of_one_stream_have_two_rows_under_two_names() -> None:
    lone = Cell(containers=1, stacks=1)
    level = Level(cell=lone, streams=1, slowest=0.5, runs=3)
    none = Density(cell=lone, streams=0, intel=0, livepeer=0, confirmed=False, levels=(level,), pixel_rate=1e7)
    result = made("density").model_copy(update={"density": (none, none)})
    told = markdown(report(result, concluded()))
    assert "Packings: all in one container, one container each." in told
    assert told.count("| all in one container |") == told.count("| one container each |") == 2
    side = Side("a", result, concluded())
    assert compare(side, side).verdict.endswith("all in one container: 0 and 0; one container each: 0 and 0.")


def test_packings_are_named_however_many_stacks_there_are() -> None:
    told = [packing(Cell(containers=c, stacks=4, worker=w)) for c, w in ((0, False), (1, True), (2, False), (4, False))]
    assert told == ["bare", "worker, all in one container", "2 containers", "one container each"]


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("kind", ["topology", "density"])
def test_a_page_obeys_nothing_that_it_prints(kind: str, word: str) -> None:
    document = report(made(kind, word=word), concluded(word))
    checked(html(document))
    assert tags(html(document)) == tags(html(report(made(kind), concluded("small"))))
    shape = [token.type for token in tokens(markdown(document))]
    assert shape == [token.type for token in tokens(markdown(report(made(kind), concluded("small"))))]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_comparison_obeys_nothing_that_it_prints(word: str) -> None:
    sides = [Side(f"{word}{n}", made(word=word, made=f"{word}{n}"), concluded(word)) for n in range(2)]
    checked(html(compare(*sides)))
    shown = [
        token
        for token in inline(markdown(compare(*sides)))
        if token.type not in ("text", "strong_open", "strong_close")
    ]
    assert {token.type for token in shown} <= {"text_special", "html_inline"} - {"html_inline"}


TEXTS = st.text(max_size=30) | st.sampled_from(HOSTILE)


@settings(deadline=None)
@given(TEXTS)
def test_any_words_in_markdown_are_shown_as_they_are(word: str) -> None:
    told = f"a{word}z"
    blocks = (
        Heading(told),
        Paragraph(told),
        Bullets((told,)),
        Table(told, (told, "b"), ((told, "c"),)),
        Paragraph("end"),
    )
    shown = [
        "".join(child.content for child in token.children or ())
        for token in tokens(markdown(Document("verdict", blocks)))
        if token.type == "inline"
    ]
    line = printable(told).replace("\u2028", " ").replace("\u2029", " ")
    assert shown == ["verdict", *[line] * 5, "b", line, "c", "end"]


@pytest.mark.parametrize(
    "start", ["# ", "- ", "+ ", "1. ", "2) ", "> ", "=", "[ ] ", "[a]: b", "    ", "|", "```", "~~~"]
)
def test_what_begins_a_block_begins_none(start: str) -> None:
    found = tokens(markdown(Document("verdict", (Paragraph(f"{start}word"),))))
    assert [token.type for token in found][3:6] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in found[4].children or ()) == f"{start}word".strip()


@settings(deadline=None)
@given(TEXTS)
def test_a_command_stays_within_its_fences(word: str) -> None:
    found = tokens(markdown(Document("verdict", (Code(f"a{word}z"), Paragraph("end")))))
    assert [token.content for token in found if token.type == "fence"] == [f"a{printable(word)}z\n"]


FLOATS = st.floats(0, 1e15)
WHOLE = st.integers(0, 10**15)
FRAMES = st.integers(0, 10**9)
PIXELS = st.integers(1, 10**6)
CELLS = st.builds(Cell, containers=st.integers(0, 8), stacks=st.integers(1, 64), worker=st.booleans())
STACKS = st.builds(
    StackRun, container=WHOLE, started=st.floats(-1, 1), ended=st.floats(1, 1e15), frames=FRAMES,
    cpu_user=FLOATS, cpu_system=FLOATS,
    switches=WHOLE, pss=WHOLE, engines=st.dictionaries(TEXTS, FLOATS, max_size=2), digest=TEXTS, trouble=TEXTS,
    stamps=st.lists(st.builds(Stamp, at=FLOATS, frames=FRAMES), max_size=2).map(tuple),
)  # fmt: skip
RUNS = st.builds(
    Run, block=st.integers(0, 3), place=WHOLE, cell=CELLS, again=st.booleans(), warmup=st.booleans(),
    stacks=st.lists(STACKS, min_size=1, max_size=2).map(tuple), start=FLOATS, cpu_busy=FLOATS,
)  # fmt: skip
LEVELS = st.builds(Level, cell=CELLS, streams=WHOLE, slowest=FLOATS, runs=WHOLE)
DENSITIES = st.builds(
    Density, cell=CELLS, streams=WHOLE, intel=WHOLE, livepeer=WHOLE, confirmed=st.booleans(), capped=st.booleans(),
    levels=st.lists(LEVELS, max_size=4).map(tuple), pixel_rate=FLOATS,
)  # fmt: skip
RESULTS = st.builds(
    Result,
    kind=st.sampled_from(["topology", "density"]),
    made=TEXTS,
    partial=st.booleans(),
    environment=st.builds(Environment, host=TEXTS, cpu=TEXTS, cpus=PIXELS, memory=WHOLE, image=TEXTS, driver=TEXTS),
    device=st.builds(Device, kind=st.sampled_from(["real", "simulated"]), name=TEXTS, address=TEXTS),
    design=st.builds(
        Design, profile=st.just("full"), engine=st.just("podman"), seed=WHOLE, reference=CELLS, blocks=WHOLE,
        seconds=FLOATS, options=st.none() | st.lists(TEXTS, max_size=2).map(tuple),
        cells=st.lists(CELLS, max_size=3).map(tuple), margin=st.floats(0.001, 0.49),
    ),
    workload=st.builds(
        Workload, accel=st.just("qsv"), clip=TEXTS, codec=TEXTS, width=PIXELS, height=PIXELS, frames=FRAMES,
        frame_rate=st.floats(0.1, 1000), argv=st.lists(TEXTS, max_size=3).map(tuple),
    ),
    runs=st.lists(RUNS, max_size=5).map(tuple),
    density=st.lists(DENSITIES, max_size=3).map(tuple),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
)  # fmt: skip
ANY = FLOATS | st.sampled_from([math.nan, math.inf])
ESTIMATES = st.builds(Estimate, ANY, ANY, ANY, ANY, ANY, WHOLE)
CONTRASTS = st.builds(
    Contrast, CELLS, CELLS, st.sampled_from(get_args(Metric)), st.none() | ESTIMATES,
    st.sampled_from(["equivalent", "different", "inconclusive"]), ANY, ANY, st.booleans(), st.none() | WHOLE, ANY,
    st.booleans(), ANY, ANY,
)  # fmt: skip
ROWS = st.builds(
    Row, CELLS, WHOLE, st.tuples(ANY, ANY, ANY), ANY, ANY, ANY, ANY, ANY, ANY, ANY, st.none() | ANY, st.none() | WHOLE
)
ANALYSES = st.builds(
    Analysis, TEXTS, st.lists(ROWS, max_size=4).map(tuple), st.lists(CONTRASTS, max_size=4).map(tuple),
    st.lists(TEXTS, max_size=2).map(tuple), st.lists(TEXTS, max_size=2).map(tuple),
)  # fmt: skip


@settings(deadline=None, max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(RESULTS, ANALYSES)
def test_any_result_becomes_a_page_that_is_well_formed(result: Result, analysis: Analysis) -> None:
    document = report(result, analysis)
    checked(html(document))
    assert not {token.type for token in inline(markdown(document))} & {"link_open", "image", "html_inline"}


@settings(deadline=None, max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(RESULTS)
def test_any_result_that_is_read_can_be_analysed_or_is_refused(result: Result) -> None:
    try:
        read, analysis = files.analysed("any.json", result)
    except ResultUnusable:
        return
    checked(html(report(read, analysis)))


class Page(HTMLParser):
    """The tags of a page, checked as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img", "a", "object", "embed", "form", "base")
        for name, value in attrs:
            assert name not in ("src", "href", "style", "srcset", "action")
            assert not name.startswith("on")
            assert "url(" not in (value or "") or (value or "").startswith("url(#")
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Page:
    """Well-formed, and it loads and runs nothing."""
    found = Page()
    found.feed(page)
    found.close()
    assert found.open == []
    assert not re.search(r"@import|url\((?!#)", page.partition("</style>")[0])
    page.encode()
    return found


def tags(page: str) -> list[str]:
    return checked(page).seen


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline(text: str) -> list[Token]:
    return [child for token in tokens(text) for child in token.children or ()]


def test_equal_results_compare_as_equal() -> None:
    a = Side("a.json", made(), concluded())
    document = compare(a, replace(a, name="b.json"))
    assert (
        document.verdict
        == "b.json against a.json, 2 ratios of frames per second: 2 agree within ± 3 %, 0 differ, 0 inconclusive."
    )


def test_a_packing_that_lost_in_one_of_two_runs_is_found() -> None:
    a, b = Side("a.json", made(), concluded()), Side("b.json", made(), concluded(fps=0.9))
    assert "0 agree within ± 3 %, 2 differ" in compare(a, b).verdict
    [bare, _] = [shift for shift in shifts(a.analysis, b.analysis, 0.03) if shift.metric == "fps"]
    assert bare.cell == BARE
    assert bare.ratio.value == pytest.approx(0.9)


def test_the_interval_of_a_ratio_of_ratios_is_wider_than_either() -> None:
    # symmetric on the logarithm: the half-widths add as squares do
    one = Estimate(1.0, math.exp(-0.03), math.exp(0.03), math.exp(-0.06), math.exp(0.06), 9)
    two = Estimate(1.1, 1.1 * math.exp(-0.04), 1.1 * math.exp(0.04), 1.1 * math.exp(-0.08), 1.1 * math.exp(0.08), 12)
    found = ratio_of(one, two)
    assert found.value == pytest.approx(1.1)
    assert found.blocks == 9
    assert [math.log(end / 1.1) for end in (found.low90, found.high90)] == pytest.approx([-0.05, 0.05])
    assert [math.log(end / 1.1) for end in (found.low95, found.high95)] == pytest.approx([-0.1, 0.1])


def test_a_lopsided_interval_stays_lopsided() -> None:
    one = Estimate(1.0, math.exp(-0.01), math.exp(0.05), math.exp(-0.02), math.exp(0.06), 9)
    sure = Estimate(1.0, 1.0, 1.0, 1.0, 1.0, 9)
    assert (ratio_of(one, sure).low90, ratio_of(one, sure).high90) == pytest.approx((math.exp(-0.05), math.exp(0.01)))
    assert (ratio_of(sure, one).low90, ratio_of(sure, one).high90) == pytest.approx((math.exp(-0.01), math.exp(0.05)))


def test_a_comparison_warns_of_absolute_figures_and_says_what_differs() -> None:
    other = made(device="simulated", environment=Environment(cpu="another", cpus=64))
    told = markdown(compare(Side("a", made(device="real"), concluded()), Side("b", other, concluded())))
    assert told.count("cannot be compared absolutely") == 2
    assert "different kinds: real and simulated" in told
    assert "| CPU | small | another |" in told
    assert "| 1 × 2 | 126 [123–128] | 126 [123–128] |" in told


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("workload", {"frames": 1300}, "the frames of a run (250, 1,300)"),
        ("workload", {"height": 1080}, "the size of the pictures (1280×720, 1280×1080)"),
        ("design", {"engine": "podman"}, "the engine (docker, podman)"),
        ("environment", {"ffmpeg": "8.0"}, "ffmpeg (not known, 8.0)"),
        ("environment", {"image": "other sha256:1"}, "the image (not known, other sha256:1)"),
    ],
)
def test_results_of_unlike_runs_are_shown_without_a_verdict(part: str, changes: dict[str, Any], words: str) -> None:
    here = made()
    there = here.model_copy(update={part: getattr(here, part).model_copy(update=changes)})
    document = compare(Side("a", here, concluded()), Side("b", there, concluded(fps=0.9)))
    assert document.verdict.startswith("b against a: no verdict, since they did not do the same")
    [told] = [item for block in document.blocks if isinstance(block, Bullets) for item in block.items if words in item]
    assert told.endswith("So there is no verdict.")
    tables = [block for block in document.blocks if isinstance(block, Table) and "verdict" in block.columns]
    assert {row[1] for table in tables for row in table.rows} == {"no verdict"}
    assert tables[0].rows[0][4] == "0.900", "the ratio of ratios is there"


def test_densities_compare_by_their_streams() -> None:
    side = Side("a", made("density"), concluded())
    assert (
        compare(side, replace(side, name="b")).verdict
        == "Streams in real time in a and b: all in one container: 8 and 8."
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"clip": "another"}, "the clip differs: small in a.json, another in b.json"),
        ({"codec": "hevc"}, "the codec differs: h264 in a.json, hevc in b.json"),
        ({"accel": "vaapi"}, "the acceleration differs: software in a.json, vaapi in b.json"),
    ],
)
def test_other_work_is_not_compared(changes: dict[str, str], reason: str) -> None:
    other = made(workload=made().workload.model_copy(update=changes))
    with pytest.raises(ResultUnusable, match=re.escape(reason)):
        compare(Side("a.json", made(), concluded()), Side("b.json", other, concluded()))


def test_topology_and_density_are_not_compared() -> None:
    with pytest.raises(ResultUnusable, match="is a topology result and b a density result"):
        compare(Side("a", made(), concluded()), Side("b", made("density"), concluded()))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(made("density").model_dump_json())
    assert files.read(str(path)) == made("density")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no JSON"),
        ("[1]", "no result of a benchmark"),
        ("{}", "no result of a benchmark"),
        ('{"schema_version": 2}', "has schema version 2, and this transcoder reads version 1"),
        ('{"schema_version": 1}', "no whole result: kind: Field required"),
        ('{"schema_version": 1, "a": NaN}', "NaN is no number"),
        ('{"schema_version": 1, "a": 1e400}', "no benchmark sees 1e400"),
        (f'{{"schema_version": 1, "a": {"9" * 5000}}}', "no benchmark sees 9999"),
        ("[" * 100_000, "no JSON"),
        (b"\xff\xfe", "not text in UTF-8"),
    ],
)
def test_what_is_no_result_is_refused_with_the_reason(tmp_path: Path, content: str | bytes, reason: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ResultUnusable, match=re.escape(reason)):
        files.read(str(path))


def test_a_partial_result_and_its_warm_up_are_read(tmp_path: Path) -> None:
    result = made(partial=True)
    warm = tuple(run.model_copy(update={"warmup": True}) for run in result.runs[:3])
    path = tmp_path / "result.json"
    for runs in ((), warm, (*warm, *warm, *result.runs)):
        partial = result.model_copy(update={"runs": runs})
        path.write_text(partial.model_dump_json())
        assert files.read(str(path)) == partial


def test_a_folder_a_pipe_a_huge_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(files.LARGEST + 1)
    for name, reason in (
        ("", "directory|regular"),
        ("pipe", "regular"),
        ("huge", "larger than 64 MiB"),
        ("none", "No such"),
    ):
        with pytest.raises(ResultUnusable, match=reason):
            files.read(str(tmp_path / name))


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    document = report(made(), concluded())
    for text in (html(document), markdown(document), html(document)):
        files.write(str(path), text)
        assert path.read_text() == text
    path.write_text("my notes")
    with pytest.raises(TargetExists):
        files.write(str(path), html(document))
    assert path.read_text() == "my notes"
    files.write(str(path), html(document), overwrite=True)
    assert MARK in path.read_text()
    assert [found.name for found in tmp_path.iterdir()] == ["page.html"]


def test_a_link_and_a_device_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    for path in (tmp_path / "link", Path("/dev/null"), tmp_path):
        with pytest.raises(TargetExists):
            files.write(str(path), "text", overwrite=True)
    with pytest.raises(TargetUnwritable):
        files.write(str(tmp_path / "none" / "page.html"), "text")
    assert [found.name for found in tmp_path.iterdir()] == ["link"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a verb of `transcoder bench` in a folder with two results."""
    monkeypatch.chdir(tmp_path)
    for name, result in (("a.json", made()), ("b.json", made(made="later")), ("density.json", made("density"))):
        (tmp_path / name).write_text(result.model_dump_json())

    def run(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["transcoder", "bench", *words])
        try:
            code = main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def test_bench_report_writes_the_page_beside_the_result_and_prints_markdown(call: Call, tmp_path: Path) -> None:
    done = call("report", "a.json")
    assert (done.code, done.err) == (0, "a.html\n")
    assert done.out.startswith("# ")
    checked((tmp_path / "a.html").read_text())


def test_bench_report_puts_plots_beside_markdown_and_links_them(call: Call, tmp_path: Path) -> None:
    done = call("report", "a.json", "--markdown", "out.md", "--html", "page.html")
    assert (done.code, done.out) == (0, "")
    linked = re.findall(r"\]\(([^)]*)\)", (tmp_path / "out.md").read_text())
    assert "out-busy.svg" in linked
    assert all((tmp_path / name).read_text().startswith("<svg ") for name in linked)
    assert call("report", "a.json", "--markdown", "out.md", "--html", "page.html").code == 0, "ours are replaced"


def test_bench_report_keeps_what_is_no_report(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("mine")
    done = call("report", "a.json")
    assert (done.code, done.out) == (8, "")
    assert "a.html is there and is no report of ours" in done.err
    assert call("report", "a.json", "--overwrite").code == 0


def test_bench_report_names_what_is_wrong_with_a_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"schema_version": 9}))
    done = call("report", "other.json")
    assert done.code == 25
    assert "other.json has schema version 9" in done.err
    assert sorted(found.suffix for found in tmp_path.iterdir()) == [".json"] * 4


@pytest.mark.parametrize(
    ("where", "value", "field"),
    [
        ("runs.0.stacks.0.ended", -5, "runs.0.stacks.0.ended"),
        ("runs.0.stacks.0.started", -5, "runs.0.stacks.0.started"),
        ("runs.0.stacks.0.frames", 10**14, "runs.0.stacks.0.frames"),
        ("runs.0.stacks.0.stamps", [{"at": -1, "frames": 3}], "runs.0.stacks.0.stamps.0.at"),
        ("runs.0.stacks.0.cpu_user", -1, "runs.0.stacks.0.cpu_user"),
        ("runs.0.stacks", [], "runs.0.stacks"),
        ("runs.1.cell", {"containers": 0, "stacks": 2}, "runs.1: block 0 has this run of bare 2 twice"),
        ("workload.frames", 10**14, "workload.frames"),
        ("workload.frame_rate", 0, "workload.frame_rate"),
        ("workload.width", 0, "workload.width"),
        ("design.margin", -1, "design.margin"),
        ("design.margin", 0, "design.margin"),
        ("design.margin", 0.9, "design.margin"),
        ("device.kind", "real", "device.kind: real does not go with workload.accel"),
        ("workload.accel", "qsv", "device.kind: software does not go with workload.accel"),
    ],
)
def test_numbers_that_no_benchmark_gives_are_refused_with_their_field(
    call: Call, tmp_path: Path, where: str, value: object, field: str
) -> None:
    data: Any = json.loads(made().model_dump_json())
    *path, last = where.split(".")
    part = data
    for name in path:
        part = part[int(name)] if name.isdigit() else part[name]
    part[last] = value
    (tmp_path / "edited.json").write_text(json.dumps(data))
    done = call("report", "edited.json")
    assert (done.code, done.out) == (25, "")
    assert f"edited.json is no whole result: {field}" in done.err


def test_bench_compare_prints_markdown_and_refuses_unlike_results(call: Call, tmp_path: Path) -> None:
    done = call("compare", "a.json", "b.json", "--html", "page.html")
    assert done.code == 0
    assert done.out.startswith("# b.json against a.json")
    assert "| begun | 2026-01-02T03:04:05Z | later |" in done.out
    checked((tmp_path / "page.html").read_text())
    refused = call("compare", "a.json", "density.json")
    assert refused.code == 25
    assert "a.json is a topology result and density.json a density result" in refused.err
