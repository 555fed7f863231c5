"""Run trials, many at a time, and look at what they made: an exit code proves nothing, the trials' picture does.

What a trial makes lies in memory (memfd_create), where even a killed survey leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from statistics import StatisticsError, correlation, fmean

from transcoder.children import Ended, run
from transcoder.faults import FaultClass, classify
from transcoder.machine import MADE, SAMPLE, SOFTWARE, TRIAL_PICTURE, Ability, Trial

SIDE = 16
FRAME = SIDE * SIDE * 3
"""Bytes of a thumbnail: RGB."""
PICTURES = 3
TOLERANCE = 4.0
"""Mean difference of a thumbnail's samples from the trial's picture, of 255. Honest encoders stay below 1."""
LIKENESS = 0.6
"""Least correlation of brightness where the colours are meant to change: tone mapping."""

_WORTH_A_PROCESS = 4
"""Files whose decoding takes as long as the start of an ffmpeg."""

_QUIET = ("-hide_banner", "-nostdin", "-nostats", "-y", "-v", "level+error")
_PASSING = frozenset(
    {
        FaultClass.TRANSIENT,
        FaultClass.STALLED,
        FaultClass.CRASHED,
        FaultClass.HARDWARE,
        FaultClass.CONFIG,
        FaultClass.OUTPUT,
        FaultClass.MISMATCH,
    }
)
"""What may be otherwise the next time, because a GPU was reset or a neighbour has left."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial showed: its ability, if `kind` is None; else the class of what went wrong, and `why` in words."""

    ability: Ability
    kind: FaultClass | None = None
    why: str = ""

    @property
    def lasts(self) -> bool:
        """Whether it is worth remembering: a success, and a refusal that only another driver would take back."""
        return self.kind not in _PASSING


class Proving:
    """Runs trials of one ffmpeg, `workers` at a time, each for `limit` seconds at most; a context manager.

    What proven software encoders made is kept for the trials of decoders that follow.
    """

    def __init__(self, program: str, limit: float, workers: int) -> None:
        self._program, self._limit, self._workers = program, limit, workers
        self._hung: set[tuple[object, ...]] = set()
        self._samples: dict[tuple[str, int], int] = {}
        self._kept = ExitStack()
        self.pool = ThreadPoolExecutor(workers, "proving")

    def __enter__(self) -> Proving:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self._kept.close()

    def has(self, sample: tuple[str, int] | None) -> bool:
        """Whether there is a file of that codec and depth to decode; trials without a sample need none."""
        return sample is None or sample in self._samples

    def verdicts(self, trials: Sequence[Trial]) -> tuple[Verdict, ...]:
        """What each showed, in their order. What failed for want of room is tried once more, alone."""
        with ExitStack() as files:
            made = [_memory(files) for _ in trials]
            found = list(self.pool.map(self._tried, trials, made))
            for place, verdict in enumerate(found):
                if verdict and verdict.kind is FaultClass.TRANSIENT:
                    found[place] = self._tried(trials[place], made[place])
            found = self._judged(trials, made, found)
            for trial, file, verdict in zip(trials, made, found, strict=True):
                self._keep(trial.ability, file, verdict)
        return tuple(verdict for verdict in found if verdict)

    def _keep(self, able: Ability, file: int, verdict: Verdict | None) -> None:
        if able.api == SOFTWARE and able.does == "encode" and verdict and verdict.kind is None:
            kept = os.dup(file)
            self._kept.callback(os.close, kept)
            self._samples.setdefault((able.codec, able.depth), kept)

    def _tried(self, trial: Trial, made: int) -> Verdict | None:
        """None where the picture has to be looked at."""
        able = trial.ability
        kind = (able.api, able.device, able.does, able.codec, able.depth)
        if kind in self._hung:
            return Verdict(able, FaultClass.STALLED, "not tried: a trial like it hung")
        if not self.has(trial.sample):
            return Verdict(able, FaultClass.CONFIG, "software has made no file to decode")
        files = {MADE: made} | ({SAMPLE: self._samples[trial.sample]} if trial.sample else {})
        try:
            ended = self._ffmpeg(_words(trial, files), [*files.values()])
        except OSError as failed:
            return Verdict(able, FaultClass.TRANSIENT, f"no process could be started: {failed.strerror}")
        if ended.returncode is None:
            self._hung.add(kind)
        return self._fault(able, ended, made)

    def _fault(self, able: Ability, ended: Ended, made: int) -> Verdict | None:
        if ended.returncode is None:
            return Verdict(able, FaultClass.STALLED, f"it hung, and was killed after {self._limit:g} s")
        if ended.returncode:
            return Verdict(able, *classify(ended.returncode, ended.lines))
        if not os.fstat(made).st_size:
            return Verdict(able, FaultClass.MISMATCH, "ffmpeg said success and wrote nothing")
        return None

    def _judged(
        self, trials: Sequence[Trial], made: Sequence[int], found: Sequence[Verdict | None]
    ) -> list[Verdict | None]:
        """The same with the verdicts that were open: many files to a process, as many processes as CPUs."""
        open_ones = [place for place, verdict in enumerate(found) if verdict is None]
        processes = min(self._workers, ceil(len(open_ones) / _WORTH_A_PROCESS))
        shares = [open_ones[start::processes] for start in range(processes)]
        shown: dict[int, _Shown] = {}
        for several in self.pool.map(lambda share: self._shown({place: made[place] for place in share}), shares):
            shown |= several
        return [verdict or shown[place].verdict(trials[place].ability) for place, verdict in enumerate(found)]

    def _shown(self, files: Mapping[int, int]) -> dict[int, _Shown]:
        """The files' pictures by place. Where one file ends the process, each has a process to itself."""
        with ExitStack() as memory:
            thumbnails = [_memory(memory) for _ in range(len(files) + 1)]
            try:
                ended = self._ffmpeg(_decoding([*files.values()], thumbnails), [*files.values(), *thumbnails])
            except OSError as failed:
                ended = Ended(1, b"", f"[error] {failed.strerror}".encode())
            if ended.returncode == 0:
                reference, *pictures = map(_content, thumbnails)
                return {place: _Shown(reference, one) for place, one in zip(files, pictures, strict=True)}
        if len(files) == 1:
            _, why = classify(1 if ended.returncode is None else ended.returncode, ended.lines)
            return dict.fromkeys(files, _Shown(b"", b"", f"what it made cannot be read: {why}"))
        return {place: one for alone in files.items() for place, one in self._shown(dict((alone,))).items()}

    def _ffmpeg(self, words: Sequence[str], files: Sequence[int]) -> Ended:
        return run((self._program, *_QUIET, *words), self._limit, files)


