"""Every way through a GPU, run by real ffmpeg on the software GPU: the right route, and pictures like software's.

docs/routes.md is the table of what runs here: `GOLDEN=write python -m pytest tests/test_routes.py` writes it anew.
"""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests import gpu
from tests.conftest import MakeClip
from tests.local import children
from tests.test_job import COMB, Seen, Site, ffmpeg, turned
from transcoder.dialect import PIXELS
from transcoder.errors import InputUnreadable, NoRouteWorked
from transcoder.events import Published
from transcoder.machine import Machine
from transcoder.policy import Policy
from transcoder.survey import survey

DOCUMENT = Path(__file__).parent.parent / "docs" / "routes.md"
DEVICES: dict[str, dict[str, object]] = {
    "whole": {},
    "without filters": {"vpp": False},
    "without decoder": {"decode": "none"},
    "with encoders only": {"decode": "none", "vpp": False},
    "without QSV's decoder": {},
}
"""What a device lacks, so that the plan begins with the route that goes around it."""
WITHOUT = {"without QSV's decoder": {("qsv", "decode")}}
"""(API, does) that are taken away from what its trials proved: the device does it by another API."""


Coded = tuple[str, int]
"""A codec and its depth."""


@dataclass(frozen=True)
class Row:
    """What `route` makes of a source; its SSIM beside the source is `near` software's."""

    route: str
    source: Coded
    made: Coded
    near: float = 0.02

    def __str__(self) -> str:
        return f"{self.route}-{self.source[0]}{self.source[1]}-{self.made[0]}{self.made[1]}"

    @property
    def api(self) -> str:
        return self.route.partition("-")[0]

    @property
    def modern(self) -> bool:
        """Whether ffmpeg 5.1 lacks it: its QSV is an older one, and it has no av1_vaapi."""
        return self.api == "qsv" or self.made[0] == "av1"


LACKING = {
    "vaapi": "whole",
    "vaapi-download": "without filters",
    "vaapi-upload": "without decoder",
    "vaapi-encode": "with encoders only",
    "qsv": "whole",
    "qsv-vaapi": "without QSV's decoder",
    "qsv-encode": "with encoders only",
}
COMMON: tuple[Coded, ...] = (("h264", 8), ("hevc", 8), ("hevc", 10))
VP9: tuple[Coded, ...] = (("vp9", 8), ("vp9", 10))
AV1: tuple[Coded, ...] = (("av1", 8), ("av1", 10))
ROWS = tuple(
    Row(*way)
    for way in (
        *product(LACKING, COMMON, COMMON),
        *product(("vaapi", "vaapi-encode"), (("h264", 8),), (*VP9, *AV1)),
        *product(("vaapi", "vaapi-download"), VP9, (("h264", 8), ("hevc", 10))),
    )
)
JOBS = tuple(dict.fromkeys((row.route, row.source, row.modern) for row in ROWS))
"""(route, source, whether ffmpeg 5.1 lacks it): what one job makes."""
LIBRARIES = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}


@dataclass(frozen=True)
class Surveyed:
    """A machine with one device, and what its survey has found."""

    gpus: gpu.Machine
    device: gpu.Gpu
    machine: Machine

    @contextmanager
    def broken(self, fault: dict[str, object]) -> Iterator[None]:
        """The device fails like this for a while."""
        self.device.configure(fault)
        try:
            yield
        finally:
            self.device.configure()


Survey = Callable[[str], Surveyed]
OnDevice = Callable[[str], Site]
T = TypeVar("T")


@dataclass(frozen=True)
class Shared:
    """What one of the processes that run the tests finds out for all of them."""

    folder: Path

    def once(self, name: str, find: Callable[[], T]) -> T:
        kept = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                kept.write_bytes(pickle.dumps(find()))
        found: T = pickle.loads(kept.read_bytes())
        return found


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "routes"
    folder.mkdir(exist_ok=True)
    return Shared(folder)


