"""What a worker serves, from its survey and its breaker; the survey is played."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from tests import values
from transcoder import placement, station
from transcoder.breaker import Rules
from transcoder.command import Route
from transcoder.errors import NoRoute
from transcoder.events import FellBack
from transcoder.faults import FaultClass
from transcoder.machine import Ability, Device, Machine, Refusal, Trouble
from transcoder.placement import Serves
from transcoder.policy import Policy
from transcoder.station import Post, Station

FIRST = Device("0000:00:02.0", "/dev/dri/renderD128")
SECOND = Device("0000:03:00.0", "/dev/dri/renderD129")
DENIED = replace(SECOND, trouble=Trouble("group", "permission denied", "add the group render"))


def proved(device: Device, *codecs: str) -> frozenset[Ability]:
    return frozenset(Ability("vaapi", codec, 8, f"{codec}_vaapi", device.id) for codec in codecs)


def machine(*devices: Device, abilities: frozenset[Ability] = frozenset()) -> Machine:
    return replace(values.MACHINE, devices=devices, abilities=values.MACHINE.abilities | abilities)


BOTH = machine(FIRST, SECOND, abilities=proved(SECOND, "h264", "hevc"))


@dataclass
class Played:
    """A station whose survey finds `found`, and whose trials refuse what `refused` says, once `let` is set."""

    found: Machine = BOTH
    refused: tuple[Refusal, ...] = ()
    tried: list[str | None] = field(default_factory=list)
    let: threading.Event = field(default_factory=threading.Event)
    changes: int = 0

    def changed(self) -> None:
        self.changes += 1

    def station(self, device: str | None = None, serves: Serves | None = None, **rules: float) -> Station:
        chosen = Rules(**{"faults": 3, "window": 60, "cooldown": 0.05, "longest": 0.4, **rules})  # type: ignore[arg-type]
        made = Station(Post("me", device, serves, 2), Policy(("/",)), chosen, self.changed)
        software = made.look(None, 0)
        made.open(software)
        made.look_closer(software, None)
        return made


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    played = Played()

    def try_again(_: Machine, policy: Policy, device: str, codec: str | None = None) -> tuple[Refusal, ...]:
        played.tried.append(codec)
        played.let.wait(5)
        return played.refused

    monkeypatch.setattr(station, "survey_software", lambda *_: values.MACHINE)
    monkeypatch.setattr(station, "survey_devices", lambda *_: played.found)
    monkeypatch.setattr(station, "try_again", try_again)
    yield played
    played.let.set()


def served(one: Station) -> list[str]:
    return [placement.short(name) for name in one.queues()]


def fell(kind: FaultClass = FaultClass.HARDWARE, *codecs: str, device: Device = SECOND) -> FellBack:
    return FellBack(Route("vaapi", "vaapi", device.id, codecs=frozenset(codecs)), kind, "oh", 1.0)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_first_device_that_proved_anything_is_served(played: Played) -> None:
    made = played.station()
    assert served(made) == ["hw.hevc", "hw.h264", "software"]
    told = made.told()
    assert (told.device, told.node, told.serves, told.places) == (SECOND.id, SECOND.node, "both", 2)


def test_only_the_named_device_is_served(played: Played) -> None:
    third = Device("0000:04:00.0", "/dev/dri/renderD130")
    played.found = machine(SECOND, third, abilities=proved(SECOND, "h264") | proved(third, "hevc"))
    for name in (third.id, third.node):
        made = played.station(device=name)
        assert served(made) == ["hw.hevc", "software"]
        assert {able.device for able in made.machine().abilities} == {None, third.id}


@pytest.mark.parametrize(
    ("serves", "queues"),
    [("hardware", ["hw.hevc", "hw.h264"]), ("software", ["software"]), ("both", ["hw.hevc", "hw.h264", "software"])],
)
def test_what_was_asked_is_served(played: Played, serves: Serves, queues: list[str]) -> None:
    assert served(played.station(serves=serves)) == queues


@pytest.mark.parametrize("serves", [None, "both"])
def test_without_a_device_software_is_served(played: Played, serves: Serves | None) -> None:
    played.found = machine(DENIED)
    made = played.station(serves=serves)
    assert (served(made), made.serves, made.told().device) == (["software"], "software", None)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (None, "any device: permission denied: add the group render"),
        (DENIED.node, "/dev/dri/renderD129: permission denied: add the group render"),
        ("/dev/dri/renderD7", "there is no such device (/dev/dri/renderD129 is 0000:03:00.0)"),
    ],
)
def test_only_hardware_without_a_device_that_works_is_an_error_that_names_the_trouble(
    played: Played, device: str | None, words: str
) -> None:
    played.found = machine(DENIED)
    with pytest.raises(NoRoute) as refused:
        played.station(device, "hardware")
    assert words in refused.value.what
    assert "transcoder devices" in refused.value.next_step


def test_nothing_is_served_before_the_first_look() -> None:
    made = Station(Post("me", None, None, 1), Policy(("/",)), Rules())
    assert made.queues() == ()
    assert made.told().queues == ()


def test_software_is_served_before_the_devices_are_known(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def survey(*_: object) -> Machine:
        seen.append(served(made))
        return BOTH

    monkeypatch.setattr(station, "survey_devices", survey)
    for serves in (None, "both", "hardware"):
        made = Station(Post("me", None, serves, 1), Policy(("/",)), Rules())
        made.open(values.MACHINE)
        made.look_closer(values.MACHINE, None)
    assert seen == [["software"], ["software"], []]


def test_a_codec_that_failed_repeatedly_is_left_alone_and_the_other_is_not(played: Played) -> None:
    made = played.station(cooldown=60)
    for _ in range(3):
        assert "hw.h264" in served(made)
        made.listen(fell(FaultClass.HARDWARE, "h264"))
    assert served(made) == ["hw.hevc", "software"]
    assert made.told().left_alone == ("h264",)
    assert made.circuits() == {(SECOND.id, "h264"): True, (SECOND.id, "hevc"): False}
    assert made.machine().can("vaapi", "h264", 8, SECOND.id) is None
    assert made.machine().can("vaapi", "hevc", 8, SECOND.id)
    assert made.machine().can("software", "h264", 8)


@pytest.mark.parametrize("event", [fell(FaultClass.CONFIG, "h264"), fell(FaultClass.STALLED)])
def test_a_device_that_cannot_be_used_and_a_fault_of_no_codec_count_for_all(played: Played, event: FellBack) -> None:
    made = played.station()
    made.listen(event)
    assert served(made) == ["software"]


def test_faults_of_software_of_other_devices_and_of_the_source_do_not_count(played: Played) -> None:
    made = played.station()
    for _ in range(5):
        made.listen(FellBack(Route("software", "software"), FaultClass.CRASHED, "oh", 1.0))
        made.listen(fell(FaultClass.HARDWARE, "h264", device=FIRST))
        made.listen(fell(FaultClass.INPUT, "h264"))
    assert served(made) == ["hw.hevc", "hw.h264", "software"]


def test_it_is_taken_back_by_a_trial_that_succeeds_and_one_runs_at_a_time(played: Played) -> None:
    made = played.station(faults=1)
    before = played.changes
    made.listen(fell(FaultClass.HARDWARE, "h264"))
    assert played.changes == before + 1
    made.tend()
    assert played.tried == [], "not before the cool-down"
    time.sleep(0.06)
    for _ in range(3):
        made.tend()
    until(lambda: played.tried == ["h264"])
    assert "hw.h264" not in served(made), "not before the trial has ended"
    played.let.set()
    until(lambda: "hw.h264" in served(made))
    assert played.changes == before + 2
    assert made.told().left_alone == ()


def test_a_trial_that_fails_or_breaks_leaves_it_alone_for_longer(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.let.set()
    played.refused = (Refusal(Ability("vaapi", "h264", 8), "still broken"),)
    made = played.station(faults=1, cooldown=0.02, longest=10)
    made.listen(fell(FaultClass.HARDWARE, "h264"))
    began = time.monotonic()
    while len(played.tried) < 4:
        made.tend()
        time.sleep(0.002)
    assert time.monotonic() - began >= 0.02 + 0.04 + 0.08 + 0.16

    def broken(*_: object) -> tuple[Refusal, ...]:
        played.tried.append("broken")
        raise OSError("no such program")

    monkeypatch.setattr(station, "try_again", broken)
    while "broken" not in played.tried:
        made.tend()
        time.sleep(0.002)
    assert made.told().left_alone == ("h264",)
