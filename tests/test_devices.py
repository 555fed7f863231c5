"""The GPUs of a machine: known by their address, opened honestly, asked by a child that may die of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import gpu
from transcoder import vadriver
from transcoder.devices import Listing, asked, discover, listing
from transcoder.machine import Device, Entry
from transcoder.policy import Policy

INTEL, AMD = "0000:00:02.0", "0000:03:00.0"


class Host:
    """A /dev/dri and a /sys of its own."""

    def __init__(self, folder: Path) -> None:
        self.dri, self.sysfs = folder / "dri", folder / "sys"
        self.dri.mkdir()
        (self.sysfs / "class/drm").mkdir(parents=True)
        self.policy = Policy(("/",), dri=str(self.dri), sysfs=str(self.sysfs))

    def knows(self, name: str, address: str, vendor: str = "0x8086", driver: str | None = "i915") -> None:
        """The kernel describes a GPU under this node's name."""
        described = self.sysfs / "devices/pci0000:00" / address
        described.mkdir(parents=True, exist_ok=True)
        (described / "vendor").write_text(f"{vendor}\n")
        if driver:
            (self.sysfs / "bus/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (described / "driver").symlink_to(self.sysfs / "bus/drivers" / driver)
        shown = self.sysfs / "class/drm" / name
        shown.mkdir()
        (shown / "device").symlink_to(described)

    def has(self, name: str) -> Path:
        node = self.dri / name
        node.touch()
        return node

    def only(self) -> Device:
        (device,) = discover(self.policy)
        return device


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# Who is who


def test_a_node_is_met_with_what_the_kernel_says_of_it(host: Host) -> None:
    host.knows("renderD128", INTEL)
    node = host.has("renderD128")
    assert host.only() == Device(INTEL, str(node), "0x8086", "i915")


def test_a_device_keeps_its_identity_when_the_numbers_change(tmp_path: Path) -> None:
    boots = []
    for numbers in ((128, 129), (129, 128)):
        (tmp_path / str(numbers)).mkdir()
        host = Host(tmp_path / str(numbers))
        for number, address, driver in zip(numbers, (INTEL, AMD), ("i915", "amdgpu"), strict=True):
            host.knows(f"renderD{number}", address, driver=driver)
            host.has(f"renderD{number}")
        boots.append({one.id: (one.driver, os.path.basename(one.node)) for one in discover(host.policy)})
    assert boots == [
        {INTEL: ("i915", "renderD128"), AMD: ("amdgpu", "renderD129")},
        {INTEL: ("i915", "renderD129"), AMD: ("amdgpu", "renderD128")},
    ]


def test_a_node_without_an_address_is_known_by_its_device_number(host: Host) -> None:
    (host.dri / "renderD128").symlink_to("/dev/null")
    assert host.only() == Device("1:3", f"{host.dri}/renderD128")


def test_a_platform_device_has_no_address_and_keeps_its_driver(host: Host) -> None:
    host.knows("renderD128", "fde60000.gpu", driver="panfrost")
    (host.dri / "renderD128").symlink_to("/dev/null")
    assert (host.only().id, host.only().driver) == ("1:3", "panfrost")


def test_devices_come_in_the_order_of_their_numbers_and_other_files_are_none(host: Host) -> None:
    for name in ("renderD1000", "renderD129", "renderD128", "card0", "by-path", "renderD", "xrenderD1"):
        host.has(name)
    assert [os.path.basename(one.node) for one in discover(host.policy)] == ["renderD128", "renderD129", "renderD1000"]


def test_a_machine_without_gpus_has_no_devices(tmp_path: Path) -> None:
    assert discover(Policy(("/",), dri=str(tmp_path / "no"), sysfs=str(tmp_path / "no"))) == ()


# What is wrong with it


def test_a_gpu_that_is_not_mapped_into_the_container_says_which_line_maps_it(host: Host) -> None:
    host.knows("renderD129", AMD, "0x1002", "amdgpu")
    device = host.only()
    assert (device.id, device.driver) == (AMD, "amdgpu")
    assert "not mapped" in str(device.trouble)
    assert f'devices: ["{host.dri}/renderD129:{host.dri}/renderD129"]' in str(device.trouble)


def link_to_nothing(node: Path) -> None:
    node.symlink_to("/nowhere")


def listening_socket(node: Path) -> None:
    """Opening one is ENXIO, as with a device number that no driver serves."""
    here = os.getcwd()
    os.chdir(node.parent)  # its path may be too long for a socket's
    try:
        socket.socket(socket.AF_UNIX).bind(node.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (link_to_nothing, "leads nowhere: in Compose, devices: ["),
        (listening_socket, "no kernel driver serves it"),
        (Path.mkdir, "it is a folder, which Docker makes"),
    ],
    ids=["ENOENT", "ENXIO", "EISDIR"],
)
def test_each_way_not_to_open_is_told_with_what_mends_it(host: Host, make: object, said: str) -> None:
    make(host.dri / "renderD128")  # type: ignore[operator]
    assert said in str(host.only().trouble)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EPERM, "may not use this device number, although the node is there: in Compose, devices: ["),
        (errno.ENODEV, "no kernel driver serves it (No such device): load one on the host"),
        (errno.EIO, "it cannot be opened (Input/output error): see dmesg"),
    ],
    ids=["EPERM", "ENODEV", "EIO"],
)
def test_what_only_a_kernel_can_refuse_is_told_apart_too(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    host.has("renderD128")
    monkeypatch.setattr(os, "open", refuse)
    assert said in str(host.only().trouble)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="transcoder-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(policy: Policy, user: int, groups: list[int]) -> list[str | None]:
    """The troubles that a process of another user finds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            os.write(writing, json.dumps([one.trouble and str(one.trouble) for one in discover(policy)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        troubles: list[str | None] = json.load(answer)
    os.waitpid(child, 0)
    return troubles


@pytest.mark.root
def test_a_group_that_is_missing_is_named_by_its_number_with_the_line_that_adds_it(open_folder: Path) -> None:
    host = Host(open_folder)
    node = host.has("renderD128")
    os.chown(node, 0, 4711)
    node.chmod(0o660)
    (trouble,) = as_user(host.policy, 65534, [1234])
    assert "group 4711 owns it, with mode 0660; this process has 1234, 65534" in str(trouble)
    assert str(trouble).endswith('group_add: ["4711"]')
    assert as_user(host.policy, 65534, [4711]) == [None]


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o000])
def test_a_mode_that_shuts_the_group_out_is_not_mended_by_joining_it(open_folder: Path, mode: int) -> None:
    host = Host(open_folder)
    node = host.has("renderD128")
    node.chmod(mode)
    (trouble,) = as_user(host.policy, 65534, [])
    assert f"with mode {stat.S_IMODE(mode):04o}" in str(trouble)
    assert f"chmod g+rw {node}" in str(trouble)


# What its VA driver lists


@pytest.fixture
def machine(gpus: gpu.Machine, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    for name, value in gpus.environment.items():
        monkeypatch.setenv(name, value)
    return gpus


def ask(machine: gpu.Machine, limit: float = 20, **config: object) -> Device:
    node = machine.add("renderD128", {key.replace("__", "."): value for key, value in config.items()}).node
    return asked(Device("renderD128", str(node)), limit)


def test_a_driver_tells_its_name_entrypoints_modes_and_sizes(machine: gpu.Machine) -> None:
    device = ask(machine, vendor="Some GPU 24.1", rc="CQP VBR QVBR", max_width=1920, max_height=1088)
    assert (device.va_driver, device.trouble) == ("Some GPU 24.1", None)
    assert device.entries
    assert Entry("None", "VideoProc", frozenset(), 1920, 1088) in device.entries
    assert Entry("HEVCMain10", "EncSlice", frozenset({"CQP", "VBR", "QVBR"}), 1920, 1088) in device.entries
    assert device.may("h264", 8, "VLD")
    assert not device.may("h264", 8, "EncSliceLP")


def test_what_a_driver_lacks_is_not_listed(machine: gpu.Machine) -> None:
    device = ask(machine, entrypoint="lp", decode="none", encode="h264", vpp=False, rc="CQP")
    assert {(one.entrypoint, one.modes) for one in device.entries or ()} == {("EncSliceLP", frozenset({"CQP"}))}


def test_a_driver_that_does_not_start_is_a_trouble_that_names_its_file(machine: gpu.Machine) -> None:
    device = ask(machine, fault__init="status 18")
    assert "18 (invalid parameter)" in str(device.trouble)
    assert "_drv_video.so" in str(device.trouble)
    assert device.entries is None


def test_where_no_driver_is_installed_its_packages_are_named(
    machine: gpu.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVA_DRIVERS_PATH", str(tmp_path))
    assert "mesa-va-drivers" in str(ask(machine).trouble)


def test_a_driver_that_crashes_takes_only_its_child_with_it(machine: gpu.Machine) -> None:
    assert "died of signal 11" in str(ask(machine, fault__init="segfault").trouble)


def test_a_driver_that_hangs_is_killed_and_leaves_no_process(machine: gpu.Machine) -> None:
    began = time.monotonic()
    device = ask(machine, 0.5, fault__init="hang")
    assert time.monotonic() - began < 3
    assert "did not answer within 0.5 s" in str(device.trouble)
    own = vadriver.__file__.encode()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if own in line and device.node.encode() in line]


def test_what_a_driver_prints_is_not_taken_for_its_answer(
    machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVA_MESSAGING_LEVEL", "2")
    assert ask(machine).entries


def test_without_libva_nothing_is_known_and_nothing_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text('print(\'{"missing": "libva.so.2: cannot open shared object file"}\')')
    monkeypatch.setattr(vadriver, "__file__", str(stand_in))
    device = Device("renderD128", "/dev/null")
    assert asked(device, 20) == device


texts = st.text(max_size=12)
entries = st.builds(Entry, texts, texts, st.frozensets(texts, max_size=3), st.integers(0, 9999), st.integers(0, 9999))
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["entries", "vendor", "modes"]), inner),
)


@given(texts, st.lists(entries, max_size=4))
def test_what_the_child_says_is_what_is_read(vendor: str, listed: list[Entry]) -> None:
    said = [
        {
            "profile": one.profile,
            "entrypoint": one.entrypoint,
            "modes": sorted(one.modes),
            "width": one.width,
            "height": one.height,
        }
        for one in listed
    ]
    assert listing(json.dumps({"vendor": vendor, "entries": said}).encode()) == Listing(vendor, tuple(listed))


@given(st.binary() | junk.map(lambda value: json.dumps(value).encode()))
def test_an_answer_that_makes_no_sense_is_a_trouble_and_no_error(answer: bytes) -> None:
    found = listing(answer)
    assert found.trouble or found.entries == tuple(found.entries)
    assert all(type(mode) is str for one in found.entries for mode in one.modes)


@pytest.mark.parametrize("modes", ['"CQP"', "{}", "null", "[1]"])
def test_modes_that_are_no_list_of_names_are_refused(modes: str) -> None:
    said = f'{{"entries": [{{"profile": "H264High", "entrypoint": "EncSlice", "modes": {modes}}}]}}'
    assert listing(said.encode()).trouble


@given(st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])), st.integers(0, 99))
def test_the_child_spells_any_name_as_json(name: str, number: int) -> None:
    said = {name: [{"modes": [name], "width": number}], "none": []}
    assert json.loads(vadriver._json(said)) == said


def test_the_child_imports_nothing_that_takes_long() -> None:
    script = f"import sys; exec(open({vadriver.__file__!r}).read(), {{'__name__': 'asked'}}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert not {"json", "re", "typing", "pydantic", "transcoder"} & {*done.stdout.split()}
