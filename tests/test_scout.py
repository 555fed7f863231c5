"""The scout: looks into what waits, disturbs nothing, and leaves alone what it cannot look into."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services, values
from tests.conftest import MakeClip
from tests.test_ledger import claim
from transcoder import JobSpec, plan, queue, scout
from transcoder.ledger import Ledger
from transcoder.placement import QUEUES, queue_name
from transcoder.policy import Policy
from transcoder.probe import probe
from transcoder.scout import Scout

pytestmark = pytest.mark.slow


@pytest.fixture
def ledger(redis: services.Redis) -> Iterator[Ledger]:
    ledger = Ledger(redis.url)
    yield ledger
    ledger.close()


@pytest.fixture
def clip(make_clip: MakeClip) -> Path:
    return make_clip("testsrc2=s=320x180:r=25:d=2")


@pytest.fixture
def policy(clip: Path) -> Policy:
    return Policy(roots=(str(clip.parent),))


def asked(source: Path | str, job_id: str, **fields: Any) -> JobSpec:
    return JobSpec.model_validate({"source": str(source), "target": f"/out/{job_id}.mp4", **fields})


def submit(ledger: Ledger, job_id: str, source: Path | str, **fields: Any) -> None:
    ledger.submit(job_id, asked(source, job_id, **fields), queue.message(job_id, 5))


def ready(ledger: Ledger, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Scout:
    monkeypatch.setattr(scout, "AFTER", 0.0)
    return Scout(ledger, policy, lambda: [queue_name(name) for name in QUEUES])


def effort(ledger: Ledger, job_id: str) -> str | None:
    return ledger.record(job_id).fields.get("effort")


def test_it_finds_out_how_many_pixels_are_to_be_encoded(
    ledger: Ledger, clip: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ready(ledger, policy, monkeypatch)
    ladder = [
        {"name": "all", "video": {"codec": "h264"}},
        {"name": "half", "video": {"codec": "h264", "height": 90}},
    ]
    submit(ledger, "a", clip)
    submit(ledger, "b", clip, target="/out/{name}.mp4", outputs=ladder)
    assert [one.look() for _ in range(3)] == [True, True, False]
    assert float(effort(ledger, "a") or 0) == pytest.approx(320 * 180 * 25 * 2, rel=0.02)
    assert float(effort(ledger, "b") or 0) == pytest.approx((320 * 180 + 160 * 90) * 25 * 2, rel=0.02)


def test_it_leaves_alone_what_it_cannot_look_into(
    ledger: Ledger, clip: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = clip.parent / "text.mp4"
    text.write_text("no media")
    one = ready(ledger, policy, monkeypatch)
    sources = {"missing": clip.parent / "none.mp4", "outside": tmp_path / "a.mp4", "text": text}
    for job_id, source in sources.items():
        submit(ledger, job_id, source)
    submit(ledger, "copied", clip, outputs=[{"video": {"codec": "copy"}}])
    submit(ledger, "good", clip)
    assert [one.look() for _ in range(6)] == [True] * 5 + [False]
    assert [effort(ledger, job_id) for job_id in (*sources, "copied")] == [None] * 4
    assert {ledger.record(job_id).fields["state"] for job_id in sources} == {"queued"}
    assert effort(ledger, "good")


def test_a_job_that_begins_meanwhile_is_not_disturbed(
    ledger: Ledger, clip: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ready(ledger, policy, monkeypatch)
    submit(ledger, "a", clip)

    def begin(*_: object) -> Any:
        claim(ledger, "a")
        return probe(str(clip), policy)

    monkeypatch.setattr(scout, "probe", begin)
    assert one.look()
    assert (ledger.record("a").fields["state"], effort(ledger, "a")) == ("running", None)


def test_a_source_that_hangs_costs_it_a_moment(
    ledger: Ledger, clip: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stuck = tmp_path / "ffprobe"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(scout, "LIMIT", 0.3)
    one = ready(ledger, Policy(roots=policy.roots, ffprobe=str(stuck)), monkeypatch)
    submit(ledger, "a", clip)
    began = time.monotonic()
    assert one.look()
    assert time.monotonic() - began < 3 * 0.3 + 2
    assert effort(ledger, "a") is None


def test_it_goes_on_after_redis_was_away_and_ends_when_told(
    clip: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scout, "IDLE", 0.05)
    with services.private_redis(tmp_path) as redis:
        ledger = Ledger(redis.url)
        one = ready(ledger, policy, monkeypatch)
        redis.stop()
        one.start()
        time.sleep(0.3)
        redis.start()
        submit(ledger, "a", clip)
        deadline = time.monotonic() + 20
        while effort(ledger, "a") is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        one.stop()
        while "scout" in {thread.name for thread in threading.enumerate()}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ledger.close()


def test_the_effort_of_a_job_is_what_its_plan_says(clip: Path, policy: Policy) -> None:
    source = probe(str(clip), policy)
    spec = asked(clip, "a")
    [first, *_] = plan.plan(spec, source, values.MACHINE).commands
    assert plan.effort(spec, source) == round(first.cost * (source.duration or 0))
