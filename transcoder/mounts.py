"""Whether the media roots are there: a worker whose media are not mounted would fail every job within milliseconds.

Each look has a thread of its own, since a question to dead storage is answered late or never: neither the heart nor the
start of the worker waits for it longer than it wants to.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread

from transcoder import log
from transcoder.errors import SettingsError

PERIOD = 1.0
"""Seconds between two looks."""

SILENCE = 5.0
"""Seconds without an answer after which a root counts as gone."""

_NEXT = "Mount it or make the folder, let this user read it, or correct TRANSCODER_MEDIA_ROOTS."


class Mounts:
    """Looks at the media roots every second; `changed` is called when they are gone, and when they are back.

    What is a mount point at the first look stays one: an empty folder below a mount that is gone is not the media.
    """

    def __init__(self, roots: Sequence[str], changed: Callable[[], None] = lambda: None) -> None:
        self._roots = roots
        self._changed = changed
        self._one_at_a_time = Lock()
        self._over = Event()
        self._mounted: set[str] = set()
        self._looker: Thread | None = None
        self._at = ""
        self._found: str | None = None
        self._trouble: str | None = None

    def start(self) -> None:
        """Look, and go on looking in a thread.

        Raises:
            SettingsError: a root is not there, cannot be read, or does not answer.
        """
        self._trouble = self._answer()
        if self._trouble:
            raise SettingsError(self._trouble, _NEXT)
        Thread(target=self._live, name="mounts", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def trouble(self) -> str | None:
        """What was wrong with a root at the last look; None where all are there. Costs nothing."""
        return self._trouble

    def look(self) -> str | None:
        """Look now, for SILENCE at most. Gives what is wrong."""
        with self._one_at_a_time:
            before, self._trouble = self._trouble, self._answer()
            if (before is None) != (self._trouble is None):
                self._tell()
            return self._trouble

    def _live(self) -> None:
        while not self._over.wait(PERIOD):
            self.look()

    def _tell(self) -> None:
        if self._trouble:
            told = f"{self._trouble}: no queue is served until it is back"
            log.write("media_gone", told, level=logging.WARNING, why=self._trouble)
        else:
            log.write("media_back", "the media roots are there again")
        self._changed()

    def _answer(self) -> str | None:
        """What a look finds. One that hangs is waited for again the next time: none is added to it."""
        if self._looker is None or not self._looker.is_alive():
            self._looker = Thread(target=self._ask, name="look at the media roots", daemon=True)
            self._looker.start()
        self._looker.join(SILENCE)
        if self._looker.is_alive():
            return f"the media root {self._at!r} does not answer within {SILENCE:g} s"
        return self._found

    def _ask(self) -> None:
        found = None
        for root in self._roots:
            self._at = root
            found = found or self._missing(root)
        self._found = found

    def _missing(self, root: str) -> str | None:
        try:
            # opened and not only asked for: an NFS client may answer the question from its memory
            os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY))
            os.stat(os.path.join(root, "."))  # what is in a folder is only reached with the right to search it
            is_mount = os.path.ismount(os.path.realpath(root))
        except OSError as refused:
            return f"the media root {root!r} cannot be used: {refused.strerror}"
        if is_mount:
            self._mounted.add(root)
        elif root in self._mounted:
            return f"nothing is mounted at the media root {root!r} any more"
        return None
