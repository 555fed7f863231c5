"""When a device is left alone, and when it is taken back."""

import hypothesis.strategies as st
from hypothesis import given

from transcoder.breaker import Circuit, Rules
from transcoder.faults import FaultClass

RULES = Rules(faults=3, window=600, cooldown=60, longest=900)
HARDWARE = FaultClass.HARDWARE
CLOSED = Circuit()


def after(*times: float, kind: FaultClass = HARDWARE, circuit: Circuit = CLOSED) -> Circuit:
    for at in times:
        circuit = circuit.after(kind, at, RULES)
    return circuit


def trial(circuit: Circuit, at: float, *, good: bool) -> Circuit:
    assert circuit.due(at)
    return circuit.tried().judged(good, at, RULES)


def test_three_faults_in_ten_minutes_open_it() -> None:
    assert after(0, 100).state == "closed"
    assert after(0, 100, 599).state == "open"


def test_faults_that_lie_further_apart_do_not() -> None:
    assert after(0, 300, 601, 901, 1202).state == "closed"


def test_a_device_that_cannot_be_used_at_all_opens_it_at_once() -> None:
    assert after(0, kind=FaultClass.CONFIG).state == "open"


def test_it_is_tried_after_the_cool_down_and_not_before() -> None:
    circuit = after(0, 1, 2)
    assert not circuit.due(61.9)
    assert circuit.due(62)
    assert not circuit.tried().due(62), "one trial at a time"


def test_a_good_trial_closes_it_and_the_count_begins_anew() -> None:
    circuit = trial(after(0, 1, 2), 62, good=True)
    assert circuit.state == "closed"
    assert after(63, 64, circuit=circuit).state == "closed"
    assert after(63, 64, 65, circuit=circuit).state == "open"


def test_the_cool_down_doubles_with_every_bad_trial_up_to_the_longest() -> None:
    circuit, now, pauses = after(0, 0, 0), 0.0, []
    for _ in range(7):
        pauses.append(circuit.since - now)
        now = circuit.since
        circuit = trial(circuit, now, good=False)
    assert pauses == [60, 120, 240, 480, 900, 900, 900]


def test_one_that_passes_its_trials_and_fails_its_jobs_is_tried_ever_more_seldom() -> None:
    circuit = trial(after(0, 0, 0), 60, good=True)
    assert after(61, 62, 63, circuit=circuit).since == 63 + 120
    assert after(1000, 1000, 1000, circuit=circuit).since == 1000 + 60, "a window without a fault forgives"


def test_a_hang_is_looked_into_before_the_next_job_and_counts() -> None:
    circuit = after(0, kind=FaultClass.STALLED)
    assert circuit.due(0)
    circuit = trial(circuit, 0, good=True)
    assert circuit.state == "closed"
    circuit = trial(after(1, kind=FaultClass.STALLED, circuit=circuit), 1, good=True)
    circuit = after(2, kind=FaultClass.STALLED, circuit=circuit)
    assert not circuit.due(61.9)


def test_a_hang_whose_trial_fails_opens_it() -> None:
    circuit = trial(after(0, kind=FaultClass.STALLED), 0, good=False)
    assert (circuit.state, circuit.since) == ("open", 60)


def test_what_still_ran_when_it_was_opened_adds_nothing() -> None:
    circuit = after(0, 1, 2)
    assert after(3, 4, circuit=circuit) == circuit


@given(st.lists(st.tuples(st.sampled_from(["fault", "hang", "config", "trial"]), st.floats(0, 500), st.booleans())))
def test_whatever_happens_a_device_is_tried_again_within_the_longest_pause(
    steps: list[tuple[str, float, bool]],
) -> None:
    circuit, now = Circuit(), 0.0
    kinds = {"fault": HARDWARE, "hang": FaultClass.STALLED, "config": FaultClass.CONFIG}
    for what, pause, good in steps:
        now += pause
        if what in kinds:
            circuit = circuit.after(kinds[what], now, RULES)
        elif circuit.due(now):
            circuit = circuit.tried().judged(good, now, RULES)
        assert circuit.state != "trial"
        assert circuit.state == "closed" or circuit.since <= now + RULES.longest
        assert len(circuit.faults) < RULES.faults