@pytest.fixture(scope="module")
def surveyed(built_gpu: Path, shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survey]:
    """A machine with a device of that kind, really tried, once."""
    made: dict[str, Surveyed] = {}
    with pytest.MonkeyPatch.context() as patch:

        def find(kind: str) -> Surveyed:
            if kind not in made:
                gpus = gpu.Machine(tmp_path_factory.mktemp("machine"), built_gpu)
                device = gpus.add("renderD128", DEVICES[kind])
                for variable, value in gpus.environment.items():
                    patch.setenv(variable, value)
                machine = shared.once(kind, lambda: tried(gpus))
                here = tuple(replace(one, node=str(device.node)) for one in machine.devices)
                lost = {able for able in machine.abilities if (able.api, able.does) in WITHOUT.get(kind, ())}
                machine = replace(machine, devices=here, abilities=machine.abilities - lost)
                made[kind] = Surveyed(gpus, device, machine)
            return made[kind]

        yield find


def tried(gpus: gpu.Machine) -> Machine:
    policy = Policy(("/",), dri=str(gpus.nodes), sysfs=str(gpus.sysfs), proc=str(gpus.proc))
    return replace(survey(policy), threads=2)


@pytest.fixture
def on(surveyed: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnDevice:
    """A site on a machine with a device of that kind."""

    def site(kind: str) -> Site:
        found = surveyed(kind)
        for variable, value in found.gpus.environment.items():
            monkeypatch.setenv(variable, value)
        folder = tmp_path / kind
        folder.mkdir()
        return Site(folder, found.machine, [])

    return site


def clip(make_clip: MakeClip, codec: str, depth: int) -> Path:
    colours = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709")
    quick = ("-deadline", "realtime", "-cpu-used", "8") if codec == "vp9" else ()
    words = (*colours, *quick)
    return make_clip("testsrc2=s=320x180:r=25:d=1", vcodec=LIBRARIES[codec], pix_fmt=PIXELS[depth], extra=words)


HARD = {"policy": "require"}
HARD_BY = {api: {"policy": "require", "apis": [api]} for api in ("vaapi", "qsv")}
NEVER = {"policy": "never"}
BITRATE = {"mode": "bitrate", "bitrate": 1_500_000}


def jobs() -> Iterator[object]:
    for route, source, modern in JOBS:
        name = f"{route}-{source[0]}{source[1]}{'-modern' if modern and not route.startswith('qsv') else ''}"
        yield pytest.param(route, source, modern, id=name, marks=[pytest.mark.vpl] if modern else [])


@pytest.mark.gpu
@pytest.mark.parametrize(("route", "source", "modern"), [*jobs()])
def test_every_route_makes_the_pictures_that_software_makes(
    on: OnDevice, make_clip: MakeClip, shared: Shared, route: str, source: Coded, modern: bool
) -> None:
    site, taken = on(LACKING[route]), clip(make_clip, *source)
    rows = [row for row in ROWS if (row.route, row.source, row.modern) == (route, source, modern)]
    published = site.run(taken, *(wanted(row.made) for row in rows), acceleration=HARD_BY[rows[0].api])
    assert (published.route.name, published.tried, published.warnings) == (route, (), ())
    for row, output in zip(rows, published.outputs, strict=True):
        made = Seen(Path(output.path))
        assert made.video["codec_name"] == row.made[0]
        assert made.video["pix_fmt"] == PIXELS[row.made[1]]
        assert (made.size, len(made.times())) == ((256, 144), 25)
        assert likeness(made, taken) > by_software(shared, site, taken, row) - row.near


def wanted(made: Coded) -> dict[str, Any]:
    video = {"codec": made[0], "depth": made[1], "width": 256, "height": 144, "rate": BITRATE}
    return {"name": f"{made[0]}{made[1]}", "container": "mkv" if made[0] == "vp9" else "mp4", "video": video}


def likeness(made: Seen, taken: Path) -> float:
    return made.likeness(taken, f"scale=256:144:flags=bicubic,format={made.video['pix_fmt']}")


def by_software(shared: Shared, site: Site, taken: Path, row: Row) -> float:
    def find() -> float:
        there = str(site.file("software.{ext}"))
        published = site.run(taken, wanted(row.made), acceleration=NEVER, overwrite=True, target=there)
        return likeness(Seen(Path(published.outputs[0].path)), taken)

    return shared.once(str(replace(row, route="software")), find)


# Pictures, on the routes that a device makes them by


@dataclass
class OnRoute(Site):
    """A site whose jobs are done by the device or not at all."""

    api: str

    def run(
        self, source: Path, *outputs: dict[str, Any], limits: dict[str, float] | None = None, **fields: Any
    ) -> Published:
        published = super().run(source, *outputs, limits=limits, acceleration=HARD_BY[self.api], **fields)
        assert published.route.api == self.api
        return published


@pytest.fixture(
    params=[
        pytest.param(route, marks=[pytest.mark.vpl] if route.startswith("qsv") else [])
        for route in LACKING
        if route != "vaapi-encode"
    ]
)
def gpu_site(on: OnDevice, request: pytest.FixtureRequest) -> Site:
    site = on(LACKING[request.param])
    return OnRoute(site.folder, site.machine, site.events, request.param.partition("-")[0])


@pytest.mark.gpu
def test_a_ladder_has_each_size_and_the_same_key_frames(gpu_site: Site, make_clip: MakeClip) -> None:
    source = make_clip("testsrc2=s=320x180:r=25:d=3")
    rungs = [
        {"name": f"{height}", "video": {"height": height, "gop": 0.5, "rate": BITRATE}} for height in (180, 90, 60)
    ]
    published = gpu_site.run(source, *rungs)
    made = [Seen(Path(output.path)) for output in published.outputs]
    assert [one.size for one in made] == [(320, 180), (160, 90), (106, 60)]
    assert [output.frames for output in published.outputs] == [75] * 3
    assert all(one.keys() == made[0].keys() and len(one.keys()) >= 6 for one in made)


@pytest.mark.gpu
def test_fields_become_whole_frames_one_for_one(gpu_site: Site, make_clip: MakeClip) -> None:
    interlaced = make_clip(COMB, extra=("-flags", "+ilme+ildct"), audio=False)
    published = gpu_site.run(interlaced)
    assert published.outputs[0].frames == 25
    assert Seen(Path(published.outputs[0].path)).video.get("field_order", "progressive") == "progressive"


@pytest.mark.gpu
def test_a_turned_picture_stands_upright(gpu_site: Site, make_clip: MakeClip) -> None:
    lying = turned(make_clip("testsrc2=s=320x180:r=25:d=1"), 90, gpu_site.file("turned.mp4"))
    made = Seen(Path(gpu_site.run(lying).outputs[0].path))
    assert made.size == (180, 320)
    assert "Display Matrix" not in made.sides()


@pytest.mark.gpu
def test_what_is_cropped_is_gone(gpu_site: Site, make_clip: MakeClip) -> None:
    halves = "color=black:s=320x180:r=25:d=1,drawbox=x=160:y=0:w=160:h=180:color=white:t=fill"
    output = {"video": {"crop": {"left": 176}, "rate": BITRATE}}
    made = Seen(Path(gpu_site.run(make_clip(halves, audio=False), output).outputs[0].path))
    assert made.size == (144, 180)
    assert made.mean()[0] > 200


@pytest.mark.gpu
def test_odd_sizes_become_even(gpu_site: Site, make_clip: MakeClip) -> None:
    odd = make_clip("testsrc2=s=321x181:r=25:d=1", pix_fmt="yuv444p", audio=False)
    made = Seen(Path(gpu_site.run(odd).outputs[0].path))
    assert made.size == (320, 180)


@pytest.mark.gpu
def test_a_rate_is_capped(gpu_site: Site, make_clip: MakeClip) -> None:
    fast = make_clip("testsrc2=s=320x180:r=50:d=1", audio=False)
    assert gpu_site.run(fast, {"video": {"max_fps": 25}}).outputs[0].frames == 25


@pytest.mark.gpu
def test_a_change_of_size_in_the_middle_loses_no_frame(gpu_site: Site, make_clip: MakeClip) -> None:
    sizes = ("320x180", "192x108")
    parts = [make_clip(f"testsrc2=s={size}:r=25:d=1", container="ts", audio=False) for size in sizes]
    whole = gpu_site.file("whole.ts")
    ffmpeg("-fflags", "+genpts", "-f", "concat", "-safe", "0", "-i", listed(gpu_site, parts), "-c", "copy", whole)
    published = gpu_site.run(whole, {"video": {"width": 160, "height": 90}})
    assert published.outputs[0].frames == 50


@pytest.mark.gpu
def test_the_pictures_of_a_transport_stream_are_compared_at_the_same_moments(
    gpu_site: Site, make_clip: MakeClip
) -> None:
    scenes = [f"{scene}=s=320x180:r=25:d=2,format=yuv420p,setsar=1" for scene in ("testsrc", "smptebars", "rgbtestsrc")]
    graph = ";".join(f"{scene}[v{number}]" for number, scene in enumerate(scenes)) + ";[v0][v1][v2]concat=n=3"
    groups = ("-g", "50", "-keyint_min", "50", "-sc_threshold", "0")
    source = make_clip(graph, container="ts", audio=False, extra=groups)
    assert gpu_site.run(source, {"video": {"width": 160, "height": 90}}).outputs[0].frames == 150


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["testsrc2=s=320x180:r=25:d=0.2", "testsrc2=s=320x180:r=1:d=4"])
def test_a_few_pictures_are_compared_before_the_last(on: OnDevice, make_clip: MakeClip, source: str) -> None:
    published = on("with encoders only").run(make_clip(source, audio=False), acceleration=HARD)
    assert (published.route.name, published.tried) == ("vaapi-encode", ())


