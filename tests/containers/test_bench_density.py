"""Density on a real engine: containers that share a GPU bear what its engines make, however they are packed."""

import math
from pathlib import Path

import pytest

from tests.conftest import MakeClip
from tests.gpu import DeviceMachine
from tests.test_bench_density import ENCODES, STREAM, settled
from transcoder import settings
from transcoder.bench import density_runner
from transcoder.bench.destination import Destination
from transcoder.bench.display import display

pytestmark = [pytest.mark.engine, pytest.mark.root, pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]

EACH = 2.4
"""Streams of which the device's one engine makes its pictures in real time."""


def test_one_container_and_one_each_bear_what_the_engine_makes(
    vaapi_image: str, device_machine: DeviceMachine, make_clip: MakeClip, tmp_path: Path
) -> None:
    device = device_machine.add("renderD128", {**ENCODES, "vpl": False}, encode_rate=round(EACH * STREAM))
    asked = density_runner.Asked(
        accel="vaapi",
        image=vaapi_image,
        clip=str(make_clip("testsrc2=s=256x144:r=25:d=1", audio=False)),
        seconds=1.0,
        options=tuple(device.docker()),
    )
    with display() as show:
        out = Destination(str(tmp_path / "out.json"))
        found = density_runner.measure(asked, out, str(tmp_path / "capacity.json"), show)
    assert found.device.kind == "simulated"
    streams = math.floor(EACH)
    assert [(one.cell.containers, one.streams) for one in found.density] == [(1, streams), (streams, streams)]
    assert all(settled(found, one) for one in found.density)
    written = settings.read_capacities(str(tmp_path / "capacity.json")).devices
    assert {address: measured.streams for address, measured in written.items()} == {device.address: streams}
