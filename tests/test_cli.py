"""The command line: what it prints, what it makes, and the codes it ends with."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import gpu
from tests.conftest import MakeClip
from tests.services import Redis, Worker, free_port
from transcoder import cli
from transcoder.__main__ import main
from transcoder.errors import JobCancelled, SpecError, exit_codes
from transcoder.spec import Audio, JobSpec, Output, Video

ROOT = Path(__file__).resolve().parent.parent
VERBS = (
    *("run", "submit", "jobs", "status", "watch", "cancel", "retry", "quarantine", "pause", "resume"),
    *("devices", "doctor", "compose", "worker", "profiles", "schema"),
)
SMALL = """
description: Small and fast.
outputs:
- video: {codec: h264, height: 90, speed: fast}
  audio: {codec: aac}
"""
STEADY = """
description: Takes a second or two.
outputs:
- video: {codec: h264, height: 720, upscale: allow}
"""
SLOW = """
description: Takes minutes.
outputs:
- video: {codec: hevc, height: 2160, upscale: allow, speed: quality}
"""


@dataclass(frozen=True)
class Done:
    """What a call of `transcoder` came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Done]


@pytest.fixture
def here(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with profiles of our own and a cache that all tests share."""
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "small.yaml").write_text(SMALL)
    (profiles / "steady.yaml").write_text(STEADY)
    (profiles / "slow.yaml").write_text(SLOW)
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("TRANSCODER_PROFILES_FOLDER", str(profiles))
    monkeypatch.setenv("TRANSCODER_CACHE_FOLDER", str(tmp_path_factory.getbasetemp() / "cache"))
    return place


@pytest.fixture
def call(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process, as its console script would."""

    def run(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["transcoder", *words])
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def clip(make_clip: MakeClip, here: Path) -> Path:
    """Two seconds with sound, under a name that no shell and no terminal likes."""
    return Path(shutil.copy(make_clip(), here / "a b's [bold]{x}.mp4"))


def made(folder: Path) -> set[str]:
    """What stands in a folder beside manifests and sources."""
    return {path.name for path in folder.iterdir() if not path.name.endswith((".transcoder.json", "{x}.mp4"))}


def ffprobe(path: Path) -> Any:
    words = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", str(path)]
    return json.loads(subprocess.run(words, capture_output=True, check=True, timeout=30).stdout)


def test_a_run_publishes_and_tells_what_it_made(call: Call, clip: Path, here: Path) -> None:
    done = call("run", clip.name, "out.mp4", "--profile", "small")
    assert done.code == 0, done.err
    assert made(here) == {"out.mp4"}
    assert f"{here}/out.mp4\th264\t160×90\t" in done.out
    assert "verified, made by software on the CPU" in done.out
    assert done.err.splitlines() == ["probing", "encoding by software", "verifying", "publishing"]


def test_the_json_of_a_run_is_the_result_and_nothing_else(call: Call, clip: Path, here: Path) -> None:
    done = call("run", clip.name, "out.mp4", "-p", "small", "--json")
    result = done.json
    assert (result["route"], result["device"], result["tried"]) == ("software", None, [])
    assert [output["path"] for output in result["outputs"]] == [f"{here}/out.mp4"]
    assert set(result["timings"]) >= {"probe", "encode", "verify", "publish", "total"}
    assert done.err == ""


def test_a_folder_takes_files_named_after_source_and_profile(call: Call, clip: Path, here: Path) -> None:
    (here / "out").mkdir()
    assert call("run", clip.name, "out", "-p", "small").code == 0
    assert made(here / "out") == {f"{clip.stem}-small.mp4"}


def test_the_rungs_of_a_ladder_are_named_after_themselves(call: Call, clip: Path, here: Path) -> None:
    (here / "out").mkdir()
    done = call("run", clip.name, "out/", "-p", "ladder-h264")
    assert done.code == 0, done.err
    assert made(here / "out") == {f"{clip.stem}-360p.mp4"}
    assert "note: 1080p: larger than the source" in done.out


def test_the_ending_of_the_target_chooses_the_container(call: Call, clip: Path, here: Path) -> None:
    assert call("run", clip.name, "out.mp4", "-p", "remux").code == 0
    assert call("run", clip.name, "out.mkv", "-p", "small").code == 0
    assert ffprobe(here / "out.mp4")["format"]["format_name"].startswith("mov,mp4")
    assert ffprobe(here / "out.mkv")["format"]["format_name"].startswith("matroska")


def test_options_reach_the_spec(call: Call, clip: Path, here: Path) -> None:
    (here / "out.mp4").write_text("to be replaced")
    words = ["--priority", "9", "--token", "t", "--meta", "who=me", "--meta", "why=a=b", "--overwrite"]
    more = ["--accel", "prefer", "--api", "qsv", "--api", "vaapi", "--device", "0000:00:02.0", "--verify", "full"]
    done = call("run", clip.name, "out.mp4", "-p", "small", *words, *more, "--salvage", "--json")
    assert done.code == 0, done.err
    asked = json.loads(Path(done.json["manifest"]).read_text())["spec"]
    assert (asked["profile"], asked["priority"], asked["token"]) == ("small", 9, "t")
    assert asked["metadata"] == {"who": "me", "why": "a=b"}
    assert (asked["overwrite"], asked["salvage"], asked["verify"]) == (True, True, "full")
    assert asked["acceleration"] == {"policy": "prefer", "apis": ["qsv", "vaapi"], "device": "0000:00:02.0"}


def test_a_dry_run_prints_commands_that_work_when_pasted(call: Call, clip: Path, here: Path) -> None:
    done = call("run", clip.name, "o ut.mp4", "-p", "small", "--dry-run")
    comment, command = done.out.splitlines()
    assert comment.startswith("# 1. software: ")
    assert made(here) == set()
    subprocess.run(["sh", "-c", command], check=True, timeout=60, capture_output=True)
    assert made(here) == {"o ut.mp4"}


def test_a_dry_run_prints_no_control_character_and_still_pastes(call: Call, clip: Path, here: Path) -> None:
    clip.rename(here / "a\x1b[2J\n'b\\.mp4")
    done = call("run", "a\x1b[2J\n'b\\.mp4", "out.mp4", "-p", "remux", "--dry-run")
    _, command = done.out.splitlines()
    assert "\x1b" not in command
    subprocess.run(["bash", "-c", command], check=True, timeout=60, capture_output=True)
    assert "out.mp4" in made(here)


def test_the_json_of_a_dry_run_has_routes_words_and_reasons(call: Call, clip: Path, here: Path) -> None:
    plan = call("run", clip.name, "out.mp4", "-p", "small", "--dry-run", "--json").json
    (command,) = plan["commands"]
    assert (command["route"], command["device"]) == ("software", None)
    assert command["argv"][0] == "ffmpeg"
    assert command["argv"][-1] == f"file:{here}/out.mp4"
    assert command["reason"]
    assert plan["left_out"] == []


def test_a_spec_comes_from_a_file_and_options_stand_before_it(call: Call, clip: Path, here: Path) -> None:
    asked = {"source": clip.name, "target": "a.mkv", "outputs": [{"container": "mkv", "video": {"codec": "copy"}}]}
    (here / "spec.json").write_text(json.dumps({**asked, "acceleration": {"apis": ["qsv"]}}))
    done = call("run", "--spec", "spec.json", "--accel", "never", "--json")
    assert done.code == 0, done.err
    assert made(here) == {"spec.json", "a.mkv"}
    found = json.loads(Path(done.json["manifest"]).read_text())["spec"]
    assert found["acceleration"] == {"policy": "never", "apis": ["qsv"], "device": None}
    assert call("run", clip.name, "b.mkv", "--spec", "spec.json").code == 0
    assert "b.mkv" in made(here)


def test_a_spec_comes_from_stdin(clip: Path, here: Path) -> None:
    asked = {"source": clip.name, "target": "a.mkv", "outputs": [{"container": "mkv", "video": {"codec": "copy"}}]}
    words = [sys.executable, "-m", "transcoder", "run", "--spec", "-"]
    done = subprocess.run(words, input=json.dumps(asked), text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert made(here) == {"a.mkv"}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(["run", "a", "b"], 2, "--profile", id="no profile"),
        pytest.param(["run", "a", "-p", "remux"], 2, "SRC DST", id="no target"),
        pytest.param(["run", "a", "b", "-p", "remux", "--spec", "x"], 2, "one of the two", id="profile and spec"),
        pytest.param(["run", "a", "b", "-p", "remux", "--meta", "x"], 2, "KEY=VALUE", id="metadata without a value"),
        pytest.param(["run", "a", "b", "-p", "remux", "--accel", "x"], 2, "prefer", id="no such policy"),
        pytest.param(["transcode"], 2, "No such command", id="no such verb"),
        pytest.param(["run", "a", "b", "-p", "remx"], 3, "Did you mean remux?", id="no such profile"),
        pytest.param(["run", "a", "b.webm", "-p", "h264-720p"], 3, "webm cannot hold h264", id="wrong container"),
        pytest.param(["run", "a", "b", "-p", "remux", "--priority", "10"], 3, "priority", id="priority too high"),
        pytest.param(["run", "a", "b.mp4", "-p", "ladder-h264"], 3, "{name}", id="one file for a ladder"),
        pytest.param(["run", "--spec", "gone.json"], 3, "No such file", id="no such spec"),
        pytest.param(["run", "--spec", "list.json"], 3, "not a JSON object", id="a spec that is a list"),
        pytest.param(["run", "--spec", "broken.json"], 3, "line 1 column", id="a spec that is no JSON"),
        pytest.param(["run", "/etc/passwd", "b", "-p", "remux"], 4, "media roots", id="a source outside"),
        pytest.param(["run", "a", "b.mkv", "-p", "remux"], 5, "a", id="no such source"),
        pytest.param(["status", "nope"], 13, "TRANSCODER_BROKER_URL", id="no broker"),
    ],
)
def test_what_is_wrong_is_told_with_its_exit_code(
    call: Call, here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    monkeypatch.setenv("TRANSCODER_BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    (here / "list.json").write_text("[]")
    (here / "broken.json").write_text("{")
    done = call(*words)
    assert done.code == code, done.err
    assert told in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        pytest.param("TRANSCODER_FFMPEG", "/nowhere/ffmpeg", 10, id="no ffmpeg"),
        pytest.param("TRANSCODER_UMASK", "x", 18, id="a wrong setting"),
        pytest.param("TRANSCODER_MEDIA_ROOTS", "/srv", 4, id="other media roots"),
    ],
)
def test_a_run_obeys_the_settings(
    call: Call, clip: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: int
) -> None:
    monkeypatch.setenv(variable, value)
    assert call("run", clip.name, "out.mp4", "-p", "small").code == code


