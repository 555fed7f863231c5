"""What the kernel tells of a process: who belongs to it, whether it works, what file it waits for."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.local import program
from transcoder.vitals import Vitals, Wait, family, stopped, vitals, waits

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True))
        return running[-1]

    yield begin
    for process in running:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wrapper_and_what_it_starts_are_one_family(start: Start, tmp_path: Path) -> None:
    inner = shlex.join(python("import time; time.sleep(1000)"))
    wrapper = start(program(tmp_path, "wrapper", f"sh -c {shlex.quote(inner + '; true')}; true"))
    until(lambda: len(family(wrapper.pid)) == 3)
    assert family(wrapper.pid)[0] == wrapper.pid


def test_what_a_family_computes_and_reads_is_told(start: Start, tmp_path: Path) -> None:
    inner = shlex.join(python("while True: open('/etc/passwd').read()"))
    wrapper = start(program(tmp_path, "wrapper", f"{inner}; true"))
    until(lambda: vitals(family(wrapper.pid)).cpu > 0.1)
    before = vitals(family(wrapper.pid))
    until(lambda: vitals(family(wrapper.pid)).cpu > before.cpu)
    until(lambda: vitals(family(wrapper.pid)).read > before.read)


def test_a_process_that_is_no_more_has_no_signs_of_life() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert vitals(family(gone.pid)) == Vitals()
    assert waits(family(gone.pid)) is None
    assert not stopped(gone.pid)


def test_a_process_that_was_stopped_is_known(start: Start) -> None:
    process = start("sleep", "1000")
    assert not stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    until(lambda: stopped(process.pid))


def test_a_thread_that_waits_for_a_file_names_it(start: Start, tmp_path: Path) -> None:
    fifo = tmp_path / "a source"
    os.mkfifo(fifo)
    opened = f"import os, threading; fd = os.open({str(fifo)!r}, os.O_RDWR)"
    code = f"{opened}; threading.Thread(target=os.read, args=(fd, 1)).start()"
    process = start(*python(code))
    until(lambda: waits(family(process.pid)))
    assert waits(family(process.pid)) == Wait(str(fifo), "read")


def test_a_file_that_takes_nothing_more_is_named(start: Start, tmp_path: Path) -> None:
    fifo = tmp_path / "a target"
    os.mkfifo(fifo)
    process = start(*python(f"import os; fd = os.open({str(fifo)!r}, os.O_RDWR); os.write(fd, bytes(1000000))"))
    until(lambda: waits(family(process.pid)))
    assert waits(family(process.pid)) == Wait(str(fifo), "write")


@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(1000)", "import os; os.read(os.pipe()[0], 1)", "import os; os.write(1, bytes(1000000))"],
    ids=["for time", "for a pipe", "for its own reader"],
)
def test_who_waits_for_something_else_waits_for_no_file(start: Start, code: str) -> None:
    process = start(*python(code))
    until(lambda: any(word in Path(f"/proc/{process.pid}/stat").read_text().split() for word in "S"))
    time.sleep(0.3)
    assert waits(family(process.pid)) is None
