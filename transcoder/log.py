"""Log lines: one of JSON for each event, with the job's id; readable text on a terminal.

Celery's and kombu's own lines go through the same formatters, and no line shows a password.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, assert_never

from transcoder.errors import JobCancelled
from transcoder.events import (
    Advanced,
    Emit,
    Event,
    Failed,
    FellBack,
    HandedOn,
    Lost,
    Planned,
    Probing,
    Published,
    Publishing,
    PutOff,
    Started,
    Verifying,
)

Format = Literal["auto", "json", "text"]

LOGGER = logging.getLogger("transcoder")
_PASSWORD = re.compile(r"(\w://[^\s:/@]*):\S+@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def configure(format: Format, level: str, stream: TextIO | None = None) -> None:
    """Every logger of this process writes to `stream` (stderr when left out), from `level` on.

    With Celery, call it from its signal `setup_logging`: Celery then leaves the loggers alone.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    text = format == "text" or (format == "auto" and handler.stream.isatty())
    handler.setFormatter(TextLines() if text else JsonLines())
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def listener(job_id: str) -> Emit:
    """Writes each event of a job as one line; progress only at level debug, since it comes twice a second."""

    def listen(event: Event) -> None:
        level, message, fields = _line(event)
        write(_name(event), message, level=level, job=job_id, **fields)

    return listen


def write(event: str, message: str, *, level: int = logging.INFO, job: str | None = None, **fields: object) -> None:
    """One line about an event: its name, a sentence for people, and values for machines."""
    LOGGER.log(level, "%s", message, extra={"event": event, "job": job, "fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC, milliseconds), level, event, job, the event's values, message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; a foreign record has its logger's name for an event."""
        job = getattr(record, "job", None)
        values = {
            **getattr(record, "fields", {}),
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            **({"job": job} if job else {}),
            "message": _message(record),
            **({"traceback": self.formatException(record.exc_info)} if record.exc_info else {}),
        }
        first = ("time", "level", "event", "job")
        ordered = {name: values[name] for name in (*first, *values) if name in values}
        return without_passwords(json.dumps(ordered, default=str))


class TextLines(logging.Formatter):
    """A line for people: local time, level, job or logger, sentence."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, with its traceback below."""
        who = getattr(record, "job", None) or record.name
        # a file's name may hold anything: it shall not break lines or steer the terminal
        message = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", _message(record))
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {record.levelname.lower():7} {who}  {message}"
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return without_passwords(line + trace)


def without_passwords(text: str) -> str:
    """The text with the password of every address in it struck out."""
    return _PASSWORD.sub(r"\1:**@", text)


def _message(record: logging.LogRecord) -> str:
    """What a record says. Celery breaks lines within a sentence and after it."""
    return record.getMessage() if hasattr(record, "event") else " ".join(record.getMessage().split())


def _name(event: Event) -> str:
    """FellBack is fell_back; a job that failed because it was cancelled is cancelled."""
    if isinstance(event, Failed) and isinstance(event.error, JobCancelled):
        return "cancelled"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()


def _line(event: Event) -> tuple[int, str, dict[str, Any]]:  # noqa: PLR0911, PLR0912 - one line a kind of event
    match event:
        case Probing(source):
            return logging.INFO, f"probing {source}", {"source": source}
        case Planned(_, commands, left_out):
            names = [command.route.name for command in commands]
            return logging.INFO, f"will try {', '.join(names)}", {"routes": names, "left_out": left_out}
        case Started(route):
            where = f" on {route.device}" if route.device else ""
            return logging.INFO, f"encoding with {route.name}{where}", {"route": route.name, "device": route.device}
        case Advanced(route, progress, fraction, eta):
            done = "" if fraction is None else f" {fraction:.1%}"
            values = {"fraction": fraction, "fps": progress.fps, "speed": progress.speed, "eta": eta}
            return logging.DEBUG, f"encoded{done}", {"route": route.name, **values}
        case Verifying(route):
            return logging.INFO, "verifying", {"route": route.name}
        case FellBack(route, kind, what, lost):
            told = f"{route.name} failed after {lost:.1f} s ({kind}): {what}"
            return logging.WARNING, told, {"route": route.name, "kind": str(kind), "what": what, "lost": lost}
        case Publishing(route):
            return logging.INFO, "publishing", {"route": route.name}
        case Published():
            return logging.INFO, _published(event), _result(event)
        case Failed(JobCancelled() as error):
            return logging.INFO, error.what, {}
        case PutOff(error, seconds):
            told = f"tried again in {seconds:.0f} s: {error.what}"
            return logging.WARNING, told, {"seconds": seconds, "error": error.as_record()}
        case HandedOn(queue, why):
            return logging.INFO, f"handed on to {queue}: {why}", {"queue": queue, "why": why}
        case Lost(why):
            return logging.WARNING, why, {"why": why}
        case Failed(error):
            return logging.ERROR, f"failed: {error.what}", {"error": error.as_record()}
        case _:
            assert_never(event)


def _published(event: Published) -> str:
    paths = ", ".join(output.path for output in event.outputs)
    engines = f", {event.gpu.seconds:.1f} s of GPU engines" if event.gpu else ""
    return f"published {paths} by {event.route.name} in {event.timings.total:.1f} s{engines}"


def _result(event: Published) -> dict[str, Any]:
    return {
        "route": event.route.name,
        "device": event.route.device,
        "outputs": [output.path for output in event.outputs],
        "bytes": sum(output.bytes for output in event.outputs),
        "fps": event.fps,
        "speed": event.speed,
        "timings": asdict(event.timings),
        "gpu": event.gpu.as_record() if event.gpu else None,
        "on_gpu": event.on_gpu,
        "warnings": event.warnings,
    }
