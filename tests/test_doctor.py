"""The doctor on real patients: a Redis set up wrongly, a GPU in software that fails, disks, ports and limits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as client

from tests import gpu, services
from tests.local import program
from transcoder import doctor, settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")


@dataclass(frozen=True)
class Said:
    """What the doctor said, and its exit code."""

    code: int
    findings: list[dict[str, str]]

    @property
    def kinds(self) -> set[str]:
        return {one["kind"] for one in self.findings} - {"fine"}

    def finding(self, kind: str) -> dict[str, str]:
        (found,) = [one for one in self.findings if one["kind"] == kind]
        return found


@dataclass
class Patient:
    """A machine of which nothing is wrong but what the test does to it."""

    folder: Path
    redis: services.Redis
    environment: dict[str, str]

    def doctor(self, *before: str, **changed: str) -> Said:
        """What `transcoder doctor --json` says in a process of its own, with words before its command."""
        done = self.run(["--json"], before, changed)
        said = json.loads(done.stdout)
        assert said["exit_code"] == done.returncode, done.stderr
        return Said(done.returncode, said["findings"])

    def run(
        self, options: Sequence[str] = (), before: Sequence[str] = (), changed: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [*before, sys.executable, "-m", "transcoder", "doctor", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | self.environment | dict(changed or {})
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def tell(self, **config: str) -> None:
        """Configure its Redis."""
        with client.Redis(port=self.redis.port) as connection:
            for name, value in config.items():
                connection.config_set(name.replace("_", "-"), value)


@pytest.fixture
def patient(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    (tmp_path / "media").mkdir()
    with services.private_redis(tmp_path / "redis", appendonly=True) as server:
        environment = {
            "TRANSCODER_BROKER_URL": server.url,
            "TRANSCODER_MEDIA_ROOTS": str(tmp_path / "media"),
            "TRANSCODER_CACHE_FOLDER": str(tmp_path_factory.getbasetemp() / "cache"),
            "TRANSCODER_METRICS_PORT": str(services.free_port()),
            "TRANSCODER_DRI": str(tmp_path / "dri"),
            "TRANSCODER_SYSFS": str(tmp_path / "sys"),
        }
        yield Patient(tmp_path, server, environment)


@pytest.fixture
def with_gpu(patient: Patient, gpus: gpu.Machine) -> Patient:
    patient.environment |= gpus.environment
    patient.environment |= {"TRANSCODER_DRI": str(gpus.nodes), "TRANSCODER_SYSFS": str(gpus.sysfs)}
    return patient


ALWAYS = {"ffmpeg-old", "disk-volatile", "disk-full", "nofile-huge", "gpu-none"}
"""What may be wrong with the machine that the tests run on, and that the patient has no GPU."""


def test_nothing_is_wrong_with_a_machine_that_is_set_up_well(patient: Patient) -> None:
    said = patient.doctor()
    assert said.kinds <= ALWAYS
    assert {one["about"] for one in said.findings} >= {"ffmpeg", patient.redis.url, "nofile", "CPUs", "clock"}
    with client.Redis(port=patient.redis.port) as connection:
        assert connection.keys("*") == []
    assert list((patient.folder / "media").iterdir()) == []


def test_the_table_tells_each_finding_with_its_reason_and_its_line(patient: Patient) -> None:
    done = patient.run(changed={"TRANSCODER_THREADS": "1000"})
    assert done.returncode == 30
    assert "warning\tCPUs\tTRANSCODER_THREADS is 1000, and " in done.stdout
    told = done.stdout.partition("\nwarning: TRANSCODER_THREADS")[2].splitlines()
    assert told[1].startswith("  why:  The encoder's threads use up the quota")
    assert told[2] == "  mend: Unset TRANSCODER_THREADS: it follows the quota then."


# Redis


def test_a_redis_that_is_not_there_is_a_failure(patient: Patient) -> None:
    patient.redis.stop()
    said = patient.doctor()
    assert said.code == 31
    assert "Connection refused" in said.finding("redis-unreachable")["what"]


def test_a_redis_that_wants_a_password_is_told_apart_and_the_password_mends_it(patient: Patient) -> None:
    patient.tell(requirepass="geheim")
    assert patient.doctor().finding("redis-denied")["level"] == "failure"
    url = f"redis://:geheim@127.0.0.1:{patient.redis.port}/0"
    wrong = patient.run(["--json"], changed={"TRANSCODER_BROKER_URL": url.replace("geheim", "falsch")})
    assert "redis-denied" in wrong.stdout
    assert "falsch" not in wrong.stdout + wrong.stderr
    assert patient.doctor(TRANSCODER_BROKER_URL=url).kinds <= ALWAYS


def test_a_redis_that_keeps_nothing_is_a_warning_and_its_line_mends_it(patient: Patient) -> None:
    patient.tell(appendonly="no")
    said = patient.doctor()
    assert (said.code, said.finding("redis-volatile")["level"]) == (30, "warning")
    line = said.finding("redis-volatile")["mend"].partition(";")[0].split()
    subprocess.run([line[0], "-p", str(patient.redis.port), *line[1:]], check=True, stdout=subprocess.DEVNULL)
    assert patient.doctor().kinds <= ALWAYS


def test_a_redis_that_throws_keys_away_is_a_failure_once_its_memory_is_limited(patient: Patient) -> None:
    patient.tell(maxmemory_policy="allkeys-lru")
    assert patient.doctor().finding("redis-evicts")["level"] == "warning"
    patient.tell(maxmemory="100mb")
    said = patient.doctor()
    assert (said.code, said.finding("redis-evicts")["level"]) == (31, "failure")
    line = said.finding("redis-evicts")["mend"].partition(";")[0].split()
    subprocess.run([line[0], "-p", str(patient.redis.port), *line[1:]], check=True, stdout=subprocess.DEVNULL)
    assert patient.doctor().kinds <= ALWAYS


def test_a_redis_that_takes_no_writes_is_a_failure(patient: Patient) -> None:
    with client.Redis(port=patient.redis.port) as connection:
        connection.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert "read only replica" in patient.doctor().finding("redis-refuses")["what"]


def test_a_clock_that_is_wrong_is_noticed_by_that_of_redis(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 60)
    assert doctor._broker(patient.redis.url).skew == pytest.approx(60, abs=2)


# The GPU


def test_a_gpu_that_works_is_well(with_gpu: Patient, gpus: gpu.Machine) -> None:
    gpus.add("renderD128", QUICK, kernel_driver="amdgpu")
    said = with_gpu.doctor()
    assert said.kinds <= ALWAYS - {"gpu-none"}
    (found,) = [one for one in said.findings if one["about"] == str(gpus.nodes / "renderD128")]
    assert found["what"].startswith("vaapi encodes h264, hevc")


QUICK = {"decode": "none", "encode": "h264 hevc", "ten_bit": False, "vpp": False, "rc": "CQP"}
"""A GPU that takes few trials."""
CONFIGURED: dict[str, tuple[dict[str, object], int]] = {
    "va-entrypoints": ({"encode": "none"}, 30),
    "huc-missing": (QUICK | {"entrypoint": "lp"}, 30),
    "va-driver-fails": ({"fault.init": "status 18"}, 30),
    "va-trials": (QUICK | {"fault.encode": "status 24"}, 30),
}


@pytest.mark.parametrize("kind", CONFIGURED)
def test_what_a_driver_lacks_is_named(with_gpu: Patient, gpus: gpu.Machine, kind: str) -> None:
    config, code = CONFIGURED[kind]
    gpus.add("renderD128", config)
    said = with_gpu.doctor()
    assert kind in said.kinds
    assert said.code == code


def test_a_driver_that_is_not_installed_is_named_and_installing_it_mends_that(
    with_gpu: Patient, gpus: gpu.Machine, tmp_path: Path
) -> None:
    gpus.add("renderD128", QUICK, kernel_driver="amdgpu")
    (tmp_path / "empty").mkdir()
    said = with_gpu.doctor(LIBVA_DRIVERS_PATH=str(tmp_path / "empty"))
    assert "install mesa-va-drivers" in said.finding("va-driver-missing")["mend"]
    assert said.code == 30
    assert with_gpu.doctor().kinds <= ALWAYS - {"gpu-none"}


def test_a_driver_that_is_missing_is_a_failure_where_hardware_is_asked_for(
    with_gpu: Patient, gpus: gpu.Machine, tmp_path: Path
) -> None:
    gpus.add()
    (tmp_path / "empty").mkdir()
    lost = {"LIBVA_DRIVERS_PATH": str(tmp_path / "empty")}
    assert with_gpu.doctor(**lost, TRANSCODER_SERVES="hardware").code == 31
    assert with_gpu.doctor(**lost, TRANSCODER_SERVES="software").finding("va-driver-missing")["level"] == "note"


def test_a_device_that_is_not_here_is_named(with_gpu: Patient, gpus: gpu.Machine) -> None:
    gpus.add("renderD129", QUICK)
    said = with_gpu.doctor(TRANSCODER_DEVICE=str(gpus.nodes / "renderD128"))
    assert said.code == 31
    assert "renderD129 is 0000:03:00.0" in said.finding("gpu-chosen")["what"]


def test_a_gpu_of_the_host_that_is_not_mapped_is_named(with_gpu: Patient, gpus: gpu.Machine) -> None:
    gpus.add().node.unlink()
    found = with_gpu.doctor().finding("gpu-unmapped")
    assert "0000:00:02.0, i915" in found["what"]


def test_a_display_node_alone_is_not_taken_for_a_render_node(with_gpu: Patient, gpus: gpu.Machine) -> None:
    (gpus.nodes / "card0").touch()
    assert "card0 is in" in with_gpu.doctor().finding("gpu-card-only")["what"]


@pytest.mark.vpl
def test_a_runtime_of_onevpl_that_does_not_serve_the_gpu_is_named(with_gpu: Patient, gpus: gpu.Machine) -> None:
    gpus.add("renderD128", QUICK, vpl=False)
    assert "simgpu_drv_video.so" in with_gpu.doctor().finding("vpl-old")["what"]
    gpus.add("renderD128", QUICK, vpl=False, pci_id=0x80865916)
    assert "0x5916" in with_gpu.doctor().finding("vpl-gpu-old")["what"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="transcoder-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(user: int, groups: list[int], look: Callable[[], object]) -> Any:
    """What another user sees, by way of JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            os.write(writing, json.dumps(look(), default=str).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said)


