"""The topology benchmark without containers: real ffmpeg, agents as processes, short runs, and every way to end it."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import transcoder
from tests import gpu
from tests.conftest import MakeClip
from transcoder.bench import analysis, design, destination, engines, janitor, rig, runner, session, sources
from transcoder.bench.destination import Destination
from transcoder.bench.display import display
from transcoder.bench.engines import Container, Granted, granted
from transcoder.bench.result import Cell, Result, Run
from transcoder.errors import MachineBusy, TargetExists, TargetUnwritable

pytestmark = pytest.mark.slow

ONE, TWO = Cell(containers=1, stacks=2), Cell(containers=2, stacks=2)
WORKER = Cell(containers=1, stacks=2, worker=True)
SHORT = ["--engine", "processes", "--seconds", "0.1", "--pilot", "3", "--accel", "software"]


@pytest.fixture(scope="module")
def clip(make_clip: MakeClip) -> Path:
    return make_clip("testsrc2=s=320x180:r=25:d=4")


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "transcoder", "bench", "topology", *map(str, words)]


@pytest.fixture(scope="module")
def ended(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A benchmark that came to its end, with the file of its result."""
    out = tmp_path_factory.mktemp("bench") / "result.json"
    words = command(*SHORT, "--worker", "--budget", "12", "--clip", clip, "--out", out)
    return out, subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def result(ended: tuple[Path, subprocess.CompletedProcess[str]]) -> Result:
    out, done = ended
    assert done.returncode == 0, done.stderr
    return Result.model_validate_json(out.read_text())


def test_it_ends_with_a_verdict_and_says_where_all_of_it_is(
    ended: tuple[Path, subprocess.CompletedProcess[str]], result: Result
) -> None:
    out, done = ended
    lines = done.stdout.splitlines()
    assert lines[0].startswith(("Packing ", "This run cannot say whether packing matters"))
    assert "3 %" in lines[0]
    assert any("95 % interval of that ratio has a half-width of " in line for line in lines)
    assert any(line.startswith("The whole path through queue and worker ran at ") for line in lines)
    assert "Each stack encoded by software libx264: no GPU was measured." in lines
    assert lines[-1] == str(out)
    assert not result.partial
    assert result.verdicts


def test_each_block_has_every_cell_once_and_the_reference_twice(result: Result) -> None:
    numbers = {run.block for run in result.runs if not run.warmup}
    assert len(numbers) == result.design.blocks >= 3
    for number in numbers:
        turns = Counter((run.cell, run.again) for run in result.runs if run.block == number and not run.warmup)
        assert turns == {(ONE, False): 1, (ONE, True): 1, (TWO, False): 1, (WORKER, False): 1}


def test_all_cells_make_the_same_file_with_as_many_pictures_as_they_read(result: Result) -> None:
    stacks = [stack for run in result.runs for stack in run.stacks]
    assert len({stack.digest for stack in stacks}) == 1
    assert {stack.frames for stack in stacks} == {result.workload.frames}
    assert not any(stack.trouble for stack in stacks)


def test_a_run_has_enough_pictures_to_show_more_than_what_an_encoder_holds_back(result: Result) -> None:
    assert result.workload.frames == 100


def test_what_each_stack_used_is_measured(result: Result) -> None:
    for run in result.runs:
        assert 0 < run.cpu_busy <= 1
        assert all(stack.cpu_user > 0 and stack.pss > 1 << 20 for stack in run.stacks)
        if run.cell.worker:
            continue
        assert [stack.container for stack in run.stacks] == ([0, 0] if run.cell == ONE else [0, 1])
        for stack in run.stacks:
            assert 0 <= stack.started < stack.ended
            assert [one.frames for one in stack.stamps] == sorted(one.frames for one in stack.stamps)
            assert stack.stamps[-1].frames == stack.frames
            assert stack.stamps[-1].at <= stack.ended
            assert stack.switches > 0


def test_the_stacks_of_a_run_are_released_together(result: Result) -> None:
    for run in result.runs:
        starts = [stack.started for stack in run.stacks]
        assert max(starts) < 0.5  # seconds after the moment that was set; the machine of a test may be busy


def test_a_killed_container_costs_the_stacks_that_it_had(result: Result) -> None:
    assert {one.cell: (one.lost, one.finished) for one in result.blast} == {ONE: (2, 0), TWO: (1, 1)}


