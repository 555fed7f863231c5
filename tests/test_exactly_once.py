"""A job runs once: when it takes longer than the broker waits, and when thousands come one after the other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks import stamps
from benchmarks.suites.rate import begun
from tests import services
from tests.conftest import MakeClip
from transcoder import Client, JobSpec

SECONDS = 4
SLOW = f"""#!/bin/sh
case "$*" in *-progress*/clip.mp4*|*/clip.mp4*-progress*) sleep {SECONDS};; esac
exec ffmpeg "$@"
"""
"""ffmpeg, whose encodings take some seconds more."""


@contextmanager
def worker(program: str, url: str, folder: Path, *words: str, **settings: str) -> Iterator[services.Worker]:
    """A worker with that program in the place of `transcoder worker`."""
    service = services.Worker(url, folder, [folder.parent], concurrency=1, settings=settings, words=words)
    place = service.command.index("transcoder")
    service.command[place : place + 2] = [program]
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.mark.parametrize("words", [(), ("--late",)], ids=["as it is", "with messages that come again"])
def test_a_job_that_takes_longer_than_the_visibility_timeout_runs_once(
    words: tuple[str, ...], redis: services.Redis, tmp_path: Path, make_clip: MakeClip
) -> None:
    slow = tmp_path / "slow-ffmpeg"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    source = tmp_path / "clip.mp4"
    source.write_bytes(make_clip().read_bytes())
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                worker("tests.redelivering_worker", redis.url, tmp_path / name, *words, TRANSCODER_FFMPEG=str(slow),
                       TRANSCODER_LOG_LEVEL="debug", TRANSCODER_CACHE_FOLDER=str(tmp_path / "cache"))
            )
            for name in ("one", "other")
        ]  # fmt: skip
        client = Client(redis.url)
        job_id = client.submit(JobSpec(source=str(source), target=str(tmp_path / "made.mp4")))
        client.wait(job_id)
        status = client.status(job_id)
        client.close()
    assert status.finished is not None
    assert status.finished - status.created > SECONDS
    assert status.attempts == 1
    assert [moment.what for moment in status.history].count("running") == 1
    came_again = any("passed_over" in one.log() for one in workers)
    assert came_again == bool(words), "our messages are gone once they are taken; late ones come again, to no effect"


def test_each_of_hundreds_of_jobs_that_do_nothing_comes_to_one_of_four_workers_once(
    redis: services.Redis, tmp_path: Path
) -> None:
    heard = stamps.Stamps(tmp_path / "stamps")
    settings = {stamps.VARIABLE: heard.path, "TRANSCODER_CACHE_FOLDER": str(tmp_path / "cache")}
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(worker("benchmarks.stamped_worker", redis.url, tmp_path / str(number), **settings))
        client = Client(redis.url)
        asked = [JobSpec(source=str(tmp_path / "a.mp4"), target=str(tmp_path / f"{at}.mp4")) for at in range(300)]
        ids = client.submit_many(asked)
        assert begun(heard, [one for one in ids if isinstance(one, str)], patience=30)
        for job_id in ids:
            assert isinstance(job_id, str)
            client.wait(job_id, every=0.02)
        published = client.jobs("published", limit=1000)
        assert sorted(one.id for one in published) == sorted(map(str, ids))
        assert {one.attempts for one in published} == {1}
        client.close()
    heard.close()
