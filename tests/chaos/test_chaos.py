"""The chaos suite itself: what it draws, what its watcher sees, what its relay cuts, and a short run of it all."""

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import services
from tests.chaos import schedule
from tests.chaos.relay import Relay
from tests.chaos.watcher import Watcher, broken
from tests.conftest import MakeClip

ROOT = Path(__file__).resolve().parents[2]


def test_a_seed_gives_the_same_jobs_and_the_same_faults() -> None:
    assert schedule.orders(7, 50) == schedule.orders(7, 50) != schedule.orders(8, 50)
    assert schedule.blows(7, 50, 40) == schedule.blows(7, 50, 40) != schedule.blows(8, 50, 40)


def test_every_kind_of_fault_comes_in_each_round_and_while_jobs_run() -> None:
    round_ = len(schedule.KINDS)
    blows = schedule.blows(3, 100, 2 * round_)
    assert Counter(one.kind for one in blows[:round_]) == Counter(schedule.KINDS)
    assert len(set(schedule.KINDS)) >= 30
    assert all(0 <= one.after < 90 for one in blows)


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    watcher = Watcher([tmp_path / "out"])
    (tmp_path / "out").mkdir()
    return watcher


@pytest.mark.slow
def test_a_whole_file_that_is_renamed_to_its_name_is_well(
    watcher: Watcher, tmp_path: Path, make_clip: MakeClip
) -> None:
    watcher.start()
    (tmp_path / "whole").write_bytes(make_clip().read_bytes())
    (tmp_path / "whole").rename(tmp_path / "out" / "film.mp4")
    watcher.stop()
    assert watcher.wrong == []
    assert len(watcher.seen[tmp_path / "out" / "film.mp4"]) == 1


@pytest.mark.slow
def test_the_watcher_sees_what_is_half_and_what_is_written_in_place(
    watcher: Watcher, tmp_path: Path, make_clip: MakeClip
) -> None:
    watcher.start()
    whole = make_clip().read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half").rename(tmp_path / "out" / "half.mp4")
    (tmp_path / "out" / "copied.mp4").write_bytes(whole)
    (tmp_path / "out" / ".transcoder-job-1").mkdir()
    watcher.stop()
    assert "half.mp4 appeared not whole" in watcher.wrong[0]
    assert {what.partition("copied.mp4 was ")[2] for what in watcher.wrong[1:]} == {
        "made under its final name",
        "written to under its final name",
    }


def test_half_a_manifest_is_not_whole() -> None:
    assert broken("a.transcoder.json", b'{"job": 1}') is None
    assert broken("a.transcoder.json", b'{"job": 1') is not None


def test_the_relay_carries_cuts_falls_silent_and_is_mended() -> None:
    with socket.create_server((services.LOOPBACK, 0)) as server:
        relay = Relay(server.getsockname()[1])

        def connected() -> tuple[socket.socket, socket.socket]:
            here = socket.create_connection((services.LOOPBACK, relay.port), timeout=5)
            there, _ = server.accept()
            there.settimeout(5)
            return here, there

        here, there = connected()
        here.sendall(b"there")
        there.sendall(b"back")
        assert (there.recv(9), here.recv(9)) == (b"there", b"back")

        relay.silence()
        time.sleep(0.1)
        here.sendall(b"late")
        there.settimeout(0.3)
        with pytest.raises(TimeoutError):
            there.recv(9)
        relay.mend()
        there.settimeout(5)
        assert there.recv(9) == b"late"

        relay.cut()
        assert there.recv(9) == b"", "and nothing connects"
        with socket.create_connection((services.LOOPBACK, relay.port), timeout=5) as refused:
            assert ended(refused)
        relay.mend()
        time.sleep(0.1)
        for end in (*connected(), here, there):
            end.close()


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(9) == b""
    except ConnectionResetError:
        return True


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_or_left_while_everything_breaks(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    words = ["--jobs", "40", "--faults", "36", "--seed", "1", "--pause", "5", "--logs", str(logs)]
    command = [sys.executable, "-m", "tests.chaos", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "nothing lost, doubled or left" in done.stdout
    print(done.stdout)
