"""What this machine can make: ffmpeg's build, the devices, and every ability that a trial proved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

SOFTWARE = "software"

SAMPLE, MADE = "{sample}", "{made}"
"""Words of a trial that stand for the file that it reads and the one that it writes."""

TRIAL_PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=256x256:r=30:d=0.1")
"""What every trial encodes: three frames. Some hardware refuses pictures below 128 or 256 pixels."""

Does: TypeAlias = Literal["encode", "decode", "filter"]


@dataclass(frozen=True, slots=True)
class Build:
    """An ffmpeg: its version as printed and as numbers, and the encoders and filters compiled in."""

    version: str
    numbers: tuple[int, ...]
    encoders: frozenset[str]
    filters: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Entry:
    """What a VA driver lists: an entrypoint of a profile, named as in va.h without prefixes: H264High, EncSliceLP.

    `modes` are its rate controls (CQP, VBR …), empty where it has none; `width` and `height` its largest picture in
    pixels, 0 where it does not say.
    """

    profile: str
    entrypoint: str
    modes: frozenset[str] = frozenset()
    width: int = 0
    height: int = 0


VA_PROFILES: dict[tuple[str, int], frozenset[str]] = {
    ("h264", 8): frozenset({"H264ConstrainedBaseline", "H264Main", "H264High"}),
    ("hevc", 8): frozenset({"HEVCMain"}),
    ("hevc", 10): frozenset({"HEVCMain10"}),
    ("av1", 8): frozenset({"AV1Profile0"}),
    ("av1", 10): frozenset({"AV1Profile0"}),
    ("vp9", 8): frozenset({"VP9Profile0"}),
    ("vp9", 10): frozenset({"VP9Profile2"}),
    ("filter", 8): frozenset({"None"}),
    ("filter", 10): frozenset({"None"}),
}
"""The profiles of va.h that carry a codec at a depth, in 4:2:0; filters have the profile None."""

CODECS = tuple(coded for coded in VA_PROFILES if coded[0] != "filter")
"""(codec, depth) that devices know."""


TroubleKind: TypeAlias = Literal[
    "unmapped", "group", "mode", "folder mode", "cgroup", "unbound", "gone", "folder", "unopened", "no driver", "driver"
]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a render node cannot be used: `what` is wrong, and the line or the step that would `mend` it."""

    kind: TroubleKind
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


@dataclass(frozen=True, slots=True)
class Node:
    """What the file system says of a render node: the number and the name of its group, its mode, its lasting link.

    `product` is the PCI device (0x9a49). Each is None where it is not known.
    """

    group: int | None = None
    group_name: str | None = None
    mode: int | None = None
    by_path: str | None = None
    product: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A render node. Its `id` is its PCI address, or major:minor where it has none: node numbers change at boot.

    `vendor` is the PCI vendor (0x8086), `driver` the kernel's driver (i915), `va_driver` what the VA driver calls
    itself. `entries` is what that lists, None where it could not be asked. `trouble` says why the node cannot be used,
    and what would mend it.
    """

    id: str
    node: str
    vendor: str | None = None
    driver: str | None = None
    va_driver: str | None = None
    entries: tuple[Entry, ...] | None = None
    trouble: Trouble | None = None

    def listed(self, codec: str, depth: int, *entrypoints: str) -> tuple[Entry, ...]:
        """What the driver lists for a codec (a filter's is "filter") at a depth under one of these entrypoints."""
        profiles = VA_PROFILES.get((codec, depth), frozenset())
        return tuple(one for one in self.entries or () if one.profile in profiles and one.entrypoint in entrypoints)

    def may(self, codec: str, depth: int, *entrypoints: str) -> bool:
        """Whether it is worth a trial: the driver lists it, or could not be asked."""
        return self.entries is None or bool(self.listed(codec, depth, *entrypoints))


@dataclass(frozen=True, slots=True)
class Ability:
    """What `api` did in a trial on `device` (its id, None for the CPU).

    To encode: `encoder` made `codec` with `depth` bits a sample under the rate control `mode` (None where the trial
    names none), with the fixed-function encoder if `low_power`. To decode: `codec` and `depth`. To filter: `codec`
    is the work (scale, deinterlace, tonemap).
    """

    api: str
    codec: str
    depth: int
    encoder: str = ""
    device: str | None = None
    does: Does = "encode"
    mode: str | None = None
    low_power: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """A run of a few frames that proves an ability.

    `words` follow ffmpeg's name, with MADE for the file to write and SAMPLE for the one to read: what the software
    trial of the codec and depth in `sample` has made. The proof is that it shows the trials' picture.
    """

    ability: Ability
    words: tuple[str, ...]
    sample: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A trial that proved nothing, and why, in ffmpeg's words."""

    ability: Ability
    why: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan may count on. `threads` is how many CPUs an encoder may use; `refusals` are for people."""

    build: Build
    abilities: frozenset[Ability]
    threads: int
    devices: tuple[Device, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def can(self, api: str, codec: str, depth: int, device: str | None = None, does: Does = "encode") -> Ability | None:
        """A proven ability, or None. Where there are several, the programmable encoder before the low-power one."""
        return min(self.proven(api, codec, depth, device, does), key=_order, default=None)

    def proven(
        self, api: str, codec: str, depth: int, device: str | None = None, does: Does = "encode"
    ) -> tuple[Ability, ...]:
        """All abilities of that kind, on that device."""
        wanted = (api, codec, depth, device, does)
        found = [one for one in self.abilities if (one.api, one.codec, one.depth, one.device, one.does) == wanted]
        return tuple(sorted(found, key=_order))

    def served_by(self, device: str | None) -> Machine:
        """The same machine with that device only (none at all for None), found by its id or its node."""
        chosen = tuple(one for one in self.devices if device in (one.id, one.node))
        kept = {None, *(one.id for one in chosen)}
        return replace(
            self,
            devices=chosen,
            abilities=frozenset(able for able in self.abilities if able.device in kept),
            refusals=tuple(one for one in self.refusals if one.ability.device in kept),
        )

    def without(self, device: str, codecs: frozenset[str]) -> Machine:
        """The same machine that encodes these codecs on that device no more."""
        lost = frozenset(
            able for able in self.abilities if able.device == device and able.does == "encode" and able.codec in codecs
        )
        return replace(self, abilities=self.abilities - lost)

    def decoding_in_software(self) -> Machine:
        """The same machine that decodes nothing on a device: hostile files stay away from the kernel's GPU driver."""
        return replace(self, abilities=frozenset(able for able in self.abilities if able.does != "decode"))

    def device(self, name: str | None) -> Device | None:
        """The device with that id or node."""
        return next((one for one in self.devices if name in (one.id, one.node)), None)

    @property
    def apis(self) -> frozenset[str]:
        """The APIs with at least one proven encoder."""
        return frozenset(able.api for able in self.abilities if able.does == "encode")


def _order(able: Ability) -> tuple[bool, str, str]:
    return able.low_power, able.encoder, able.mode or ""
