"""GPUs in software: build the driver, make devices, configure and break them, and run ffmpeg on them.

No root, no /dev/dri and no sysfs are needed, but for the devices of a `DeviceMachine`, which containers are given.
tests/simgpu/README.md tells what a device can be and how it can fail.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "simgpu"
VCS_MAJOR = 7  # the memory of consoles: /dev/vcsa is minor 128, as the first render node
DEVICE_GROUP = 44_226  # no group of any image
PCI_IDS = {"i915": 0x80869A49, "xe": 0x8086E20B, "amdgpu": 0x1002164E}
VAAPI = ("-hwaccel", "vaapi", "-hwaccel_device", "va", "-hwaccel_output_format", "vaapi", "-extra_hw_frames", "16")
QSV = ("-hwaccel", "qsv", "-hwaccel_device", "qs", "-hwaccel_output_format", "qsv", "-extra_hw_frames", "16")


def build(out: Path) -> Path:
    """Compile the driver, with the oneVPL runtime where its headers are, and the preload library into `out`."""
    relative = os.path.relpath(out, SOURCES)  # make cannot bear a space in a path, and the checkout may have one
    make = ["make", "--silent", "-C", str(SOURCES), f"OUT={relative}"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, and two makes would write one file
        done = subprocess.run(
            make, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the software GPU cannot be built; its README names the packages\n{done.stdout}")
    return out


def build_in(image: str, out: Path) -> Path:
    """The same for the libraries of a Docker image, which has all that a build needs."""
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o755)  # for whoever is in the container
    mounts = ["-v", f"{SOURCES}:/simgpu/sources:ro", "-v", f"{out}:/simgpu/out"]
    make = ["make", "--silent", "-C", "/simgpu/sources", "OUT=/simgpu/out"]
    command = ["docker", "run", "--rm", "--network", "none", *mounts, image, *make]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"the software GPU cannot be built in {image}\n{done.stdout}{done.stderr}")
    return out


class Machine:
    """A machine with GPUs: nodes, configurations, the environment that finds them. No space may be in its path.

    `sysfs` and `proc` are what /sys and /proc would say of them: sysfs/class/drm/renderD128/device/vendor, and
    proc/PID/fdinfo/FD of every process that has one open.
    """

    def __init__(self, folder: Path, built: Path) -> None:
        self.nodes = folder / "dri"
        self.configs = folder / "gpus"
        self.sysfs = folder / "sys"
        self.proc = folder / "proc"
        for made in (self.nodes, self.configs, self.sysfs / "class" / "drm", self.proc):
            made.mkdir(parents=True, exist_ok=True)
        drivers = folder / "drivers"  # the loader cannot bear a space either
        drivers.symlink_to(built.resolve())
        self.environment = {
            "LD_PRELOAD": str(drivers / "simgpu_shim.so"),
            "LIBVA_DRIVERS_PATH": str(drivers),
            "LIBVA_MESSAGING_LEVEL": "1",
            "ONEVPL_PRIORITY_PATH": str(drivers),
            "SIMGPU_CONFIG": str(self.configs),
        }

    def add(self, name: str = "renderD128", config: Mapping[str, object] | None = None, /, **more: object) -> "Gpu":
        gpu = Gpu(self, name)
        gpu.node.touch()
        gpu.configure(config, **more)
        return gpu


class Gpu:
    """One device of a machine. Its PCI address depends on its name, and its PCI ID on the driver of the kernel."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.node = machine.nodes / name
        self.config = machine.configs / name
        self.state = self.config.with_name(f"{name}.state")
        self.minor = int(name.removeprefix("renderD"))
        self.proc = machine.proc

    def configure(self, config: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Say anew what the device is and how it fails, `{"fault.encode": "hang"}`; a running one follows."""
        told = {**(config or {}), **more}
        driver = str(told.get("kernel_driver", "i915"))
        usual = {"pdev": self.address, "pci_id": PCI_IDS.get(driver, PCI_IDS["i915"]), "proc": self.proc}
        settings = {**usual, **told}
        words = {True: "yes", False: "no"}
        lines = [f"{key} = {words.get(value, value) if isinstance(value, bool) else value}\n"
                 for key, value in settings.items()]  # fmt: skip
        unfinished = self.config.with_name(f".{self.config.name}.unfinished")
        unfinished.write_text("".join(lines))
        unfinished.rename(self.config)
        self._tell_sysfs(str(settings["pdev"]), driver, int(str(settings["pci_id"]), 0))

    @property
    def address(self) -> str:
        """0000:00:02.0 for renderD128, where Intel's are; 0000:03:00.0 for the next."""
        slot = self.minor - 128
        return f"0000:{slot + 2:02x}:00.0" if slot else "0000:00:02.0"

    def _tell_sysfs(self, address: str, driver: str, pci_id: int) -> None:
        """The links and files of sysfs; links are relative, so that the tree may be mounted anywhere."""
        root, name = self.machine.sysfs, self.node.name
        device = root / "devices" / "pci0000:00" / address
        entry = device / "drm" / name
        bus = root / "bus" / "pci" / "drivers" / driver
        shown = root / "class" / "drm" / name
        if shown.is_symlink() and shown.resolve() != entry.resolve():
            shutil.rmtree(shown.resolve().parent.parent, ignore_errors=True)
        for made in (entry, bus, shown.parent):
            made.mkdir(parents=True, exist_ok=True)
        link(shown, entry)
        link(entry / "device", device)
        link(device / "driver", bus)
        (device / "vendor").write_text(f"{pci_id >> 16:#06x}\n")
        (device / "device").write_text(f"{pci_id & 0xFFFF:#06x}\n")
        (device / "uevent").write_text(f"DRIVER={driver}\nPCI_SLOT_NAME={address}\n")
        (entry / "dev").write_text(f"226:{self.minor}\n")

    def environ(self) -> dict[str, str]:
        return os.environ | self.machine.environment

    def command(self, *words: str | Path, level: str = "level+verbose") -> list[str]:
        """An ffmpeg command on this device."""
        return ["ffmpeg", "-hide_banner", "-nostdin", "-y", "-nostats", "-v", level, *self.names(), *map(str, words)]

    def names(self) -> list[str]:
        """What ffmpeg calls it: `va`."""
        return ["-init_hw_device", f"vaapi=va:{self.node}", "-filter_hw_device", "va"]

    def qsv(self) -> "Qsv":
        return Qsv(self.machine, self.node.name)

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


class Qsv(Gpu):
    """The same device by way of oneVPL."""

    def names(self) -> list[str]:
        """What ffmpeg calls it: `va` and, for what goes by QSV, `qs`."""
        device = ["-init_hw_device", f"vaapi=va:{self.node},driver=iHD", "-init_hw_device", "qsv=qs@va"]
        return [*device, "-filter_hw_device", "qs"]


class DeviceMachine(Machine):
    """A machine whose GPUs are devices of the kernel, for containers to be given. Needs root; see the README."""

    def __init__(self, folder: Path, built: Path) -> None:
        super().__init__(folder, built)
        self.built = built.resolve()
        self.known = folder / "char"  # what libdrm looks for in /sys/dev/char
        for path in (self.built, self.nodes, self.configs, self.sysfs):
            path.chmod(0o755)

    def add(self, name: str = "renderD128", config: Mapping[str, object] | None = None, /, **more: object) -> "Device":
        """Only renderD128 and renderD129 are certain to open."""
        device = Device(self, name)
        device.node.unlink(missing_ok=True)
        os.mknod(device.node, stat.S_IFCHR, os.makedev(VCS_MAJOR, device.minor))
        device.protect(0o660, DEVICE_GROUP)
        (self.known / f"{VCS_MAJOR}:{device.minor}" / "device" / "drm" / name).mkdir(parents=True, exist_ok=True)
        device.state.mkdir(exist_ok=True)
        device.state.chmod(0o777)
        device.configure(config, **more)
        return device


class Device(Gpu):
    """A device of the kernel: a console's memory, which opens as a render node does, and which nobody reads."""

    machine: DeviceMachine

    def __init__(self, machine: DeviceMachine, name: str) -> None:
        super().__init__(machine, name)
        self.proc = Path("/simgpu/proc")  # of each container: its own
        self.path = f"/dev/dri/{name}"  # in a container

    def protect(self, mode: int, group: int) -> None:
        """Say who may open it; containers that are started later are told."""
        os.chown(self.node, 0, group)
        self.node.chmod(mode)

    def docker(self, *, granted: bool = True, proc: Path | None = None) -> list[str]:
        """Words for `docker run`. Not `granted`: no node is there, else all that a container needs but the group.

        `proc`: a folder that everybody may write to, for what /proc of this container says of its clients.
        """
        return devices([self], granted=granted, proc=proc)


def devices(several: Sequence[Device], *, granted: bool = True, proc: Path | None = None) -> list[str]:
    """The same for several devices of one machine."""
    machine = several[0].machine
    mounts = {"drivers": machine.built, "gpus": machine.configs, "sys": machine.sysfs}
    words = [word for name, path in mounts.items() for word in ("-v", f"{path}:/simgpu/{name}:ro")]
    words += ["-v", f"{machine.known}:/sys/dev/char:ro"]
    words += ["-v", f"{proc}:/simgpu/proc"] if proc else ["--tmpfs", "/simgpu/proc:mode=1777"]
    environment = {
        "LIBVA_DRIVERS_PATH": "/simgpu/drivers",
        "LIBVA_DRIVER_NAME": "iHD",  # the kernel's driver cannot be asked; all names are one driver
        "LIBVA_MESSAGING_LEVEL": "1",
        "ONEVPL_PRIORITY_PATH": "/simgpu/drivers",
        "SIMGPU_CONFIG": "/simgpu/gpus",
        "TRANSCODER_SYSFS": "/simgpu/sys",
        "TRANSCODER_PROC": "/simgpu/proc",
    }
    words += [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
    for device in several:
        words += ["-v", f"{device.state}:/simgpu/gpus/{device.state.name}"]
        words += ["--device", f"{device.node}:{device.path}"] if granted else []
    return words


def link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


def transcode(source: Path, target: Path, filters: str, *encoder: str, hardware: bool = True) -> Sequence[str | Path]:
    """The words of a whole chain: decoding on the device or in software, filters, an encoder."""
    decode = VAAPI if hardware else ()
    return [*decode, "-i", source, "-an", "-noautoscale", "-vf", filters, *encoder, target]
