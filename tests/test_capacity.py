"""The capacity file as a value: read strictly, written as it is read, and the budgets that follow from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoder import capacity, settings
from transcoder.capacity import Budget, Budgets, CapacityFile, Measurement, OfCpus
from transcoder.errors import SettingsError

GPU = "0000:03:00.0"
MEASURED = Measurement(pixels_per_second=69_120_001, streams=3, workload="h264 720p25", measured="2026-11-25T08:00:00Z")
CPUS = OfCpus(**MEASURED.model_dump(), cpus=2)
WHOLE = CapacityFile(devices={GPU: MEASURED}, cpus=CPUS)
PATH = "/etc/capacity.json"


def budgets(**changed: Any) -> Budgets:
    usual = {"device": None, "software": None, "device_default": 500e6, "cpu_default": 62e6, "cpus": 2}
    return Budgets(**{**usual, "path": PATH, "measured": WHOLE, **changed})


def record(**changed: object) -> dict[str, Any]:
    return {**json.loads(capacity.text(WHOLE)), **changed}


def of_gpu(**changed: object) -> dict[str, Any]:
    return record(devices={GPU: {**MEASURED.model_dump(), **changed}})


measurements = st.builds(
    Measurement,
    pixels_per_second=st.integers(1, 10**13),
    streams=st.integers(0, 512),
    workload=st.text(max_size=20),
    packing=st.text(max_size=10),
    at_least=st.booleans(),
    confirmed=st.booleans(),
    measured=st.text(max_size=20),
)


@given(st.dictionaries(st.from_regex(r"\A[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\Z"), measurements, max_size=4))
def test_what_is_written_is_read_again(devices: dict[str, Measurement]) -> None:
    written = CapacityFile(devices=devices, cpus=CPUS)
    assert capacity.parse(capacity.text(written), PATH) == written


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "Expecting value", id="nothing"),
        pytest.param("[]", "no schema_version", id="a list"),
        pytest.param("{}", "no schema_version", id="no schema"),
        pytest.param("[" * 100_000, "recursion", id="a pit"),
        pytest.param(json.dumps(record(schema_version=2)), "newer transcoder", id="a newer schema"),
        pytest.param(json.dumps(record(schema_version=0)), "schema_version: it should be 1", id="no such schema"),
        pytest.param(json.dumps(record(device={})), "device: Extra inputs", id="an unknown field"),
        pytest.param(json.dumps(record(devices={"card0": MEASURED.model_dump()})), "'card0' is no device", id="a name"),
        pytest.param(json.dumps(of_gpu(pixels_per_second=0)), f"devices.{GPU}.pixels_per_second: it should be greater"),
        pytest.param(json.dumps(of_gpu(pixels_per_second="9")), "valid integer", id="a number as text"),
        pytest.param(json.dumps(of_gpu(pixels_per_second=float("inf"))), "valid integer", id="without end"),
        pytest.param(json.dumps(of_gpu()).replace('"streams": 3', '"streams": 3, "streams": 4'), "'streams' is there"),
        pytest.param(json.dumps(record(cpus=MEASURED.model_dump())), "cpus.cpus: Field required", id="no CPUs' number"),
    ],
)
def test_what_is_no_capacity_file_is_refused_by_file_and_field(text: str, why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        capacity.parse(text, PATH)
    assert refused.value.what.startswith(f"TRANSCODER_CAPACITY_FILE: {PATH}: ")
    assert why in refused.value.what
    assert "transcoder bench density" in refused.value.next_step


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        capacity.parse(json.dumps(of_gpu(streams=-1, workload=None)), PATH)
    assert f"{GPU}.streams" in refused.value.what
    assert f"{GPU}.workload" in refused.value.what


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"\xff\xfe", "not a text")], ids=["missing", "no text"]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "capacity.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"cannot read {path}: {why}"):
        settings.read_capacities(str(path))


def test_the_file_stands_before_the_defaults_and_a_variable_before_the_file() -> None:
    assert budgets().of_device(GPU).pixels_per_second == 69_120_001
    assert budgets().of_device(GPU).source == f"{PATH}, measured 2026-11-25T08:00:00Z: 3 × h264 720p25"
    assert budgets(device=7.0).of_device(GPU) == Budget(7.0, "TRANSCODER_DEVICE_BUDGET")
    assert budgets().of_cpus().pixels_per_second == 69_120_001
    assert budgets(software=8.0).of_cpus() == Budget(8.0, "TRANSCODER_SOFTWARE_BUDGET")
    assert budgets(software=0.0).of_cpus().pixels_per_second == 124e6, "0 asks for the default, also beside a file"


def test_another_machines_file_names_nothing_here() -> None:
    assert budgets().of_device("0000:04:00.0") == Budget(500e6, f"the default: {PATH} does not name it")
    without = budgets(measured=CapacityFile(devices=WHOLE.devices))
    assert without.of_cpus() == Budget(124e6, f"the default: {PATH} does not name it")
    assert budgets(path=None, measured=CapacityFile()).of_device(GPU) == Budget(500e6, "the default")


def test_the_cpus_bear_by_their_number() -> None:
    half = budgets(cpus=1).of_cpus()
    assert half.pixels_per_second == 69_120_001 / 2
    assert half.source.endswith("on 2 CPUs, of which 1 are here")


def test_a_figure_that_was_not_confirmed_says_so() -> None:
    doubtful = MEASURED.model_copy(update={"confirmed": False})
    source = budgets(measured=CapacityFile(devices={GPU: doubtful})).of_device(GPU).source
    assert source.endswith("3 × h264 720p25, not confirmed")


def test_a_lower_bound_is_called_one() -> None:
    bound = MEASURED.model_copy(update={"at_least": True})
    assert "at least 3 ×" in budgets(measured=CapacityFile(devices={GPU: bound})).of_device(GPU).source


def test_a_device_is_replaced_and_the_others_stay() -> None:
    other, again = "0000:04:00.0", MEASURED.model_copy(update={"streams": 9})
    both = capacity.with_device(capacity.with_device(WHOLE, other, MEASURED), GPU, again)
    assert both == CapacityFile(devices={GPU: again, other: MEASURED}, cpus=CPUS)
    assert capacity.with_cpus(CapacityFile(), CPUS) == CapacityFile(cpus=CPUS)
    with pytest.raises(ValueError, match="no device"):
        capacity.with_device(WHOLE, "renderD128", MEASURED)
