"""How large waiting jobs are, what that changes in a queue's order, and who goes to software for it."""

import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
import redis as redis_py

from tests.test_ledger import HW, SOFTWARE, asked, claim, hard, ledger, messages, plain, server, submit, waits_in
from transcoder import queue
from transcoder.errors import JobUnknown, TransitionRefused
from transcoder.ledger import CLEARLY, EARLY, FRONT, STEPS, Hop, Ledger, Report, Told
from transcoder.retry import Again
from transcoder.spec import SCHEMA

__all__ = ["ledger", "plain", "server"]  # the fixtures

pytestmark = pytest.mark.slow

SLOWER = 5.0
MOST = SLOWER * CLEARLY


def live(ledger: Ledger, owner: str, name: str, places: int = 1, jobs: tuple[Report, ...] = ()) -> None:
    ledger.beat(owner, jobs, Told(name=owner, queues=(name,), places=places))


def wait(ledger: Ledger, effort: Mapping[str, int | None], policy: str = "prefer", **fields: Any) -> None:
    """Jobs that wait, of that many pixels; None is one of which nobody knows it."""
    for job_id, pixels in effort.items():
        submit(ledger, job_id, hard(job_id, policy, **fields))
        if pixels is not None:
            ledger.weigh(job_id, pixels)


def order(plain: redis_py.Redis, name: str = HW) -> list[str]:
    """The waiting jobs of a queue as its free places will get them."""
    texts = [text for step in STEPS for text in reversed(plain.lrange(name + step, 0, -1))]
    named = [str(found[1]) for text in texts if (found := re.search(r'"id": "(\w+)\.', str(text)))]
    return [job_id for job_id in named if plain.zscore(f"transcoder:waiting:{name}", job_id) is not None]


def look(ledger: Ledger, plain: redis_py.Redis, rise: float = 600) -> list[Hop]:
    plain.delete("transcoder:arranged")
    return ledger.tend(60, rise, SLOWER)


def weight(plain: redis_py.Redis, name: str = HW) -> tuple[int, int]:
    """Pixels that wait in a queue, and jobs that are known there."""
    return int(plain.hget("transcoder:backlog", name) or 0), int(plain.zcard(f"transcoder:effort:{name}"))


def test_the_size_of_a_job_is_noted_once_and_only_while_it_waits(ledger: Ledger, plain: redis_py.Redis) -> None:
    large = 2**55 + 1  # more than Lua's numbers hold
    live(ledger, "gpu", HW)
    wait(ledger, {"a": large})
    ledger.weigh("a", 7)
    assert ledger.record("a").fields["effort"] == str(large)
    assert weight(plain) == (large, 1)
    fence = claim(ledger, "a").fence
    with pytest.raises(TransitionRefused):
        ledger.weigh("a", 7)
    assert weight(plain) == (0, 0)
    ledger.hand_back("a", fence, "why")
    assert weight(plain) == (large, 1), "it is still known when it waits again"
    ledger.cancel("a")
    assert weight(plain) == (0, 0)
    with pytest.raises(TransitionRefused):
        ledger.weigh("a", 7)
    with pytest.raises(JobUnknown):
        ledger.weigh("nobody", 7)


def test_a_job_that_is_tried_again_later_waits_in_no_order_until_then(ledger: Ledger, plain: redis_py.Redis) -> None:
    wait(ledger, {"a": None})
    ledger.put_off(Report("a", claim(ledger, "a").fence), Again(60), 0, "no space")
    ledger.weigh("a", 7)
    assert weight(plain) == (0, 0)
    plain.zadd("transcoder:later", {"a": time.time() - 1})
    ledger.tend(60)
    assert weight(plain) == (7, 1)


def test_every_waiting_job_is_given_to_one_scout_once(ledger: Ledger, plain: redis_py.Redis) -> None:
    wait(ledger, {"known": 5, "a": None, "b": None})
    assert ledger.unweighed([HW], after=60) is None, "it has only just come: there may be a place for it"
    assert ledger.unweighed([SOFTWARE], after=0) is None
    found = [ledger.unweighed([SOFTWARE, HW], after=0) for _ in range(3)]
    assert [one and one[0] for one in found] == ["a", "b", None]
    assert found[0] == ("a", ledger.record("a").fields["spec"])
    wait(ledger, {"c": None})
    plain.hset("transcoder:scouted", HW, str(time.time() + 60))
    assert ledger.unweighed([HW], after=0) == ("a", ledger.record("a").fields["spec"]), "the clock was set back"


