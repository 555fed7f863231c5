"""The leases on devices and CPUs, on a real Redis."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
import redis as redis_py
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests import services
from tests.test_ledger import plain, server
from transcoder import slots
from transcoder.errors import JobCancelled
from transcoder.slots import Capacity, Slots

__all__ = ["plain", "server"]  # the fixtures

pytestmark = pytest.mark.slow

GPU = Capacity("boot:0000:00:02.0", "0000:00:02.0", 100)


def on(url: str) -> Slots:
    return Slots(redis_py.Redis.from_url(url, decode_responses=True, socket_timeout=2))


@pytest.fixture
def leases(server: services.Redis, plain: redis_py.Redis) -> Iterator[Slots]:
    leases = on(server.url)
    yield leases
    leases.close()


class Asking:
    """A job in a thread of its own that asks for a slot and holds it until it is told to go."""

    def __init__(
        self, leases: Slots, lease: str, cost: float = 60, capacity: Capacity = GPU, behind: float = 0
    ) -> None:
        self.held, self.go, self.stop, self.waits = (threading.Event() for _ in range(4))
        self.at = 0.0
        self.error: Exception | None = None
        self._words = (leases, lease, cost, capacity, behind)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        leases, lease, cost, capacity, behind = self._words
        try:
            with leases.slot(capacity, cost, lease, behind=behind, cancelled=self.stop.is_set, waits=self.waits.set):
                self.at = time.monotonic()
                self.held.set()
                self.go.wait(30)
        except JobCancelled as cancelled:
            self.error = cancelled

    def end(self) -> None:
        self.go.set()
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def asking(
    leases: Slots, lease: str, cost: float = 60, capacity: Capacity = GPU, behind: float = 0
) -> Iterator[Asking]:
    """The job, from when it has its slot or its place in the line."""
    job = Asking(leases, lease, cost, capacity, behind)
    try:
        while not job.held.is_set() and not job.waits.is_set():
            time.sleep(0.001)
        yield job
    finally:
        job.end()


def used(leases: Slots) -> float:
    return leases.usage([GPU])[GPU.name].used


def test_what_fits_runs_and_what_does_not_waits(leases: Slots) -> None:
    with asking(leases, "a", 60) as first, asking(leases, "b", 40) as second:
        assert first.held.wait(5)
        assert second.held.wait(5)
        assert not first.waits.is_set()
        with asking(leases, "c", 10) as third:
            assert third.waits.wait(5)
            assert not third.held.wait(0.5)
            assert used(leases) == 100
            first.end()
            assert third.held.wait(5)
    assert used(leases) == 0


def test_a_free_slot_is_taken_within_milliseconds(leases: Slots) -> None:
    delays = []
    for turn in range(20):
        with asking(leases, f"a{turn}") as first:
            assert first.held.wait(5)
            with asking(leases, f"b{turn}") as second:
                assert second.waits.wait(5)
                time.sleep(0.02)
                freed = time.monotonic()
                first.go.set()
                assert second.held.wait(5)
                delays.append(second.at - freed)
    # the look every 0.3 s is only for what is lost on the way
    assert sorted(delays)[len(delays) // 2] < 0.05, delays


def test_a_big_job_is_not_starved_by_small_ones_that_would_fit(leases: Slots) -> None:
    with asking(leases, "small", 30) as small, ExitStack() as rest:
        assert small.held.wait(5)
        big = rest.enter_context(asking(leases, "big", 90))
        assert big.waits.wait(5)
        late = rest.enter_context(asking(leases, "late", 10))
        assert late.waits.wait(5)
        assert not late.held.wait(0.5)
        small.end()
        assert big.held.wait(5)
        assert late.held.wait(5)


def test_a_more_urgent_job_goes_first_and_the_others_are_not_held_up_for_ever(leases: Slots) -> None:
    with asking(leases, "runs", 100) as runs, ExitStack() as rest:
        assert runs.held.wait(5)
        low = rest.enter_context(asking(leases, "low", 100, behind=600))
        late = rest.enter_context(asking(leases, "urgent", 100, behind=0))
        waiting = leases._redis.zrange(f"transcoder:slots:{GPU.key}:waiters", 0, -1)
        assert waiting == ["urgent", "low"]
        leases._redis.zincrby(f"transcoder:slots:{GPU.key}:waiters", -601, "low")  # it has waited as long as that
        runs.end()
        assert low.held.wait(5)
        assert not late.held.is_set()
        low.end()
        assert late.held.wait(5)


def test_a_job_larger_than_the_device_runs_alone(leases: Slots) -> None:
    with asking(leases, "small", 1) as small, asking(leases, "huge", 1e9) as huge:
        assert small.held.wait(5)
        assert huge.waits.wait(5)
        small.end()
        assert huge.held.wait(5)
        assert used(leases) == 100
        with asking(leases, "next", 1) as following:
            assert not following.held.wait(0.5)


def test_two_workers_share_a_device_and_not_another_one(server: services.Redis, leases: Slots) -> None:
    other = on(server.url)
    with asking(leases, "a", 100) as mine, asking(other, "b", 100) as theirs:
        assert mine.held.wait(5)
        assert theirs.waits.wait(5)
        with asking(other, "c", 100, Capacity("boot:0000:03:00.0", "0000:03:00.0", 100)) as elsewhere:
            assert elsewhere.held.wait(5)
    other.close()


def test_a_cancelled_job_leaves_the_line(leases: Slots) -> None:
    with asking(leases, "a", 100) as first, asking(leases, "b", 100) as second:
        assert first.held.wait(5)
        assert second.waits.wait(5)
        second.stop.set()
        second.thread.join(2)
        assert "0000:00:02.0" in str(second.error)
        assert leases.usage([GPU])[GPU.name].waiting == 0


def let_run_out(plain: redis_py.Redis, lease: str) -> None:
    """As if its worker had said nothing for longer than a lease lives."""
    for what in ("leases", "heard"):
        key = f"transcoder:slots:{GPU.key}:{what}"
        if plain.zscore(key, lease) is not None:
            plain.zadd(key, {lease: time.time() - 1})


def test_the_slot_of_a_dead_worker_is_free_when_its_lease_runs_out(leases: Slots, plain: redis_py.Redis) -> None:
    with asking(leases, "dead", 100) as dead, asking(leases, "b", 100) as second:
        assert dead.held.wait(5)
        assert second.waits.wait(5)
        let_run_out(plain, "dead")
        assert second.held.wait(5)
        assert used(leases) == 100


def test_what_a_lost_worker_held_is_free_as_soon_as_that_is_known(leases: Slots, plain: redis_py.Redis) -> None:
    with asking(leases, "lost.1.1", 100), asking(leases, "lost.1.2", 50), asking(leases, "lost.11.1", 50) as other:
        leases.forget("lost.1.")
        assert other.held.wait(5)
        assert used(leases) == 50
    assert not plain.exists("transcoder:slots:places")


def test_a_held_lease_is_renewed_and_one_that_ran_out_comes_before_all_who_wait(
    leases: Slots, plain: redis_py.Redis
) -> None:
    with asking(leases, "mine", 100) as mine, asking(leases, "b", 100) as second:
        assert mine.held.wait(5)
        assert second.waits.wait(5)
        key = f"transcoder:slots:{GPU.key}:leases"
        plain.zadd(key, {"mine": time.time() + 1})
        leases._renewed = 0
        leases.renew()
        assert float(plain.zscore(key, "mine") or 0) > time.time() + 10
        let_run_out(plain, "mine")  # and now Redis was away for long
        assert second.held.wait(5)
        with asking(leases, "c", 100) as third:
            assert third.waits.wait(5)
            leases._renewed = 0
            leases.renew()
            second.end()
            assert not third.held.wait(0.5), "the running job has its slot again"
            mine.end()
            assert third.held.wait(5)


def test_while_redis_is_away_what_runs_runs_and_what_waits_waits(tmp_path: Path) -> None:
    with services.private_redis(tmp_path, appendonly=True) as server:
        leases = on(server.url)
        with asking(leases, "a", 100) as first, asking(leases, "b", 100) as second:
            assert first.held.wait(5)
            assert second.waits.wait(5)
            server.kill()
            leases._renewed = 0
            leases.renew()
            assert not second.held.wait(1)
            server.start()
            assert not second.held.wait(1)
            first.end()
            assert second.held.wait(5)


def test_a_slot_that_ended_while_redis_was_away_is_given_back_when_it_returns(tmp_path: Path) -> None:
    with services.private_redis(tmp_path, appendonly=True) as server:
        leases = on(server.url)
        with leases.slot(GPU, 60, "first"):
            server.stop()
        leases.renew()
        server.start()
        assert leases.usage([GPU])[GPU.name].used == 60
        leases._renewed = 0.0  # as after some seconds
        leases.renew()
        assert leases.usage([GPU])[GPU.name].used == 0
        leases.close()


def test_the_cpus_of_one_container_are_one_capacity_and_a_device_is_known_by_host_and_address() -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert slots.of_cpus(5) == slots.of_cpus(5)
    assert slots.of_cpus(5).key.startswith(f"{boot}:cpu:")
    assert slots.of_device("0000:00:02.0", 7) == Capacity(f"{boot}:0000:00:02.0", "0000:00:02.0", 7)


class Line(RuleBasedStateMachine):
    """Any order of asking, renewing, giving back and dying, against a model of a line before a budget."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.redis = redis_py.Redis.from_url(self.url, decode_responses=True)
        self.redis.flushall()
        self.slots = Slots(self.redis)
        self.made = 0
        self.held: dict[str, int] = {}
        self.line: list[tuple[str, int]] = []

    def grant(self) -> None:
        while self.line and sum(self.held.values()) + min(self.line[0][1], 100) <= 100:
            name, cost = self.line.pop(0)
            self.held[name] = min(cost, 100)

    def ask(self, name: str, cost: int) -> None:
        words = {"place": GPU.key, "lease": name, "cost": cost, "budget": 100}
        assert (self.slots._change("ask", **words) == ["yours"]) == (name in self.held)

    @rule(cost=st.integers(1, 150))
    def a_job_comes(self, cost: int) -> None:
        self.made += 1
        self.line.append((f"job{self.made}", cost))
        self.grant()
        self.ask(f"job{self.made}", cost)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def a_waiting_job_asks_again(self, data: st.DataObject) -> None:
        name, cost = data.draw(st.sampled_from(self.line))
        self.ask(name, cost)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_job_ends(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.slots._give_back(GPU, name)
        del self.held[name]
        self.grant()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def a_waiting_job_is_cancelled(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.line))
        self.slots._give_back(GPU, gone[0])
        self.line.remove(gone)
        self.grant()

    @precondition(lambda self: self.held or self.line)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held) + [one for one, _ in self.line]))
        let_run_out(self.redis, name)
        self.held.pop(name, None)
        self.line = [one for one in self.line if one[0] != name]
        self.grant()
        self.slots.usage([GPU])  # whoever speaks next sweeps

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_lease_runs_out_and_its_worker_comes_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        cost = self.held.pop(name)
        let_run_out(self.redis, name)
        self.grant()  # when it was swept, others came first
        self.line.insert(0, (name, cost))
        self.slots.usage([GPU])
        self.slots._change("renew", leases=[(GPU.key, name, cost)])
        self.grant()

    @invariant()
    def what_is_granted_is_what_the_model_grants_and_never_more_than_the_budget(self) -> None:
        usage = self.slots.usage([GPU])[GPU.name]
        assert usage.used == sum(self.held.values()) <= 100
        assert usage.waiting == len(self.line)
        assert set(self.redis.zrange(f"transcoder:slots:{GPU.key}:leases", 0, -1)) == set(self.held)

    @invariant()
    def nothing_is_kept_of_those_that_are_gone(self) -> None:
        known = set(self.held) | {name for name, _ in self.line}
        assert set(self.redis.hkeys(f"transcoder:slots:{GPU.key}:costs")) == known
        assert {str(key).rpartition(":")[2] for key in self.redis.keys("transcoder:slots:wake:*")} <= set(self.held)

    def teardown(self) -> None:
        self.redis.close()


def test_the_leases_are_granted_in_turn_within_the_budget_and_none_leaks(server: services.Redis) -> None:
    Line.url = server.url
    run_state_machine_as_test(
        Line,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
