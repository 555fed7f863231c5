"""The command `transcoder`: its errors become messages and exit codes here, and nowhere else."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from transcoder import signals
from transcoder.errors import TranscoderError

INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports of a program that SIGPIPE ended."""
_LINES_SHOWN = 8


def main() -> int:
    """Run the verb that the command line names; returns the exit code."""
    words = sys.argv[1:]
    try:
        try:
            return _verb(words)
        except TranscoderError as error:
            _report(error, as_json="--json" in words)
            return error.exit_code
        finally:
            _flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _write_nowhere(sys.stdout)
        return READER_GONE


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as gone:
            if gone.errno != errno.EIO:
                raise
            _write_nowhere(stream)  # the terminal was closed, which is nobody's failure


def _write_nowhere(stream: TextIO) -> None:
    """Python flushes once more on its way out, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _verb(words: Sequence[str]) -> int:
    if words[:1] == ["worker"]:
        # until Celery listens, which takes a second: it holds no job yet and has nothing to wait for
        signals.on_end(lambda *_: sys.exit(0))
        # where every thread is, on stderr: a worker that stands still is asked before it is killed
        faulthandler.register(signal.SIGUSR1)
        # past typer and rich, which would make up a quarter of a worker's start
        from transcoder.worker import main as work

        return work(words[1:])
    from transcoder.cli import app

    app(words, prog_name="transcoder")
    return 0


def _report(error: TranscoderError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.as_record()}, indent=2, default=str))
    lines = [f"error: {error.what}", *([f"  {error.next_step}"] if error.next_step else []), *_evidence(error)]
    print("\n".join(lines), file=sys.stderr)


def _evidence(error: TranscoderError) -> list[str]:
    """The failed command, to be repeated by pasting, and ffmpeg's last words."""
    argv, said = error.evidence.get("argv"), error.evidence.get("stderr")
    command = [f"  command: {shlex.join(argv)}"] if isinstance(argv, list | tuple) and argv else []
    # of a run that ended well they tell nothing of why its output was refused
    ended_well = error.evidence.get("returncode") == 0
    told = said[-_LINES_SHOWN:] if isinstance(said, list | tuple) and not ended_well else ()
    words = [f"  ffmpeg: {line}" for line in told]
    return [*command, *words]


if __name__ == "__main__":
    sys.exit(main())