def test_the_longest_come_first_as_soon_as_they_would_end_last(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"a": 10, "b": 10, "longer": 60, "long": 50, "c": 10, "d": 10})
    look(ledger, plain)
    # one place: of the six only the longest may be claimed before the next look
    assert order(plain) == ["longer", "a", "b", "long", "c", "d"]
    live(ledger, "gpu", HW, places=2)
    look(ledger, plain)
    assert order(plain) == ["longer", "long", "a", "b", "c", "d"]
    look(ledger, plain)
    assert order(plain) == ["longer", "long", "a", "b", "c", "d"]
    assert messages(plain) == 6, "none is sent twice"


def test_until_then_the_order_is_that_of_arrival(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    jobs = {f"j{number}": 10 for number in range(20)}
    wait(ledger, jobs | {"long": round(200 / EARLY) - 1})
    look(ledger, plain)
    assert order(plain) == [*jobs, "long"], "the others keep the place busy long enough"
    fence = claim(ledger, "j0", "gpu").fence
    live(ledger, "gpu", HW, jobs=(Report("j0", fence, progress={"fraction": 0.9}),))
    look(ledger, plain)
    assert order(plain)[0] == "long"


def test_what_runs_counts_with_what_it_has_left(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"runs": 100, "a": 10, "long": 20})
    fence = claim(ledger, "runs", "gpu").fence
    for fraction, first in ((0.1, "a"), (0.9, "long")):
        live(ledger, "gpu", HW, jobs=(Report("runs", fence, progress={"fraction": fraction}),))
        look(ledger, plain)
        assert order(plain)[0] == first


def test_what_a_worker_says_of_the_size_of_its_job_counts(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"runs": None, "a": 10, "long": 20})
    fence = claim(ledger, "runs", "gpu").fence
    live(ledger, "gpu", HW, jobs=(Report("runs", fence, effort=100),))
    look(ledger, plain)
    assert order(plain)[0] == "a"


def test_what_is_not_known_and_what_is_alike_keeps_its_place(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"a": None, "b": None, "c": None})
    look(ledger, plain)
    assert order(plain) == ["a", "b", "c"]
    wait(ledger, {"d": 5})
    look(ledger, plain)
    assert order(plain) == ["d", "a", "b", "c"]


def test_a_more_urgent_job_stays_before_a_longer_one(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW, places=9)
    wait(ledger, {"urgent": 100, "more": 110}, priority=7)
    wait(ledger, {"long": 120, "longer": 130}, priority=5)
    look(ledger, plain)
    assert order(plain) == ["more", "urgent", "longer", "long"]


def test_no_job_is_overtaken_by_one_that_came_much_later(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"short": 1, "long": 100})
    plain.zadd(f"transcoder:waiting:{HW}", {"short": time.time() - 10 * 9 - 1})
    look(ledger, plain, rise=10)
    assert order(plain) == ["short", "long"], "the lowest priority would have become the highest meanwhile"
    look(ledger, plain, rise=11)
    assert order(plain) == ["long", "short"]


def test_a_lost_message_is_not_made_up_for_by_the_order(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"lost": 100})
    plain.delete(queue.message("", 5, HW).list_key)
    wait(ledger, {"a": 1})
    look(ledger, plain)
    assert order(plain) == ["a"]
    assert [ledger.reap("one", -1, 0, 10).short, ledger.send_again(HW)] == [(HW,), ["lost"]]


def test_one_worker_at_a_time_looks_after_the_order(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"a": 1})
    look(ledger, plain)
    wait(ledger, {"long": 100})
    ledger.tend(60, 600, SLOWER)
    assert order(plain) == ["a", "long"]
    plain.set("transcoder:arranged", str(time.time() + 60))
    ledger.tend(60, 600, SLOWER)
    assert order(plain) == ["long", "a"], "the clock was set back"


def test_an_order_of_arrival_does_not_look_at_the_size(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE)
    wait(ledger, {"a": 1, "long": 100})
    assert ledger.tend(60, 600) == []
    assert order(plain) == ["a", "long"]
    assert {hop.job_id for hop in ledger.tend(0, 600)} == {"a", "long"}, "all that waited long enough"


def test_software_gets_what_ends_sooner_there(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE)
    wait(ledger, {"long": round(10 * MOST) - 1, "a": 10, "b": 1000})
    ledger.cancel("b")
    assert look(ledger, plain) == [], "hardware is through with the long one sooner"
    wait(ledger, {"more": 1})
    assert look(ledger, plain) == [Hop("a", HW, "sooner")], "of two that fit the one that waited longer"
    assert ledger.record("a").history[-1].detail == "goes to software: it ends sooner there"
    assert order(plain, SOFTWARE) == ["a"]
    assert ledger.claim("a", "cpu", SCHEMA)


