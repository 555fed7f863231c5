"""GPUs in software: build the driver, make devices, configure and break them, and run ffmpeg on them.

No root, no /dev/dri and no sysfs are needed; tests/simgpu/README.md tells what a device can be and how it can fail.
"""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "simgpu"
VAAPI = ("-hwaccel", "vaapi", "-hwaccel_device", "va", "-hwaccel_output_format", "vaapi", "-extra_hw_frames", "16")


def build(out: Path) -> Path:
    """Compile the driver and the preload library into `out`, unless they are there and up to date."""
    relative = os.path.relpath(out, SOURCES)  # make cannot bear a space in a path, and the checkout may have one
    make = ["make", "--silent", "-C", str(SOURCES), f"OUT={relative}"]
    done = subprocess.run(make, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"the software GPU cannot be built; its README names the packages\n{done.stdout}")
    return out


class Machine:
    """A machine with GPUs: nodes, configurations, the environment that finds them. No space may be in its path."""

    def __init__(self, folder: Path, built: Path) -> None:
        self.nodes = folder / "dri"
        self.configs = folder / "gpus"
        for made in (self.nodes, self.configs):
            made.mkdir(parents=True, exist_ok=True)
        drivers = folder / "drivers"  # the loader cannot bear a space either
        drivers.symlink_to(built.resolve())
        self.environment = {
            "LD_PRELOAD": str(drivers / "simgpu_shim.so"),
            "LIBVA_DRIVERS_PATH": str(drivers),
            "LIBVA_MESSAGING_LEVEL": "1",
            "SIMGPU_CONFIG": str(self.configs),
        }

    def add(self, name: str = "renderD128", config: Mapping[str, object] | None = None, /, **more: object) -> "Gpu":
        gpu = Gpu(self, name)
        gpu.node.touch()
        gpu.configure(config, **more)
        return gpu


class Gpu:
    """One device of a machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.node = machine.nodes / name
        self.config = machine.configs / name
        self.state = self.config.with_name(f"{name}.state")

    def configure(self, config: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Say anew what the device is and how it fails, `{"fault.encode": "hang"}`; a running one follows."""
        words = {True: "yes", False: "no"}
        lines = [f"{key} = {words.get(value, value) if isinstance(value, bool) else value}\n"
                 for key, value in {**(config or {}), **more}.items()]  # fmt: skip
        unfinished = self.config.with_name(f".{self.config.name}.unfinished")
        unfinished.write_text("".join(lines))
        unfinished.rename(self.config)

    def environ(self) -> dict[str, str]:
        return os.environ | self.machine.environment

    def command(self, *words: str | Path, level: str = "level+verbose") -> list[str]:
        """An ffmpeg command on this device, which is named `va`."""
        device = ["-init_hw_device", f"vaapi=va:{self.node}", "-filter_hw_device", "va"]
        return ["ffmpeg", "-hide_banner", "-nostdin", "-y", "-nostats", "-v", level, *device, *map(str, words)]

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words), env=self.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def try_ffmpeg(self, *words: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environ(), capture_output=True, text=True, timeout=timeout, check=False
        )

    def ffmpeg(self, *words: str | Path, timeout: float = 60) -> str:
        """Run ffmpeg, which must succeed; gives what it wrote on stderr."""
        done = self.try_ffmpeg(*words, timeout=timeout)
        assert done.returncode == 0, f"ffmpeg gave {done.returncode}\n{done.stderr[-4000:]}"
        return done.stderr

    def vainfo(self) -> str:
        command = ["vainfo", "--display", "drm", "--device", str(self.node)]
        return subprocess.run(command, env=self.environ(), capture_output=True, text=True, check=True).stdout

    def clients(self) -> list[dict[str, str]]:
        """The counters of every client, as in /proc/PID/fdinfo."""
        counters = []
        for file in sorted((self.state / "clients").glob("*")):
            with contextlib.suppress(FileNotFoundError):  # it has just closed the device
                lines = file.read_text().splitlines()
                counters.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
        return counters


def transcode(source: Path, target: Path, filters: str, *encoder: str, hardware: bool = True) -> Sequence[str | Path]:
    """The words of a whole chain: decoding on the device or in software, filters, an encoder."""
    decode = VAAPI if hardware else ()
    return [*decode, "-i", source, "-an", "-noautoscale", "-vf", filters, *encoder, target]
