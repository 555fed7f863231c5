"""What this machine can make: ffmpeg's build and every ability that a trial proved."""

from __future__ import annotations

from dataclasses import dataclass

SOFTWARE = "software"


@dataclass(frozen=True, slots=True)
class Build:
    """An ffmpeg: its version as printed and as numbers, and the encoders compiled in."""

    version: str
    numbers: tuple[int, ...]
    encoders: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ability:
    """`encoder` made `codec` with `depth` bits a sample on `device` (None for the CPU), by a trial."""

    api: str
    codec: str
    depth: int
    encoder: str
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A one-frame encode that proves an ability. `words` follow ffmpeg's name; exit code 0 is the proof."""

    ability: Ability
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan may count on. `threads` is how many CPUs an encoder may use."""

    build: Build
    abilities: frozenset[Ability]
    threads: int

    def can(self, api: str, codec: str, depth: int) -> Ability | None:
        """The proven ability, or None."""
        found = [able for able in self.abilities if (able.api, able.codec, able.depth) == (api, codec, depth)]
        return min(found, key=lambda able: (able.device or "", able.encoder), default=None)

    @property
    def apis(self) -> frozenset[str]:
        """The APIs with at least one proven ability."""
        return frozenset(able.api for able in self.abilities)
