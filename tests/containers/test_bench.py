"""The topology benchmark on a real engine: bare cells in the image's root, a GPU that containers share, its end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.containers.stack import docker, until
from tests.gpu import DeviceMachine
from tests.test_bench_run import processes
from transcoder.bench import design, runner
from transcoder.bench.destination import Destination
from transcoder.bench.display import display
from transcoder.bench.result import Cell, Result
from transcoder.bench.rig import DISK, MEMORY

pytestmark = [pytest.mark.engine, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]

BARE, ONE, TWO = (Cell(containers=number, stacks=2) for number in range(3))
WORKER = Cell(containers=1, stacks=2, worker=True)


@pytest.fixture(scope="module")
def clip(make_clip: MakeClip) -> Path:
    return make_clip("testsrc2=s=320x180:r=25:d=4")


def command(image: str, clip: Path, out: Path, *words: str) -> list[str]:
    usual = ["--image", image, "--clip", str(clip), "--out", str(out), "--seconds", "0.2", "--pilot", "3"]
    return [sys.executable, "-m", "transcoder", "bench", "topology", *usual, "--accel", "software", *words]


@pytest.fixture(scope="module")
def result(software_image: str, clip: Path, module_folder: Path) -> Result:
    out = module_folder / "result.json"
    done = subprocess.run(
        command(software_image, clip, out, "--budget", "1", "--worker"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Result.model_validate_json(out.read_text())


def test_bare_containers_and_a_worker_make_the_same_bytes(result: Result) -> None:
    assert set(result.design.cells) == {run.cell for run in result.runs} == {BARE, ONE, TWO, WORKER}
    assert len({stack.digest for run in result.runs for stack in run.stacks}) == 1
    assert not any(stack.trouble for run in result.runs for stack in run.stacks)


def test_a_killed_container_costs_its_stacks_and_no_others(result: Result) -> None:
    assert {one.cell: (one.lost, one.finished) for one in result.blast} == {ONE: (2, 0), TWO: (1, 1)}


def test_the_engine_and_the_images_digest_are_in_the_result(result: Result, software_image: str) -> None:
    assert result.environment.engine.startswith("docker ")
    digest = docker("image", "inspect", "--format", "{{.Id}}", software_image).strip()
    assert result.environment.image == f"{software_image} {digest}"
    assert result.environment.ffmpeg.startswith("7.")


@pytest.mark.gpu
def test_two_containers_and_a_bare_cell_share_the_software_gpu(
    vaapi_image: str,
    device_machine: DeviceMachine,
    make_clip: MakeClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    little: dict[str, object] = {"rc": "CQP", "encode": "h264", "decode": "h264", "ten_bit": False, "vpl": False}
    device = device_machine.add("renderD128", little, rate=5_000_000)
    monkeypatch.setattr(design, "BUSY", 2.0)  # other tests may load the machine meanwhile
    asked = runner.Asked(
        accel="vaapi",
        image=vaapi_image,
        clip=str(make_clip("testsrc2=s=320x180:r=25:d=1")),
        seconds=0.5,
        pilot=1,
        budget=1,
        options=tuple(device.docker()),
    )
    with display() as show:
        found = runner.topology(asked, Destination(str(tmp_path / "result.json")), show)
    assert found.device.kind == "simulated"
    assert found.device.address == device.address
    for cell in (BARE, ONE, TWO):
        runs = [run for run in found.runs if run.cell == cell]
        assert runs
        assert all(stack.engines.get("video", 0) > 0 for run in runs for stack in run.stacks)


class Killed:
    """A benchmark that was killed when it said something; what it had is known by its id."""

    def __init__(self, image: str, clip: Path, out: Path, moment: str) -> None:
        line = command(image, clip, out, "--budget", "60")
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            said = next((text for text in process.stderr if moment in text), None)
            janitors = {pid: words for pid, words in processes().items() if "transcoder.bench.janitor" in words}
            mine = str(out.with_name(f".{out.name}.unfinished"))
            [(self.janitor, words)] = [(pid, words) for pid, words in janitors.items() if mine in words]
            process.kill()
        assert said, f"it ended without saying {moment!r}"
        self.benchmark = words[words.index("docker") + 1]

    def left(self) -> list[str]:
        found = docker("ps", "--all", "--quiet", "--filter", f"label=transcoder.bench={self.benchmark}").split()
        found += [" ".join(words) for words in processes().values() if any(self.benchmark in word for word in words)]
        found += [str(path) for place in (MEMORY, DISK) for path in Path(place).glob(f"*{self.benchmark}*")]
        return found + [line for line in Path("/proc/mounts").read_text().splitlines() if self.benchmark in line]


@pytest.fixture
def no_other_mounts() -> Iterator[None]:
    before = Path("/proc/mounts").read_text()
    yield
    assert Path("/proc/mounts").read_text().count("transcoder-bench") <= before.count("transcoder-bench")


@pytest.mark.parametrize("moment", ["unpacking", "warming up bare", "block 2"])
def test_killing_it_at_any_moment_leaves_no_container_process_mount_or_file(
    software_image: str, clip: Path, tmp_path: Path, moment: str, no_other_mounts: None
) -> None:
    killed = Killed(software_image, clip, tmp_path / "result.json", moment)
    until(lambda: killed.janitor not in processes(), "the janitor has ended", within=90)
    assert not killed.left()
    assert [path.name for path in tmp_path.iterdir()] == (["result.json"] if moment == "block 2" else [])
    if moment == "block 2":
        assert Result.model_validate_json((tmp_path / "result.json").read_text()).partial


def test_an_image_that_is_not_there_is_named_without_a_line_that_would_not_build_it(clip: Path, tmp_path: Path) -> None:
    line = command("transcoder:none-software", clip, tmp_path / "result.json")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 22
    assert "transcoder:none-software" in done.stderr
    assert "docker build" not in done.stderr


def test_an_image_without_the_product_is_refused(clip: Path, tmp_path: Path, software_image: str) -> None:
    base = docker("image", "inspect", "--format", "{{ index .Config.Labels \"org.opencontainers.image.base.name\" }}",
                  software_image).strip()  # fmt: skip
    line = command(base, clip, tmp_path / "result.json")
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 22
    assert f"{base} has no transcoder in it" in done.stderr
    assert not os.listdir(tmp_path)
