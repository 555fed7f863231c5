"""Room on file systems: reserved by what may come, less what is written, shared by all who write there."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis as redis_py

from tests import services
from tests.conftest import MakeClip
from tests.local import MACHINE, Place
from tests.test_ledger import plain, server
from tests.test_reaper import Crew, crew
from transcoder.appetite import bytes_for
from transcoder.errors import JobCancelled
from transcoder.ledger import connect
from transcoder.plan import plan
from transcoder.probe import probe
from transcoder.space import Short, Space

__all__ = ["crew", "plain", "server"]  # the fixtures

pytestmark = pytest.mark.slow

GB = 1_000_000_000


@pytest.fixture
def rooms(server: services.Redis, plain: redis_py.Redis, monkeypatch: pytest.MonkeyPatch) -> Space:
    """The reservations on a file system with ten free gigabytes."""

    class Free:
        f_bavail, f_frsize = 10_000_000, 1000

    monkeypatch.setattr(os, "statvfs", lambda folder: Free)
    return Space(connect(server.url))


def test_what_fits_beside_the_others_is_reserved_and_what_does_not_is_told(rooms: Space, tmp_path: Path) -> None:
    here = str(tmp_path)
    told = r"may need 1\.0 GB .* 0\.0 MB are .* \(10\.0 GB free, 10\.0 GB reserved"
    with rooms.room(here, 6 * GB, "a"), rooms.room(here, 4 * GB, "b"), pytest.raises(Short, match=told):
        rooms.room(here, 1 * GB, "c").__enter__()
    with rooms.room(here, 10 * GB, "c"):
        pass


def test_two_workers_share_a_file_system_and_not_another_one(
    server: services.Redis, rooms: Space, tmp_path: Path
) -> None:
    other = Space(connect(server.url))
    with rooms.room(str(tmp_path), 6 * GB, "a"):
        with pytest.raises(Short):
            other.room(str(tmp_path), 6 * GB, "b").__enter__()
        with other.room("/dev/shm", 6 * GB, "b"):
            pass


def test_what_is_written_is_reserved_no_longer(rooms: Space, tmp_path: Path) -> None:
    held, need = tmp_path / "held", 8_000_000_000
    held.mkdir()
    with rooms.room(str(held), need, "a"):
        with (held / "out.mp4").open("wb") as out:
            out.write(os.urandom(20_000_000))
            os.fsync(out.fileno())
        with pytest.raises(Short):
            rooms.room(str(tmp_path), 2_010_000_000, "b").__enter__()
        rooms._renewed = 0
        rooms.renew()
        with rooms.room(str(tmp_path), 2_010_000_000, "b"):
            pass


def test_what_a_dead_worker_reserved_is_free_after_a_while(rooms: Space, plain: redis_py.Redis, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(rooms.room(str(tmp_path), 8 * GB, "dead"))
        [leases] = plain.keys("transcoder:space:*:leases")
        plain.zadd(str(leases), {"dead": time.time() - 1})
        with rooms.room(str(tmp_path), 8 * GB, "b"):
            pass
        rooms._renewed = 0
        rooms.renew()
        with pytest.raises(Short):
            rooms.room(str(tmp_path), 8 * GB, "b").__enter__()


def test_while_redis_is_away_a_job_waits_and_can_be_cancelled(tmp_path: Path) -> None:
    answers = iter([False, True])
    with pytest.raises(JobCancelled):
        Space(connect("redis://127.0.0.1:1/0")).room(str(tmp_path), 1, "a", cancelled=lambda: next(answers)).__enter__()


def test_nothing_is_kept_of_a_job_that_has_ended(rooms: Space, plain: redis_py.Redis, tmp_path: Path) -> None:
    with rooms.room(str(tmp_path), 8 * GB, "a"):
        assert plain.keys("transcoder:space:*")
    assert not plain.keys("transcoder:space:*")


@pytest.mark.parametrize(
    "output",
    [
        {"video": {"speed": "fast"}},
        {"video": {"rate": {"mode": "bitrate", "bitrate": 2_000_000}, "speed": "fast"}},
        {"video": {"rate": {"mode": "quality", "quality": 17}, "speed": "fast"}},
        {"container": "mkv", "video": {"codec": "copy"}, "audio": {"codec": "copy"}},
    ],
    ids=["quality", "bitrate", "better", "copy"],
)
def test_the_guess_is_no_less_than_the_file_and_not_absurd(
    output: dict[str, object], bbb: Path, tmp_path: Path
) -> None:
    place = Place.below(tmp_path)
    source = place.bring(bbb)
    spec = place.spec(source, place.out / "made.{ext}", outputs=[output])
    made = place.run(spec)
    found = probe(str(source), place.policy)
    guess = bytes_for(found, plan(spec, found, MACHINE).rungs)
    assert made.outputs[0].bytes <= guess <= 20 * made.outputs[0].bytes


def test_a_job_for_which_there_is_too_little_space_is_held_and_goes_on_by_itself(
    crew: Crew, make_clip: MakeClip
) -> None:
    crew.source = make_clip()
    state = os.statvfs(crew.folder)
    others = Space(connect(crew.redis.url))
    with others.room(str(crew.folder), state.f_bavail * state.f_frsize - 100_000, "others"):
        crew.worker("first")
        job_id = crew.submit(outputs=[{"video": {"speed": "fast"}}])
        status = crew.until(job_id, lambda status: "next try" in str(status.waiting_for))
        assert "the job may need" in status.history[-1].detail
        assert crew.scratch() == []
        other = crew.submit("other.mp4", outputs=[{"video": {"speed": "fast"}}])
        crew.until(other, lambda status: "next try" in str(status.waiting_for))
    with redis_py.Redis.from_url(crew.redis.url) as plain:
        plain.zadd("transcoder:later", {job_id: 0, other: 0})
    assert crew.end(job_id).state == crew.end(other).state == "published"
    before = crew.client._ledger.record(job_id).fields
    assert "put_off" not in before
    with redis_py.Redis.from_url(crew.redis.url) as plain:
        assert not plain.keys("transcoder:space:*")