def test_the_start_of_the_containers_is_measured_once(result: Result) -> None:
    assert {run.cell: run.start > 0 for run in result.runs if run.warmup} == {ONE: True, TWO: True, WORKER: True}
    assert not any(run.start for run in result.runs if not run.warmup)


def test_a_job_through_the_queue_publishes_the_same_file_as_ffmpeg_alone_makes(result: Result) -> None:
    digests = {run.cell: {stack.digest for stack in run.stacks} for run in result.runs}
    assert digests[WORKER] == digests[ONE]


def test_why_there_is_no_bare_cell_is_noted(result: Result) -> None:
    assert not any(cell.containers == 0 for cell in result.design.cells)
    assert any("no bare cells" in note for note in result.notes)


class Benchmark:
    """One that runs, in a process of its own."""

    def __init__(self, out: Path, clip: Path, *words: str) -> None:
        self.out = out
        line = command(*SHORT, "--budget", "60", "--clip", clip, "--out", out, *words)
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.janitor = 0
        self.folder = ""

    def until(self, said: str) -> None:
        """Wait until it says that; then its folder and its janitor are known."""
        assert self.process.stderr
        for line in self.process.stderr:
            if said in line:
                break
        else:
            pytest.fail(f"it ended without saying {said!r}")
        for pid, words in processes().items():
            if "transcoder.bench.janitor" in words and parent(pid) == self.process.pid:
                self.janitor = pid
                self.folder = next(word for word in words if word.startswith("/") and "transcoder-bench-" in word)

    def left(self) -> list[str]:
        """Its processes and files that are still there."""
        name = os.path.basename(self.folder)
        others = [f"{pid} {words}" for pid, words in processes().items() if any(name in word for word in words)]
        unfinished = self.out.with_name(f".{self.out.name}.unfinished")
        return [*others, *(str(path) for path in (Path(self.folder), unfinished) if path.exists())]


