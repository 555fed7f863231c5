"""Trying again: by the class of the fault, later and later, after two deaths in software only, and not for ever."""

import json
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.local import program
from tests.test_ledger import claim, ledger, plain, server, state, submit
from tests.test_reaper import Crew, crew
from transcoder.errors import InputUnreadable, Quarantined, TargetUnwritable, TransitionRefused
from transcoder.faults import FaultClass
from transcoder.ledger import Ledger, Report
from transcoder.placement import queue_name
from transcoder.retry import Again, Before, Rules, then
from transcoder.spec import SCHEMA

__all__ = ["crew", "ledger", "plain", "server"]  # the fixtures

RULES = Rules(retries=3, first=10, most=100)
PASSING = (FaultClass.TRANSIENT, FaultClass.STALLED, FaultClass.BLOCKED, FaultClass.OUTPUT)
BRISK: Any = {"TRANSCODER_RETRY_DELAY": "0.2", "TRANSCODER_RETRIES": "2"}


@pytest.mark.parametrize("kind", PASSING)
def test_what_may_pass_is_tried_again_later_and_later_but_not_for_ever(kind: FaultClass) -> None:
    tries = [then(kind, Before(put_off), 0, RULES, 1.0) for put_off in range(4)]
    assert tries == [Again(10), Again(40), Again(100), "fail"]


@pytest.mark.parametrize("kind", sorted(set(FaultClass) - {*PASSING, FaultClass.CRASHED}))
def test_what_will_be_the_same_tomorrow_is_not_tried_again(kind: FaultClass) -> None:
    assert then(kind, Before(), 0, RULES, 1.0) == "fail"


def test_after_two_deaths_of_ffmpeg_software_tries_once_more_and_then_the_source_rests() -> None:
    crashed = FaultClass.CRASHED
    assert then(crashed, Before(), 1, RULES, 1.0) == Again(10)
    assert then(crashed, Before(1, crashes=1), 1, RULES, 1.0) == Again(40, careful=True)
    assert then(crashed, Before(), 2, RULES, 1.0) == Again(40, careful=True)
    assert then(crashed, Before(1, crashes=2, careful=True), 1, RULES, 1.0) == "quarantine"


def test_a_careful_try_that_is_put_off_stays_careful() -> None:
    assert then(FaultClass.OUTPUT, Before(1, 2, careful=True), 0, RULES, 1.0) == Again(40, careful=True)


@given(
    kind=st.sampled_from(FaultClass),
    put_off=st.integers(0, 100),
    chance=st.floats(0, 1),
    crashes=st.integers(1, 9),
)
def test_no_pause_is_longer_than_the_most_or_shorter_than_half(
    kind: FaultClass, put_off: int, chance: float, crashes: int
) -> None:
    match then(kind, Before(put_off), crashes, Rules(retries=1000), chance):
        case Again(seconds):
            assert 5 <= seconds <= 300


def test_what_failed_together_does_not_come_back_together() -> None:
    pauses = {then(FaultClass.OUTPUT, Before(), 0, RULES, chance) for chance in (0.0, 0.5, 1.0)}
    assert pauses == {Again(5), Again(7.5), Again(10)}


# The record


@pytest.mark.slow
def test_a_job_that_is_put_off_has_no_message_and_cannot_be_claimed_before_its_time(ledger: Ledger) -> None:
    submit(ledger, "a")
    held = claim(ledger, "a")
    ledger.put_off(Report("a", held.fence), Again(0.5), 1, "the disk is full")
    assert (state(ledger, "a"), ledger.figures().queues[queue_name("hw.h264")].depth) == ("queued", 0)
    assert ledger.claim("a", "another", SCHEMA) is None, "its first message came late"
    ledger.tend(60)
    assert ledger.claim("a", "another", SCHEMA) is None
    time.sleep(0.6)
    ledger.tend(60)
    assert ledger.figures().queues[queue_name("hw.h264")].depth == 1
    assert claim(ledger, "a", "another").before == Before(put_off=1, crashes=1)


@pytest.mark.slow
def test_a_job_that_is_put_off_is_cancelled_at_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    ledger.put_off(Report("a", claim(ledger, "a").fence), Again(0.1), 0, "so")
    assert ledger.cancel("a") == "cancelled"
    time.sleep(0.2)
    ledger.tend(60)
    assert ledger._redis.zcard("transcoder:later") == 0
    assert state(ledger, "a") == "cancelled"


@pytest.mark.slow
def test_a_job_whose_cancelling_was_asked_is_not_put_off(ledger: Ledger) -> None:
    submit(ledger, "a")
    held = claim(ledger, "a")
    ledger.cancel("a")
    ledger.put_off(Report("a", held.fence), Again(0.1), 0, "so")
    assert state(ledger, "a") == "cancelled"


@pytest.mark.slow
def test_a_careful_try_waits_in_the_queue_of_software(ledger: Ledger) -> None:
    submit(ledger, "a")
    careful = Again(0, careful=True)
    ledger.put_off(Report("a", claim(ledger, "a").fence), careful, 2, "so", queue_name("software"))
    ledger.tend(60)
    held = claim(ledger, "a")
    assert (held.queue, held.before) == (queue_name("software"), Before(1, 2, careful=True))


