"""Disks that are full, read-only or another one: real ones, mounted in a namespace of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import clips
from tests.local import FAST, Place
from transcoder.errors import TranscoderError
from transcoder.policy import Policy

pytestmark = [pytest.mark.slow, pytest.mark.root]

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
PAGE = 4096


@pytest.fixture(autouse=True)
def mounting() -> None:
    tried = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if tried.returncode:
        pytest.fail(f"this kernel lets no user mount in a namespace: {tried.stderr.decode().strip()}")


def runs(tmp_path: Path, mounts: Sequence[str], *outputs: str, target: str = "made.mp4") -> dict[str, Any]:
    """A job in a namespace with these mounts, each the words for `mount`; what came of it."""
    for name in ("out", "out/main", "out/other"):
        (tmp_path / name).mkdir(exist_ok=True)
    script = " && ".join([*(f"mount {words}" for words in mounts), 'exec "$@"'])
    here = [sys.executable, "-m", "tests.test_disk_full", str(tmp_path), target, *(outputs or ["main"])]
    clips.clip("carphone_pristine.mp4")
    done = subprocess.run(
        [*NAMESPACE, "sh", "-ec", script, "sh", *here], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def main(folder: Path, target: str, outputs: Sequence[str]) -> None:
    source = clips.clip("carphone_pristine.mp4")
    place = Place(source.parent, folder / "out", Policy(roots=(str(source.parent), str(folder / "out"))))
    spec = place.spec(source, place.out / target, outputs=[{"name": name, **FAST} for name in outputs])
    try:
        said: dict[str, object] = {"kind": "Published", "bytes": sum(one.bytes for one in place.run(spec).outputs)}
    except TranscoderError as error:
        said = error.as_record()
    said["left"] = sorted(str(path.relative_to(place.out)) for path in place.out.rglob("*") if not path.is_dir())
    said["scratch"] = [str(path) for path in place.out.rglob(".transcoder-*")]
    print(json.dumps(said))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_on_a_disk_of_any_size_the_file_is_published_whole_or_the_disk_is_named(tmp_path: Path, ending: str) -> None:
    kinds = []
    for pages in range(2, 18, 2):
        disk = f"-t tmpfs -o size={pages * PAGE} none {tmp_path}/out"
        said = runs(tmp_path, [disk], target=f"made.{ending}")
        kinds.append(said["kind"])
        assert said["scratch"] == []
        if said["kind"] == "Published":
            assert said["left"] == ["job.transcoder.json", f"made.{ending}"]
        else:
            assert (said["kind"], said["left"]) == ("TargetUnwritable", [])
            assert "No space left on device" in said["what"]
            assert str(tmp_path / "out") in said["what"]
    assert set(kinds) == {"TargetUnwritable", "Published"}


def test_a_disk_without_room_for_a_folder_is_named(tmp_path: Path) -> None:
    said = runs(tmp_path, [f"-t tmpfs -o nr_inodes=1 none {tmp_path}/out"])
    assert (said["kind"], said["left"], said["scratch"]) == ("TargetUnwritable", [], [])
    assert "No space left on device" in said["what"]


def test_a_read_only_disk_is_named_before_any_work(tmp_path: Path) -> None:
    said = runs(tmp_path, [f"-t tmpfs -o ro none {tmp_path}/out"])
    assert (said["kind"], said["left"], said["scratch"]) == ("TargetUnwritable", [], [])
    assert "cannot be read and written" in said["what"]
    assert said["evidence"] == {}


def test_outputs_on_two_disks_are_refused_before_any_work(tmp_path: Path) -> None:
    said = runs(tmp_path, [f"-t tmpfs none {tmp_path}/out/other"], "main", "other", target="{name}/made.mp4")
    assert (said["kind"], said["left"], said["scratch"]) == ("TargetUnwritable", [], [])
    assert "different file systems" in said["what"]
    assert said["evidence"] == {}


def test_outputs_on_one_disk_by_two_mounts_are_taken_back(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    bind = f"--bind {tmp_path}/elsewhere {tmp_path}/out/other"
    said = runs(tmp_path, [bind], "main", "other", target="{name}/made.mp4")
    assert (said["kind"], said["left"], said["scratch"]) == ("TargetUnwritable", [], [])
    assert "different file systems" in said["what"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
