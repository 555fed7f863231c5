"""The diagnosis: for every kind of finding the facts that lead to it, how grave it is, and the line that mends it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.values import GPU, MACHINE, with_gpu
from transcoder.ailments import CATALOGUE, documentation
from transcoder.diagnosis import (
    LEVELS,
    LOW_SPACE,
    NO_SPACE,
    Broker,
    Capacities,
    Disk,
    Facts,
    Finding,
    Level,
    Port,
    Process,
    Wanted,
    before_gen12,
    exit_code,
    findings,
    worst,
)
from transcoder.errors import exit_codes
from transcoder.machine import Ability, Build, Device, Entry, Machine, Node, Refusal, Trouble, TroubleKind

DOCUMENT = Path(__file__).parent.parent / "docs" / "doctor.md"
RATES = frozenset({"CQP", "CBR", "VBR"})
CQP = frozenset({"CQP"})
ENTRIES = tuple(Entry(profile, "EncSlice", RATES) for profile in ("H264High", "HEVCMain"))
GOOD = replace(GPU, entries=ENTRIES)
AMD = Device("0000:03:00.0", "/dev/dri/renderD129", "0x1002", "amdgpu", "Mesa", ENTRIES)
BUILD = Build("7.1.5", (7, 1), MACHINE.build.encoders | {"h264_vaapi", "h264_qsv"})
QSV = frozenset(Ability("qsv", "h264", 8, "h264_qsv", GPU.id, "encode", "CQP") for _ in "1")


def machine(*devices: Device, qsv: bool = True, encodes: bool = True, build: Build = BUILD) -> Machine:
    """A machine with these devices; what works on the first."""
    proven = with_gpu("vaapi").abilities | (QSV if qsv else frozenset())
    return replace(MACHINE, build=build, devices=devices, abilities=proven if encodes else MACHINE.abilities)


def facts(*devices: Device, **changed: Any) -> Facts:
    """A container on which all is well, with these devices, and what is changed."""
    here = devices or (GOOD,)
    well = Facts(
        wanted=Wanted(media_roots=("/media",), cache_folder="/cache"),
        process=Process(container=True, user=1000, group=1000, groups=(1000,), nofile=65536, quota=4.0, allowed=8),
        machine=machine(*here, encodes=not here[0].trouble),
        devices=here,
        nodes=tuple((one.id, Node(992, None, 0o660, None, "0x9a49")) for one in here),
        cards=(),
        vpl=("/usr/lib/libmfx-gen.so.1.2.14",),
        broker=Broker("redis://redis:6379/0", version="8.0.2"),
        disks=(Disk("/media"),),
        port=Port(),
    )
    return replace(well, **changed)


def without_gpu(**changed: Any) -> Facts:
    return replace(facts(), machine=MACHINE, devices=(), nodes=(), **changed)


def troubled(kind: TroubleKind, mend: str = "this mends it", **changed: Any) -> Facts:
    return facts(replace(GOOD, trouble=Trouble(kind, "it does not open", mend), entries=None), **changed)


def limits(**changed: Any) -> Process:
    return replace(facts().process, **changed)


def wants(**changed: Any) -> Wanted:
    return replace(facts().wanted, **changed)


def says(**changed: Any) -> Broker:
    return replace(facts().broker, **changed)


def refusing(*refused: Ability, **how: Any) -> Machine:
    return replace(
        machine(GOOD, **how), refusals=tuple(Refusal(one, "Error creating a MFX session") for one in refused)
    )


DENIED = 'in Compose, group_add: ["992"]'
MAP = 'devices: ["/dev/dri/renderD128:/dev/dri/renderD128"]'
DECODER = Entry("H264High", "VLD")
NO_ENCODER = replace(GOOD, entries=(DECODER,))
LOW_POWER = (Entry("H264High", "EncSliceLP", CQP), Entry("HEVCMain", "EncSlice", RATES))
BOTH = (*ENTRIES, Entry("H264High", "EncSliceLP", CQP))
AV1 = Ability("vaapi", "av1", 10, "av1_vaapi", GPU.id, "encode", "CQP")
H264_QSV = Ability("qsv", "h264", 8, "h264_qsv", GPU.id, "encode", "CQP")
KABY_LAKE = ((GPU.id, Node(992, None, 0o660, None, "0x5916")),)

CASES: list[tuple[str, Level, Facts, str]] = [
    ("setting-unknown", "warning", facts(wanted=wants(unknown=("TRANSCODER_TREADS is no setting",))), "unset"),
    ("capacity-unusable", "failure", facts(capacities=Capacities("/c.json", "no such file")), "--capacity FILE"),
    ("capacity-elsewhere", "note", facts(capacities=Capacities("/c.json", named=("0000:99:00.0",))), "--capacity FILE"),
    ("capacity-elsewhere", "note", facts(capacities=Capacities("/c.json")), "on this machine"),
    ("ffmpeg-missing", "failure", facts(machine=None, no_ffmpeg=("ffmpeg is not to be found", "apt it")), "apt it"),
    ("ffmpeg-old", "note", facts(machine=machine(GOOD, build=replace(BUILD, numbers=(6, 1)))), "Debian 13"),
    ("ffmpeg-encoders", "warning", facts(machine=replace(machine(GOOD), abilities=QSV)), "libx264"),
    ("ffmpeg-vaapi", "warning", facts(machine=machine(GOOD, build=MACHINE.build)), "--enable-vaapi"),
    ("gpu-none", "note", without_gpu(), MAP),
    ("gpu-none", "note", without_gpu(process=limits(container=False)), "load its kernel driver"),
    ("gpu-none", "failure", without_gpu(wanted=wants(serves="hardware")), MAP),
    ("gpu-card-only", "warning", without_gpu(cards=("card0",)), MAP),
    ("gpu-unmapped", "warning", troubled("unmapped", f"in Compose, {MAP}"), MAP),
    ("gpu-unmapped", "warning", troubled("unmapped", process=limits(container=False)), "mknod /dev/dri/renderD128"),
    ("gpu-chosen", "failure", facts(wanted=wants(device="0000:04:00.0")), "unset it"),
    ("gpu-chosen", "failure", facts(wanted=wants(device="/dev/dri/renderD129")), "/dev/dri/renderD129:/dev/dri"),
    ("gpu-group", "warning", troubled("group", DENIED), DENIED),
    ("gpu-group", "failure", troubled("group", DENIED, wanted=wants(serves="hardware")), DENIED),
    ("gpu-group", "failure", troubled("group", DENIED, wanted=wants(device=GPU.id)), DENIED),
    ("gpu-group", "note", troubled("group", DENIED, wanted=wants(serves="software")), DENIED),
    ("gpu-group", "warning", troubled("group", process=limits(container=False)), "sudo usermod -aG 992 "),
    ("gpu-group-wrong", "warning", troubled("group", DENIED, process=limits(groups=(107, 1000))), DENIED),
    ("gpu-group-wrong", "warning", troubled("group", DENIED, process=limits(groups=(1000, 65534))), "RENDER_GID=992"),
    ("gpu-userns", "warning", troubled("group", nodes=((GPU.id, Node(65534)),)), 'MODE="0666"'),
    ("gpu-mode", "warning", troubled("mode", "chmod g+rw it"), "chmod g+rw it"),
    ("gpu-mode", "warning", troubled("folder mode", "chmod o+x it"), "chmod o+x it"),
    ("gpu-cgroup", "warning", troubled("cgroup", f"in Compose, {MAP}"), MAP),
    ("gpu-unbound", "warning", troubled("unbound", "load one"), "load one"),
    ("gpu-gone", "warning", troubled("gone", MAP), MAP),
    ("gpu-gone", "warning", troubled("folder", MAP), MAP),
    ("gpu-unopened", "warning", troubled("unopened", "see dmesg"), "see dmesg"),
    ("va-driver-missing", "warning", troubled("no driver", "install x"), "transcoder:<version>-vaapi"),
    ("va-driver-missing", "warning", troubled("no driver", "install x", process=limits(container=False)), "install x"),
    ("va-driver-fails", "warning", troubled("driver", "see dmesg"), "see dmesg"),
    ("va-libva-missing", "note", facts(replace(GOOD, entries=None)), "libva2"),
    ("va-entrypoints", "warning", facts(NO_ENCODER), "intel-media-va-driver-non-free"),
    ("va-entrypoints", "note", facts(replace(GOOD, entries=ENTRIES[:1])), "intel-media-va-driver-non-free"),
    ("va-entrypoints", "note", facts(GOOD, replace(AMD, entries=())), "mesa-va-drivers"),
    ("va-trials", "note", facts(machine=refusing(replace(AV1, codec="none"))), "devices --fresh"),
    ("va-trials", "warning", facts(machine=refusing(AV1, encodes=False)), "devices --fresh"),
    ("huc-missing", "warning", facts(replace(GOOD, entries=LOW_POWER)), "enable_guc=2"),
    ("huc-missing", "note", facts(replace(GOOD, entries=BOTH)), "enable_guc=2"),
    (
        "vpl-ffmpeg",
        "note",
        facts(machine=machine(GOOD, qsv=False, build=replace(BUILD, encoders=frozenset({"h264_vaapi"})))),
        "-qsv",
    ),
    ("vpl-ffmpeg", "note", facts(machine=machine(GOOD, qsv=False, build=replace(BUILD, numbers=(5, 1)))), "-qsv"),
    ("vpl-missing", "note", facts(machine=machine(GOOD, qsv=False), vpl=()), "libmfx-gen1.2"),
    ("vpl-old", "warning", facts(machine=refusing(H264_QSV, qsv=False)), "newer libmfx-gen1.2"),
    ("vpl-gpu-old", "warning", facts(machine=machine(GOOD, qsv=False), nodes=KABY_LAKE), "--api vaapi"),
    ("vpl-gpu-old", "note", facts(machine=machine(GOOD, qsv=False), nodes=KABY_LAKE, vpl=()), "--api vaapi"),
    ("redis-unreachable", "failure", facts(broker=says(refused="Connection refused")), "TRANSCODER_BROKER_URL"),
    ("redis-denied", "failure", facts(broker=says(refused="NOAUTH", denied=True)), "PASSWORD"),
    ("redis-refuses", "failure", facts(broker=says(read_only="READONLY")), "primary"),
    ("redis-volatile", "warning", facts(broker=says(appendonly=False)), "CONFIG SET appendonly yes"),
    ("redis-evicts", "warning", facts(broker=says(eviction="allkeys-lru")), "maxmemory-policy noeviction"),
    ("redis-evicts", "failure", facts(broker=says(eviction="volatile-ttl", limited=True)), "noeviction"),
    ("clock-off", "warning", facts(broker=says(skew=-2.5)), "set-ntp"),
    ("nofile-low", "warning", facts(process=limits(nofile=1023)), "ulimits: {nofile:"),
    ("nofile-huge", "warning", facts(process=limits(nofile=None, container=False)), "LimitNOFILE"),
    ("nofile-huge", "warning", facts(process=limits(nofile=1_048_577)), "ulimits: {nofile:"),
    ("cpu-quota", "warning", facts(process=limits(quota=0.5)), 'cpus: "2"'),
    ("cpu-threads", "warning", facts(wanted=wants(threads=5)), "Unset TRANSCODER_THREADS"),
    ("cache-unwritable", "note", facts(cache="Read-only file system"), "tmpfs: [/cache]"),
    ("roots-unset", "failure", facts(wanted=wants(media_roots=()), disks=()), "TRANSCODER_MEDIA_ROOTS=/media"),
    ("disk-missing", "failure", facts(disks=(Disk("/media", missing="No such file"),)), 'volumes: ["'),
    (
        "disk-missing",
        "failure",
        facts(disks=(Disk("/media", missing="No such file"),), process=limits(container=False)),
        "mkdir",
    ),
    ("disk-unwritable", "failure", facts(disks=(Disk("/media", unwritable="Denied"),)), "chown 1000:1000 the folder"),
    ("disk-unwritable", "note", facts(disks=(Disk("/in", unwritable="no"), Disk("/out"))), "RUN_AS"),
    ("disk-scratch", "failure", facts(disks=(Disk("/media", unmovable="Invalid cross-device link"),)), "mergerfs"),
    ("disk-volatile", "warning", facts(disks=(Disk("/media", kept=False),)), 'volumes: ["media:/media"]'),
    ("disk-full", "warning", facts(disks=(Disk("/media", free=LOW_SPACE - 1),)), "Make room"),
    ("disk-full", "failure", facts(disks=(Disk("/media", free=NO_SPACE - 1),)), "Make room"),
    ("port-refused", "failure", facts(port=Port(9464, refused="It is in use")), "TRANSCODER_METRICS_PORT=9465"),
    ("port-closed", "note", facts(port=Port(0)), "TRANSCODER_METRICS_PORT=9464"),
]  # fmt: skip


def ill(found: tuple[Finding, ...]) -> list[Finding]:
    return [one for one in found if one.level != "fine"]


def test_where_all_is_well_everything_is_fine() -> None:
    found = findings(facts())
    assert ill(found) == []
    assert {one.about for one in found} == {
        "ffmpeg", "/dev/dri/renderD128", "redis://redis:6379/0", "nofile", "CPUs", "/media", "clock", "port 9464"
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "level", "looked", "mend"), CASES, ids=[f"{one[0]} {one[1]}" for one in CASES])
def test_a_fault_is_one_finding_with_its_level_and_the_line_that_mends_it(
    kind: str, level: Level, looked: Facts, mend: str
) -> None:
    (found,) = [one for one in ill(findings(looked)) if one.kind == kind]
    assert found.level == level
    assert mend in found.mend
    assert found.why == CATALOGUE[kind].why


def test_every_kind_of_finding_has_a_case_here() -> None:
    assert {case[0] for case in CASES} == {*CATALOGUE}


def test_every_trouble_of_a_device_becomes_a_finding() -> None:
    for kind in get_args(TroubleKind):
        assert ill(findings(troubled(kind)))[0].kind in CATALOGUE


def test_a_gpu_that_is_not_needed_since_another_works_is_only_a_note() -> None:
    found = findings(facts(GOOD, replace(AMD, trouble=Trouble("unmapped", "not here", "map it"))))
    assert [(one.kind, one.level) for one in ill(found)] == [("gpu-unmapped", "note")]


def test_the_gpu_that_the_settings_name_is_needed_although_another_works() -> None:
    looked = facts(GOOD, replace(AMD, trouble=Trouble("unmapped", "not here", "map it")), wanted=wants(device=AMD.node))
    assert [(one.kind, one.level) for one in ill(findings(looked))] == [("gpu-unmapped", "failure")]


def test_a_gpu_without_ffmpeg_is_still_looked_at() -> None:
    looked = replace(troubled("group", DENIED), machine=None, no_ffmpeg=("no ffmpeg", "install it"))
    assert {one.kind for one in ill(findings(looked))} == {"ffmpeg-missing", "gpu-group"}


def test_a_finding_tells_the_device_and_its_kernel_driver() -> None:
    (found,) = ill(findings(troubled("group", DENIED)))
    assert found.about == "/dev/dri/renderD128"
    assert found.what == "0000:00:02.0, i915: it does not open"


def test_a_clock_that_cannot_be_told_better_is_not_blamed() -> None:
    assert not ill(findings(facts(broker=says(skew=2.9, uncertainty=1.0))))


def test_a_worker_that_has_the_port_is_no_fault() -> None:
    assert not ill(findings(facts(port=Port(9464, worker=True))))


@pytest.mark.parametrize(
    ("product", "older"),
    [
        ("0x0166", True), ("0x5916", True), ("0x3e92", True), ("0x8a52", True), ("0x4e61", True), ("0x9bc5", True),
        ("0x9a49", False), ("0x4680", False), ("0x56a0", False), ("0xe20b", False), ("0x7d55", False), (None, False),
    ],
)  # fmt: skip
def test_intels_gpus_before_tiger_lake_are_known_by_their_product(product: str | None, older: bool) -> None:
    assert before_gen12(product) is older


@pytest.mark.parametrize(("level", "code"), [("fine", 0), ("note", 0), ("warning", 30), ("failure", 31)])
def test_the_worst_finding_is_the_exit_code_and_it_is_documented(level: Level, code: int) -> None:
    found = tuple(Finding("x", one, "", "") for one in LEVELS[: LEVELS.index(level) + 1])
    assert exit_code(worst(found)) == code
    assert code in dict(exit_codes())


def test_where_nothing_was_found_nothing_is_wrong() -> None:
    assert worst(()) == "fine"


troubles = st.none() | st.builds(Trouble, mend=st.text(min_size=1, max_size=9))
listed = st.none() | st.lists(st.sampled_from((*BOTH, DECODER, Entry("None", "VideoProc")))).map(tuple)
vendors = st.sampled_from((None, "0x8086", "0x1002"))
some_devices = st.lists(
    st.builds(Device, vendor=vendors, trouble=troubles, entries=listed), max_size=3, unique_by=lambda one: one.id
).map(tuple)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_whatever_is_seen_each_finding_is_known_and_comes_with_its_reason_and_its_line(data: st.DataObject) -> None:
    seen = data.draw(some_devices)
    parts = {one.name: getattr(facts(), one.name) for one in fields(Facts)}
    parts |= {
        "no_ffmpeg": ("no ffmpeg", "install it"),
        "devices": seen,
        "machine": data.draw(st.none() | st.just(machine(*seen))),
    }
    for name, kind in {"wanted": Wanted, "process": Process, "broker": Broker, "port": Port}.items():
        parts[name] = data.draw(st.just(parts[name]) | st.from_type(kind))
    parts["disks"] = data.draw(st.lists(st.from_type(Disk), max_size=3).map(tuple))
    for one in findings(Facts(**parts)):
        if one.level == "fine":
            assert (one.kind, one.why, one.mend) == ("fine", "", "")
        else:
            assert one.why == CATALOGUE[one.kind].why
            assert one.mend


def test_no_line_of_the_catalogue_is_empty_and_each_is_a_sentence() -> None:
    for name, kind in CATALOGUE.items():
        assert kind.meaning.endswith("."), name
        assert kind.why.endswith("."), name
        assert kind.mend.endswith("."), name
        assert set(kind.level.replace(";", " ").split()) & {"note", "warning", "failure"}, name


def test_the_level_of_each_case_is_one_that_the_document_names() -> None:
    for kind, level, _, _ in CASES:
        assert level in CATALOGUE[kind].level, kind


def test_the_document_is_the_catalogue() -> None:
    regenerate = "python -c \"from transcoder.ailments import documentation as d; print(d(), end='')\" > docs/doctor.md"
    assert DOCUMENT.read_text() == documentation(), regenerate