def listed(site: Site, parts: list[Path]) -> Path:
    file = site.file("parts.txt")
    file.write_text("".join(f"file '{part}'\n" for part in parts))
    return file


@pytest.mark.gpu
def test_a_decoder_that_refuses_a_stream_gives_way_to_software_in_the_same_run(
    surveyed: Survey, on: OnDevice, make_clip: MakeClip
) -> None:
    source = make_clip("testsrc2=s=320x180:r=25:d=1")
    site = on("whole")
    with surveyed("whole").broken({"fault.config.decode": "status 14"}):
        published = site.run(source, {"video": {"width": 160, "height": 90}}, acceleration=HARD)
    assert (published.route.name, published.tried, published.outputs[0].frames) == ("vaapi", (), 25)


# Faults


@dataclass(frozen=True)
class Breakage:
    """A fault of the device: what ends each route that is tried, as (route, class), and the route that publishes."""

    fault: dict[str, object]
    tried: tuple[tuple[str, str], ...]
    published: str = "software"
    perhaps: tuple[tuple[str, str], ...] = ()
    """What may be tried besides: the part of the device that notices first is blamed."""


VAAPI_FAULTS = {
    "init": Breakage({"fault.init": "status 18"}, (("vaapi", "config"),)),
    "broken": Breakage({"broken": True}, (("vaapi", "config"),)),
    "no encoder": Breakage({"encode": "none"}, (("vaapi", "capability"),)),
    "encoder short of memory": Breakage({"fault.context.encode": "status 2"}, (("vaapi", "transient"),) * 2),
    "encoder busy once": Breakage(
        {"fault.context.encode": "status 34 at 1 once device"}, (("vaapi", "transient"),), "vaapi"
    ),
    "picture too large": Breakage({"fault.context.encode": "status 19"}, (("vaapi", "capability"),)),
    "encoding fails": Breakage({"fault.encode": "status 24 at 10"}, (("vaapi", "hardware"),)),
    "decoding fails": Breakage({"fault.decode": "status 23 at 10"}, (("vaapi", "hardware"),), "vaapi-encode"),
    "scaling fails": Breakage({"fault.process": "status 1 at 10"}, (("vaapi", "hardware"),), "vaapi-encode"),
    "green": Breakage({"fault.encode": "green"}, (("vaapi", "mismatch"),)),
    "green decoder": Breakage({"fault.decode": "green"}, (("vaapi", "mismatch"),)),
    "truncated": Breakage({"fault.encode": "truncate"}, (("vaapi", "mismatch"),)),
    "dropped": Breakage({"fault.encode": "drop at 10"}, (("vaapi", "mismatch"),)),
    "segfault": Breakage({"fault.encode": "segfault at 10"}, (("vaapi", "crashed"),)),
    "vanished": Breakage(
        {"fault.encode": "vanish at 10"}, (("vaapi", "hardware"),), perhaps=(("vaapi-encode", "config"),)
    ),
    "hang": Breakage({"fault.encode": "hang at 10"}, (("vaapi", "stalled"),)),
}


