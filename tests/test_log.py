"""Log lines: JSON for machines, text for people, never a password."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from transcoder import log
from transcoder.command import Route
from transcoder.errors import InputMissing, JobCancelled, TargetUnwritable
from transcoder.events import (
    Advanced,
    Event,
    Failed,
    FellBack,
    HandedOn,
    Lost,
    OutputFacts,
    Planned,
    Probing,
    Published,
    Publishing,
    PutOff,
    Started,
    Timings,
    Verifying,
)
from transcoder.faults import FaultClass
from transcoder.media import Media
from transcoder.progress import Progress
from transcoder.usage import Usage

ROUTE = Route("vaapi", "vaapi", "/dev/dri/renderD128")
OUTPUT = OutputFacts("main", "/media/b.mp4", "mp4", 1000, "00", 4.0, 100, "h264", 1280, 720, 8, ("aac",), ())
EVERY: tuple[Event, ...] = (
    Probing("/media/a.mp4"),
    Planned(Media("mp4", 4.0), ()),
    Started(ROUTE),
    Advanced(ROUTE, Progress(fps=50.0), 0.5, 3.0),
    Verifying(ROUTE),
    FellBack(ROUTE, FaultClass.CONFIG, "no device", 1.25),
    Publishing(ROUTE),
    Published(ROUTE, (OUTPUT,), "/media/b.json", Timings(total=2.0)),
    Failed(InputMissing("/media/a.mp4 is not there", "Look.")),
    HandedOn("software", "the device failed"),
    Lost("it is another worker's"),
    PutOff(TargetUnwritable("the disk is full", "Make room."), 10.0),
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_kind_of_event_is_in_this_test() -> None:
    assert {type(event) for event in EVERY} == set(get_args(Event))


def test_every_event_is_one_line_of_json_with_the_job(stream: io.StringIO) -> None:
    log.configure("json", "debug", stream)
    emit = log.listener("ab12")
    for event in EVERY:
        emit(event)
    found = lines(stream)
    assert [line["event"] for line in found] == [
        "probing",
        "planned",
        "started",
        "advanced",
        "verifying",
        "fell_back",
        "publishing",
        "published",
        "failed",
        "handed_on",
        "lost",
        "put_off",
    ]
    assert {line["job"] for line in found} == {"ab12"}
    assert list(found[0])[:4] == ["time", "level", "event", "job"]
    assert found[2]["device"] == "/dev/dri/renderD128"
    assert (found[5]["level"], found[5]["kind"], found[5]["what"]) == ("warning", "config", "no device")
    assert (found[8]["level"], found[8]["error"]["exit_code"]) == ("error", 5)


def test_the_time_is_utc_with_milliseconds(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    record = logging.LogRecord("transcoder", logging.INFO, "", 0, "now", (), None)
    record.created, record.msecs = 1_700_000_000.0075, 7.5
    logging.getLogger().handle(record)
    assert lines(stream)[0]["time"] == "2023-11-14T22:13:20.007Z"


def test_progress_is_not_logged_at_info(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    log.listener("ab12")(EVERY[3])
    assert stream.getvalue() == ""


def test_auto_is_json_where_there_is_no_terminal(stream: io.StringIO) -> None:
    log.configure("auto", "info", stream)
    log.write("ready", "the worker is ready", concurrency=2)
    assert lines(stream)[0]["concurrency"] == 2


def test_auto_is_text_on_a_terminal(stream: io.StringIO) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    log.configure("auto", "info", terminal)
    log.listener("ab12")(EVERY[5])
    assert terminal.getvalue().endswith(" warning ab12  vaapi failed after 1.2 s (config): no device\n")


def test_a_name_of_a_file_neither_breaks_the_line_nor_steers_the_terminal(stream: io.StringIO) -> None:
    log.configure("text", "info", stream)
    log.listener("ab12")(Probing("/media/a\n\x1b[2J\x9b2J.mp4"))
    assert stream.getvalue().endswith("probing /media/a\\x0a\\x1b[2J\\x9b2J.mp4\n")


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    "address",
    ["redis://:geheim@host:6379/0", "rediss://ada:geheim@host", "redis://:ge@geheim@host", "redis://:/geheim/@host"],
)
def test_no_line_shows_the_password_of_the_broker(stream: io.StringIO, form: log.Format, address: str) -> None:
    log.configure(form, "info", stream)
    logging.getLogger("celery.worker").error("cannot connect to %s: refused", address)
    try:
        raise ConnectionError(f"no answer from {address}")
    except ConnectionError:
        logging.getLogger("kombu").exception("lost")
    log.write("ready", "ready", broker=address)
    assert "geheim" not in stream.getvalue()
    assert "@host" in stream.getvalue()


def test_a_line_of_celery_is_one_sentence_and_a_name_in_ours_stays_as_it_is(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    logging.getLogger("celery.worker").error("cannot connect.\n%s\n", "Trying again in 1 second.")
    log.write("probing", "probing /media/a\nb.mp4")
    celery, ours = lines(stream)
    assert celery["message"] == "cannot connect. Trying again in 1 second."
    assert ours["message"] == "probing /media/a\nb.mp4"


def test_lines_of_celery_and_warnings_go_the_same_way(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    logging.getLogger("celery.worker").warning("lost %d", 1)
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = lines(stream)
    assert (first["event"], first["message"]) == ("celery.worker", "lost 1")
    assert "job" not in first
    assert second["event"] == "py.warnings"


def test_what_the_gpu_did_is_told(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    used = Usage((("video", 1.5), ("video-enhance", 0.25)), 1000)
    log.listener("ab12")(Published(ROUTE, (OUTPUT,), "/media/b.json", Timings(total=2.0), gpu=used))
    log.listener("ab12")(EVERY[7])
    with_gpu, without = lines(stream)
    assert with_gpu["message"] == "published /media/b.mp4 by vaapi in 2.0 s, 1.8 s of GPU engines"
    assert with_gpu["gpu"]["engines"] == {"video": 1.5, "video-enhance": 0.25}
    assert with_gpu["on_gpu"] is True
    assert without["message"] == "published /media/b.mp4 by vaapi in 2.0 s"
    assert (without["gpu"], without["on_gpu"]) == (None, None)


def test_a_path_that_is_no_unicode_is_still_one_line(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    log.listener("ab12")(Probing("/media/\udc80.mp4"))
    assert lines(stream)[0]["source"] == "/media/\udc80.mp4"


def test_a_cancelled_job_is_no_error(stream: io.StringIO) -> None:
    log.configure("json", "info", stream)
    log.listener("ab12")(Failed(JobCancelled("the job was cancelled")))
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["message"]) == ("info", "cancelled", "the job was cancelled")
