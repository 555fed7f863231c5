"""A worker without its media takes no jobs: roots that are missing, unmounted or silent, and their coming back."""

import ctypes
import os
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import services
from tests.conftest import MakeClip
from tests.local import mode
from transcoder import Client, JobSpec, mounts
from transcoder.errors import SettingsError
from transcoder.ledger import Ledger, Told
from transcoder.mounts import Mounts
from transcoder.placement import queue_name

pytestmark = pytest.mark.slow

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "PERIOD", 0.05)
    monkeypatch.setattr(mounts, "SILENCE", 0.3)


@pytest.fixture(autouse=True)
def each_stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None looks any more while another test counts the calls of the system."""
    started, start = [], Mounts.start

    def kept(self: Mounts) -> None:
        started.append(self)
        start(self)

    monkeypatch.setattr(Mounts, "start", kept)
    yield
    for one in started:
        one.stop()


def until(true: Callable[[], object], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def dead_storage(folder: Path) -> Iterator[None]:
    """A file system that never answers: a FUSE whose server does not read its questions."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    assert LIBC.mount(b"dead", os.fsencode(folder), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(device)  # which ends all questions with an error
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(*roots: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        Mounts([str(root) for root in roots]).start()
    assert "TRANSCODER_MEDIA_ROOTS" in caught.value.next_step
    return caught.value.what


def test_a_root_that_is_missing_or_no_folder_is_an_error_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Mounts([str(tmp_path)]).start()
    assert refused(tmp_path, tmp_path / "gone").endswith("gone' cannot be used: No such file or directory")
    assert refused(tmp_path / "file").endswith("Not a directory")


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's rights, which permissions do not bind."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("bits", [0o000, 0o111, 0o444])
def test_a_root_that_may_not_be_read_is_an_error_of_the_setting(bits: int) -> None:
    with TemporaryDirectory() as folder, mode(Path(folder), bits), nobody():
        assert refused(Path(folder)).endswith("Permission denied")


@pytest.mark.usefixtures("quick")
def test_a_root_that_goes_and_comes_is_told_of_both_times(tmp_path: Path) -> None:
    media, told = tmp_path / "media", []
    media.mkdir()
    watched = Mounts([str(media)], lambda: told.append(watched.trouble()))
    watched.start()
    assert watched.trouble() is None
    media.rename(tmp_path / "away")
    until(watched.trouble)
    (tmp_path / "away").rename(media)
    until(lambda: watched.trouble() is None)
    assert [bool(trouble) for trouble in told] == [True, False]


@pytest.mark.root
@pytest.mark.usefixtures("quick")
def test_an_empty_folder_where_something_was_mounted_is_not_the_media(tmp_path: Path) -> None:
    watched = Mounts([str(tmp_path)])
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        watched.start()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    until(watched.trouble)
    assert "nothing is mounted" in str(watched.trouble())
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        until(lambda: watched.trouble() is None)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("quick")
def test_storage_that_never_answers_is_found_out_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    watched = Mounts([str(tmp_path)])
    watched.start()
    with dead_storage(tmp_path):
        assert "does not answer" in refused(tmp_path)
        until(watched.trouble)
        began = time.monotonic()
        assert "does not answer" in str(watched.trouble())
        assert time.monotonic() - began < 0.1
    until(lambda: watched.trouble() is None)


def says(worker: services.Worker) -> tuple[int, str]:
    """What /healthz answers."""
    try:
        return 200, worker.get("/healthz")
    except urllib.error.HTTPError as no:
        with no:
            return no.code, no.read().decode()


def test_a_worker_whose_media_go_serves_no_queue_fails_no_job_and_comes_back(
    redis: services.Redis, tmp_path: Path, make_clip: MakeClip
) -> None:
    media, away = tmp_path / "media", tmp_path / "away"
    media.mkdir()
    (media / "in.mp4").write_bytes(make_clip("testsrc2=s=160x120:r=25:d=0.4", audio=False).read_bytes())
    client, ledger = Client(redis.url), Ledger(redis.url)
    with services.worker(redis.url, tmp_path / "worker", [media]) as worker:
        media.rename(away)
        # at once: the worker has not looked yet
        specs = [JobSpec(source=str(media / "in.mp4"), target=str(media / f"{number}.mp4")) for number in range(10)]
        jobs = [client.submit(spec) for spec in specs]
        until(lambda: says(worker)[0] == 503)
        assert "media" in says(worker)[1]
        assert "No such file or directory" in says(worker)[1]
        until(lambda: ledger.workers()[0].told.queues == ())
        time.sleep(1)
        assert {client.status(job).state for job in jobs} == {"queued"}
        away.rename(media)
        until(lambda: says(worker) == (200, "ok\n"))
        until(lambda: {client.status(job).state for job in jobs} == {"published"})
    assert worker.log().count('"event": "media_gone"') == 1
    assert worker.log().count('"event": "media_back"') == 1


@pytest.mark.root
def test_a_worker_that_sees_an_empty_folder_in_place_of_the_media_leaves_the_jobs_to_one_that_sees_them(
    redis: services.Redis, tmp_path: Path, make_clip: MakeClip
) -> None:
    media, client, ledger = tmp_path / "media", Client(redis.url), Ledger(redis.url)
    media.mkdir()
    (media / "in.mp4").write_bytes(make_clip("testsrc2=s=160x120:r=25:d=0.4", audio=False).read_bytes())
    empty = services.Worker(redis.url, tmp_path / "empty", [media], concurrency=1, settings={})
    mounted = f'mount -t tmpfs none {media} && exec "$@"'
    empty.command = ["unshare", "--mount", "sh", "-ec", mounted, "sh", *empty.command]
    try:
        empty.start()
        ledger.beat("another", [], Told(queues=(queue_name("software"),)))  # which is on its way
        names = ("in", "in", "in", "gone")
        *good, bad = (
            client.submit(JobSpec(source=str(media / f"{name}.mp4"), target=str(media / f"out{number}.mp4")))
            for number, name in enumerate(names)
        )
        until(lambda: all("No such file" in str(client.status(job).history) for job in (*good, bad)))
        assert {client.status(job).state for job in (*good, bad)} == {"queued"}
        with services.worker(redis.url, tmp_path / "whole", [media]):
            until(lambda: all(client.status(job).is_finished for job in (*good, bad)))
        assert {client.status(job).state for job in good} == {"published"}
        assert client.status(bad).state == "failed", "two have looked"
    finally:
        empty.stop()