QSV_FAULTS = {
    "init": Breakage({"fault.vpl.init": "status -17"}, (("qsv", "config"),)),
    "no runtime": Breakage({"vpl": False}, (("qsv", "config"),)),
    "broken": Breakage({"broken": True}, (("qsv", "config"),)),
    "no encoder": Breakage({"encode": "none"}, (("qsv", "capability"),)),
    "encoder fails": Breakage({"fault.context.encode": "status 2"}, (("qsv", "hardware"),)),
    "short of memory once": Breakage(
        {"fault.vpl.encode": "status -4 at 10 once device"}, (("qsv", "transient"),), "qsv"
    ),
    "no decoder": Breakage({"decode": "none"}, (("qsv", "capability"),), "qsv-vaapi"),
    "encoding fails": Breakage({"fault.vpl.encode": "status -17 at 10"}, (("qsv", "hardware"),)),
    "encoding hangs the device": Breakage({"fault.vpl.encode": "status -21 at 10"}, (("qsv", "hardware"),)),
    "encoding fails somehow": Breakage({"fault.vpl.encode": "status -1 at 10"}, (("qsv", "hardware"),)),
    "decoding fails": Breakage({"fault.vpl.decode": "status -17 at 10"}, (("qsv", "hardware"),), "qsv-vaapi"),
    "decoding fails by any API": Breakage(
        {"fault.decode": "status 23 at 10"}, (("qsv", "hardware"), ("qsv-vaapi", "hardware")), "qsv-encode"
    ),
    "decoder's session fails": Breakage(
        {"fault.vpl.init": "status -17 at 2 once device"}, (("qsv", "hardware"),), "qsv-vaapi"
    ),
    "scaling fails": Breakage({"fault.vpl.process": "status -21 at 10"}, (("qsv", "hardware"),), "qsv-vaapi"),
    "no scaling": Breakage({"vpp": False}, (("qsv", "capability"), ("qsv-vaapi", "capability")), "qsv-encode"),
    "green": Breakage({"fault.vpl.encode": "green"}, (("qsv", "mismatch"),)),
    "green decoder": Breakage({"fault.decode": "green"}, (("qsv", "mismatch"),)),
    "truncated": Breakage({"fault.vpl.encode": "truncate"}, (("qsv", "mismatch"),)),
    "lost without a word": Breakage({"fault.vpl.sync.encode": "status -17 at 10"}, (("qsv", "mismatch"),)),
    "segfault": Breakage({"fault.vpl.encode": "segfault at 10"}, (("qsv", "crashed"),)),
    "vanished": Breakage({"fault.encode": "vanish at 10"}, (("qsv", "hardware"),), perhaps=(("qsv-vaapi", "config"),)),
    "hang": Breakage({"fault.vpl.sync.encode": "hang at 10"}, (("qsv", "stalled"),)),
}
FAULTS = [
    *(pytest.param("vaapi", broken, id=name) for name, broken in VAAPI_FAULTS.items()),
    *(pytest.param("qsv", broken, id=f"{name}-qsv", marks=pytest.mark.vpl) for name, broken in QSV_FAULTS.items()),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("api", "broken"), FAULTS)
