"""The Compose overlay for the GPUs of a host, as text with comments where a human must choose.

It belongs beside the project's compose/compose.yaml, whose service `worker` it takes up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from textwrap import indent
from typing import Literal, TypeAlias

from transcoder.machine import Device, Node

Topology: TypeAlias = Literal["shared", "per-gpu", "per-stack"]
Api: TypeAlias = Literal["vaapi", "qsv"]

INTEL, AMD = "0x8086", "0x1002"
MAKERS = {INTEL: "Intel", AMD: "AMD", "0x10de": "NVIDIA"}
NOBODY = 65534
_ABSENT = ("unmapped", "unbound", "gone", "folder")
_GIGABYTES, _LEAST = 2, 4
"""Of memory for each stack, and for a container with several, as the files in compose/ have it."""

Seen: TypeAlias = tuple[Device, Node]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the overlay shall be: `stacks` is how many jobs run on each GPU at a time, `file` what it will be called."""

    topology: Topology = "per-gpu"
    stacks: int = 1
    api: Api = "vaapi"
    version: str = "0"
    file: str = "compose.gpus.yaml"


def chosen(seen: Sequence[Seen], api: Api) -> tuple[tuple[Seen, ...], tuple[str, ...]]:
    """The GPUs that a container can use by that API, and a sentence for each of the others."""
    reasons = [(one, _unsuited(one[0], api)) for one in seen]
    fit = tuple(one for one, reason in reasons if reason is None)
    return fit, tuple(f"{one[0].node} ({one[0].id}) is left out: {reason}" for one, reason in reasons if reason)


def _unsuited(device: Device, api: Api) -> str | None:
    if device.trouble and device.trouble.kind in _ABSENT:
        return str(device.trouble)
    if device.vendor not in (INTEL, AMD, None):
        return f"{_maker(device)} has no VA driver that encodes"
    if api == "qsv" and device.vendor == AMD:
        return "QSV is Intel's; --api vaapi takes it"
    return None


def overlay(fit: Sequence[Seen], left_out: Sequence[str], asked: Asked) -> str:
    """The text of the file, for at least one GPU."""
    services = {"shared": _shared, "per-gpu": _per_gpu, "per-stack": _per_stack}[asked.topology](fit, asked)
    return "\n".join([*_head(asked, left_out), "services:", *("\n".join(_indented(one)) + "\n" for one in services)])


def _indented(lines: Sequence[str]) -> list[str]:
    return [indent(line, "  ") for line in lines]


_TITLES = {
    "shared": "One container with a GPU and {jobs} at a time, which takes software jobs, too.",
    "per-gpu": "A container for each GPU with {jobs} at a time; it sees no other GPU.",
    "per-stack": "A container for each stack, which is one job at a time: {stacks} on each GPU, which they share.",
}


def _head(asked: Asked, left_out: Sequence[str]) -> Iterator[str]:
    jobs = "1 job" if asked.stacks == 1 else f"{asked.stacks} jobs"
    yield f"# {_TITLES[asked.topology].format(jobs=jobs, stacks=asked.stacks)}"
    yield f"# By {asked.api.upper()}; written by transcoder {asked.version}. In the folder of compose.yaml:"
    yield "#"
    yield f"#   docker compose -f compose.yaml -f {asked.file} up --detach"
    yield "#"
    yield f"# or, for every command to come, COMPOSE_FILE=compose.yaml:{asked.file} in .env."
    yield "# Nodes are numbered at boot and groups have other numbers on other hosts: write it anew on each, and when"
    yield "# the doctor says so."
    if asked.topology != "shared":
        yield "# The worker of compose.yaml does what is left for software; to do without it, --scale worker=0."
    for sentence in left_out:
        yield "#"
        yield f"# {sentence}"


def _shared(fit: Sequence[Seen], asked: Asked) -> Iterator[list[str]]:
    first, *others = fit
    lines = [*_image(asked), *_mapped(first), *_environment(first, asked, serves=None)]
    if others:
        lines += [
            "# CHOOSE: a worker serves one GPU, and this host has more. For another one put its lines in the place of",
            "# those above; `--topology per-gpu` writes a worker for each.",
        ]
        lines += [f"#   {line.removeprefix('# ')}" for one in others for line in (*_mapped(one), *_named(one[0]))]
    yield ["worker:", *_indented([*lines, _memory(max(_LEAST, _GIGABYTES * asked.stacks))])]


def _per_gpu(fit: Sequence[Seen], asked: Asked) -> Iterator[list[str]]:
    for number, one in enumerate(fit):
        yield _of_one_gpu(number, one, asked, _memory(max(_LEAST, _GIGABYTES * asked.stacks)))


def _per_stack(fit: Sequence[Seen], asked: Asked) -> Iterator[list[str]]:
    for number, one in enumerate(fit):
        scale = f"scale: {asked.stacks} # CHOOSE: as many as keep the GPU busy"
        yield _of_one_gpu(number, one, replace(asked, stacks=1), _memory(_GIGABYTES), scale)


def _of_one_gpu(number: int, one: Seen, asked: Asked, *more: str) -> list[str]:
    lines = [
        "extends: { file: compose.yaml, service: worker }",
        *_image(asked),
        *_mapped(one),
        *_environment(one, asked, serves="hardware"),
        *more,
    ]
    return [f"worker-gpu{number}:", *_indented(lines)]


def _image(asked: Asked) -> list[str]:
    return [f'image: "${{IMAGE:-transcoder:{asked.version}}}-{asked.api}"', f"build: {{ target: {asked.api} }}"]


def _mapped(one: Seen) -> list[str]:
    device, node = one
    known = (device.id, _maker(device), node.product, device.driver, node.by_path)
    inside = f"/dev/dri/{device.node.rpartition('/')[2]}"
    return [f"# {', '.join(filter(None, known))}", f'devices: ["{device.node}:{inside}"]', *_group(device, node)]


def _group(device: Device, node: Node) -> list[str]:
    if node.group is None:
        return [f"# CHOOSE: the number that `stat -c %g {device.node}` says on the host.", f'group_add: ["{NOBODY}"]']
    name = f" # {node.group_name} on this host" if node.group_name else ""
    if node.group == NOBODY:
        return [
            "# CHOOSE: its group has no number in this user namespace, and no group_add helps. Let a rule of udev give",
            "# the node MODE=0666 on the host; with Podman and crun, --group-add keep-groups.",
        ]
    lines = [f'group_add: ["{node.group}"]{name}']
    if node.mode is not None and node.mode & 0o060 != 0o060:
        why = f"# CHOOSE: its mode is {node.mode:04o}, which shuts the group out: chmod g+rw it, by a rule of udev."
        lines.insert(0, why)
    return lines


def _environment(one: Seen, asked: Asked, serves: str | None) -> list[str]:
    device, _ = one
    lines = ["environment:", *_indented(_named(device))]
    if serves:
        lines.append(f"  TRANSCODER_SERVES: {serves} # CHOOSE: `both` takes software jobs, too")
    return [*lines, f'  TRANSCODER_CONCURRENCY: "{asked.stacks}" # jobs at a time']


def _named(device: Device) -> list[str]:
    if "." not in device.id:  # it has no PCI address, which would stay: a node's number does not
        return []
    return [f'TRANSCODER_DEVICE: "{device.id}" # so that no other GPU is used, should the node lead to it']


def _memory(gigabytes: int) -> str:
    return f'mem_limit: "${{WORKER_MEMORY:-{gigabytes}g}}"'


def _maker(device: Device) -> str:
    return MAKERS.get(device.vendor or "", device.vendor or "a GPU")
