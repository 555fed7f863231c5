"""Where a job belongs, and what a machine serves."""

from typing import Any

import pytest

from tests import values
from transcoder import placement
from transcoder.machine import Ability, Does, Machine
from transcoder.placement import QUEUES, abilities, needs, onward, queue_name, served, short
from transcoder.spec import SCHEMA

GPU = "0000:00:02.0"


def machine(*proved: tuple[str, int], device: str | None = GPU, does: Does = "encode", api: str = "vaapi") -> Machine:
    more = frozenset(Ability(api, codec, depth, f"{codec}_{api}", device, does) for codec, depth in proved)
    return Machine(values.BUILD, values.MACHINE.abilities | more, 4)


def video(codec: str, **more: Any) -> dict[str, Any]:
    return {"name": codec, "container": "mkv", "video": {"codec": codec, **more}}


@pytest.mark.parametrize(
    ("outputs", "queue"),
    [
        pytest.param([video("h264")], "hw.h264", id="h264"),
        pytest.param([video("hevc")], "hw.hevc", id="hevc of the source's depth"),
        pytest.param([video("hevc", depth=8)], "hw.hevc", id="hevc of 8 bit"),
        pytest.param([video("hevc", depth=10)], "hw.hevc10", id="hevc of 10 bit"),
        pytest.param([video("vp9")], "hw.vp9", id="vp9"),
        pytest.param([video("av1", depth=10)], "hw.av1", id="av1 of any depth"),
        pytest.param([video("h264"), video("hevc"), video("av1")], "hw.av1", id="several: the rarest"),
        pytest.param([video("h264"), video("copy")], "hw.h264", id="a copy beside it"),
        pytest.param([video("copy")], "software", id="only copies"),
        pytest.param([{"video": None}], "software", id="only sound"),
    ],
)
def test_a_job_needs_the_rarest_ability_of_its_codecs(outputs: list[dict[str, Any]], queue: str) -> None:
    for policy in ("prefer", "require"):
        assert needs(values.spec(*outputs, acceleration={"policy": policy})) == queue
    assert needs(values.spec(*outputs, acceleration={"policy": "never"})) == "software"


def test_a_job_goes_on_to_where_it_may_be_done_after_all() -> None:
    assert onward(values.spec(video("hevc"))) == ("hw.hevc10", "hw.hevc"), "its source may have 10 bit"
    assert onward(values.spec(video("hevc", depth=10))) == ("hw.hevc10",)
    assert onward(values.spec(video("h264"))) == ("hw.h264",)
    assert onward(values.spec(video("copy"))) == ()


def test_only_encoders_that_a_device_proved_are_served() -> None:
    assert abilities(machine(("h264", 8), ("hevc", 10))) == ("hw.hevc10", "hw.h264")
    assert abilities(machine(("hevc", 8))) == ("hw.hevc",)
    assert abilities(machine(("h264", 8), does="decode")) == ()
    assert abilities(machine(("h264", 8), device=None, api="software")) == ()
    assert abilities(values.MACHINE) == ()


@pytest.mark.parametrize(
    ("serves", "queues"),
    [("both", ("hw.h264", "software")), ("hardware", ("hw.h264",)), ("software", ("software",))],
)
def test_a_worker_serves_what_it_was_told_to(serves: placement.Serves, queues: tuple[str, ...]) -> None:
    assert served(machine(("h264", 8)), serves) == queues


def test_a_name_has_the_schema_in_it_and_people_read_the_short_one() -> None:
    assert queue_name("hw.h264") == f"transcode.schema{SCHEMA}.hw.h264"
    assert [short(queue_name(queue)) for queue in QUEUES] == list(QUEUES)
    assert short(queue_name("software", SCHEMA + 1)) == f"software (schema {SCHEMA + 1})"
    assert len({queue_name(queue, schema) for queue in QUEUES for schema in (1, 2)}) == 2 * len(QUEUES)


def test_every_queue_of_hardware_has_its_codec() -> None:
    assert [placement.codec_of(queue) for queue in placement.HARDWARE] == ["av1", "vp9", "hevc", "hevc", "h264"]