# Disks


@pytest.mark.root
def test_a_root_that_the_user_may_not_write_to_is_found_by_trying(open_folder: Path) -> None:
    seen = as_user(12345, [], lambda: doctor._disk(str(open_folder), kept=True).unwritable)
    assert seen == "Permission denied"
    open_folder.chmod(0o777)
    assert as_user(12345, [], lambda: doctor._disk(str(open_folder), kept=True).unwritable) is None


def test_a_root_that_is_not_there_is_a_failure(patient: Patient) -> None:
    said = patient.doctor(TRANSCODER_MEDIA_ROOTS=f"{patient.folder}/media:{patient.folder}/gone")
    assert said.code == 31
    assert said.finding("disk-missing")["about"] == f"{patient.folder}/gone"


@pytest.mark.root
def test_a_disk_without_room_is_a_failure_and_a_mounted_one_stays(patient: Patient) -> None:
    script = f'mount -t tmpfs -o size=1m none {patient.folder}/media && exec "$@"'
    said = patient.doctor(*NAMESPACE, script, "sh")
    assert said.finding("disk-full")["level"] == "failure"
    assert "disk-volatile" not in said.kinds


@pytest.mark.root
def test_a_root_that_is_mounted_read_only_is_a_note_beside_one_that_can_be_written(patient: Patient) -> None:
    (patient.folder / "in").mkdir()
    script = f'mount -t tmpfs -o ro none {patient.folder}/in && exec "$@"'
    roots = f"{patient.folder}/in:{patient.folder}/media"
    found = patient.doctor(*NAMESPACE, script, "sh", TRANSCODER_MEDIA_ROOTS=roots).finding("disk-unwritable")
    assert (found["level"], found["about"]) == ("note", f"{patient.folder}/in")
    assert "Read-only file system" in found["what"]


