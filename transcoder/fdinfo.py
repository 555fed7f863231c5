"""What the GPUs count for a process: its descriptors of render nodes, as /proc shows them to the process's own user."""

from __future__ import annotations

import os
from collections.abc import Iterable

from transcoder.usage import Client, parse

_LONGEST = 65536
"""Bytes read of one fdinfo file, which has about two thousand."""


def clients(proc: str, processes: Iterable[int]) -> list[Client]:
    """The open devices of these processes; none where they cannot be read, as after the end of a process.

    `proc` is /proc, or a folder in its shape that stands in for it.
    """
    return [
        client for process in processes for text in _texts(os.path.join(proc, str(process))) if (client := parse(text))
    ]


def _texts(folder: str) -> list[str]:
    """The fdinfo of every descriptor that is a path: pipes, sockets and event counters are none."""
    texts = []
    try:
        names = os.listdir(f"{folder}/fd")
    except OSError:
        return []
    for name in names:
        try:
            if os.readlink(f"{folder}/fd/{name}").startswith("/"):
                with open(f"{folder}/fdinfo/{name}", "rb") as file:
                    texts.append(file.read(_LONGEST).decode("utf-8", "replace"))
        except OSError:  # closed meanwhile
            continue
    return texts