def test_a_fault_is_told_by_its_class_and_left_by_the_right_route(
    surveyed: Survey, on: OnDevice, make_clip: MakeClip, api: str, broken: Breakage
) -> None:
    source, site = make_clip("testsrc2=s=320x180:r=25:d=1"), on("whole")
    output, asked = {"video": {"width": 160, "height": 90}}, {"policy": "prefer", "apis": [api]}
    with surveyed("whole").broken(broken.fault):
        published = site.run(source, output, limits={"stall_limit": 2.0}, acceleration=asked)
    tried = tuple((one.route, one.kind) for one in published.tried)
    assert tried in (broken.tried, broken.tried + broken.perhaps), published.tried
    assert published.route.name == broken.published
    assert published.outputs[0].frames == 25
    assert sorted(path.name for path in site.folder.iterdir()) == ["made.mp4", "test.transcoder.json"]
    assert children() == []


@pytest.mark.gpu
@pytest.mark.vpl
def test_an_encoder_that_fails_by_one_api_is_not_tried_by_another(
    surveyed: Survey, on: OnDevice, make_clip: MakeClip
) -> None:
    source, site = make_clip("testsrc2=s=320x180:r=25:d=1"), on("whole")
    with surveyed("whole").broken({"fault.encode": "status 24 at 10"}):
        published = site.run(source, {"video": {"width": 160, "height": 90}})
    assert [(one.route, one.kind) for one in published.tried] == [("vaapi", "hardware")]
    assert published.route.name == "software"


