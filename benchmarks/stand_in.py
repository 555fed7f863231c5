"""Programs in the place of ffmpeg and ffprobe, so that what is left of a job's time is ours.

They are shell scripts: nothing has to be compiled, and dash starts in a millisecond. What they print was printed by
the real programs in a real job, so that every check of ours has its real work.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from benchmarks.stand import Alone, Stand
from transcoder.command import Command
from transcoder.events import Event, Planned, Published
from transcoder.job import transcode
from transcoder.manifest import Attempt
from transcoder.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Recording:
    """One real job: the file it made, and in `folder` what each program said on the way."""

    folder: Path
    finished: Path
    command: Command
    published: Published

    def said(self, name: str) -> str:
        """`encode.out`, `encode.err`, `decode.out`, `decode.err`, `source.out` or `finished.out`."""
        return (self.folder / name).read_text()


def record(stand: Stand, spec: JobSpec, folder: Path) -> Recording:
    """Run a job for real and keep what ffmpeg and ffprobe say."""
    folder.mkdir(parents=True, exist_ok=True)
    policy = replace(
        stand.policy,
        ffmpeg=_recorder(folder / "ffmpeg", _real("ffmpeg"), "case $last in -) kind=decode ;; *) kind=encode ;; esac"),
        ffprobe=_recorder(
            folder / "ffprobe", _real("ffprobe"), 'case "$*" in *packet=*) kind=finished ;; *) kind=source ;; esac'
        ),
    )
    commands: list[Command] = []

    def emit(event: Event) -> None:
        if isinstance(event, Planned):
            commands.append(event.commands[0])

    published = transcode(spec, Attempt(folder.name), stand.machine, policy, emit, Alone())
    return Recording(folder, Path(published.outputs[0].path), commands[0], published)


def slow_ffmpeg(recording: Recording, path: Path, seconds: float) -> str:
    """Encodes by copying the finished file after `seconds`; any other command is the real one's."""
    return _script(
        path,
        _LAST,
        "case $last in",
        "file:*) ;;",
        f'*) exec {_real("ffmpeg")} "$@" ;;',
        "esac",
        *_encoding(recording, f"sleep {seconds:g}"),
    )


def fast_ffmpeg(recording: Recording, path: Path) -> str:
    """Encodes by copying without a pause, and says of the decode check what the real one said."""
    return _script(
        path,
        _LAST,
        'case "$last $*" in',
        f'*lavfi*) exec {_real("ffmpeg")} "$@" ;;',  # the survey's trials
        "file:*)",
        *_encoding(recording, ":"),
        ";;",
        '"- "*)',
        f"printf %s {quote(recording.said('decode.out'))}",
        f"printf %s {quote(recording.said('decode.err'))} >&2",
        ";;",
        f'*) exec {_real("ffmpeg")} "$@" ;;',
        "esac",
    )


def fast_ffprobe(recording: Recording, path: Path) -> str:
    """Answers with what the real one said of the source and of the finished file.

    Not with `exec cat`: cat closes its output before it ends, which ffprobe does not.
    """
    return _script(
        path,
        'case "$*" in',
        f"*packet=*) cat {quote(str(recording.folder / 'finished.out'))} ;;",
        f"*) cat {quote(str(recording.folder / 'source.out'))} ;;",
        "esac",
    )


_LAST = "for last; do :; done"


def _encoding(recording: Recording, pause: str) -> list[str]:
    return [
        f"printf %s {quote(recording.said('encode.out'))}",
        pause,
        f'cp {quote(str(recording.finished))} "${{last#file:}}"',
        f"printf %s {quote(recording.said('encode.err'))} >&2",
    ]


def _recorder(path: Path, real: str, kind: str) -> str:
    out, err = f"{quote(str(path.parent))}/$kind.out", f"{quote(str(path.parent))}/$kind.err"
    return _script(
        path, _LAST, kind, f'{real} "$@" >{out} 2>{err}', "code=$?", f"cat {out}", f"cat {err} >&2", "exit $code"
    )


def _script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return str(path)


def _real(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"{program} is not installed")
    return quote(found)
