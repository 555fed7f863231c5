"""The benchmarks' arithmetic: a verdict is only worth what its interval is. Their figures are asserted nowhere."""

import ast
import json
import math
import random
from collections.abc import Sequence

import pytest

from benchmarks import figures, report, stand
from benchmarks.figures import Interval, bootstrap, judge, quantile, ratio, spread
from benchmarks.report import Row
from benchmarks.suites import growth, hop, ladder, path


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.25, 1.75), (0.5, 2.5), (1.0, 4.0)], ids=["least", "quarter", "middle", "most"]
)
def test_a_quantile_lies_between_its_neighbours(share: float, value: float) -> None:
    assert quantile([4, 1, 3, 2], share) == value


def test_there_is_no_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    pairs = pairs_of(random.Random(1), 12, true=1.2)
    assert ratio(pairs, seed=3) == ratio(pairs, seed=3) != ratio(pairs, seed=4)


def test_a_ratio_is_the_geometric_mean() -> None:
    assert ratio([(2, 1), (1, 2), (2, 1), (1, 2)], seed=0).value == pytest.approx(1)


def test_a_ratio_turned_round_has_its_interval_turned_round() -> None:
    pairs = pairs_of(random.Random(2), 30, true=1.1)
    there, back = ratio(pairs, seed=0), ratio([(second, first) for first, second in pairs], seed=0)
    assert back.value == pytest.approx(1 / there.value)
    assert back.low == pytest.approx(1 / there.high, rel=0.01)


@pytest.mark.parametrize("pairs", [[(3.0, 2.0)], [(3.0, 2.0), (3.0, 1.0)], [(3.0, 2.0)] * 9], ids=["1", "2", "same"])
def test_few_or_equal_pairs_have_their_own_range_for_an_interval(pairs: list[tuple[float, float]]) -> None:
    found = ratio(pairs, seed=0)
    assert found.low == pytest.approx(1.5)
    assert found.high == pytest.approx(max(first / second for first, second in pairs))


def test_a_against_a_is_seldom_called_different() -> None:
    """At 20 blocks the interval leaves out the truth in some 5 of 100 runs; 12 would happen once in 200 suites."""
    generator = random.Random(5)
    found = [ratio(pairs_of(generator, 20), seed=run, resamples=400) for run in range(100)]
    assert sum(not one.low <= 1 <= one.high for one in found) <= 12


def test_a_difference_is_found_when_there_is_one() -> None:
    generator = random.Random(6)
    found = [judge(ratio(pairs_of(generator, 40, true=1.3), seed=run, resamples=400), 1.2) for run in range(20)]
    assert found.count("not met") >= 15
    assert "met" not in found


def test_the_interval_of_a_middle_holds_the_middle() -> None:
    generator = random.Random(7)
    hits = 0
    for run in range(60):
        drawn = [generator.lognormvariate(0, 0.3) for _ in range(40)]
        found = bootstrap(lambda some: quantile(some, 0.5), drawn, seed=run, resamples=300)
        hits += found.low <= 1 <= found.high
    assert hits >= 50


def test_blocks_are_drawn_whole() -> None:
    blocks = [{"ours": base + 1, "bare": base} for base in (10.0, 200.0, 3000.0, 7.0)]
    found = bootstrap(lambda some: sum(one["ours"] - one["bare"] for one in some) / len(some), blocks, seed=0)
    assert found == Interval(1, 1, 1), "the load that both arms met cancels"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.9, 1.0, "met"), (0.9, 1.1, "cannot tell"), (1.05, 1.1, "not met")]
)
def test_a_verdict_looks_at_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert judge(Interval((low + high) / 2, low, high), 1.0) == verdict


def test_the_spread_of_pairs_is_that_of_their_logarithms() -> None:
    assert spread([(math.e, 1), (1, math.e)]) == pytest.approx(math.sqrt(2))
    assert spread([(2, 1)]) == 0


def test_an_interval_has_its_ends_in_order() -> None:
    with pytest.raises(ValueError, match="order"):
        Interval(1, 2, 1)


def test_what_a_tiny_job_adds_is_a_difference_of_quantiles_without_the_decode_check() -> None:
    blocks = [{"job.wall": 0.5, "job.decode": 0.1, "bare.wall": 0.3}] * 9 + [
        {"job.wall": 0.9, "job.decode": 0.1, "bare.wall": 0.3}
    ]
    assert path.added(blocks, "job", 0.5) == pytest.approx(0.1)
    assert path.added(blocks, "job", 1.0) == pytest.approx(0.5)


def test_the_model_of_a_ladder_decodes_once() -> None:
    assert ladder.model({"only720.cpu": 6, "only480.cpu": 4, "only360.cpu": 3, "decode.cpu": 2}) == 9


def test_growth_is_between_both_ends_and_few_jobs_cannot_meet_its_bound() -> None:
    def looks(jobs: int, grown: float) -> list[stand.Block]:
        return [{"jobs": jobs * part / 20, "resident": 50e6 + grown * part / 20} for part in range(21)]

    assert growth.rows(looks(growth.JOBS, 5e5))[0].judged == "met"
    assert growth.rows(looks(growth.JOBS, 5e6))[0].judged == "not met"
    assert growth.rows(looks(500, 5e5))[0].judged == "cannot tell"
    assert growth.rows(looks(500, 5e6))[0].judged == "not met"


def test_a_report_shows_the_bound_the_interval_and_the_verdict() -> None:
    rows = [
        Row("path", "added", Interval(0.0123, 0.010, 0.0149), "ms", 40, 0.015),
        Row("ladder", "saved", Interval(1.2, 1.1, 1.3), "ratio", 9, 0.85),
        Row("memory", "whole", Interval(144e6, 144e6, 144e6), "MB", 1),
    ]
    table = report.text(rows)
    assert "≤ 15.0 ms" in table
    assert "12.3 ms [10.0 ms – 14.9 ms], n=40" in table
    assert "144 MB, n=1" in table
    assert report.verdict_sentence(rows) == "1 of 2 bounds met. not met: saved."
    assert "| saved | ≤ 0.85 | 1.20 [1.10 – 1.30], n=9 | not met |" in report.markdown(rows, {"cpus": 2}, "bench")


def test_the_json_has_its_schema_and_every_observation() -> None:
    row = Row("path", "added", Interval(1, 1, 1), "s", 1, 2)
    found = json.loads(json.dumps(report.as_json([row], {"cpus": 2}, 7, {"path": [{"wall": 1.0}]})))
    assert found["schema"] == report.SCHEMA
    assert found["seed"] == 7
    assert found["rows"][0]["verdict"] == "met"
    assert found["observations"] == {"path": [{"wall": 1.0}]}


def test_the_confidence_is_what_the_readme_says() -> None:
    assert figures.CONFIDENCE == 0.95


def pairs_of(generator: random.Random, count: int, true: float = 1.0) -> Sequence[tuple[float, float]]:
    """Pairs whose ratio is `true` but for noise of a tenth, as this project's machines have it."""
    return [(true * generator.lognormvariate(0, 0.1), 1.0) for _ in range(count)]


def test_the_bare_workers_settings_can_be_handed_to_it_as_text() -> None:
    settings = hop.same_options("redis://127.0.0.1:1/0")
    assert ast.literal_eval(repr(settings)) == settings
