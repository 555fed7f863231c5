"""What a container can hold agrees with what ffmpeg's muxers take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from transcoder.container import MUXER, OWN_TEXT, TEXT_SUBTITLES, holds
from transcoder.spec import Container

CONTAINERS: tuple[Container, ...] = ("mp4", "mkv", "webm")
SOUNDS = {"aac": "aac", "opus": "libopus", "mp3": "libmp3lame", "ac3": "ac3", "eac3": "eac3", "alac": "alac",
          "flac": "flac", "vorbis": "libvorbis", "pcm_s16le": "pcm_s16le", "wmav2": "wmav2"}  # fmt: skip
PICTURES = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "vp8": "libvpx", "mpeg4": "mpeg4",
            "mpeg2video": "mpeg2video", "theora": "libtheora", "prores": "prores", "ffv1": "ffv1"}  # fmt: skip
# some versions of ffmpeg write these into mp4, and few players read them
NOT_EVERYWHERE = {("mp4", "vorbis"), ("mp4", "pcm_s16le"), ("mp4", "flac")}


def accepted(folder: Path, container: Container, *words: str) -> bool:
    """Whether ffmpeg writes it and it reads back with that codec."""
    path = folder / f"made.{container}"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-f", "lavfi", *words, "-f", MUXER[container], str(path)]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("codec", SOUNDS)
def test_a_container_holds_the_sound_that_the_muxer_takes(tmp_path: Path, container: Container, codec: str) -> None:
    takes = accepted(tmp_path, container, "-i", "sine=d=0.1", "-ac", "2", "-c:a", SOUNDS[codec])
    assert holds(container, "audio", codec) is (takes and (container, codec) not in NOT_EVERYWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("codec", PICTURES)
def test_a_container_holds_the_picture_that_the_muxer_takes(tmp_path: Path, container: Container, codec: str) -> None:
    takes = accepted(tmp_path, container, "-i", "testsrc=s=64x64:d=0.1", "-c:v", PICTURES[codec])
    assert holds(container, "video", codec) is takes


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_holds_its_own_kind_of_text(container: Container) -> None:
    assert holds(container, "subtitle", OWN_TEXT[container])
    assert OWN_TEXT[container] in TEXT_SUBTITLES