def test_acceleration_that_is_required_and_not_there_is_told_apart(call: Call, clip: Path, here: Path) -> None:
    done = call("run", clip.name, "out.mp4", "-p", "small", "--accel", "require", "--api", "vaapi", "--json")
    assert done.code == done.json["error"]["exit_code"] == 12
    assert made(here) == set()


def test_an_error_is_a_message_for_people_and_json_for_programs(call: Call, clip: Path, here: Path) -> None:
    (here / "out.mp4").write_text("taken")
    done = call("run", clip.name, "out.mp4", "-p", "small", "--json")
    assert done.code == 8
    assert done.json["error"]["kind"] == "TargetExists"
    assert done.err.startswith(f"error: {done.json['error']['what']}\n  {done.json['error']['next_step']}\n")
    assert (here / "out.mp4").read_text() == "taken"


def test_a_failed_encode_shows_the_command_and_the_last_words_of_ffmpeg(
    call: Call, clip: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # encodes the trials of the survey, and breaks on a job
    program = here.parent / "ffmpeg"
    program.write_text(
        '#!/bin/sh\ncase "$*" in */here/*) echo "[error] it broke" >&2; exit 1;; esac\nexec ffmpeg "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("TRANSCODER_FFMPEG", str(program))
    done = call("run", clip.name, "out.mp4", "-p", "small")
    assert done.code == 11, done.err
    assert re.search(r"^  command: \S+/ffmpeg .*-i", done.err, re.M)
    assert "  ffmpeg: [error] it broke" in done.err
    assert made(here) == set()


def test_a_setting_that_is_none_is_warned_about(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSCODER_MEDIA_ROOT", "/media")
    done = call("profiles")
    assert done.code == 0
    assert "warning: TRANSCODER_MEDIA_ROOT is no setting" in done.err


def scratch_in_use(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob(".transcoder-*/0.*"))


def ffmpegs(folder: Path) -> list[str]:
    """The command lines of running ffmpegs that write into the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if any(word.startswith(f"file:{folder}") for word in words):
                found.append(" ".join(words))
    return found


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def interrupted(clip: Path, here: Path, number: int, profile: str = "slow") -> subprocess.CompletedProcess[str]:
    """A run that gets a signal while ffmpeg encodes."""
    words = [sys.executable, "-m", "transcoder", "run", clip.name, "out.mp4", "-p", profile]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: scratch_in_use(here), "ffmpeg encodes")
    run.send_signal(number)
    out, err = run.communicate(timeout=20)
    return subprocess.CompletedProcess(words, run.returncode, out, err)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="kill"),
        pytest.param(signal.SIGHUP, 129, id="a terminal that closes"),
        pytest.param(signal.SIGQUIT, 131, id="a terminal's quit"),
    ],
)
def test_an_interrupted_run_leaves_no_ffmpeg_and_no_file(clip: Path, here: Path, number: int, code: int) -> None:
    done = interrupted(clip, here, number)
    assert done.returncode == code
    assert "interrupted: nothing is published" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in here.iterdir()] == [clip.name]
    assert ffmpegs(here) == []


def test_the_same_run_again_clears_what_a_killed_one_left(call: Call, clip: Path, here: Path) -> None:
    assert interrupted(clip, here, signal.SIGKILL, profile="steady").returncode == -signal.SIGKILL
    wait_until(lambda: ffmpegs(here) == [], "ffmpeg dies with its parent")
    assert len(list(here.glob(".transcoder-*"))) == 1
    assert call("run", clip.name, "out.mp4", "-p", "steady").code == 0
    assert made(here) == {"out.mp4"}


def test_publishing_is_seen_through() -> None:
    permit = cli._Interrupt()
    permit.publishing = True
    permit.hear(signal.SIGINT, None)
    assert permit.cancelled()
    with pytest.raises(JobCancelled):
        permit.still_ours()
    with pytest.raises(SystemExit) as ended:
        permit.leave()
    assert ended.value.code == 130


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_listed_and_has_help(call: Call, verb: str) -> None:
    assert re.search(rf"^  {verb}  ", call("--help").out, re.M)
    done = call(verb, "--help")
    assert done.code == 0
    assert "usage" in done.out.lower()


def test_the_help_of_run_and_submit_has_examples(call: Call) -> None:
    assert "\n  transcoder run film.mov film.mp4 --profile h264-1080p\n" in call("run", "--help").out
    assert "\n  transcoder submit /media/film.mov /media/out/ --profile" in call("submit", "--help").out


def test_profiles_are_listed_for_people_and_programs_and_printed(call: Call) -> None:
    assert "small\tSmall and fast.\n" in call("profiles").out
    assert {one["name"] for one in call("profiles", "--json").json} >= {"small", "h264-1080p"}
    assert call("profiles", "small").out == SMALL
    assert call("profiles", "small", "--json").json[0]["outputs"][0]["video"]["height"] == 90
    assert call("profiles", "smal").code == 3


def test_devices_shows_the_cpu_and_says_what_would_help_where_there_is_no_gpu(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSCODER_DRI", str(tmp_path / "dri"))
    monkeypatch.setenv("TRANSCODER_SYSFS", str(tmp_path / "sys"))
    done = call("devices")
    assert done.code == 0
    assert "CPU\tsoftware\tencode\th264\t8\tyes\t\t\n" in done.out
    assert f'devices: ["{tmp_path}/dri:{tmp_path}/dri"]' in done.out


def test_devices_shows_what_works_what_was_refused_and_what_is_wrong(
    call: Call, gpus: gpu.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**gpus.environment, "TRANSCODER_DRI": str(gpus.nodes)}.items():
        monkeypatch.setenv(name, value)
    for name in ("renderD128", "renderD129"):
        described = tmp_path / "sys/class/drm" / name / "device"
        described.mkdir(parents=True)
        (described / "vendor").write_text("0x1002")
    monkeypatch.setenv("TRANSCODER_SYSFS", str(tmp_path / "sys"))
    small = {"encode": "h264", "decode": "none", "vpp": False, "vendor": "Some GPU"}
    gpus.add("renderD128", small, entrypoint="slice lp", rc="CQP VBR")
    gpus.add("renderD129", broken=True)
    done = call("devices")
    assert (done.code, done.err) == (0, "")
    assert f"renderD128\t{gpus.nodes}/renderD128\t\tSome GPU\t\n" in done.out
    assert "renderD128\tvaapi\tencode\th264\t8\tCQP, VBR\t\t\n" in done.out
    assert "renderD128\tvaapi\tencode\th264\t8\tCQP, VBR\tyes\t\n" in done.out
    assert "its VA driver does not start" in done.out
    gpus.add("renderD128", small, rc="CQP VBR", **{"fault.encode": "green"})
    assert "CQP, VBR\t\t\n" in call("devices").out, "it is remembered"
    green = call("devices", "--fresh")
    assert "h264\t8\tno\t\tCQP, VBR: its pictures are empty: one colour, nothing in them\n" in green.out
    found = call("devices", "--json").json
    assert [one["id"] for one in found["devices"]] == ["renderD128", "renderD129"]
    assert {"api": "vaapi", "mode": "VBR"}.items() <= found["refusals"][-1].items()
    assert found["devices"][0]["entries"][0]["modes"] == ["CQP", "VBR"]
    assert all(able["device"] is None for able in found["abilities"])


def test_the_schema_describes_every_field_of_a_spec(call: Call) -> None:
    schema = call("schema").json
    assert set(schema["properties"]) == {info.alias or name for name, info in JobSpec.model_fields.items()}
    assert all(one.get("description") for one in schema["properties"].values())


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version").out == "transcoder 0.1.0\n"


@pytest.mark.parametrize("words", [["schema"], ["profiles"]], ids=["more than a pipe holds", "a few lines"])
def test_a_reader_that_goes_away_is_no_error(here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # so that there is something left to flush at the end
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "transcoder", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_worker_starts_without_typer_and_rich(here: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "transcoder", "worker", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "celery" in imported or "transcoder.worker" in imported
    assert not {"typer", "rich", "transcoder.cli", "yaml", "pydantic_settings"} & imported


def test_the_document_of_exit_codes_is_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "exit-codes.md").read_text(), re.M)
    assert tuple((int(code), meaning) for code, meaning in rows) == exit_codes()


def test_on_a_terminal_a_bar_shows_phase_and_pace(clip: Path, here: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "transcoder", "run", clip.name, "out.mp4", "-p", "small"]
    run = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux' way to say that the other end is closed
        while select.select([ours], [], [], 30)[0]:
            shown += os.read(ours, 65536)
    os.close(ours)
    assert run.wait(10) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for word in ("probing", "encoding by software", "verifying", "100%", "× realtime", "out.mp4"):
        assert word in text


@pytest.mark.parametrize(
    ("asked", "outputs", "target"),
    [
        pytest.param("/out/b.mp4", 1, "/out/b.mp4", id="a file"),
        pytest.param("/out/", 1, "/out/{stem}-p.{ext}", id="a folder"),
        pytest.param("/tmp", 1, "/tmp/{stem}-p.{ext}", id="a folder that is there"),
        pytest.param("/out/", 3, "/out/{stem}-{name}.{ext}", id="a folder for several"),
        pytest.param("/out/{name}/", 3, "/out/{name}", id="a template"),
        pytest.param("/", 1, "/{stem}-p.{ext}", id="the root"),
    ],
)
def test_the_target_follows_from_what_was_asked(asked: str, outputs: int, target: str) -> None:
    assert cli.target_for(asked, "p", outputs) == target


def test_a_relative_target_is_below_the_current_folder(here: Path) -> None:
    assert cli.target_for("../b.mp4", "p", 1) == f"{here.parent}/b.mp4"


@pytest.mark.parametrize(
    ("target", "container"),
    [
        ("/b.mkv", "mkv"),
        ("/b.MP4", "mp4"),
        ("/b.m4a", "mp4"),
        ("/b", "mp4"),
        ("/{stem}.{ext}", "mp4"),
    ],
)
def test_an_ending_names_a_container_or_leaves_the_profiles(target: str, container: str) -> None:
    assert cli.contained((Output(),), target)[0].container == container


@pytest.mark.parametrize("target", ["/b.avi", "/b.mp3", "/{height}.mkv"])
def test_an_ending_that_the_outputs_would_not_be_is_refused(target: str) -> None:
    outputs = (Output(), Output(name="other"))
    with pytest.raises(SpecError, match=r"ends in \.(avi|mp3|mkv)"):
        cli.contained(outputs if "{" in target else outputs[:1], target)


def test_what_a_container_cannot_hold_is_refused() -> None:
    with pytest.raises(SpecError, match="webm cannot hold h264"):
        cli.contained((Output(video=Video(codec="h264"), audio=Audio(codec="opus")),), "/b.webm")


def test_the_id_of_a_run_follows_from_its_spec() -> None:
    one, same, other = (JobSpec(source="/a", target=target) for target in ("/b", "/b", "/c"))
    assert cli.job_id(one) == cli.job_id(same) != cli.job_id(other)
    assert re.fullmatch("[0-9a-f]{16}", cli.job_id(one))


@pytest.fixture
def queue(here: Path, redis: Redis, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis and a worker that the command line talks to."""
    monkeypatch.setenv("TRANSCODER_BROKER_URL", redis.url)


@pytest.mark.usefixtures("queue")
def test_a_job_is_submitted_followed_and_told_about(call: Call, clip: Path, here: Path) -> None:
    done = call("submit", clip.name, "out.mp4", "-p", "small", "--wait", "--meta", "who=me")
    assert done.code == 0, done.err
    assert f"{here}/out.mp4\th264\t160×90\t" in done.out
    phases = done.err.splitlines()
    number = phases.pop(0).removeprefix("job ")
    assert phases == ["queued", "probing", "encoding", "verifying", "publishing", "published"]

    told = call("status", number).out
    for word in ("state      published", "profile    small", "metadata   who=me", "encoding software", "verified"):
        assert word in told
    found = call("status", number, "--json").json
    assert (found["state"], found["result"]["route"], found["spec"]["schema"]) == ("published", "software", 1)

    header, row = call("jobs").out.splitlines()
    assert header.split("\t") == ["id", "state", "phase", "done", "queue", "profile", "source", "age"]
    assert row.split("\t")[:7] == [number, "published", "published", "", "software", "small", str(clip)]
    assert [one["id"] for one in call("jobs", "--state", "published", "--json").json] == [number]
    assert call("jobs", "--state", "failed", "--json").json == []

    seen = [json.loads(line) for line in call("watch", number, "--json").out.splitlines()]
    assert seen[-1]["state"] == "published"

    header, row = call("workers").out.splitlines()
    assert header.split("\t") == ["name", "device", "queues", "jobs", "left alone", "last heard"]
    assert row.split("\t")[1:5] == ["", "software", "0 of 2", ""]
    [worker] = call("workers", "--json").json
    assert (worker["serves"], worker["queues"], worker["live"]) == ("software", ["software"], True)

    refused = call("submit", str(clip), str(here / "hard.mp4"), "-p", "small", "--accel", "require")
    assert refused.code == 12
    assert "no live worker serves hw.h264: the 1 live worker serves software" in refused.err
    assert "transcoder workers" in refused.err


@pytest.mark.usefixtures("queue")
def test_a_job_that_fails_ends_with_the_code_of_its_error(call: Call, here: Path) -> None:
    done = call("submit", "gone.mp4", "out.mp4", "-p", "small", "--wait", "--json")
    assert done.code == done.json["error"]["exit_code"] == 5
    watched = call("watch", done.json["id"])
    assert watched.code == 5
    assert watched.err.splitlines()[-2:][0].startswith("error: ")
    assert call("watch", done.json["id"], "--json").code == 5
    assert call("status", done.json["id"]).code == 0


@pytest.mark.usefixtures("queue")
def test_a_job_is_cancelled(call: Call, clip: Path, here: Path) -> None:
    number = call("submit", clip.name, "out.mp4", "-p", "slow", "--json").json["id"]
    assert call("cancel", number, "--json").json["id"] == number
    assert call("watch", number).code == 16
    assert call("cancel", number).code == 17
    assert made(here) == set()


@pytest.mark.usefixtures("queue")
def test_a_token_makes_one_job_of_two_submits(call: Call, clip: Path) -> None:
    words = ["submit", clip.name, "out.mp4", "-p", "small", "--token", "once"]
    first, second = call(*words), call(*words)
    assert first.out == second.out != ""
    assert call(*words, "--priority", "9").code == 15
    assert call("watch", first.out.strip()).code == 0


@pytest.mark.usefixtures("redis")
def test_a_submit_outside_the_media_roots_is_refused_at_once(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSCODER_MEDIA_ROOTS", "/media")
    assert call("submit", "/etc/passwd", "/media/out.mp4", "-p", "small").code == 4


@pytest.fixture
def host(gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    """Its GPUs are those that the command sees."""
    monkeypatch.setenv("TRANSCODER_DRI", str(gpus.nodes))
    monkeypatch.setenv("TRANSCODER_SYSFS", str(gpus.sysfs))
    return gpus


def test_compose_writes_the_overlay_for_the_gpus_of_this_host(call: Call, here: Path, host: gpu.Machine) -> None:
    node = host.add().node
    (host.nodes / "by-path").mkdir()
    link = host.nodes / "by-path" / "pci-0000:00:02.0-render"
    link.symlink_to("../renderD128")
    done = call("compose", "-o", "mine.yaml", "--stacks", "2", "--topology", "per-stack")
    assert (done.code, done.out) == (0, "")
    text = (here / "mine.yaml").read_text()
    worker = yaml.safe_load(text)["services"]["worker-gpu0"]
    assert worker["devices"] == [f"{node}:/dev/dri/renderD128"]
    assert worker["group_add"] == [str(node.stat().st_gid)]
    assert worker["scale"] == 2
    assert f"# 0000:00:02.0, Intel, 0x9a49, i915, {link}\n" in text
    assert "-f mine.yaml up" in text
    assert call("compose", "--stacks", "2", "--topology", "per-stack").out == text.replace("mine", "compose.gpus")


def test_compose_replaces_a_file_only_when_it_is_told_to(call: Call, here: Path, host: gpu.Machine) -> None:
    host.add()
    (here / "mine.yaml").write_text("precious")
    done = call("compose", "-o", "mine.yaml")
    assert (done.code, (here / "mine.yaml").read_text()) == (8, "precious")
    assert call("compose", "-o", "mine.yaml", "--overwrite").code == 0
    assert "worker-gpu0" in (here / "mine.yaml").read_text()
    assert call("compose", "-o", "no/such/folder.yaml").code == 9


def test_compose_without_a_gpu_is_an_error_that_names_what_was_left_out(call: Call, host: gpu.Machine) -> None:
    assert call("compose").code == 12
    host.add(kernel_driver="amdgpu")
    done = call("compose", "--api", "qsv")
    assert done.code == 12
    assert "QSV is Intel's" in done.err


@pytest.mark.usefixtures("queue")
def test_a_job_that_failed_is_tried_again_as_a_new_one(call: Call, clip: Path, here: Path) -> None:
    shutil.move(clip, here / "later.mp4")
    number = call("submit", clip.name, "out.mp4", "-p", "small", "--json").json["id"]
    assert call("watch", number).code == 5
    shutil.move(here / "later.mp4", clip)
    again = call("retry", number).out.strip()
    assert again not in ("", number)
    assert call("watch", again).code == 0
    assert call("retry", again).code == 17
    assert call("quarantine", "--json").json == []
