"""Where a job belongs: the queue of the ability that it needs, the queues that a machine's abilities serve.

A queue is named after what its workers can do: hw.h264, hw.hevc, hw.hevc10 (10 bit), hw.av1 and hw.vp9 on a device,
software on the CPUs. On the broker the name has the schema of the specs before it, so that an older worker never sees
a newer job; people read the short one.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from transcoder.machine import SOFTWARE, Machine
from transcoder.spec import SCHEMA, JobSpec, Video

Serves: TypeAlias = Literal["hardware", "software", "both"]

HARDWARE: Final = ("hw.av1", "hw.vp9", "hw.hevc10", "hw.hevc", "hw.h264")
"""The queues of hardware, the rarest ability first."""

QUEUES: Final = (*HARDWARE, SOFTWARE)
"""Every queue of one schema, in the order in which a free place looks at jobs of one priority."""

_SCHEMA = "transcode.schema"


def queue_name(queue: str, schema: int = SCHEMA) -> str:
    """The queue's name on the broker."""
    return f"{_SCHEMA}{schema}.{queue}"


def short(name: str) -> str:
    """A queue's name for people, from its name on the broker."""
    schema, _, queue = name.removeprefix(_SCHEMA).partition(".")
    return queue if schema == str(SCHEMA) else f"{queue} (schema {schema})"


def needs(spec: JobSpec) -> str:
    """The hardware queue that can do the whole job, by the rarest of its codecs; software where it needs no device.

    How deep a source is that keeps its depth, nobody knows yet: it counts as 8 bit.
    """
    wanted = {
        _queue(output.video.codec, _depth(output.video))
        for output in spec.outputs
        if output.video and output.video.codec != "copy"
    }
    if spec.acceleration.policy == "never":
        return SOFTWARE
    return next((queue for queue in HARDWARE if queue in wanted), SOFTWARE)


def onward(spec: JobSpec) -> tuple[str, ...]:
    """The hardware queues where another worker may do what this one could not, best first."""
    first = needs(spec)
    if first == SOFTWARE:
        return ()
    # the source may have turned out to be deep
    return ("hw.hevc10", "hw.hevc") if first == "hw.hevc" else (first,)


def abilities(machine: Machine) -> tuple[str, ...]:
    """The hardware queues whose ability a trial proved, the rarest first."""
    proved = {
        _queue(able.codec, able.depth)
        for able in machine.abilities
        if able.does == "encode" and able.api != SOFTWARE and able.device is not None
    }
    return tuple(queue for queue in HARDWARE if queue in proved)


def served(machine: Machine, serves: Serves) -> tuple[str, ...]:
    """The queues that a worker on this machine consumes, those of hardware first."""
    hardware = () if serves == "software" else abilities(machine)
    return hardware if serves == "hardware" else (*hardware, SOFTWARE)


def codec_of(queue: str) -> str:
    """The codec of a hardware queue."""
    return queue.removeprefix("hw.").removesuffix("10")


def _depth(video: Video) -> int:
    return video.depth or 8


def _queue(codec: str, depth: int) -> str:
    return "hw.hevc10" if codec == "hevc" and depth == 10 else f"hw.{codec}"
