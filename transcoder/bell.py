"""A bell that wakes the event loop of this process: there is a free place, or another queue to ask.

Without Celery in it, which must not be imported by two threads at once: its modules import each other, and Python
breaks the deadlock with an error.
"""

from __future__ import annotations

import os
from typing import Final

DESCRIPTOR: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
"""Readable when the bell was rung; reading it (os.eventfd_read) makes it silent."""


def ring() -> None:
    """Wake the event loop, from any thread."""
    os.eventfd_write(DESCRIPTOR, 1)
