"""What follows from a benchmark's result. The results are made here: what is true of them is known."""

import math
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcoder.bench import analysis, statistics
from transcoder.bench.analysis import Analysis, analyse
from transcoder.bench.contrasts import Contrast, Estimate, Metric, Verdict, deviation, judge, throughput
from transcoder.bench.result import (
    Blast,
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
from transcoder.bench.statistics import holm

BARE, ONE, TWO = Cell(containers=0, stacks=2), Cell(containers=1, stacks=2), Cell(containers=2, stacks=2)
WORKER = Cell(containers=1, stacks=2, worker=True)
WORKLOAD = Workload(
    accel="software", clip="bunny", width=1280, height=720, frames=250, frame_rate=25,
    argv=("ffmpeg", "-i", "clip.mp4", "-c:v:0", "libx264", "-f", "null", "-"),
)  # fmt: skip
RESAMPLES = 500
"""Of each interval, where the product takes 10,000: no verdict here is near its edge."""


def test_equal_packings_are_said_to_make_no_difference_in_one_plain_sentence() -> None:
    found = analyse(made(30, noise=0.01), RESAMPLES)
    assert re.fullmatch(
        r"Packing makes no difference within 3 %: two containers ran at [01]\.\d{3} of one's speed "
        r"\(90 % interval 0\.\d{3}–1\.\d{3}, 30 blocks\)\.",
        found.headline,
    )
    exact, bare, noise, device = found.further
    assert re.fullmatch(r"The 95 % interval of that ratio has a half-width of 0\.\d+ %\.", exact)
    assert re.match(r"Bare ffmpeg ran at [01]\.\d{3} of one container's speed \(90 % interval ", bare)
    assert bare.endswith(", 30 blocks): no difference within 3 %.")
    assert noise.startswith("The noise floor, one container with 2 stacks against itself (A/A), was ")
    assert device == "Each stack encoded by software libx264: no GPU was measured."
    assert not found.troubles


def test_a_slower_packing_is_said_to_matter_and_how_much() -> None:
    found = analyse(made(24, noise=0.01, slower={TWO: 0.9, BARE: 0.9}), RESAMPLES)
    contrast = of(found, TWO)
    assert contrast.verdict == "different"
    assert contrast.ratio is not None
    assert contrast.ratio.value == pytest.approx(0.9, abs=0.01)
    assert of(found, TWO, "latency").verdict == "different"
    assert re.fullmatch(
        r"Packing matters: two containers ran at 0\.\d{3} of one's speed "
        r"\(95 % interval 0\.\d{3}–0\.\d{3}, 24 blocks\): "
        r"different, (9\.\d|1\d|10) % slower, and by more than 3 % over the whole interval\.",
        found.headline,
    )
    assert re.search(r": different, (9\.\d|1\d|10) % slower, and by more than 3 % over the whole ", found.further[1])


@pytest.mark.parametrize(("factor", "verdict"), [(0.95, "inconclusive"), (0.8, "different")])
def test_a_reference_that_differs_from_itself_by_as_much_proves_no_difference(factor: float, verdict: str) -> None:
    found = analyse(made(24, noise=0.005, slower={TWO: factor}, itself=0.94), RESAMPLES)
    assert next(one for one in found.contrasts if one.again and one.metric == "fps").verdict == "different"
    assert (of(found, TWO).verdict, of(found, TWO).shaken) == (verdict, verdict == "inconclusive")
    if verdict == "inconclusive":
        assert found.headline.startswith("This run cannot say whether packing matters: ")
        assert any("the reference differs from itself (A/A) by as much" in line for line in found.further)


@pytest.mark.parametrize(("low", "high"), [(0.95, 0.98), (1.02, 1.05), (0.972, 0.99)])
def test_a_difference_that_may_lie_within_the_margin_is_no_more_than_a_difference(low: float, high: float) -> None:
    value = (low + high) / 2
    told = analysis._headline(contrast_of(Estimate(value, low, high, low, high, 11), "different"), 0.03, several=False)
    way = "slower" if value < 1 else "faster"
    assert told.startswith(
        f"Packing makes a difference: two containers ran at {value:.3f} of one's speed (95 % interval "
    )
    assert told.endswith(
        f", 11 blocks): different, {analysis._percent(abs(value - 1))} {way}, and whether by more than 3 % is open."
    )


@pytest.mark.parametrize(
    ("wider", "words"),
    [(0.0512, "equivalent at 6 %."), (0.8, "equivalent at no margin up to 50 %."), (math.inf, "50 %.")],
)
def test_what_cannot_be_said_names_the_margin_and_the_one_that_holds(wider: float, words: str) -> None:
    contrast = contrast_of(Estimate(1.004, 0.971, 1.039, 0.96, 1.05, 11), "inconclusive", wider)
    told = analysis._headline(contrast, 0.03, several=False)
    assert told.startswith(
        "This run cannot say whether packing matters: two containers ran at 1.004 of one's speed "
        "(90 % interval 0.971–1.039, 11 blocks): inconclusive at 3 %, "
    )
    assert told.endswith(words)


@given(noise=st.sampled_from([0.001, 0.02, 0.1]), factor=st.floats(0.85, 1.15), blocks=st.integers(2, 9))
@settings(deadline=None, max_examples=25)
def test_the_first_line_has_margin_and_interval_whatever_was_found(noise: float, factor: float, blocks: int) -> None:
    told = analyse(made(blocks, noise=noise, cells=(TWO,), slower={TWO: factor}), 100).headline
    assert "3 %" in told
    assert "% interval " in told or "too few blocks for an interval" in told
    assert told.count(". ") == 0, "one sentence"


def test_the_half_width_of_the_main_ratio_is_said_right_after_it() -> None:
    found = analyse(made(12, noise=0.1), RESAMPLES)
    half = math.expm1(statistics.half_width(logs_of(made(12, noise=0.1), TWO, ONE)))
    assert found.further[0] == f"The 95 % interval of that ratio has a half-width of {analysis._percent(half)}."
    assert not any("half-width" in line for line in analyse(made(2), RESAMPLES).further), "two blocks have no interval"


def logs_of(result: Result, cell: Cell, other: Cell) -> list[float]:
    def fps(block: int, cell: Cell) -> float:
        return sum(next(throughput(run)[0] for run in result.runs
                        if (run.block, run.cell, run.again) == (block, cell, False)))  # fmt: skip

    return [math.log(fps(block, cell) / fps(block, other)) for block in {run.block for run in result.runs}]


def contrast_of(ratio: Estimate, verdict: Verdict, wider: float = 0.05) -> Contrast:
    return Contrast(TWO, ONE, "fps", ratio, verdict, 0.5, 0.5, False, 0, wider)


def test_too_much_noise_is_called_inconclusive_with_what_would_settle_it() -> None:
    found = analyse(made(12, noise=0.1), RESAMPLES)
    contrast = of(found, TWO)
    assert contrast.verdict == "inconclusive"
    assert contrast.more_blocks is not None
    assert contrast.more_blocks > 20
    assert 0.03 < contrast.wider < 0.3
    assert found.headline.startswith("This run cannot say whether packing matters: two containers ran at ")
    assert found.headline.endswith(
        f", 12 blocks): inconclusive at 3 %, equivalent at {math.ceil(contrast.wider * 100)} %."
    )
    assert any(line.startswith("The noise floor, ") for line in found.further)
    forecast = found.further[1].removeprefix("About ").removesuffix(" more blocks would settle it.")
    assert int(forecast.replace(",", "")) == pytest.approx(contrast.more_blocks, rel=0.05)
    said_of = analysis.verdicts(found, made(0))["2 × 1"]
    assert f"inconclusive at 3 %, equivalent at {math.ceil(contrast.wider * 100)} %." in said_of


def test_with_several_numbers_of_stacks_the_headline_tells_which_and_a_difference_comes_first() -> None:
    four, halves = Cell(containers=4, stacks=4), Cell(containers=2, stacks=4)
    result = made(24, noise=0.01, cells=(TWO, Cell(containers=1, stacks=4), halves, four), slower={TWO: 0.8})
    found = analyse(result, RESAMPLES)
    assert found.headline.startswith("Packing of 2 stacks matters: two containers ran at 0.")
    assert re.match(r"Other packings: 2 × 2 equivalent \([01]\.\d+\); 4 × 1 equivalent \(", found.further[1])
    equal = analyse(made(24, noise=0.01, cells=(TWO, Cell(containers=1, stacks=4), halves, four)), RESAMPLES)
    assert equal.headline.startswith("Packing of 4 stacks makes no difference within 3 %: four containers ran at ")


def test_a_ratio_that_several_questions_make_inconclusive_says_so() -> None:
    """Its 95 % interval excludes 1, which would contradict the verdict without a word."""
    others = tuple(Cell(containers=n, stacks=12) for n in (2, 3, 4, 6, 12))
    seen = 0
    for slower in (0.9, 0.92, 0.94):
        found = analyse(made(5, noise=0.03, cells=(*others, Cell(containers=1, stacks=12), BARE, TWO),
                             slower=dict.fromkeys(others, slower)), RESAMPLES)  # fmt: skip
        for one in found.contrasts:
            if one.metric == "fps" and not one.again and one.ratio and one.verdict == "inconclusive":
                alone = not one.ratio.low95 <= 1 <= one.ratio.high95
                told = analysis.verdicts(found, made(0))[one.cell.name]
                assert ("; its interval alone says different, but the test" in told) == alone
                seen += alone
    assert seen


def test_one_packing_alone_and_bare_alone_are_no_question_of_packing() -> None:
    alone = analyse(made(8, cells=()), RESAMPLES)
    assert alone.headline == "There is nothing to compare: one packing alone was measured."
    bare = analyse(made(30, cells=(BARE,)), RESAMPLES)
    assert bare.headline.startswith("A container makes no difference within 3 %: bare ffmpeg ran at ")


@pytest.mark.parametrize("share", [0.0123, 0.034, 0.99, 1.4, 303.0])
def test_no_percentage_is_told_as_a_power_of_ten(share: float) -> None:
    told = analysis._percent(share)
    assert re.fullmatch(r"(\d\.\d|\d{1,3}(,\d{3})*) %", told), told
    assert float(told[:-2].replace(",", "")) == pytest.approx(100 * share, rel=0.05)


def test_a_finished_pilot_says_how_many_more_and_the_troubles_name_the_same_number() -> None:
    found = analyse(piloted(12, of=8, wanted=100), RESAMPLES)
    assert of(found, TWO).more_blocks == 88
    assert found.further[1] == "About 88 more blocks would settle it."
    assert said(found, "The time allowed 12 of the 100 blocks that ± 3 % asks for")
    assert of(found, TWO, "cpu").more_blocks not in (0, 88), "it asks by frames per second alone"


def test_a_pilot_that_was_cut_asked_for_nothing() -> None:
    for blocks in (3, 6):
        found = analyse(piloted(blocks, of=8, wanted=2502), RESAMPLES)
        assert said(found, f"The time ended the pilot after {blocks} of 8 blocks, so no number of blocks")
        assert "2,502" not in " ".join((found.headline, *found.further, *found.troubles))
    assert of(found, TWO).more_blocks not in (None, 2502 - 6)
    few = analyse(piloted(3, of=8, wanted=2502), RESAMPLES)
    assert of(few, TWO).more_blocks is None
    assert few.further[1] == "These are too few blocks to say how many more would settle it."


def test_a_short_pilot_that_was_finished_foretells_nothing_either() -> None:
    found = analyse(piloted(3, of=3, wanted=824), RESAMPLES)
    assert of(found, TWO).more_blocks is None
    assert not said(found, "824")


def piloted(blocks: int, *, of: int, wanted: int) -> Result:
    """A noisy result of as many blocks, the first of which were the pilot's."""
    result = made(blocks, noise=0.1)
    runs = tuple(run.model_copy(update={"pilot": run.block < of}) for run in result.runs)
    design = result.design.model_copy(update={"pilot_blocks": of, "blocks": blocks, "wanted": wanted})
    return result.model_copy(update={"runs": runs, "design": design})


@pytest.mark.parametrize("blocks", [3, 5, 7])
def test_with_few_blocks_interval_and_test_agree(blocks: int) -> None:
    for factor in (0.9, 0.94, 0.97, 1.0):
        one = of(analyse(made(blocks, noise=0.02, cells=(TWO,), slower={TWO: factor}), RESAMPLES), TWO)
        assert one.ratio is not None
        assert (one.p_different <= 0.05) == (not one.ratio.low95 <= 1 <= one.ratio.high95)
        assert (one.p_equivalent <= 0.05) == (one.ratio.low90 > 0.97 and one.ratio.high90 < 1.03)
        tails = of(analyse(made(blocks, noise=0.02, cells=(TWO,), slower={TWO: factor}), RESAMPLES), TWO, "latency")
        assert tails.ratio is not None
        assert (tails.p_different <= 0.05) == (not tails.ratio.low95 <= 1 <= tails.ratio.high95)


def test_ratios_that_no_margin_below_one_holds_end_the_search_for_it() -> None:
    result = made(4)
    runs = tuple(run_of(run.block, run.place, TWO, 1e13) if run.cell == TWO else run for run in result.runs)
    assert of(analyse(result.model_copy(update={"runs": runs}), RESAMPLES), TWO).wider == math.inf


def test_what_is_off_one_and_inside_the_band_is_equivalent_and_detectable() -> None:
    contrast = of(analyse(made(40, noise=0.005, slower={TWO: 0.99}), RESAMPLES), TWO)
    assert (contrast.verdict, contrast.detectable) == ("equivalent", True)


@pytest.mark.parametrize(
    ("ends", "p_equivalent", "p_different", "verdict"),
    [
        ((0.99, 1.01, 0.98, 1.02), 0.04, 0.5, "equivalent"),
        ((0.99, 1.01, 0.98, 1.02), 0.06, 0.5, "inconclusive"),
        ((0.96, 1.01, 0.95, 1.02), 0.04, 0.5, "inconclusive"),
        ((0.975, 0.99, 0.973, 0.995), 0.04, 0.01, "equivalent"),
        ((0.95, 0.97, 0.94, 0.98), 0.5, 0.04, "different"),
        ((0.95, 0.97, 0.94, 0.98), 0.5, 0.06, "inconclusive"),
        ((0.95, 0.99, 0.94, 1.001), 0.5, 0.04, "inconclusive"),
    ],
)
def test_a_verdict_takes_both_the_interval_and_the_test(
    ends: tuple[float, float, float, float], p_equivalent: float, p_different: float, verdict: str
) -> None:
    assert judge(Estimate(1, *ends, 24), 0.03, p_equivalent, p_different) == verdict


def test_several_questions_raise_the_p_of_each_and_the_reference_against_itself_is_none_of_them() -> None:
    both = made(12, noise=0.02)
    alone = [of(analyse(made(12, noise=0.02, cells=(cell,)), RESAMPLES), cell) for cell in (BARE, TWO)]
    beside = [of(analyse(both, RESAMPLES), cell) for cell in (BARE, TWO)]
    assert [one.p_different for one in beside] == pytest.approx(holm([one.p_different for one in alone]))
    assert [one.p_equivalent for one in beside] == pytest.approx(holm([one.p_equivalent for one in alone]))
    again = next(one for one in analyse(both, RESAMPLES).contrasts if one.again)
    only = made(12, noise=0.02, cells=())
    assert again.p_different == analyse(only, RESAMPLES).contrasts[0].p_different


def test_the_smallest_margin_is_where_the_verdict_turns() -> None:
    result = made(12, noise=0.04)
    contrast = of(analyse(result, RESAMPLES), TWO)
    for margin, verdict in ((contrast.wider * 1.02, "equivalent"), (contrast.wider * 0.98, "inconclusive")):
        wider = result.model_copy(update={"design": result.design.model_copy(update={"margin": margin})})
        assert of(analyse(wider, RESAMPLES), TWO).verdict == verdict


def test_the_reference_against_itself_comes_first_and_shows_the_noise() -> None:
    found = analyse(made(30, noise=0.02), RESAMPLES)
    assert [one.again for one in found.contrasts] == [True] * 5 + [False] * 10
    assert {one.metric for one in found.contrasts} == {"fps", "slowest", "cpu", "latency", "pss"}
    assert found.contrasts[0].spread == pytest.approx(0.02 * math.sqrt(2), rel=0.5)


def test_two_blocks_have_no_interval() -> None:
    found = analyse(made(2, noise=0.01), RESAMPLES)
    contrast = of(found, TWO)
    assert (contrast.ratio, contrast.verdict, contrast.more_blocks) == (None, "inconclusive", None)
    assert found.headline == (
        "This run cannot say whether packing matters: inconclusive at 3 %, as it has too few blocks for an interval, "
        "which takes three."
    )


def test_no_block_at_all_is_said_and_breaks_nothing() -> None:
    found = analyse(made(0, partial=True), RESAMPLES)
    assert found.headline == "No block was finished, so nothing can be said."
    assert not found.rows
    assert not found.contrasts
    assert found.troubles == ("It was ended before its time: what follows is from the blocks that were finished.",)


def test_the_worker_is_held_against_bare_ffmpeg_where_that_was_measured() -> None:
    found = analyse(made(8, noise=0.01, cells=(BARE, TWO, WORKER)), RESAMPLES)
    assert of(found, WORKER).reference == BARE
    assert of(analyse(made(8, noise=0.01, cells=(TWO, WORKER)), RESAMPLES), WORKER).reference == ONE
    told = analysis.verdicts(found, made(0))["worker 1 × 2"]
    assert re.match(r"The whole path through queue and worker ran at [01]\.\d{3} of bare ffmpeg's speed \(", told)
    assert told in found.further


def test_the_worker_and_what_it_is_held_against_are_judged_by_their_whole_time() -> None:
    """A job has no window: against bare ffmpeg's, which leaves out how it starts, a worker would seem slow."""
    late = changed(made(8, noise=0.001, cells=(BARE, TWO, WORKER)), lambda one: one.model_copy(update={"started": -5}))
    runs = tuple(changed(late, _unseen).runs[at] if run.cell.worker else run for at, run in enumerate(late.runs))
    ratio = of(analyse(late.model_copy(update={"runs": runs}), RESAMPLES), WORKER).ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(1, abs=0.02)


def _unseen(stack: StackRun) -> StackRun:
    return stack.model_copy(update={"stamps": ()})


def test_what_was_not_measured_has_no_contrast() -> None:
    found = analyse(changed(made(8), lambda stack: stack.model_copy(update={"pss": 0})), RESAMPLES)
    assert "pss" not in {one.metric for one in found.contrasts}


def test_the_same_result_is_analysed_the_same_each_time() -> None:
    assert analyse(made(10, noise=0.05), RESAMPLES) == analyse(made(10, noise=0.05), RESAMPLES)


@given(
    starts=st.lists(st.floats(0, 0.5), min_size=2, max_size=4),
    rates=st.lists(st.floats(45, 60), min_size=4, max_size=4),
)
def test_throughput_is_of_the_window_in_which_all_work(starts: list[float], rates: list[float]) -> None:
    """What a stack does alone, before the others or after them, is not counted."""
    stacks = [steady(start, rate, 400) for start, rate in zip(starts, rates, strict=False)]
    found, common = throughput(Run(block=0, place=0, cell=Cell(containers=1, stacks=len(stacks)), stacks=tuple(stacks)))
    assert common
    assert found == pytest.approx(rates[: len(stacks)], rel=1e-6)


def test_a_stack_that_speeds_up_when_alone_is_not_credited_for_it() -> None:
    slow = steady(0, 50, 500)
    hasty = StackRun(container=0, started=0, ended=14, frames=750, stamps=(
        Stamp(at=0, frames=0), Stamp(at=10, frames=250), Stamp(at=14, frames=750)))  # fmt: skip
    assert throughput(Run(block=0, place=0, cell=ONE, stacks=(slow, hasty)))[0] == pytest.approx((50, 25))


def test_a_window_shorter_than_half_the_run_measures_how_the_encoder_hands_out_what_it_held_back() -> None:
    """Frames that a look-ahead held back come at the end, at a multiple of the speed of the whole."""
    run = Run(block=0, place=0, cell=ONE, stacks=(late(0.55), late(0.55)))
    found, common = throughput(run)
    assert (found, common) == ((50, 50), False)
    early = Run(block=0, place=0, cell=ONE, stacks=(late(0.45), late(0.45)))
    assert throughput(early)[1]


def late(begins: float) -> StackRun:
    """5 s for 250 frames, of which the first are seen after that share of the time."""
    stamps = tuple(Stamp(at=5 * (begins + (0.99 - begins) * n / 10), frames=20 + 22 * n) for n in range(11))
    return StackRun(container=0, started=0, ended=5, frames=250, stamps=stamps, cpu_user=5, pss=50_000_000)


def test_one_run_without_a_window_lets_all_of_its_number_of_stacks_be_taken_whole() -> None:
    """Else a ratio would set a window beside a whole run, which are not the same."""
    four, each = Cell(containers=1, stacks=4), Cell(containers=4, stacks=4)
    result = changed(made(4, noise=0, cells=(TWO, four, each)), _late_start)
    place = next(place for place, run in enumerate(result.runs) if run.cell == TWO)
    blind = changed(result, _unseen).runs[place]
    mixed = result.model_copy(update={"runs": (*result.runs[:place], blind, *result.runs[place + 1 :])})
    before, found = analyse(result, RESAMPLES), analyse(mixed, RESAMPLES)
    assert said(found, "2 stacks: 1 of 12 runs had no window of at least half of the run in which all stacks worked, "
                       "so all of them are taken whole: 2 × 1.")  # fmt: skip
    assert not said(found, "4 stacks")
    metrics: tuple[Metric, ...] = ("fps", "slowest")
    for metric in metrics:
        ratio = of(found, TWO, metric).ratio
        assert ratio is not None
        assert ratio.value == pytest.approx(1, abs=1e-6)
    rows = {name: {row.cell: row.fps[1] for row in one.rows} for name, one in (("all", before), ("mixed", found))}
    assert rows["mixed"][ONE] < 0.9 * rows["all"][ONE], "the second before its first frame counts"
    assert rows["mixed"][ONE] == pytest.approx(rows["mixed"][TWO])
    assert rows["mixed"][four] == rows["all"][four]


def _late_start(stack: StackRun) -> StackRun:
    """All is a second later but the start."""
    stamps = tuple(Stamp(at=one.at + 1.2, frames=one.frames) for one in stack.stamps)
    return stack.model_copy(update={"ended": stack.ended + 1.2, "stamps": stamps})


def test_without_a_window_whole_runs_are_taken_and_that_is_said_once() -> None:
    result = changed(made(4), _unseen)
    stacks, common = throughput(result.runs[0])
    assert not common
    assert stacks[0] == pytest.approx(250 / (result.runs[0].stacks[0].ended - 0.1))
    assert said(analyse(result, RESAMPLES), "2 stacks: 16 of 16 runs had no window")


def test_a_row_has_what_people_compare() -> None:
    result = made(9, noise=0.02).model_copy(update={"blast": (Blast(cell=ONE, lost=2, finished=0),)})
    row = next(row for row in analyse(result, RESAMPLES).rows if row.cell == ONE)
    assert row.runs == 18, "both of each block"
    assert row.fps[0] <= row.fps[1] <= row.fps[2]
    assert row.fps[1] == pytest.approx(100, rel=0.05)
    assert row.speed == pytest.approx(2, rel=0.05)
    assert row.fairness == pytest.approx(1)
    assert row.latency95 >= row.latency50 == pytest.approx(5, rel=0.05)
    assert row.cpu == pytest.approx(1000 * 5 / 250, rel=0.05)
    assert (row.pss, row.start, row.lost, row.engine_busy) == (2 * 50_000_000, 0.4, 2, None)


def test_the_busiest_engine_counts() -> None:
    result = changed(made(3), lambda stack: stack.model_copy(update={"engines": {"video": 2.0, "render": 0.5}}))
    assert analyse(result, RESAMPLES).rows[0].engine_busy == pytest.approx(0.8, rel=0.1)


def test_warming_up_counts_for_the_start_alone() -> None:
    result = made(3)
    warm = result.runs[0].model_copy(update={"warmup": True, "start": 9.0, "cell": BARE})
    found = analyse(result.model_copy(update={"runs": (warm, *result.runs)}), RESAMPLES)
    assert next(row.runs for row in found.rows if row.cell == BARE) == 3


def test_a_run_with_trouble_is_left_out_and_named() -> None:
    result = made(4)
    place = next(place for place, run in enumerate(result.runs) if run.cell == TWO)
    bad = result.runs[place].stacks[0].model_copy(update={"trouble": "ffmpeg was killed"})
    broken = result.runs[place].model_copy(update={"stacks": (bad, *result.runs[place].stacks[1:])})
    found = analyse(
        result.model_copy(update={"runs": (*result.runs[:place], broken, *result.runs[place + 1 :])}), RESAMPLES
    )
    assert said(found, "2 × 1, block 0: ffmpeg was killed")
    ratio = of(found, TWO).ratio
    assert ratio is not None
    assert ratio.blocks == 3


def test_outputs_that_differ_are_named_where_two_runs_make_the_same_bytes() -> None:
    result = made(3)
    runs = tuple(
        run.model_copy(
            update={"stacks": tuple(stack.model_copy(update={"digest": run.cell.name}) for stack in run.stacks)}
        )
        for run in result.runs
    )
    result = result.model_copy(update={"runs": runs})
    assert said(
        analyse(result, RESAMPLES), "The outputs differ, so not all cells did the same work: 1 × 2 | 2 × 1 | bare 2"
    )
    hardware = {"workload": WORKLOAD.model_copy(update={"accel": "vaapi"})}
    simulated = result.model_copy(update={**hardware, "device": Device(kind="simulated", name="card")})
    assert said(analyse(simulated, RESAMPLES), "The outputs differ, so not all cells")
    real = result.model_copy(update={**hardware, "device": Device(kind="real", name="card")})
    assert not said(analyse(real, RESAMPLES), "The outputs differ")


def test_frames_that_are_missing_are_named() -> None:
    result = changed(made(3), lambda stack: stack.model_copy(update={"frames": 249}))
    assert said(analyse(result, RESAMPLES), "1 × 2: 249 frames were encoded, not 250")


def test_a_ratio_that_drifts_is_named() -> None:
    assert said(
        analyse(made(20, noise=0.01, drifting=0.1), RESAMPLES), "2 × 1, frames per second: the ratio drifted by +"
    )
    assert not said(analyse(made(20, noise=0.01), RESAMPLES), "drifted")


def test_a_reference_that_differs_from_itself_is_named() -> None:
    result = made(20, noise=0.01)
    runs = tuple(
        run.model_copy(update={"stacks": tuple(stack.model_copy(update={"pss": 60_000_000}) for stack in run.stacks)})
        if run.again
        else run
        for run in result.runs
    )
    found = analyse(result.model_copy(update={"runs": runs}), RESAMPLES)
    assert said(found, "1 × 2 against itself, memory: called different")


def test_a_few_blocks_that_pull_the_mean_are_named() -> None:
    result = made(30, noise=0.002)
    for block in (3, 9, 15):
        result = result.model_copy(update={"runs": tuple(
            run_of(run.block, run.place, TWO, 0.4) if run.cell == TWO and run.block == block else run
            for run in result.runs)})  # fmt: skip
    assert said(analyse(result, RESAMPLES), "2 × 1, frames per second: a few blocks pull the mean")


def test_a_simulated_device_is_named_beside_the_headline_and_may_not_be_held_up_by_cpus() -> None:
    result = made(4, device="simulated")
    found = analyse(result, RESAMPLES)
    assert found.further[-1] == "Each stack encoded by libx264 on a simulated GPU."
    assert " ".join((found.headline, *found.further, *found.troubles)).count("simulated by a program") == 1
    assert found.troubles[0].endswith("nothing of a real GPU or its driver.")
    assert not said(found, "The CPUs were")
    busy = tuple(run.model_copy(update={"cpu_busy": 0.7}) for run in result.runs)
    assert said(
        analyse(result.model_copy(update={"runs": busy}), RESAMPLES), "The CPUs were 70% busy beside a simulated"
    )


def test_a_quota_and_a_short_budget_are_named() -> None:
    result = made(4)
    runs = tuple(run.model_copy(update={"throttled": 0.2}) for run in result.runs)
    design = result.design.model_copy(update={"blocks": 4, "wanted": 1000})
    found = analyse(result.model_copy(update={"runs": runs, "design": design}), RESAMPLES)
    assert said(found, "A quota on CPUs held containers back in 16 runs")
    assert said(found, "The time allowed 4 of the 1,000 blocks that ± 3 % asks for")


def test_the_spread_that_fixes_the_number_of_blocks_is_the_largest() -> None:
    result = made(40, noise=0.02)
    spreads = [one.spread for one in analyse(result, RESAMPLES).contrasts if one.metric == "fps"]
    assert deviation(result) == pytest.approx(max(spreads))
    assert deviation(made(0)) == 0


def test_a_density_is_told_for_each_packing() -> None:
    level = Level(cell=ONE, streams=6, slowest=1.05, runs=3)
    six = Density(cell=Cell(containers=1, stacks=6), streams=6, intel=6, livepeer=4, confirmed=True, levels=(level,),
                  pixel_rate=1e8)  # fmt: skip
    apart = replace_density(six, containers=6, confirmed=False)
    result = made(0).model_copy(update={"kind": "density", "density": (apart, six)})
    found = analyse(result, RESAMPLES)
    assert found.headline == (
        "Streams of 1280×720 at 25 fps that stay real time: "
        "6 in one container (confirmed at 6 and 7), 6 with one container each (not confirmed)."
    )
    assert found.further == ("Each stack encoded by software libx264: no GPU was measured.",)
    assert said(found, "With one container each: the number of streams, 6, could not be confirmed")
    capped = six.model_copy(update={"capped": True})
    assert "at least 6 in one container" in analyse(result.model_copy(update={"density": (capped,)})).headline


def test_two_packings_of_one_stream_have_two_names() -> None:
    lone = Cell(containers=1, stacks=1)
    level = Level(cell=lone, streams=1, slowest=0.5, runs=3)
    none = Density(cell=lone, streams=0, intel=0, livepeer=0, confirmed=False, levels=(level,), pixel_rate=1e7)
    found = analyse(made(0).model_copy(update={"kind": "density", "density": (none, none)}))
    assert "0 in one container (not confirmed), 0 with one container each (not confirmed)." in found.headline
    assert len(set(found.troubles)) == len(found.troubles) == 2


def replace_density(density: Density, containers: int, confirmed: bool) -> Density:
    cell = Cell(containers=containers, stacks=density.streams)
    levels = tuple(level.model_copy(update={"cell": cell}) for level in density.levels)
    return density.model_copy(update={"cell": cell, "confirmed": confirmed, "levels": levels})


def steady(start: float, rate: float, frames: int) -> StackRun:
    """A stack that encodes as fast all the time, and says so once in 50 frames."""
    stamps = tuple(Stamp(at=start + done / rate, frames=done) for done in range(0, frames + 1, 50))
    return StackRun(
        container=0, started=start, ended=start + frames / rate, frames=frames, stamps=stamps,
        cpu_user=frames / rate, pss=50_000_000, digest="same",
    )  # fmt: skip


def run_of(block: int, place: int, cell: Cell, speed: float, again: bool = False) -> Run:
    stacks = tuple(steady(0.1, 50 * speed, WORKLOAD.frames) for _ in range(cell.stacks))
    return Run(block=block, place=place, cell=cell, again=again, stacks=stacks, start=0.4)


def made(
    blocks: int,
    *,
    noise: float = 0.01,
    cells: tuple[Cell, ...] = (BARE, TWO),
    slower: dict[Cell, float] | None = None,
    itself: float = 1.0,
    drifting: float = 0.0,
    device: DeviceKind = "software",
    partial: bool = False,
) -> Result:
    """Two stacks, each 50 fps but for a noise of each run and a factor of its cell; blocks have their own weather.

    The reference's second run is `itself` of its first.
    """
    runs = []
    for block in range(blocks):
        weather = random.Random(f"block {block}").lognormvariate(0, 0.1)
        for place, (cell, again) in enumerate([(ONE, False), (ONE, True), *((cell, False) for cell in cells)]):
            luck = random.Random(f"{block} {cell} {again}").lognormvariate(0, noise)
            factor = (slower or {}).get(cell, 1.0) * (1 + drifting * block / blocks if cell == TWO else 1)
            runs.append(run_of(block, place, cell, weather * luck * factor * (itself if again else 1), again))
    accel = "software" if device == "software" else "vaapi"
    return Result(
        kind="topology", made="2026-11-25T08:00:00Z", partial=partial, environment=Environment(),
        device=Device(kind=device, name="card"), workload=WORKLOAD.model_copy(update={"accel": accel}),
        design=Design(profile="quick", engine="docker", seed=1, cells=(ONE, *cells), reference=ONE), runs=tuple(runs),
    )  # fmt: skip


def changed(result: Result, how: Callable[[StackRun], StackRun]) -> Result:
    runs = tuple(run.model_copy(update={"stacks": tuple(map(how, run.stacks))}) for run in result.runs)
    return result.model_copy(update={"runs": runs})


def of(found: Analysis, cell: Cell, metric: Metric = "fps") -> Contrast:
    return next(one for one in found.contrasts if (one.cell, one.metric, one.again) == (cell, metric, False))


def said(found: Analysis, words: str) -> bool:
    return any(words in trouble for trouble in found.troubles)
