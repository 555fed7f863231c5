"""Short programs under a kill timer: they end, or are ended, and nothing of them stays."""

import os
import time
from pathlib import Path

import pytest

from transcoder.children import run

pytestmark = pytest.mark.slow


def alive(pid: int) -> bool:
    """Whether it runs: an orphan that was killed may still be a zombie here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sh(script: str, limit: float = 10, descriptors: tuple[int, ...] = ()) -> tuple[int | None, bytes, bytes]:
    ended = run(("sh", "-c", script), limit, descriptors)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("echo out; echo err >&2", (0, b"out\n", b"err\n")),
        ("exit 7", (7, b"", b"")),
        ("kill -SEGV $$", (-11, b"", b"")),
        ("exec >&- 2>&-; sleep 0.1; exit 3", (3, b"", b"")),
    ],
    ids=["both streams", "a code", "a signal", "streams closed before the end"],
)
def test_an_end_is_told_as_it_was(script: str, ended: tuple[int, bytes, bytes]) -> None:
    assert sh(script) == ended


@pytest.mark.parametrize("script", ["sleep 60", "exec >&- 2>&-; sleep 60", "trap '' TERM INT; while :; do :; done"])
def test_what_does_not_end_is_killed_at_the_limit(script: str) -> None:
    began = time.monotonic()
    assert sh(f"echo $$; {script}", 0.3)[0] is None
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("then", ["wait", "exit 0"], ids=["hung", "ended"])
def test_its_children_go_with_it(then: str) -> None:
    returncode, stdout, _ = sh(f"sleep 60 >/dev/null 2>&1 & echo $!; {then}", 0.5)
    assert returncode == (None if then == "wait" else 0)
    deadline = time.monotonic() + 3
    while alive(int(stdout)):
        assert time.monotonic() < deadline, "a grandchild is still there"
        time.sleep(0.01)


def test_a_flood_of_words_is_cut_and_does_not_hold_it_up() -> None:
    returncode, stdout, stderr = sh("head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2")
    assert (returncode, len(stdout), len(stderr)) == (0, 1 << 20, 1 << 20)


def test_it_has_the_descriptors_that_it_is_given_and_no_others() -> None:
    given, kept = os.memfd_create("given"), os.memfd_create("kept")
    sh(f"echo hello > /proc/self/fd/{given}; echo hello > /proc/self/fd/{kept}", descriptors=(given,))
    assert (os.pread(given, 9, 0), os.pread(kept, 9, 0)) == (b"hello\n", b"")
    os.close(given)
    os.close(kept)


def test_a_program_that_is_not_there_is_the_shells_code() -> None:
    assert run(("/nowhere/program",), 5).returncode == 127