@pytest.mark.gpu
def test_required_acceleration_that_fails_is_one_clear_failure(
    surveyed: Survey, on: OnDevice, make_clip: MakeClip
) -> None:
    site = on("whole")
    with surveyed("whole").broken({"fault.encode": "status 24 at 10"}), pytest.raises(NoRouteWorked, match="vaapi: "):
        site.run(make_clip("testsrc2=s=320x180:r=25:d=1"), acceleration=HARD)
    assert list(site.folder.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.parametrize(("policy", "told"), [("require", True), ("prefer", False)])
def test_a_source_that_only_a_gpu_has_called_damaged_is_said_to_be_so(
    surveyed: Survey, on: OnDevice, make_clip: MakeClip, policy: str, told: bool
) -> None:
    whole, site = make_clip("testsrc2=s=320x180:r=25:d=4", extra=("-movflags", "+faststart")), on("whole")
    cut = site.folder.parent / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    with surveyed("whole").broken({}), pytest.raises(InputUnreadable) as refused:
        site.run(cut, acceleration={"policy": policy})
    assert ("Software, which may read it, was not asked" in refused.value.next_step) == told
    assert list(site.folder.iterdir()) == []


def test_the_document_has_the_rows_that_run_here() -> None:
    told = HEAD + "".join(
        f"| {row.api} | `{row.route}` | {_name(row.source)} | {_name(row.made)} | {_ffmpeg(row)} | {row.near:g} |\n"
        for row in sorted(ROWS, key=lambda row: [*LACKING].index(row.route))
    )
    if os.environ.get("GOLDEN") == "write":
        DOCUMENT.write_text(told)
    assert DOCUMENT.read_text() == told


def _name(coded: Coded) -> str:
    return f"{coded[0]}, {coded[1]} bit"


def _ffmpeg(row: Row) -> str:
    return "7.1" if row.modern else "5.1, 7.1"


HEAD = """\
# Routes that run in the tests

Every row is made by real ffmpeg on the software GPU of the tests (`tests/simgpu/`) and compared with what software has
made of the same source: its SSIM beside the source is at most so much lower. That proves the commands, not a driver and
not the quality of a real device: `transcoder devices` proves a device, where it is.

| API | Route | Source | Output | ffmpeg | SSIM lower by at most |
| --- | --- | --- | --- | --- | --- |
"""