@dataclass(frozen=True, slots=True)
class _Shown:
    reference: bytes
    pictures: bytes
    trouble: str = ""

    def verdict(self, able: Ability) -> Verdict:
        recoloured = able.does == "filter" and able.codec == "tonemap"
        why = self.trouble or unlike(self.pictures, self.reference, recoloured=recoloured)
        return Verdict(able, FaultClass.MISMATCH, why) if why else Verdict(able)


def unlike(pictures: bytes, reference: bytes, *, recoloured: bool = False) -> str | None:
    """What is wrong with thumbnails (FRAME bytes each) that shall show the reference's; None where all is well.

    Where they are `recoloured` on purpose, only light and shade count.
    """
    number, wanted = len(pictures) // FRAME, len(reference) // FRAME
    if wanted < PICTURES:
        return "ffmpeg cannot make the picture that it would be compared with"
    if number < wanted:
        return f"it made {number} of {wanted} pictures, and said success"
    pairs = [(pictures[at : at + FRAME], reference[at : at + FRAME]) for at in range(0, wanted * FRAME, FRAME)]
    if any(_plain(made) for made, _ in pairs):
        return "its pictures are empty: one colour, nothing in them"
    if recoloured:
        least = min(_likeness(*pair) for pair in pairs)
        return None if least >= LIKENESS else f"its pictures show something else (likeness {least:.2f})"
    worst = max(_difference(*pair) for pair in pairs)
    return None if worst <= TOLERANCE else f"its pictures are not those that it was given (off by {worst:.0f} of 255)"


def _difference(made: bytes, wanted: bytes) -> float:
    return sum(abs(one - other) for one, other in zip(made, wanted, strict=True)) / FRAME


def _plain(picture: bytes) -> bool:
    """Every channel is one value, nearly."""
    return all(max(picture[at::3]) - min(picture[at::3]) < 2 * TOLERANCE for at in range(3))


def _likeness(made: bytes, wanted: bytes) -> float:
    try:
        return correlation(_brightness(made), _brightness(wanted))
    except StatisticsError:  # one of them is flat
        return 0.0


def _brightness(picture: bytes) -> list[float]:
    return [fmean(picture[at : at + 3]) for at in range(0, FRAME, 3)]


def _words(trial: Trial, files: Mapping[str, int]) -> tuple[str, ...]:
    text = "\0".join(trial.words)
    for name, descriptor in files.items():
        text = text.replace(name, _path(descriptor))
    return tuple(text.split("\0"))


def _decoding(files: Sequence[int], thumbnails: Sequence[int]) -> list[str]:
    """One process that makes thumbnails of the trials' picture itself and of every file."""
    small = f"scale={SIDE}:{SIDE}:flags=area,format=rgb24"
    words = [*TRIAL_PICTURE]
    for file in files:
        words += ["-threads", "1", "-i", _path(file)]
    for number, file in enumerate(thumbnails):
        words += ["-map", f"{number}:v:0", "-vf", small, "-fps_mode", "passthrough", "-frames:v", str(4 * PICTURES)]
        words += ["-f", "rawvideo", _path(file)]
    return words


def _memory(files: ExitStack) -> int:
    descriptor = os.memfd_create("trial")
    files.callback(os.close, descriptor)
    return descriptor


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, 4 * PICTURES * FRAME, 0)
