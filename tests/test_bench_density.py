"""How many streams a device bears: the search on values, and on the GPU in software, whose answer is known."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcoder.bench import density
from transcoder.bench.density import INTEL, LIVEPEER, REAL_TIME, Ask, Found, Limits, Seen

Curve = Callable[[int], float]
"""The slowest stream, × real time, at a number of streams."""


def search(curve: Curve, limits: Limits) -> list[Seen]:
    """Every run that the search asks for."""
    seen: list[Seen] = []
    while ask := density.following(seen, limits):
        seen.append(Seen(ask.streams, curve(ask.streams), ask.confirms))
        assert len(seen) < 10_000, "it never ends"
    return seen


def shared(rate: float, engines: int = 1) -> Curve:
    """Engines of which each makes `rate` streams in real time, shared fairly; one stream has one engine at most."""
    return lambda streams: rate * min(1.0, engines / streams)


def largest(curve: Curve, least: float, most: int) -> int:
    return next((n for n in range(most, 0, -1) if curve(n) >= least), 0)


def searched(seen: list[Seen]) -> list[int]:
    return [one.streams for one in seen if not one.confirms]


falling = st.lists(st.floats(0.01, 0.9), min_size=1, max_size=300).map(
    lambda steps: [4 * math.prod(1 - step / 20 for step in steps[: n + 1]) for n in range(len(steps))]
)


@settings(deadline=None)  # a machine may be busy
@given(falling, st.integers(3, 5))
def test_on_any_falling_curve_all_three_numbers_are_exact(speeds: list[float], repeats: int) -> None:
    limits = Limits(len(speeds), repeats)
    curve: Curve = lambda streams: speeds[streams - 1]  # noqa: E731
    found = density.found(search(curve, limits), limits)
    expected = [largest(curve, least, limits.most) for least in (REAL_TIME, INTEL, LIVEPEER)]
    assert [found.streams, found.intel, found.livepeer] == expected
    assert found.confirmed
    assert found.capped == (expected[0] == limits.most)


@settings(deadline=None)  # a machine may be busy
@given(st.integers(1, 64), st.floats(0.3, 500), st.integers(3, 5))
def test_it_takes_runs_by_the_logarithm(engines: int, rate: float, repeats: int) -> None:
    limits = Limits(4096, repeats)
    seen = search(shared(rate, engines), limits)
    found = density.found(seen, limits)
    assert found.streams == largest(shared(rate, engines), REAL_TIME, 4096)
    # twice for real time (there and back), once for each of the other rules, and what is confirmed
    assert len(seen) <= 4 * (math.log2(max(1, found.intel)) + 2) + 2 * repeats


@settings(deadline=None)  # a machine may be busy
@given(st.integers(1, 40), st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_noise_that_is_smaller_than_the_distance_to_the_boundary_changes_nothing(
    streams: int, share: float, chance: random.Random
) -> None:
    rate = streams + share
    noise = 0.99 * min(rate / streams - 1, 1 - rate / (streams + 1))
    curve: Curve = lambda n: rate / n * (1 + chance.uniform(-noise, noise))  # noqa: E731
    limits = Limits(100)
    found = density.found(search(curve, limits), limits)
    assert (found.streams, found.confirmed) == (streams, True)


@settings(deadline=None)  # a machine may be busy
@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=40), st.integers(1, 12))
def test_whatever_the_runs_say_it_ends_and_its_word_is_kept_by_the_median(speeds: list[float], most: int) -> None:
    limits = Limits(most)
    told = iter(speeds * 10_000)
    seen = search(lambda _: next(told), limits)
    found = density.found(seen, limits)
    assert 0 <= found.streams <= most
    assert max(one.streams for one in seen) <= most
    for streams, fast in ((found.streams, True), (found.streams + 1, False)):
        repeats = sorted(one.slowest for one in seen if one.streams == streams and one.confirms)
        if 1 <= streams <= most:
            assert len(repeats) >= 3
            assert (repeats[len(repeats) // 2] >= 1) is fast


def test_it_doubles_then_halves_then_confirms_in_turn() -> None:
    seen = search(shared(5.5), Limits(64))
    assert searched(seen)[:6] == [1, 2, 4, 8, 6, 5]
    assert [one.streams for one in seen if one.confirms] == [5, 6, 5, 6, 5, 6]


def test_a_lucky_run_of_the_search_is_found_out_by_the_repeats() -> None:
    lucky = {8: iter([1.3])}
    curve: Curve = lambda n: next(lucky.get(n, iter(())), shared(5.5)(n))  # noqa: E731
    seen = search(curve, Limits(64))
    assert 8 in {one.streams for one in seen if one.confirms}
    assert density.found(seen, Limits(64)).streams == 5


def test_an_unlucky_run_of_the_search_is_found_out_too() -> None:
    unlucky = {5: iter([0.7])}
    curve: Curve = lambda n: next(unlucky.get(n, iter(())), shared(5.5)(n))  # noqa: E731
    found = density.found(search(curve, Limits(64)), Limits(64))
    assert (found.streams, found.confirmed) == (5, True)


def test_repeats_that_are_not_of_one_mind_are_asked_for_three_times_as_often() -> None:
    mixed = iter([1.1, 1.1, 0.9, 1.1, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9])
    curve: Curve = lambda n: next(mixed) if n == 1 else 0.5  # noqa: E731
    seen = search(curve, Limits(64))
    assert len([one for one in seen if one.streams == 1 and one.confirms]) == 9
    found = density.found(seen, Limits(64))
    assert (found.streams, found.confirmed) == (1, False), "five of nine are no confirmation"


def test_a_larger_number_that_is_confirmed_beside_a_smaller_that_failed_leaves_the_answer_in_doubt() -> None:
    odd = {1: 3.0, 2: 2.0, 3: 1.5, 4: 0.9, 5: 1.1}
    first = iter([1.0])  # in the search 4 was fast enough, and 5 was not
    wrong = iter([0.9])
    curve: Curve = lambda n: next(first if n == 4 else wrong if n == 5 else iter(()), odd.get(n, 0.5))  # noqa: E731
    found = density.found(search(curve, Limits(64)), Limits(64))
    assert (found.streams, found.confirmed) == (3, False)


def test_not_even_one_stream_and_more_than_it_may_try() -> None:
    assert density.found(search(shared(0.4), Limits(64)), Limits(64)) == Found(0, 0, 0, confirmed=True, capped=False)
    assert density.found(search(shared(0.99), Limits(64)), Limits(64)) == Found(0, 1, 0, confirmed=True, capped=False)
    assert density.found(search(shared(99), Limits(12)), Limits(12)) == Found(12, 12, 12, confirmed=True, capped=True)


def test_a_search_that_was_ended_says_what_is_known() -> None:
    seen = search(shared(5.5), Limits(64))
    assert density.found([], Limits(64)) == Found(0, 0, 0, confirmed=False, capped=False)
    assert density.found(seen[:3], Limits(64)) == Found(4, 4, 4, confirmed=False, capped=False)
    assert density.following([], Limits(64)) == Ask(1)


def test_the_levels_are_the_medians_of_their_runs() -> None:
    seen = [Seen(2, 1.5), Seen(1, 3.0), Seen(2, 1.1, confirms=True), Seen(2, 1.2, confirms=True)]
    assert density.levels(seen) == ((1, 3.0, 1), (2, 1.2, 3))


@pytest.mark.parametrize("limits", [Limits(0), Limits(4, repeats=2)])
def test_limits_that_prove_nothing_are_refused(limits: Limits) -> None:
    with pytest.raises(ValueError, match="at least 1 stream and 3 repeats"):
        density.following([], limits)
