"""The simulation of the queue: what its figures are worth. The figures themselves are asserted nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ordering import Simulation, Site, bound, first_free, guessed, longest_first, refusing
from tests import services

mixes = st.lists(st.floats(1, 1e4), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("mix", "seconds"),
    [([60.0], 60), ([60.0] * 12, 300), ([100.0, 1.0], 100)],
    ids=["one job needs its own time", "many share all places", "a long one is not shared"],
)
def test_no_order_goes_below_the_bound(mix: list[float], seconds: float) -> None:
    assert bound(Site(), mix) == pytest.approx(seconds)


@given(mixes)
def test_every_order_stays_above_the_bound(mix: list[float]) -> None:
    least = bound(Site(), mix) * (1 - 1e-9)
    orders = [first_free(Site(), mix), longest_first(Site(), mix)]
    orders += [refusing(Site(), mix, guessed(mix, 0.3), longest=longest) for longest in (True, False)]
    assert min(orders) >= least


def test_plain_fifo_gives_a_long_job_to_software_and_the_earliest_finish_does_not() -> None:
    mix = [10.0, 10.0, 100.0]
    assert first_free(Site(), mix) == 500
    assert longest_first(Site(), mix) == 100


def test_the_queue_itself_is_simulated_and_the_same_every_time(redis: services.Redis) -> None:
    site = Site(jobs=8)
    simulation = Simulation(redis.url, site)
    try:
        times = [simulation.run(site.mix(seed)) for seed in (1, 2, 1)]
        assert times[0] == times[2] != times[1]
        assert all(spent >= bound(site, site.mix(seed)) for spent, seed in zip(times, (1, 2, 1), strict=True))
    finally:
        simulation.close()


def test_a_job_that_prefers_hardware_waits_for_it_a_minute_before_software_has_it(redis: services.Redis) -> None:
    """In order of arrival; two of 100 s hold hardware, the third goes at 60 s and takes five times its 10 s."""
    simulation = Simulation(redis.url, Site(), slower=None)
    try:
        assert simulation.run([100.0, 100.0, 10.0]) == pytest.approx(60 + 50, abs=1.1)
        assert simulation.run([50.0, 100.0, 10.0]) == pytest.approx(100, abs=0.1), "a place is free before that"
    finally:
        simulation.close()


def test_by_effort_software_gets_what_ends_sooner_there_and_nothing_else(redis: services.Redis) -> None:
    simulation = Simulation(redis.url, Site())
    try:
        assert simulation.run([100.0, 100.0, 5.0]) == pytest.approx(100, abs=0.1)
        assert 0 < simulation.waits[2] < 10, "a scout has to look first"
        assert simulation.run([100.0, 100.0, 50.0]) == pytest.approx(150, abs=0.1)
        assert simulation.waits[2] == pytest.approx(100), "five times 50 s are more than hardware takes for all"
    finally:
        simulation.close()


def test_by_effort_a_long_job_that_came_last_is_not_begun_last(redis: services.Redis) -> None:
    simulation, arrival = Simulation(redis.url, Site(software=0)), Simulation(redis.url, Site(software=0), slower=None)
    mix = [20.0] * 10 + [100.0]
    try:
        assert arrival.run(mix) == pytest.approx(200, abs=0.1)
        assert simulation.run(mix) == pytest.approx(160, abs=0.1)
    finally:
        simulation.close()
        arrival.close()
