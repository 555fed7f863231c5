"""From scratch to final names: whole at every moment, completed or undone after every interruption, one winner."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeClip
from tests.local import MACHINE, Place, Yes, children, everything_below
from transcoder import job, publish, scratch
from transcoder.errors import PathRefused, TargetExists, TargetUnwritable, TranscoderError, TransitionRefused
from transcoder.events import Event
from transcoder.manifest import Attempt
from transcoder.policy import Policy

FORK = multiprocessing.get_context("fork")
RUNGS = ("1080", "720", "audio")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.below(tmp_path)


@pytest.fixture
def source(place: Place, make_clip: MakeClip) -> Path:
    return place.bring(make_clip(), "clip.mp4")


class Ladder:
    """Three outputs that are ready to be published, without any ffmpeg."""

    def __init__(self, folder: Path, *, overwrite: bool = False, apart: bool = False) -> None:
        self.out, self.manifests = folder / "out", folder / "manifests"
        self.out.mkdir()
        self.manifests.mkdir()
        self.policy = Policy((str(folder),), manifest_folder=str(self.manifests) if apart else None)
        self.overwrite = overwrite
        self.targets = tuple(str(self.out / f"{rung}.mp4") for rung in RUNGS)
        self.manifest = Path(publish.manifest_path("job", self.targets, self.policy))

    def promise(self, attempt: int = 1) -> dict[str, Any]:
        outputs = [{"path": target, "bytes": len(self.new(target))} for target in self.targets]
        return {"job": "job", "attempt": attempt, "result": {"manifest": str(self.manifest), "outputs": outputs}}

    def old(self, target: str) -> str:
        return f"old {target}" * 100

    def new(self, target: str) -> str:
        return f"new {target}" * 200

    def place_old(self) -> None:
        for target in self.targets:
            Path(target).write_text(self.old(target))

    def make(self, held: scratch.Scratch) -> None:
        for path, target in zip(held.paths, self.targets, strict=True):
            Path(path).write_text(self.new(target))

    def publish(self, attempt: int = 1) -> None:
        with scratch.scratch("job", attempt, self.targets, ("mp4",) * 3) as held:
            self.make(held)
            publish.put(held, self.promise(attempt), self.policy, overwrite=self.overwrite)

    def recover(self, attempt: int = 2) -> Mapping[str, Any] | None:
        return publish.recover("job", attempt, self.targets, self.policy)

    @property
    def state(self) -> str:
        """'new', 'old', 'absent' or 'mixed'; every file that is there is whole."""
        kinds = set()
        for target in self.targets:
            text = Path(target).read_text() if Path(target).exists() else None
            assert text in (None, self.old(target), self.new(target)), "half a file"
            kinds.add("absent" if text is None else text[:3])
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def litter(self) -> list[str]:
        """Everything that is neither a target nor the manifest."""
        kept = {*self.targets, str(self.manifest)}
        return [name for name in everything_below(self.out) | everything_below(self.manifests) if name not in kept]


# Targets that are refused before any work


def test_a_target_that_exists_is_left_alone(place: Place, source: Path) -> None:
    (place.out / "made.mp4").write_text("precious")
    place.refuses(place.spec(source), TargetExists, "made.mp4")


def test_a_target_that_exists_is_replaced_where_that_is_allowed(place: Place, source: Path) -> None:
    (place.out / "made.mp4").write_text("stale")
    result = place.run(place.spec(source, overwrite=True))
    assert (place.out / "made.mp4").stat().st_size == result.outputs[0].bytes


def test_a_dangling_link_is_a_target_that_exists(place: Place, source: Path) -> None:
    (place.out / "made.mp4").symlink_to(place.out / "nothing")
    place.refuses(place.spec(source), TargetExists, "made.mp4")


def test_a_link_that_is_overwritten_is_replaced_itself(place: Place, source: Path) -> None:
    (place.out / "elsewhere.mp4").write_text("precious")
    (place.out / "made.mp4").symlink_to(place.out / "elsewhere.mp4")
    place.run(place.spec(source, overwrite=True))
    assert (place.out / "elsewhere.mp4").read_text() == "precious"
    assert not (place.out / "made.mp4").is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "symlink to the folder"])
def test_the_source_is_never_the_target_by_whatever_name(
    place: Place, source: Path, kind: str, overwrite: bool
) -> None:
    target = place.out / "made.mp4"
    if kind == "symlink":
        target.symlink_to(source)
    elif kind == "hard link":
        target.hardlink_to(source)
    else:
        (place.out / "way").symlink_to(place.inside)
        target = place.out / "way" / source.name
    before = source.read_bytes()
    error = place.refuses(place.spec(source, target, overwrite=overwrite), TargetExists, repr(str(target)))
    assert "source itself" in error.what
    assert source.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_source_is_never_its_own_target(place: Place, source: Path, overwrite: bool) -> None:
    before = source.read_bytes()
    with pytest.raises(TargetExists, match="is the source itself"):
        place.run(place.spec(source, source, overwrite=overwrite))
    assert source.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_target(place: Place, source: Path, overwrite: bool) -> None:
    (place.out / "made.mp4").mkdir()
    place.refuses(place.spec(source, overwrite=overwrite), TargetUnwritable, "made.mp4")


def test_a_missing_target_folder_is_named(place: Place, source: Path) -> None:
    error = place.refuses(place.spec(source, place.out / "new" / "made.mp4"), TargetUnwritable, str(place.out / "new"))
    assert error.next_step == "Make the folder first."


def test_a_file_is_no_target_folder(place: Place, source: Path) -> None:
    (place.out / "file").touch()
    place.refuses(place.spec(source, place.out / "file" / "made.mp4"), TargetUnwritable, str(place.out / "file"))


def test_a_missing_folder_of_manifests_is_named_before_any_work(place: Place, source: Path) -> None:
    place.policy = replace(place.policy, manifest_folder=str(place.out / "promises"))
    place.refuses(place.spec(source), TargetUnwritable, "promises")
    assert not any(type(event).__name__ == "Started" for event in place.events)


def test_a_name_of_more_than_255_bytes_is_refused(place: Place, source: Path) -> None:
    error = place.refuses(place.spec(source, place.out / ("ü" * 126 + ".mp4")), TargetUnwritable, "255 bytes")
    assert "shorter" in error.next_step


# What is published


def test_the_manifest_says_what_was_asked_and_what_was_made(place: Place, source: Path) -> None:
    spec = place.spec(source, metadata={"title": "é\n"})
    result = place.run(spec)
    manifest = json.loads(Path(result.manifest).read_text())
    assert manifest["spec"] == spec.model_dump(mode="json", by_alias=True)
    assert manifest["source"]["size"] == source.stat().st_size
    assert manifest["argv"][0] == "ffmpeg"
    assert f"file:{place.out}/made.mp4" in manifest["argv"]
    assert manifest["result"]["route"] == "software"
    assert manifest["result"]["timings"]["encode"] > 0
    made = (place.out / "made.mp4").read_bytes()
    assert manifest["result"]["outputs"][0]["sha256"] == hashlib.sha256(made).hexdigest()
    assert sorted(path.name for path in place.out.iterdir()) == ["job.transcoder.json", "made.mp4"]


def test_manifests_may_have_a_folder_of_their_own(place: Place, source: Path) -> None:
    (place.inside / "promises").mkdir()
    place.policy = replace(place.policy, manifest_folder=str(place.inside / "promises"))
    result = place.run(place.spec(source))
    assert [path.name for path in (place.inside / "promises").iterdir()] == ["job.transcoder.json"]
    assert result.manifest == str(place.inside / "promises" / "job.transcoder.json")
    assert [path.name for path in place.out.iterdir()] == ["made.mp4"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0, 0o666), (0o077, 0o600)])
def test_the_mode_of_outputs_is_a_setting(tmp_path: Path, umask: int, mode: int) -> None:
    ladder = Ladder(tmp_path)
    ladder.policy = replace(ladder.policy, umask=umask)
    ladder.publish()
    assert {stat.S_IMODE(Path(path).stat().st_mode) for path in (*ladder.targets, str(ladder.manifest))} == {mode}


def test_the_owner_of_outputs_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = Ladder(tmp_path)
    ladder.policy = replace(ladder.policy, owner=(1234, 5678))
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((uid, gid)))
    ladder.publish()
    assert given == [(1234, 5678)] * 4


def test_an_owner_that_cannot_be_given_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = Ladder(tmp_path)
    ladder.policy = replace(ladder.policy, owner=(1234, 5678))

    def refuse(path: str, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(TargetUnwritable, match="1234:5678") as caught:
        ladder.publish()
    assert "TRANSCODER_OWNER" in caught.value.next_step
    assert (ladder.state, ladder.litter) == ("absent", [])


def test_the_scratch_folder_lies_beside_the_target_under_the_name_of_job_and_attempt(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    with scratch.scratch("job", 7, ladder.targets, ("mp4", "mp4", "m4a")) as held:
        assert held.folder == str(ladder.out / ".transcoder-job-7")
        assert [os.path.basename(path) for path in held.paths] == ["0.mp4", "1.mp4", "2.m4a"]
        assert stat.S_IMODE(os.stat(held.folder).st_mode) == 0o700
    assert ladder.litter == []


def test_every_file_is_on_disk_before_it_has_its_name_and_the_manifest_is_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = Ladder(tmp_path)
    steps: list[str] = []
    fsync, rename, replace_ = os.fsync, publish._rename, os.replace

    def noted_fsync(handle: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def noted_rename(made: str, target: str, *, overwrite: bool) -> None:
        steps.append(f"name {os.path.basename(target)}")
        rename(made, target, overwrite=overwrite)

    def noted_replace(made: str, target: str) -> None:
        steps.append(f"name {os.path.basename(target)}")
        replace_(made, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(publish, "_rename", noted_rename)
    monkeypatch.setattr(os, "replace", noted_replace)
    ladder.publish()
    made = ["fsync 0.mp4", "fsync 1.mp4", "fsync 2.mp4", "fsync intent.json", "fsync .transcoder-job-1"]
    named = ["name 1080.mp4", "name 720.mp4", "name audio.mp4", "fsync out", "name job.transcoder.json", "fsync out"]
    assert steps == [*made, "fsync manifest.1.json", *named]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_fsync_is_logged_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    ladder = Ladder(tmp_path)
    fsync = os.fsync

    def folders_cannot(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", folders_cannot)
    ladder.publish()
    assert (ladder.state, ladder.litter) == ("new", [])
    assert "cannot fsync" in caplog.text


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Take RENAME_NOREPLACE, and links where named, from the file system."""

    def refuse(*words: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(publish, "_renameat2", lambda made, target: False)
    if "links" in names:
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("names", [(), ("links",)], ids=["with links", "without links"])
def test_a_file_system_that_cannot_rename_carefully_is_used_with_care(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    without(monkeypatch, *names)
    ladder = Ladder(tmp_path)
    ladder.publish()
    assert (ladder.state, ladder.litter) == ("new", [])
    for target in ladder.targets[:2]:
        os.unlink(target)
    Path(ladder.targets[2]).write_text(ladder.old(ladder.targets[2]))
    with pytest.raises(TargetExists, match=r"audio\.mp4"):
        ladder.publish(2)
    assert [os.path.exists(target) for target in ladder.targets] == [False, False, True]
    assert Path(ladder.targets[2]).read_text() == ladder.old(ladder.targets[2])


# What fails on the way is taken back


REFUSALS: dict[int, tuple[type[TranscoderError], str]] = {
    errno.EXDEV: (TargetUnwritable, "different file systems"),
    errno.ENOSPC: (TargetUnwritable, "No space left on device"),
    errno.EROFS: (TargetUnwritable, "Read-only file system"),
    errno.EEXIST: (TargetExists, "came into being meanwhile"),
}


def broken_at(step: int, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system refuses the `step`-th rename of an output."""
    rename, count = publish._rename, itertools.count()

    def refuse(made: str, target: str, *, overwrite: bool) -> None:
        if next(count) == step:
            raise error
        rename(made, target, overwrite=overwrite)

    monkeypatch.setattr(publish, "_rename", refuse)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.__getitem__)
def test_a_ladder_that_cannot_be_named_whole_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, step: int, code: int
) -> None:
    kind, words = REFUSALS[code]
    ladder = Ladder(tmp_path, overwrite=overwrite)
    if overwrite:
        ladder.place_old()
    broken_at(step, OSError(code, os.strerror(code)), monkeypatch)
    with pytest.raises(kind, match=words) as caught:
        ladder.publish()
    assert os.path.basename(ladder.targets[step]) in caught.value.what
    assert caught.value.next_step
    assert (ladder.state, ladder.litter) == ("old" if overwrite else "absent", [])
    assert not ladder.manifest.exists()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_manifest_that_cannot_be_written_takes_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool, overwrite: bool
) -> None:
    ladder = Ladder(tmp_path, overwrite=overwrite, apart=apart)
    if overwrite:
        ladder.place_old()
    replace_ = os.replace

    def refuse(made: str, target: str) -> None:
        if target == str(ladder.manifest):
            raise OSError(errno.EIO, "Input/output error")
        replace_(made, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(TargetUnwritable, match=r"job\.transcoder\.json"):
        ladder.publish()
    assert (ladder.state, ladder.litter) == ("old" if overwrite else "absent", [])


def test_a_target_that_comes_into_being_while_the_job_runs_is_left_alone(place: Place, source: Path) -> None:
    def come() -> None:
        (place.out / "made.mp4").write_text("mine")

    with pytest.raises(TargetExists, match="came into being meanwhile"):
        place.run(place.spec(source), permit=Yes(at_the_end=come))
    assert [path.name for path in place.out.iterdir()] == ["made.mp4"]
    assert (place.out / "made.mp4").read_text() == "mine"


def test_an_error_of_any_kind_leaves_no_scratch(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)

    def interrupt() -> None:
        with scratch.scratch("job", 1, ladder.targets, ("mp4",) * 3) as held:
            ladder.make(held)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert (ladder.state, ladder.litter) == ("absent", [])


# Interrupted, at every point


STEPS = ("mkdir", "open", "write", "chmod", "fsync", "link", "rename", "replace", "unlink", "rmdir", "close")
WHOLE = 0
KILLED = 77


def interrupted(run: Callable[[], object], step: int) -> int:
    """Run in a child that dies without a word instead of its `step`-th call into the file system."""
    child = os.fork()
    if child == 0:
        try:
            count = itertools.count()

            def dying(call: Callable[..., Any]) -> Callable[..., Any]:
                def step_by_step(*words: Any, **options: Any) -> Any:
                    if next(count) == step:
                        os._exit(KILLED)
                    return call(*words, **options)

                return step_by_step

            for name in STEPS:
                setattr(os, name, dying(getattr(os, name)))
            publish._renameat2 = dying(publish._renameat2)
            run()
            os._exit(WHOLE)
        except BaseException as error:  # of a forked child: nothing of it may go on in the test's own stack
            os.write(2, repr(error).encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def each_interruption(scene: Callable[[], Ladder], run: Callable[[Ladder], object], steps: int) -> Iterator[Ladder]:
    """The ladder of a new scene after each point, at least `steps`, at which `run` can be interrupted."""
    for step in itertools.count():
        ladder = scene()
        code = interrupted(partial(run, ladder), step)
        assert code in (WHOLE, KILLED)
        if code == WHOLE:
            assert step > steps, "the steps are no longer seen"
            return
        yield ladder


class Scenes:
    """Fresh ladders in folders of their own."""

    def __init__(self, folder: Path, *, overwrite: bool = False, apart: bool = False) -> None:
        self.folder, self.overwrite, self.apart, self.count = folder, overwrite, apart, itertools.count()

    def ready(self) -> Ladder:
        folder = self.folder / str(next(self.count))
        folder.mkdir(parents=True)
        ladder = Ladder(folder, overwrite=self.overwrite, apart=self.apart)
        if self.overwrite:
            ladder.place_old()
        return ladder

    def half_way(self) -> Ladder:
        """One whose attempt died after its first rename."""
        ladder = self.ready()
        rename, count = publish._rename, itertools.count()

        def dies_at_the_second(made: str, target: str, *, overwrite: bool) -> None:
            if next(count) == 1:
                os._exit(KILLED)
            rename(made, target, overwrite=overwrite)

        child = os.fork()
        if child == 0:
            publish._rename = dies_at_the_second
            ladder.publish()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
        assert ladder.state == "mixed"
        return ladder


@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("noreplace", [True, False], ids=["renameat2", "link"])
def test_an_interrupted_attempt_is_completed_or_undone_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool, overwrite: bool, noreplace: bool
) -> None:
    if not noreplace:
        without(monkeypatch)
    outcomes = set()
    for ladder in each_interruption(Scenes(tmp_path, overwrite=overwrite, apart=apart).ready, Ladder.publish, 30):
        promised = ladder.manifest.exists()
        assert not promised or ladder.state == "new", "promised before it was whole"
        found = ladder.recover()
        assert ladder.state == ("new" if found else "old" if overwrite else "absent")
        assert ladder.manifest.exists() == bool(found)
        assert ladder.litter == []
        outcomes.add((promised, bool(found)))
    assert outcomes == {(False, False), (False, True), (True, True)}


def waking_up_late(ladder: Ladder, step: int) -> tuple[bool, Mapping[str, Any] | None]:
    """An attempt that stands still before its `step`-th call into the file system until the next one has taken over.

    Gives whether it came so far, and the manifest that the next attempt found or completed.
    """
    count, found = itertools.count(), []

    def late(call: Callable[..., Any]) -> Callable[..., Any]:
        def step_by_step(*words: Any, **options: Any) -> Any:
            if next(count) == step:
                found.append(ladder.recover())
            return call(*words, **options)

        return step_by_step

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, late(getattr(os, name)))
        patch.setattr(publish, "_renameat2", late(publish._renameat2))
        with suppress(TransitionRefused, TargetExists, TargetUnwritable):
            ladder.publish()
    return bool(found), found[0] if found else None


class Interleaved:
    """An attempt that stands still before one of its calls, and goes on when the next one has come to one of its."""

    def __init__(self, ladder: Ladder, stop_at: int, resume_at: int) -> None:
        self.ladder, self.stop_at, self.resume_at = ladder, stop_at, resume_at
        self.counts = {"late": itertools.count(), "next": itertools.count()}
        self.stopped, self.resumed = threading.Event(), threading.Event()
        self.late = threading.Thread(target=self.publish, name="late")
        self.found: Mapping[str, Any] | None = None

    def publish(self) -> None:
        with suppress(TransitionRefused, TargetExists, TargetUnwritable):
            self.ladder.publish()
        self.stopped.set()

    def hook(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step_by_step(*words: Any, **options: Any) -> Any:
            name = threading.current_thread().name
            step = next(self.counts["late" if name == "late" else "next"])
            if name == "late" and step == self.stop_at:
                self.stopped.set()
                assert self.resumed.wait(20)
            if name != "late" and step == self.resume_at:
                self.resumed.set()
                self.late.join(20)
            return call(*words, **options)

        return step_by_step

    def run(self) -> tuple[bool, bool]:
        """Whether the late one came to where it was to stop, and the next one to where it was to let it go on."""
        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, self.hook(getattr(os, name)))
            patch.setattr(publish, "_renameat2", self.hook(publish._renameat2))
            self.late.start()
            assert self.stopped.wait(20)
            reached = self.late.is_alive()
            self.found = self.ladder.recover()
            met = self.resumed.is_set()
            self.resumed.set()
            self.late.join(20)
        return reached, met


@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_an_attempt_that_wakes_up_while_it_is_fenced_changes_nothing_either(
    tmp_path: Path, overwrite: bool, apart: bool
) -> None:
    scenes = Scenes(tmp_path, overwrite=overwrite, apart=apart)
    tried = 0
    for stop_at in itertools.count(9, 2):  # before, it has not even claimed its folder
        for resume_at in itertools.count(0, 2):
            both = Interleaved(scenes.ready(), stop_at, resume_at)
            reached, met = both.run()
            ladder = both.ladder
            where = (stop_at, resume_at, both.found)
            assert ladder.state == ("new" if both.found else "old" if overwrite else "absent"), where
            assert (ladder.manifest.exists(), ladder.litter) == (bool(both.found), []), where
            tried += met
            if not met or not reached:
                break
        if not reached:
            break
    assert tried > 100, "the steps are no longer seen"


def test_the_draft_of_a_manifest_that_stands_apart_is_of_its_folder_alone() -> None:
    drafts = [publish._draft(f"/out/.transcoder-job-{which}", "/apart/job.json") for which in ("1", "1~2")]
    assert len(set(drafts)) == 2
    assert {os.path.dirname(draft) for draft in drafts} == {"/apart"}


def refuse_the_late_one(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last output cannot be renamed, while the next attempt can do that."""
    rename = publish._rename

    def refuse(made: str, target: str, *, overwrite: bool) -> None:
        if target == ladder.targets[-1] and "~" not in made:
            raise OSError(errno.EIO, "Input/output error")
        rename(made, target, overwrite=overwrite)

    monkeypatch.setattr(publish, "_rename", refuse)


@pytest.mark.parametrize("fails", [False, True], ids=["", "that fails"])
@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_an_attempt_that_wakes_up_late_changes_nothing_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, apart: bool, fails: bool
) -> None:
    scenes = Scenes(tmp_path, overwrite=overwrite, apart=apart)
    for step in itertools.count(6):  # before, it has not even claimed its folder
        ladder = scenes.ready()
        if fails:
            refuse_the_late_one(ladder, monkeypatch)
        reached, found = waking_up_late(ladder, step)
        monkeypatch.undo()
        if not reached:
            assert step > 30, "the steps are no longer seen"
            return
        assert ladder.state == ("new" if found else "old" if overwrite else "absent"), step
        assert (ladder.manifest.exists(), ladder.litter) == (bool(found), []), step


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_a_recovery_may_be_interrupted_as_well(tmp_path: Path, overwrite: bool) -> None:
    for ladder in each_interruption(Scenes(tmp_path, overwrite=overwrite).half_way, Ladder.recover, 15):
        assert ladder.recover(3)
        assert (ladder.state, ladder.litter) == ("new", [])


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_what_is_promised_stays_though_the_disk_is_full_when_the_next_attempt_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def full(path: str, content: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    promised = 0
    for ladder in each_interruption(Scenes(tmp_path, overwrite=overwrite).ready, Ladder.publish, 30):
        if ladder.manifest.exists():
            promised += 1
            with monkeypatch.context() as patch:
                patch.setattr(publish, "_write", full)
                assert ladder.recover()
            assert (ladder.state, ladder.litter) == ("new", [])
    assert promised


@pytest.mark.parametrize("position", [1, 2])
def test_an_interrupted_ladder_that_somebody_got_in_the_way_of_is_taken_back(tmp_path: Path, position: int) -> None:
    ladder = Scenes(tmp_path).half_way()
    theirs = Path(ladder.targets[position])
    theirs.write_text("somebody's")
    with pytest.raises(TargetExists, match="came into being meanwhile"):
        ladder.recover()
    assert [target for target in ladder.targets if os.path.exists(target)] == [str(theirs)]
    assert theirs.read_text() == "somebody's"
    assert ladder.litter == []
    assert ladder.recover(3) is None


def test_an_interrupted_ladder_that_lost_a_file_is_taken_back(tmp_path: Path) -> None:
    for overwrite, state in ((False, "absent"), (True, "old")):
        folder = tmp_path / state
        folder.mkdir()
        ladder = Scenes(folder, overwrite=overwrite).half_way()
        (ladder.out / ".transcoder-job-1" / "2.mp4").unlink()
        assert ladder.recover() is None
        assert (ladder.state, ladder.litter) == (state, [])


def test_recovery_touches_nothing_of_other_jobs(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    others = [".transcoder-job-2-1", ".transcoder-jo-1", ".transcoder-job-x", ".transcoder-job", "job-1"]
    for name in others:
        (ladder.out / name).mkdir()
    (ladder.out / ".transcoder-job-1").mkdir()
    assert ladder.recover() is None
    assert sorted(path.name for path in ladder.out.iterdir()) == sorted(others)


def test_recovery_does_not_look_outside_the_roots(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    ladder.policy = replace(ladder.policy, roots=(str(tmp_path / "manifests"),))
    (ladder.out / ".transcoder-job-1").mkdir()
    with pytest.raises(PathRefused):
        ladder.recover()
    assert (ladder.out / ".transcoder-job-1").is_dir()


def test_a_later_attempt_finds_what_an_earlier_one_published(place: Place, source: Path) -> None:
    first = place.run(place.spec(source), attempt=1)
    place.events.clear()
    again = place.run(place.spec(source), attempt=2)
    assert (again.outputs, again.manifest) == (first.outputs, first.manifest)
    assert not any(type(event).__name__ == "Started" for event in place.events)
    with pytest.raises(TargetExists):
        place.run(place.spec(source), attempt=1)
    with (place.out / "made.mp4").open("ab") as file:
        file.write(b"changed since")
    with pytest.raises(TargetExists):
        place.run(place.spec(source), attempt=3)


def test_a_job_whose_manifest_stands_needs_no_source_and_no_plan_to_be_completed(place: Place, source: Path) -> None:
    spec = place.spec(source)
    first = place.run(spec, attempt=1)
    source.unlink()
    attempt = Attempt("job", 2, (spec.target,))
    again = job.transcode(spec, attempt, MACHINE, place.policy, place.events.append, Yes())
    assert (again.outputs, again.manifest) == (first.outputs, first.manifest)


def test_an_attempt_says_that_it_is_alone_once_it_has_taken_away_what_earlier_ones_left(
    place: Place, source: Path
) -> None:
    spec = place.spec(source)
    alone: list[list[str]] = []

    class Asks(Yes):
        def fenced(self) -> None:
            alone.append([path.name for path in place.out.iterdir()])

    with scratch.scratch("job", 1, (spec.target,), ("mp4",)):
        for attempt in (Attempt("job", 1), Attempt("job", 2, (spec.target,))):
            with suppress(TargetExists):  # the first is at work
                job.transcode(spec, attempt, MACHINE, place.policy, place.events.append, Asks())
    assert alone == [[]]


@pytest.mark.parametrize("moment", ["Verifying", "Publishing"])
def test_a_fault_after_the_job_was_lost_blames_nobody(place: Place, source: Path, moment: str) -> None:
    spec = place.spec(source)
    events: list[str] = []

    def listen(event: Event) -> None:
        events.append(type(event).__name__)
        if events[-1] == moment:
            assert publish.recover("job", 2, (spec.target,), place.policy) is None

    with pytest.raises(TransitionRefused, match="took over"):
        job.transcode(spec, Attempt("job"), MACHINE, place.policy, listen, Yes())
    assert "FellBack" not in events


MOMENTS = ("Started", "Advanced", "Verifying", "Publishing", "claim", "end", "rename", "manifest")


@pytest.mark.parametrize("attempt", [1, 2], ids=["run again", "next attempt"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_job_that_is_killed_is_done_by_the_next_attempt(
    place: Place, source: Path, moment: str, attempt: int
) -> None:
    spec = place.spec(source)
    child = os.fork()
    if child == 0:

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        class Deadly(list[Event]):
            def append(self, event: Event) -> None:
                if type(event).__name__ == moment:
                    die()

        place.events = Deadly()
        rename, replace_ = publish._rename, os.replace

        def dies_after_rename(made: str, target: str, *, overwrite: bool) -> None:
            rename(made, target, overwrite=overwrite)
            if moment == "rename":
                die()

        def dies_after_manifest(made: str, target: str) -> None:
            replace_(made, target)
            if moment == "manifest":
                die()

        publish._rename = dies_after_rename
        os.replace = dies_after_manifest  # type: ignore[assignment]
        permits = {"claim": Yes(on_claim=die), "end": Yes(at_the_end=die)}
        try:
            place.run(spec, permit=permits.get(moment))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = sorted(path.name for path in place.out.iterdir())
    assert ("made.mp4" in left) == (moment in ("rename", "manifest"))
    result = place.run(spec, attempt=attempt)
    assert sorted(path.name for path in place.out.iterdir()) == ["job.transcoder.json", "made.mp4"]
    digest = hashlib.sha256((place.out / "made.mp4").read_bytes()).hexdigest()
    assert digest == result.outputs[0].sha256
    assert any(type(event).__name__ == "Started" for event in place.events) == (moment not in ("rename", "manifest"))
    assert children() == []


# Two at once


def outcome(place: Place, job_id: str, source: Path, overwrite: bool, barrier: Any, say: Any) -> None:
    def meet() -> None:
        barrier.wait(30)

    try:
        result = place.run(place.spec(source, overwrite=overwrite), job_id, permit=Yes(on_claim=meet))
        say.send(("Published", result.outputs[0].sha256))
    except TranscoderError as error:
        say.send((type(error).__name__, error.what))


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("ids", [("one", "one"), ("one", "other")], ids=["one job twice", "two jobs"])
def test_of_two_at_one_target_exactly_one_wins(
    place: Place, source: Path, ids: tuple[str, str], overwrite: bool
) -> None:
    barrier = FORK.Barrier(2)
    pipes = [FORK.Pipe(duplex=False) for _ in ids]
    both = [
        FORK.Process(target=outcome, args=(place, job_id, source, overwrite, barrier, say))
        for job_id, (_, say) in zip(ids, pipes, strict=True)
    ]
    for process in both:
        process.start()
    said = [hear.recv() for hear, _ in pipes]
    for process in both:
        process.join(30)
    assert sorted(kind for kind, _ in said) == ["Published", "TargetExists"], said
    won = next(position for position, (kind, _) in enumerate(said) if kind == "Published")
    names = sorted(path.name for path in place.out.iterdir())
    assert names == sorted(["made.mp4", f"{ids[won]}.transcoder.json"])
    assert hashlib.sha256((place.out / "made.mp4").read_bytes()).hexdigest() == said[won][1]


def test_of_many_that_rename_to_one_name_exactly_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"
    barrier, wins = FORK.Barrier(8), FORK.Value(ctypes.c_int, 0)

    def race(number: int) -> None:
        made = tmp_path / f"made-{number}"
        made.write_text(str(number))
        barrier.wait(30)
        try:
            publish._rename(str(made), str(target), overwrite=False)
        except FileExistsError:
            return
        with wins.get_lock():
            wins.value += 1

    racers = [FORK.Process(target=race, args=(number,)) for number in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
    assert wins.value == 1


def test_a_living_attempt_is_not_disturbed_by_its_own_number(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    with scratch.scratch("job", 2, ladder.targets, ("mp4",) * 3) as held:
        ladder.make(held)
        for attempt in (1, 2):
            with pytest.raises(TargetExists, match="another process is at work on this job"):
                ladder.recover(attempt)
        publish.put(held, ladder.promise(2), ladder.policy, overwrite=False)
    assert (ladder.state, ladder.litter) == ("new", [])


def test_an_attempt_that_lost_the_job_can_publish_nothing_any_more(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    with scratch.scratch("job", 1, ladder.targets, ("mp4",) * 3) as zombie:
        ladder.make(zombie)
        assert ladder.recover(2) is None
        with pytest.raises(TransitionRefused, match="took over"):
            publish.put(zombie, ladder.promise(1), ladder.policy, overwrite=True)
        assert (ladder.state, ladder.litter) == ("absent", [])
        ladder.publish(2)
    assert (ladder.state, ladder.litter) == ("new", [])
    assert json.loads(ladder.manifest.read_text())["attempt"] == 2


def test_what_an_attempt_left_is_out_of_its_reach_before_it_is_looked_at_whatever_its_lock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    ladder = Ladder(tmp_path)
    with scratch.scratch("job", 1, ladder.targets, ("mp4",) * 3) as cut_off:
        ladder.make(cut_off)
        for attempt in (2, 3):  # the second was interrupted as well
            folders = scratch.abandoned("job", attempt, str(ladder.out))
            assert os.path.basename(next(folders)) == f".transcoder-job-1~{'2' if attempt == 2 else '2~3'}"
            assert not os.path.exists(cut_off.folder)
            with pytest.raises(TransitionRefused, match="took over"):
                publish.put(cut_off, ladder.promise(), ladder.policy, overwrite=True)
            with monkeypatch.context() as patch:
                if attempt == 2:
                    patch.setattr("shutil.rmtree", lambda *_, **__: None)
                folders.close()
    assert (ladder.state, ladder.litter) == ("absent", [])


@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
def test_an_attempt_that_wakes_up_with_its_manifest_half_written_writes_into_no_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    ladder = Ladder(tmp_path, apart=apart)
    dump, late, written = json.dump, iter([False, True]), []

    def stands_still(content: object, file: Any, **options: Any) -> None:
        if next(late, False):  # the intent comes first, then the manifest
            assert ladder.recover(2)
            written.append(os.fstat(file.fileno()).st_ino)
        dump(content, file, **options)

    monkeypatch.setattr(json, "dump", stands_still)
    with pytest.raises(TransitionRefused, match="took over"):
        ladder.publish()
    assert written != [ladder.manifest.stat().st_ino]
    assert (ladder.state, ladder.litter) == ("new", [])


def test_an_attempt_that_loses_the_job_amid_its_renames_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = Ladder(tmp_path)
    rename, lost = publish._rename, iter([True])

    def loses(made: str, target: str, *, overwrite: bool) -> None:
        rename(made, target, overwrite=overwrite)
        if next(lost, False):
            assert ladder.recover(2)

    monkeypatch.setattr(publish, "_rename", loses)
    with pytest.raises(TransitionRefused, match="took over"):
        ladder.publish(1)
    assert (ladder.state, ladder.litter) == ("new", [])


def test_a_folder_that_somebody_else_keeps_locked_is_used_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_PATIENCE", 0.1)
    ladder = Ladder(tmp_path)
    with scratch._one_at_a_time(str(ladder.out)):
        began = time.monotonic()
        ladder.publish()
        assert time.monotonic() - began < 5
    assert ladder.state == "new"


@pytest.mark.parametrize(
    ("age", "intent", "gone"),
    [(2 * scratch.STALE, False, True), (2 * scratch.STALE, True, False), (scratch.STALE / 2, False, False)],
    ids=["abandoned", "abandoned with verified outputs", "still fresh"],
)
def test_what_another_job_left_is_cleared_away_once_it_is_old(
    tmp_path: Path, age: float, intent: bool, gone: bool
) -> None:
    left = tmp_path / ".transcoder-other-1"
    left.mkdir()
    for name in ("lock", "0.mp4", *(["intent.json"] if intent else [])):
        (left / name).write_text("")
    for path in (*left.iterdir(), left):
        os.utime(path, (time.time() - age,) * 2)
    with scratch.scratch("job", 1, [str(tmp_path / "a.mp4")], ["mp4"]):
        assert left.exists() is not gone


def test_what_another_living_job_holds_is_never_cleared_away(tmp_path: Path) -> None:
    with scratch.scratch("other", 1, [str(tmp_path / "b.mp4")], ["mp4"]) as held:
        for path in (*Path(held.folder).iterdir(), Path(held.folder)):
            os.utime(path, (0, 0))
        with scratch.scratch("job", 1, [str(tmp_path / "a.mp4")], ["mp4"]):
            assert Path(held.folder).exists()