# Real workers


@pytest.fixture
def ffmpeg(tmp_path: Path) -> str:
    """Ffmpeg that fails as the file `how` says, when it shall encode."""
    script = 'case "$*" in *.transcoder-*) [ -e "$0.how" ] && . "$0.how";; esac\nexec ffmpeg "$@"'
    return program(tmp_path, "ffmpeg", script)


def test_a_full_disk_is_waited_for(crew: Crew, ffmpeg: str) -> None:
    how = Path(f"{ffmpeg}.how")
    how.write_text("echo '[error] av_interleaved_write_frame(): No space left on device' >&2; exit 228")
    crew.worker("first", TRANSCODER_FFMPEG=ffmpeg, TRANSCODER_RETRY_DELAY="2")
    job_id = crew.submit(outputs=[{"video": {"speed": "fast"}}])
    status = crew.until(job_id, lambda status: "next try" in str(status.waiting_for))
    assert status.state == "queued"
    assert crew.scratch() == []
    how.unlink()
    status = crew.end(job_id)
    assert (status.state, status.attempts) == ("published", 2)
    assert "No space left" in str(status.history)
    assert 'result="put off"' in crew.workers["first"].metrics()


def test_a_disk_that_stays_full_fails_the_job_in_the_end(crew: Crew, ffmpeg: str) -> None:
    Path(f"{ffmpeg}.how").write_text("echo '[error] write: No space left on device' >&2; exit 228")
    crew.worker("first", TRANSCODER_FFMPEG=ffmpeg, **BRISK)
    job_id = crew.submit()
    with pytest.raises(TargetUnwritable, match="No space left"):
        crew.client.wait(job_id)
    assert crew.client.status(job_id).attempts == 3


def test_an_ffprobe_that_is_killed_is_started_again_later_but_not_for_ever(crew: Crew, tmp_path: Path) -> None:
    ffprobe = program(tmp_path, "ffprobe", '[ -e "$0.killed" ] && kill -KILL $$\nexec ffprobe "$@"')
    killed = Path(f"{ffprobe}.killed")
    killed.touch()
    crew.worker("first", TRANSCODER_FFPROBE=ffprobe, **BRISK)
    job_id = crew.submit(outputs=[{"video": {"speed": "fast"}}])
    with pytest.raises(InputUnreadable, match="ffprobe died of signal 9"):
        crew.client.wait(job_id)
    assert crew.client.status(job_id).attempts == 3
    again = crew.client.retry(job_id)
    crew.until(again, lambda status: status.state == "queued" and status.attempts == 1)
    killed.unlink()
    status = crew.end(again)
    assert status.state == "published"
    assert "ffprobe died of signal 9" in str(status.history)


def test_a_source_on_which_ffmpeg_dies_rests_in_quarantine_with_its_evidence(crew: Crew, ffmpeg: str) -> None:
    Path(f"{ffmpeg}.how").write_text("echo '[error] redis://me:secret@host/ was seen' >&2; kill -SEGV $$")
    crew.worker("first", TRANSCODER_FFMPEG=ffmpeg, **BRISK)
    job_id = crew.submit()
    with pytest.raises(Quarantined, match=r"ffmpeg died 3 times on .* signal 11") as rests:
        crew.client.wait(job_id)
    status = crew.client.status(job_id)
    assert (status.state, status.attempts) == ("quarantined", 3)
    evidence = rests.value.evidence
    assert evidence["argv"]
    assert evidence["source"]["duration"] > 1  # type: ignore[index]
    assert evidence["worker"]["name"] == "first"  # type: ignore[index]
    assert (evidence["fault"], evidence["crashes"]) == ("crashed", 3)
    assert "was seen" in str(evidence["stderr"])
    assert "secret" not in json.dumps(evidence)
    assert [one.id for one in crew.client.jobs("quarantined")] == [job_id]
    Path(f"{ffmpeg}.how").unlink()
    assert crew.end(crew.client.retry(job_id)).state == "published"


def test_only_what_ended_without_an_output_is_tried_again(crew: Crew) -> None:
    job_id = crew.submit(token="mine")
    with pytest.raises(TransitionRefused, match="is queued"):
        crew.client.retry(job_id)
    crew.client.cancel(job_id)
    again = crew.client.retry(job_id)
    assert again != job_id
    assert crew.client.status(again).spec["token"] is None


def test_ffmpeg_is_to_be_killed_before_its_worker_where_memory_is_short(crew: Crew, ffmpeg: str) -> None:
    Path(f"{ffmpeg}.how").write_text('cat /proc/self/oom_score_adj > "$0.oom"')
    crew.worker("first", TRANSCODER_FFMPEG=ffmpeg)
    crew.end(crew.submit(outputs=[{"video": {"speed": "fast"}}]))
    assert Path(f"{ffmpeg}.oom").read_text() == "1000\n"
    assert Path(f"/proc/{crew.workers['first'].pid}/oom_score_adj").read_text() != "1000\n"