def processes() -> dict[int, list[str]]:
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            found[int(name)] = Path(f"/proc/{name}/cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue
    return found


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def until(true: Callable[[], object], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path, clip: Path) -> Iterator[Callable[..., Benchmark]]:
    started: list[Benchmark] = []

    def begin(*words: str) -> Benchmark:
        started.append(Benchmark(tmp_path / "result.json", clip, *words))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("moment", ["starting 2 × 1", "block 2", "killing a container of 2 × 1"])
def test_killing_it_at_any_moment_leaves_neither_process_nor_file(start: Callable[..., Benchmark], moment: str) -> None:
    benchmark = start("--budget", "1") if "killing" in moment else start()
    benchmark.until(moment)
    assert benchmark.left()
    benchmark.process.kill()
    until(lambda: benchmark.janitor not in processes(), within=60)
    assert not benchmark.left()
    if "starting" not in moment:
        kept = Result.model_validate_json(benchmark.out.read_text())
        assert kept.partial
        assert {run.block for run in kept.runs if not run.warmup} >= {0}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_a_plain_kill_keep_what_was_measured_and_show_it(
    start: Callable[..., Benchmark], number: signal.Signals, code: int
) -> None:
    benchmark = start()
    benchmark.until("block 3")
    benchmark.process.send_signal(number)
    said, _ = benchmark.process.communicate(timeout=30)
    assert benchmark.process.returncode == code
    assert "This run cannot say whether packing matters" in said
    kept = Result.model_validate_json(benchmark.out.read_text())
    assert kept.partial
    why = "it was interrupted (Ctrl-C)" if number == signal.SIGINT else "it was ended by a signal"
    assert f"ended before its time: {why}" in kept.notes
    assert not benchmark.left()


def test_ctrl_c_before_anything_was_measured_says_so(start: Callable[..., Benchmark]) -> None:
    benchmark = start()
    benchmark.until("planning")
    benchmark.process.send_signal(signal.SIGINT)
    _, said = benchmark.process.communicate(timeout=30)
    assert benchmark.process.returncode == 130
    assert "nothing was measured yet, and nothing written" in said
    assert not benchmark.out.exists()


def test_a_container_that_somebody_removed_is_told_with_where_the_rest_is(start: Callable[..., Benchmark]) -> None:
    benchmark = start()
    benchmark.until("block 2")
    mine = benchmark.process.pid
    agents = [pid for pid, words in processes().items() if engines.AGENT in words and parent(pid) == mine]
    os.kill(agents[0], signal.SIGKILL)
    _, said = benchmark.process.communicate(timeout=30)
    assert benchmark.process.returncode == 24, said
    assert "or somebody removed it" in said
    assert f"What was measured is in {benchmark.out}." in said
    kept = Result.model_validate_json(benchmark.out.read_text())
    assert any(note.startswith("ended before its time: ") and "ended (-9)" in note for note in kept.notes)


@contextmanager
def others() -> Iterator[None]:
    """Programs that take all CPUs."""
    started = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_what_other_programs_took_of_the_cpus_is_noted_and_a_set_up_beyond_the_budget(
    clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    with others():
        words = command(*SHORT, "--budget", "1", "--pilot", "1", "--clip", clip, "--out", out)
        subprocess.run(words, capture_output=True, timeout=100, check=True)
    notes = Result.model_validate_json(out.read_text()).notes
    assert any("of the CPUs meanwhile" in note for note in notes)
    assert any(note.startswith("the set-up alone took") for note in notes)


def test_what_a_killed_janitor_left_goes_when_the_next_one_starts(start: Callable[..., Benchmark]) -> None:
    killed = start()
    killed.until("block 1")
    os.kill(killed.janitor, signal.SIGKILL)
    killed.process.kill()
    killed.process.wait()
    start().until("planning")
    until(lambda: not killed.left())


def test_a_benchmark_that_runs_keeps_what_it_has_however_old(tmp_path: Path) -> None:
    folder, root = tmp_path / "transcoder-bench-b1", tmp_path / "transcoder-bench-b1-root"
    folder.mkdir()
    root.mkdir()
    os.utime(root, (0, 0))
    with (folder / janitor.LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        janitor.sweep("", [str(tmp_path)])
        assert folder.exists()
        assert root.exists()
    janitor.sweep("", [str(tmp_path)])
    assert not list(tmp_path.iterdir())


class TestAgent:
    """The agent alone, as a cell talks to it."""

    @pytest.fixture
    def agent(self, tmp_path: Path) -> Iterator[rig.Agent]:
        words = [sys.executable, "-m", engines.AGENT, str(tmp_path / "agent")]
        agent = rig.Agent("agent", words, str(tmp_path / "log"))
        assert agent.ready()["sources"] == sources.digest()
        yield agent
        agent.close()
        agent.wait(20)

    def plan(self, agent: rig.Agent, clip: Path, accel: str = "software") -> dict[str, Any]:
        agent.ask(ask="plan", accel=accel, source=str(clip), codec="h264", height=720)
        return agent.answer(100)

    def release(self, agent: rig.Agent, argv: list[str], *, at: float = 0.5, device: bool = False) -> None:
        moment = time.monotonic() + at
        agent.ask(ask="run", argv=argv, stacks=2, at=moment, limit=60, device=device)

    def test_a_moment_that_is_past_is_refused(self, agent: rig.Agent, clip: Path) -> None:
        self.release(agent, self.plan(agent, clip)["argv"], at=-0.1)
        assert agent.answer(30)["late"] > 0

    def test_the_end_of_its_questions_ends_it_while_its_stacks_run(
        self, agent: rig.Agent, clip: Path, tmp_path: Path
    ) -> None:
        argv = self.plan(agent, clip)["argv"]
        endless = [*argv[: argv.index("-i")], "-stream_loop", "-1", *argv[argv.index("-i") :]]
        self.release(agent, endless)
        until(lambda: len(list((tmp_path / "agent").glob("out-*"))) == 2)
        agent.close()
        assert agent.process.wait(20) == 0
        assert not (tmp_path / "agent").exists()
        assert not [words for words in processes().values() if any(str(tmp_path) in word for word in words)]

    def test_a_stack_that_fails_says_why(self, agent: rig.Agent, clip: Path) -> None:
        argv = self.plan(agent, clip)["argv"]
        self.release(agent, [word.replace("libx264", "libx26") for word in argv])
        troubles = [stack["trouble"] for stack in agent.answer(30)["stacks"]]
        assert all("ffmpeg ended with" in trouble for trouble in troubles)

    def test_a_stack_that_does_not_end_is_killed_at_its_limit(self, agent: rig.Agent, clip: Path) -> None:
        argv = self.plan(agent, clip)["argv"]
        endless = [*argv[: argv.index("-i")], "-stream_loop", "-1", *argv[argv.index("-i") :]]
        agent.ask(ask="run", argv=endless, stacks=1, at=time.monotonic() + 0.5, limit=1, device=False)
        [stack] = agent.answer(30)["stacks"]
        assert stack["trouble"] == "it did not end within 1 s"

    def test_a_plan_that_is_not_to_be_had_is_the_products_own_error(self, agent: rig.Agent, clip: Path) -> None:
        from transcoder.errors import NoRoute

        with pytest.raises(NoRoute):
            self.plan(agent, clip, accel="vaapi")


def simple(machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    """A GPU in software with little to try, which this process and its children find."""
    usual: dict[str, object] = {"rc": "CQP", "encode": "h264", "decode": "h264", "ten_bit": False, "vpl": False}
    machine.add("renderD128", {**usual, **more})
    places = {"TRANSCODER_DRI": machine.nodes, "TRANSCODER_SYSFS": machine.sysfs, "TRANSCODER_PROC": machine.proc}
    for name, value in {**machine.environment, **places}.items():
        monkeypatch.setenv(name, str(value))


def test_a_simulated_device_is_called_so_and_its_engines_are_counted(
    gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_clip: MakeClip
) -> None:
    simple(gpus, monkeypatch, rate=5_000_000)
    monkeypatch.setattr(design, "BUSY", 2.0)  # other tests may load the machine meanwhile
    with display() as show:
        found = runner.topology(light(make_clip), Destination(str(tmp_path / "result.json")), show)
    assert any("has only 25 pictures" in note for note in found.notes)
    assert found.device.kind == "simulated"
    assert found.workload.accel == "vaapi"
    assert all(sum(stack.engines.values()) > 0 for run in found.runs for stack in run.stacks)
    assert len({stack.digest for run in found.runs for stack in run.stacks}) == 1, "its encoder repeats itself"


def test_a_simulated_device_is_not_measured_while_the_cpus_are_busy(
    gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path
) -> None:
    simple(gpus, monkeypatch)  # it is as fast as the CPUs are
    asked = runner.Asked(accel="vaapi", engine="processes", clip=str(clip), seconds=1)
    with display() as show, pytest.raises(MachineBusy, match="busy with"):
        runner.topology(asked, Destination(str(tmp_path / "result.json")), show)
    assert not list(tmp_path.glob("*.json"))


class Quiet:
    """Shows nothing."""

    def phase(self, sentence: str) -> None:
        pass

    def block(self, number: int, of: int | None, left: float) -> None:
        pass

    def ran(self, run: Run) -> None:
        pass

    def note(self, sentence: str) -> None:
        pass


class Blocks(Quiet):
    """Does something when a block begins, counted from 1."""

    def __init__(self, begun: dict[int, Callable[[], None]]) -> None:
        self._begun = begun

    def block(self, number: int, of: int | None, left: float) -> None:
        self._begun.get(number, lambda: None)()


def test_a_block_in_which_a_simulated_device_takes_the_cpus_ends_it_and_does_not_count(
    gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_clip: MakeClip
) -> None:
    simple(gpus, monkeypatch, rate=10_000_000)
    monkeypatch.setattr(design, "BUSY", 2.0)
    asked = light(make_clip, pilot=2)
    show = Blocks({2: lambda: monkeypatch.setattr(design, "BUSY", 0.0)})
    with pytest.raises(MachineBusy, match=r"the stacks of .* took \d+% of the CPUs: they would be measured"):
        runner.topology(asked, Destination(str(tmp_path / "result.json")), show)
    kept = Result.model_validate_json((tmp_path / "result.json").read_text())
    assert kept.partial
    assert {run.block for run in kept.runs if not run.warmup} == {0}, "of the block that was ended nothing counts"
    assert any("ended before its time: the stacks of " in note for note in kept.notes)


def test_a_stack_that_fails_in_a_block_of_a_simulated_device_is_left_out_however_short_and_busy_it_was(
    gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_clip: MakeClip
) -> None:
    simple(gpus, monkeypatch, rate=10_000_000)
    usual = gpu.Gpu(gpus, "renderD128").config.read_text()
    monkeypatch.setattr(design, "BUSY", 2.0)

    def fail() -> None:
        monkeypatch.setattr(design, "BUSY", 0.0)
        configure(gpus, f"{usual}fault.context.encode = status 1\n")

    def mend() -> None:
        monkeypatch.setattr(design, "BUSY", 2.0)
        configure(gpus, usual)

    asked = light(make_clip, pilot=3)
    found = runner.topology(asked, Destination(str(tmp_path / "result.json")), Blocks({2: fail, 3: mend}))
    assert not found.partial
    troubled = {run.block for run in found.runs if any(stack.trouble for stack in run.stacks)}
    assert troubled == {1}
    assert any(trouble.endswith("this run is left out.") for trouble in analysis.analyse(found, 100).troubles)


def configure(machine: gpu.Machine, words: str) -> None:
    """Say anew what the device is; the file is replaced in one step, since a running device reads it."""
    config = gpu.Gpu(machine, "renderD128").config
    unfinished = config.with_name(".unfinished")
    unfinished.write_text(words)
    unfinished.rename(config)


def test_other_programs_that_take_the_cpus_end_no_block_of_a_simulated_device_and_are_named(
    gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_clip: MakeClip
) -> None:
    simple(gpus, monkeypatch, rate=10_000_000)
    usual = design.BUSY
    monkeypatch.setattr(design, "BUSY", 2.0)  # until it is warm
    with ExitStack() as after:

        def load() -> None:
            monkeypatch.setattr(design, "BUSY", usual)
            after.enter_context(others())

        show = Blocks({1: load, 2: after.close})
        found = runner.topology(light(make_clip, pilot=2), Destination(str(tmp_path / "result.json")), show)
    assert not found.partial
    busy = [run.cpu_busy for run in found.runs if run.block == 0 and not run.warmup]
    assert max(busy) > usual
    assert any("busy beside a simulated device" in trouble for trouble in analysis.analyse(found, 100).troubles)


def light(make_clip: MakeClip, pilot: int = 1) -> runner.Asked:
    """As many blocks of a second's clip."""
    short = str(make_clip("testsrc2=s=320x180:r=25:d=1"))
    return runner.Asked(stacks=(2,), accel="vaapi", engine="processes", clip=short, budget=1, seconds=0.5, pilot=pilot)


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--engine", "podman"), 21, "podman"),
        (("--engine", "processes", "--accel", "vaapi"), 12, "/nowhere"),
        (("--engine", "processes", "--profile", "gpu"), 12, "/nowhere"),
        (("--engine", "processes", "--accel", "software", "--clip", "/nowhere/film.mp4"), 5, "/nowhere/film.mp4"),
        (("--engine", "processes", "--accel", "software", "--clip", "/usr"), 5, "/usr is a folder"),
        (("--engine", "processes", "--out", "/nowhere/result.json"), 9, "/nowhere"),
        (("--engine", "processes", "--out", "/proc/result.json"), 9, "--out /proc/result.json cannot be written"),
        (("--engine", "processes", "--out", "."), 9, "it is a folder"),
        (("--stacks", "2,x"), 2, "--stacks"),
        (("--stacks", "99999"), 2, "from 1 to 64"),
        (("--stacks", "1,2,3,4,5"), 2, "at most 4 numbers"),
        (("--engine", "processes", "--stacks", "1"), 2, "nothing to be held"),
    ],
)
def test_what_cannot_be_done_is_named_with_its_exit_code(
    tmp_path: Path, words: tuple[str, ...], code: int, named: str
) -> None:
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin",
        "TRANSCODER_DRI": "/nowhere",
    }
    done = subprocess.run(
        command(*words), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_earlier_result_is_not_shown_as_what_a_benchmark_that_never_began_found(
    ended: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, result: Result
) -> None:
    out = tmp_path / "old.json"
    out.write_bytes(ended[0].read_bytes())
    words = command(*SHORT, "--out", out, "--clip", tmp_path / "missing.mp4")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert Result.model_validate_json(out.read_text()) == result


class TestDestination:
    """The file of a result, before anything is started."""

    def test_what_is_no_result_is_replaced_only_when_that_is_asked_for(self, tmp_path: Path) -> None:
        out = tmp_path / "letter.txt"
        out.write_text("dear")
        with pytest.raises(TargetExists, match="is no result of ours"):
            Destination(str(out)).look()
        Destination(str(out), overwrite=True).look()
        assert out.read_text() == "dear"
        assert os.listdir(tmp_path) == ["letter.txt"]

    def test_an_earlier_result_may_be_replaced(self, ended: tuple[Path, object]) -> None:
        Destination(str(ended[0])).look()

    def test_a_link_is_not_replaced_by_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/dev/null")
        with pytest.raises(TargetExists, match="no regular file"):
            Destination(str(tmp_path / "link"), overwrite=True).look()

    @pytest.mark.root
    def test_room_is_asked_for_only_where_there_is_none(self, tmp_path: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], check=True)
        try:
            with pytest.raises(TargetUnwritable) as full:
                destination.refuse(str(tmp_path / "cap.json"), "--capacity")
            assert not os.listdir(tmp_path)
        finally:
            subprocess.run(["umount", tmp_path], check=True)
        assert full.value.next_step == "Make room, or name another with --capacity."
        with pytest.raises(TargetUnwritable) as other:
            destination.refuse("/proc/cap.json", "--capacity")
        assert other.value.next_step == "Name another with --capacity."


def test_a_clip_without_a_picture_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    sound = tmp_path / "song.m4a"
    made = ["ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", "sine=d=1", str(sound)]
    subprocess.run(made, check=True)
    words = command(*SHORT, "--clip", sound, "--out", tmp_path / "result.json")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 6
    assert str(sound) in done.stderr
    assert rig.MEMORY not in done.stderr
    assert "Name a clip with a picture." in done.stderr


def test_containers_with_other_code_of_the_same_version_are_noticed(tmp_path: Path) -> None:
    package = Path(transcoder.__file__).parent
    copied = shutil.copytree(package, tmp_path / "transcoder", ignore=shutil.ignore_patterns("__pycache__"))

    class Elsewhere(engines.Processes):
        def words(self, container: Container) -> list[str]:
            return ["env", "-C", str(tmp_path), *super().words(container)]

    def told() -> str:
        with rig.opened(rig.Rig(Elsewhere(), "image:1")) as made:
            made.house(ONE)
            return made.other_code

    assert told() == ""
    with (copied / "stack_of_another.py").open("w") as file:
        file.write("# new\n")
    assert "the code in image:1 is not this program's" in told()


class TestWords:
    """What is made of values."""

    def test_a_container_gets_what_compose_gives_a_worker_and_no_network(self) -> None:
        container = Container(
            "it", "b1", "/dev/shm/x", (1000, 1000), "image", ("/dev/dri/renderD128",), (44,), ("--cpus", "1")
        )
        words = " ".join(engines.Docker().words(container))
        for part in ("--read-only", "--cap-drop ALL", "no-new-privileges", "--user 1000:1000", "--network none",
                     "--log-driver none", "--tmpfs /tmp", "--device /dev/dri/renderD128", "--group-add 44",
                     "--label transcoder.bench=b1", "--cpus 1 --entrypoint"):  # fmt: skip
            assert part in words

    def test_a_bare_cell_is_given_what_the_users_words_give_a_container(self) -> None:
        options = ["-v", "/a:/b:ro", "--volume=/c", "-e", "X=1", "--device", "/n:/dev/dri/n", "--group-add", "44",
                   "--tmpfs", "/t:mode=1777", "--cpus", "1"]  # fmt: skip
        assert granted(options) == Granted(
            mounts=(("/a", "/b"), ("/c", "/c")),
            devices=(("/n", "/dev/dri/n"),),
            tmpfs=("/t",),
            environment=("X=1",),
            groups=(44,),
            ignored=("--cpus", "1"),
        )

    def test_only_for_this_versions_own_images_the_line_that_builds_them_is_told(self) -> None:
        docker = engines.Docker()
        own = engines.own("vaapi")
        assert f"docker build --file docker/Dockerfile --target vaapi --tag {own} ." in docker.how_to_get(own)
        assert "docker build" not in docker.how_to_get("nosuch:1")

    def test_a_result_names_the_variables_that_containers_are_given_and_keeps_no_value(self) -> None:
        words = ["--cpus", "1", "-e", "A=secret", "--env", "B", "--env=C=secret", "-eD=secret", "-v", "/e=f:/g"]
        assert engines.without_values(words) == (
            *("--cpus", "1", "-e", "A", "--env", "B", "--env=C", "-eD", "-v", "/e=f:/g"),
        )

    def test_only_the_first_frames_are_read(self) -> None:
        words = session.cut(["ffmpeg", "-i", "clip", "out"], 25, 25.0)
        assert words == ("ffmpeg", "-t", "0.980000", "-i", "clip", "out")

    def test_a_run_in_which_a_container_is_killed_reads_its_source_no_faster_than_said(self) -> None:
        words = session.paced(["ffmpeg", "-t", "2", "-i", "clip", "out"], 0.5)
        assert words == ("ffmpeg", "-t", "2", "-readrate", "0.500000", "-i", "clip", "out")


def test_json_is_the_result_and_nothing_else(clip: Path, tmp_path: Path) -> None:
    words = command(*SHORT, "--budget", "1", "--pilot", "1", "--clip", clip, "--out", tmp_path / "r.json", "--json")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert Result.model_validate(json.loads(done.stdout)).kind == "topology"
