"""The capacity file: what a device, and the CPUs, were measured to bear in real time, and the budgets that follow.

`transcoder bench density` writes it and a worker reads it (TRANSCODER_CAPACITY_FILE). Devices are told apart by their
PCI address and by nothing else, so a file also serves an equal machine; what it names that is not here does nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from transcoder.errors import SettingsError

SCHEMA: Final = 1
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]|\d{1,4}:\d{1,7}")
"""A PCI address, or major:minor of a device that has none; both as `transcoder devices` prints them."""


def _address(text: object) -> object:
    if isinstance(text, str) and not _ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r} is no device: it should be a PCI address such as 0000:03:00.0")
    return text


Address = Annotated[str, BeforeValidator(_address)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Measurement(_Value):
    """What was borne: so many pixels encoded a second, while every stream was made in real time."""

    pixels_per_second: int = Field(gt=0)
    streams: int = Field(ge=0)
    """How many equal streams that was; 0 where not even one was made in real time."""
    workload: str
    """What each stream did, for people."""
    packing: str = ""
    """How the streams were packed into containers, for people: `1 × 4`."""
    at_least: bool = False
    """Whether the search ended at its largest number of streams before anything was full."""
    confirmed: bool = True
    """Whether the number and the next one were measured again and said the same."""
    measured: str
    """When it began, in UTC, ISO 8601."""
    programs: str = ""
    """The versions that it was measured with, for people."""


class OfCpus(Measurement):
    """The same of CPUs, and how many there were."""

    cpus: int = Field(ge=1)


class CapacityFile(_Value):
    """All that was measured on a machine."""

    schema_version: Literal[1] = SCHEMA
    devices: Mapping[Address, Measurement] = {}
    cpus: OfCpus | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be taken at a time, in pixels per second, and where that figure comes from, for people."""

    pixels_per_second: float
    source: str


@dataclass(frozen=True, slots=True)
class Budgets:
    """How a worker's budgets are found: a variable that is set, then the capacity file, then the default.

    `device` and `software` are the variables' values, None where they are not set; `cpus` how many it may use. The
    file's figure for the CPUs goes by their number, as the default does: half of those that were measured bear half.
    """

    device: float | None
    software: float | None
    device_default: float
    cpu_default: float
    cpus: int
    path: str | None = None
    measured: CapacityFile = field(default_factory=CapacityFile)

    def of_device(self, address: str) -> Budget:
        """What the device at that address bears."""
        if self.device is not None:
            return Budget(self.device, "TRANSCODER_DEVICE_BUDGET")
        if found := self.measured.devices.get(address):
            return Budget(found.pixels_per_second, _source(self.path, found))
        return Budget(self.device_default, f"the default{self._unnamed}")

    def of_cpus(self) -> Budget:
        """What the CPUs bear together."""
        if self.software:
            return Budget(self.software, "TRANSCODER_SOFTWARE_BUDGET")
        if self.software is None and (found := self.measured.cpus):
            share = "" if found.cpus == self.cpus else f" on {found.cpus} CPUs, of which {self.cpus} are here"
            return Budget(found.pixels_per_second * self.cpus / found.cpus, f"{_source(self.path, found)}{share}")
        return Budget(self.cpu_default * self.cpus, f"the default{self._unnamed}")

    @property
    def _unnamed(self) -> str:
        return f": {self.path} does not name it" if self.path else ""


def parse(text: str, path: str) -> CapacityFile:
    """The file's text as a value.

    Raises:
        SettingsError: it is no JSON, or not what a capacity file says; names the file, the field and the next step.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
        if isinstance(found, dict) and isinstance(version := found.get("schema_version"), int) and version > SCHEMA:
            raise ValueError(f"schema {version} is of a newer transcoder; this one reads {SCHEMA}")
        if not isinstance(found, dict) or "schema_version" not in found:
            raise ValueError("it has no schema_version")
        return CapacityFile.model_validate(found)
    except ValidationError as wrong:
        lines = "\n".join(f"{path}: {_field(error['loc'])}: {_rule(error['msg'])}" for error in wrong.errors())
        raise refused(lines) from None
    except (ValueError, RecursionError) as wrong:
        raise refused(f"{path}: {wrong}") from None


def refused(what: str) -> SettingsError:
    """The error of a capacity file that cannot be used."""
    return SettingsError(
        f"TRANSCODER_CAPACITY_FILE: {what}",
        "Measure anew (`transcoder bench density --capacity FILE`), or unset it to go by the other budgets.",
    )


def text(capacities: CapacityFile) -> str:
    """The file's text."""
    return json.dumps(capacities.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def with_device(capacities: CapacityFile, address: str, measured: Measurement) -> CapacityFile:
    """The file with this for the device, in place of what it said of it before.

    Raises:
        ValueError: the address is none.
    """
    devices = {**capacities.devices, address: measured}
    return CapacityFile.model_validate({"devices": devices, "cpus": capacities.cpus})


def with_cpus(capacities: CapacityFile, measured: OfCpus) -> CapacityFile:
    """The file with this for the CPUs, in place of what it said of them before."""
    return capacities.model_copy(update={"cpus": measured})


def _source(path: str | None, found: Measurement) -> str:
    number = f"{'at least ' if found.at_least else ''}{found.streams} × {found.workload}"
    doubt = "" if found.confirmed else ", not confirmed"
    return f"{path}, measured {found.measured}: {number}{doubt}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a name come twice and the last one win; here nobody shall guess."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is there twice")
    return dict(pairs)


def _field(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place if part != "[key]")


def _rule(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "it should")