def test_software_gets_no_more_than_it_has_free_places(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"long": 10_000, "a": 10, "b": 11, "c": 12, "d": 13})
    assert look(ledger, plain) == [], "nobody serves software"
    live(ledger, "cpu", SOFTWARE, places=2)
    assert [hop.job_id for hop in look(ledger, plain)] == ["a", "b"]
    assert look(ledger, plain) == []
    claim(ledger, "a", "cpu")
    assert look(ledger, plain) == [], "one place is taken, and one job waits for the other"
    claim(ledger, "b", "cpu")
    live(ledger, "cpu", SOFTWARE, places=3)
    ledger.pause(SOFTWARE)
    assert look(ledger, plain) == []
    ledger.resume(SOFTWARE)
    assert [hop.job_id for hop in look(ledger, plain)] == ["c"]


def test_what_has_gone_to_software_is_no_longer_before_hardware(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE, places=2)
    wait(ledger, {"long": round(10 * MOST) - 9, "a": 10, "b": 10})
    assert [hop.job_id for hop in look(ledger, plain)] == ["a"], "hardware is now through with the rest before b"


def test_many_places_of_hardware_are_through_sooner(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "cpu", SOFTWARE)
    live(ledger, "gpu", HW, places=2)
    wait(ledger, {"long": round(10 * MOST) + 1, "a": 10})
    assert look(ledger, plain) == []
    live(ledger, "gpu", HW, places=1)
    assert [hop.job_id for hop in look(ledger, plain)] == ["a"]


def test_what_requires_hardware_or_is_paused_stays_there(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE, places=5)
    wait(ledger, {"required": 1}, "require")
    wait(ledger, {"long": 1000, "a": 1})
    ledger.pause(HW)
    assert look(ledger, plain) == []
    ledger.resume(HW)
    assert [hop.job_id for hop in look(ledger, plain)] == ["a"]
    assert waits_in(ledger, "required") == HW


def test_a_job_that_is_not_known_goes_when_it_has_waited_enough(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE, places=5)
    wait(ledger, {"known": 100, "unknown": None})
    for index in ("waiting", "prefer"):
        plain.zadd(f"transcoder:{index}:{HW}", {"known": time.time() - 61, "unknown": time.time() - 61}, xx=True)
    assert look(ledger, plain) == [], "a scout may still find out"
    plain.hset("transcoder:scouted", HW, str(time.time()))
    assert look(ledger, plain) == [Hop("unknown", HW, "waited")]


def test_a_known_job_that_comes_back_is_still_known(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE)
    wait(ledger, {"a": 100})
    ledger.hand_back("a", claim(ledger, "a", "gpu").fence, "why")
    for index in ("waiting", "prefer"):
        plain.zadd(f"transcoder:{index}:{HW}", {"a": time.time() - 61}, xx=True)
    assert look(ledger, plain) == [], "hardware is through with it sooner than software"


def test_a_known_job_leaves_hardware_that_is_gone(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    live(ledger, "cpu", SOFTWARE)
    wait(ledger, {"long": 1000, "longer": 2000})
    ledger.leave("gpu")
    assert look(ledger, plain) == [], "it may be restarting"
    plain.hset("transcoder:served", HW, str(time.time() - 6))
    plain.zadd(f"transcoder:waiting:{HW}", {"long": time.time() - 6, "longer": time.time() - 6})
    assert {hop.job_id for hop in look(ledger, plain)} == {"long", "longer"}
    assert waits_in(ledger, "long") == SOFTWARE


def test_software_too_does_the_longest_first(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "cpu", SOFTWARE)
    for job_id, pixels in {"a": 10, "long": 100}.items():
        submit(ledger, job_id, asked(f"/media/{job_id}.mp4", acceleration={"policy": "never"}))
        ledger.weigh(job_id, pixels)
    look(ledger, plain)
    assert order(plain, SOFTWARE) == ["long", "a"]


def test_a_look_at_ten_thousand_jobs_changes_the_place_of_a_few(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW, places=50)
    many = [(f"j{number}", hard(f"j{number}"), queue.message(f"j{number}", 5)) for number in range(10_000)]
    ledger.submit_many(many)
    for number, (job_id, *_) in enumerate(many[-100:]):
        ledger.weigh(job_id, 10**9 + number)
    look(ledger, plain)
    first = [f"j{9_999 - number}" for number in range(FRONT)]
    assert order(plain) == [*first, *(f"j{number}" for number in range(10_000 - FRONT))]


def test_the_order_forgets_a_job_that_is_finished(ledger: Ledger, plain: redis_py.Redis) -> None:
    live(ledger, "gpu", HW)
    wait(ledger, {"a": 10})
    ledger.finish(Report("a", claim(ledger, "a").fence), "published", result={})
    assert weight(plain) == (0, 0)
    assert not plain.exists(f"transcoder:movable:{HW}")
