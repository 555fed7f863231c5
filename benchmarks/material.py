"""The clips: Big Buck Bunny played forwards and backwards, so that a longer clip has no seam, at the sizes asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import clips

FOLDER = clips.FOLDER.parent / "benchmarks"
_ROUND = 10.56  # 132 frames there and back, at 25 a second


def tiny() -> Path:
    """5.3 s, 1280x720."""
    return clips.clip("bigbuckbunny.mp4")


def clip(seconds: int, height: int) -> Path:
    """H.264 and AAC at 25 frames a second, made once."""
    path = FOLDER / f"bunny-{seconds}s-{height}p.mp4"
    if not path.exists():
        turns = f"[0:v]split[a][b];[b]reverse[r];[a][r]concat,scale=-2:{height}[v];[0:a]asplit[c][d];"
        turns += "[d]areverse[s];[c][s]concat=v=0:a=1[w]"
        there_and_back = FOLDER / f"bunny-{height}p.mkv"
        FOLDER.mkdir(parents=True, exist_ok=True)
        if not there_and_back.exists():
            _make(["-i", str(tiny()), "-filter_complex", turns, "-map", "[v]", "-map", "[w]"], there_and_back, "10")
        loops = int(seconds / _ROUND) + 1
        _make(["-stream_loop", str(loops), "-i", str(there_and_back), "-t", str(seconds)], path, "18")
    return path


def _make(words: list[str], path: Path, crf: str) -> None:
    unfinished = path.with_name(f"unfinished-{path.name}")
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-crf", crf, "-pix_fmt", "yuv420p", "-c:a", "aac"]
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *words, *encode, str(unfinished)]
    subprocess.run(command, check=True)
    unfinished.rename(path)