@pytest.mark.root
def test_what_is_mounted_below_a_root_is_looked_at_in_its_place(patient: Patient) -> None:
    below = patient.folder / "media" / "a b"
    below.mkdir()
    said = patient.doctor(*NAMESPACE, f'mount -t tmpfs -o size=8g none "{below}" && exec "$@"', "sh")
    media = str(patient.folder / "media")
    assert {one["about"] for one in said.findings if one["about"].startswith(media)} == {str(below)}


def test_a_file_that_cannot_leave_its_scratch_folder_is_found_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", refuse)
    assert doctor._disk(str(tmp_path), kept=True).unmovable == "Invalid cross-device link"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_a_note(patient: Patient) -> None:
    (patient.folder / "file").touch()
    said = patient.doctor(TRANSCODER_CACHE_FOLDER=f"{patient.folder}/file/cache")
    assert said.finding("cache-unwritable")["level"] == "note"


def test_a_capacity_file_is_read_as_a_worker_reads_it(patient: Patient) -> None:
    file = patient.folder / "capacity.json"
    measured = {"pixels_per_second": 1, "streams": 1, "workload": "h264", "measured": "now"}
    file.write_text(json.dumps({"schema_version": 1, "cpus": {**measured, "cpus": 2}}))
    said = patient.doctor(TRANSCODER_CAPACITY_FILE=str(file))
    assert [one["what"] for one in said.findings if one["about"] == str(file)] == ["budgets for cpu are measured ones"]
    file.write_text(json.dumps({"schema_version": 1, "devices": {"0000:99:00.0": measured}}))
    assert patient.doctor(TRANSCODER_CAPACITY_FILE=str(file)).finding("capacity-elsewhere")["level"] == "note"
    file.write_text("{}")
    unusable = patient.doctor(TRANSCODER_CAPACITY_FILE=str(file)).finding("capacity-unusable")
    assert "no schema_version" in unusable["what"]
    assert unusable["level"] == "failure"


# The rest


def test_a_port_that_another_program_has_is_a_failure(patient: Patient) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        taken.settimeout(0)
        said = patient.doctor(TRANSCODER_METRICS_PORT=str(taken.getsockname()[1]))
    assert said.code == 31
    assert "Address already in use" in said.finding("port-refused")["what"]


def test_a_port_that_a_worker_of_ours_has_is_well(worker: services.Worker) -> None:
    assert doctor._port("0.0.0.0", worker.port).worker
    assert doctor._port("0.0.0.0", worker.port).refused is None


def test_an_address_that_is_not_here_is_a_failure(patient: Patient) -> None:
    assert "Cannot assign" in patient.doctor(TRANSCODER_METRICS_HOST="192.0.2.1").finding("port-refused")["what"]


def test_a_limit_of_open_files_that_is_too_low_is_named(patient: Patient) -> None:
    assert "512 files" in patient.doctor("prlimit", "--nofile=512").finding("nofile-low")["what"]


def test_a_variable_that_is_no_setting_is_named(patient: Patient) -> None:
    assert "TRANSCODER_THREADS?" in patient.doctor(TRANSCODER_TREADS="2").finding("setting-unknown")["what"]


def test_an_ffmpeg_that_is_missing_is_a_failure_and_the_gpu_is_looked_at_all_the_same(
    with_gpu: Patient, gpus: gpu.Machine
) -> None:
    gpus.add(encode="none")
    said = with_gpu.doctor(TRANSCODER_FFMPEG="/no/ffmpeg")
    assert said.code == 31
    assert said.kinds >= {"ffmpeg-missing", "va-entrypoints"}


def test_an_ffmpeg_without_encoders_is_named(patient: Patient, tmp_path: Path) -> None:
    poor = program(tmp_path, "ffmpeg", 'case "$*" in *libx264*) exit 1;; esac; exec ffmpeg "$@"')
    assert "H.264" in patient.doctor(TRANSCODER_FFMPEG=str(poor)).finding("ffmpeg-encoders")["what"]


def test_media_roots_that_are_not_set_are_a_failure(patient: Patient) -> None:
    assert patient.doctor(TRANSCODER_MEDIA_ROOTS="").finding("roots-unset")["level"] == "failure"


def test_a_wrong_setting_is_the_error_that_every_verb_gives(patient: Patient) -> None:
    assert patient.run(changed={"TRANSCODER_THREADS": "many"}).returncode == 18


def test_what_was_looked_at_holds_no_password() -> None:
    site = settings.read({"TRANSCODER_BROKER_URL": "redis://:geheim@127.0.0.1:1/0", "TRANSCODER_MEDIA_ROOTS": "/"})
    assert "geheim" not in repr(doctor.examine(site))
