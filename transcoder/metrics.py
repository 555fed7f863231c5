"""What a worker tells Prometheus: one list of metrics, fed by a job's events, served beside /healthz.

No label takes a value that a user chose: routes, codecs, devices and faults are bounded by the machine and this code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from threading import Thread
from typing import Literal, Protocol, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

from transcoder import placement
from transcoder.command import Route
from transcoder.errors import JobCancelled, Quarantined, SettingsError, TranscoderError
from transcoder.events import Emit, Event, Failed, FellBack, HandedOn, Lost, Published, PutOff, Started
from transcoder.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Documented:
    """One metric: its name, kind and labels as exported, and what it means."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


class Waiting(Protocol):
    """One queue at a glance, such as the ledger's figures."""

    @property
    def depth(self) -> int:
        """Jobs that wait."""

    @property
    def oldest(self) -> float:
        """Seconds that the first of them has waited."""

    @property
    def workers(self) -> int:
        """Live workers that serve it."""


class Fleet(Protocol):
    """All workers and queues at a glance, such as the ledger's figures."""

    @property
    def running(self) -> int:
        """Jobs that run."""

    @property
    def stuck(self) -> int:
        """Those of them whose worker is not heard from."""

    @property
    def workers(self) -> int:
        """Live workers."""

    @property
    def queues(self) -> Mapping[str, Waiting]:
        """Every queue, by its name on the broker."""


class Shared(Protocol):
    """How much of a device or of the CPUs is taken, such as the slots' usage."""

    @property
    def used(self) -> float:
        """Pixels per second of the jobs that run there."""

    @property
    def budget(self) -> float:
        """Pixels per second that it bears."""

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot there."""


Devices: TypeAlias = Callable[[], Mapping[str, Shared]]
Circuits: TypeAlias = Callable[[], Mapping[tuple[str, str], bool]]
"""For each device and codec: whether it is left alone."""

_DOCUMENTED = (
    Documented(
        "transcoder_jobs_total",
        "counter",
        ("result", "route", "codec", "device", "fault"),
        "Jobs that ended on this worker. result: published, failed, quarantined, cancelled, handed on (to another "
        "worker), put off (tried again later), lost (it was another worker's by then, which counts its end). route: "
        "the last one taken, or none. codec: what was asked, several joined by +. device: its PCI address, cpu, or "
        "none. fault: why a job failed, as the class of its last fault or else the error's name; none for the others.",
    ),
    Documented(
        "transcoder_fallbacks_total",
        "counter",
        ("from", "to", "reason"),
        "Routes that failed, and the route taken instead (none: it was the last; or another worker). reason: the "
        "class of the fault.",
    ),
    Documented("transcoder_frames_total", "counter", ("route", "codec"), "Video frames in published outputs."),
    Documented("transcoder_output_seconds_total", "counter", ("route", "codec"), "Duration of published outputs."),
    Documented("transcoder_output_bytes_total", "counter", ("route", "codec"), "Size of published outputs."),
    Documented(
        "transcoder_encode_fps", "histogram", ("route", "codec"), "Frames per second at which published jobs encoded."
    ),
    Documented(
        "transcoder_realtime_ratio", "histogram", ("route", "codec"), "Times real time at which published jobs encoded."
    ),
    Documented(
        "transcoder_gpu_engine_seconds_total",
        "counter",
        ("device", "engine"),
        "Seconds that a GPU's engines worked for published jobs, by the kernel driver's counters. engine: in that "
        "driver's words, such as video or enc.",
    ),
    Documented(
        "transcoder_gpu_memory_bytes", "histogram", ("device",), "The most memory of a GPU that a published job held."
    ),
    Documented(
        "transcoder_job_seconds", "histogram", ("result",), "Seconds from taking a job off the queue to its end."
    ),
    Documented("transcoder_active_jobs", "gauge", (), "Jobs that this worker is working on."),
    Documented(
        "transcoder_workers",
        "gauge",
        (),
        "Live workers: those that Redis heard of in the last 10 s. Absent while Redis is away.",
    ),
    Documented("transcoder_running_jobs", "gauge", (), "Jobs that run, on all workers. Absent while Redis is away."),
    Documented(
        "transcoder_stuck_jobs",
        "gauge",
        (),
        "Those of them whose worker was not heard of in the last 10 s. Absent while Redis is away.",
    ),
    Documented("transcoder_queue_depth", "gauge", ("queue",), "Jobs that wait in a queue. Absent while Redis is away."),
    Documented(
        "transcoder_queue_oldest_wait_seconds",
        "gauge",
        ("queue",),
        "How long the first of them has waited; 0 when none waits. Absent while Redis is away.",
    ),
    Documented(
        "transcoder_queue_workers",
        "gauge",
        ("queue",),
        "Live workers that take jobs from the queue. Absent while Redis is away.",
    ),
    Documented(
        "transcoder_hops_total",
        "counter",
        ("queue", "reason"),
        "Jobs that prefer hardware and went from that queue to software, as this worker saw to it. reason: waited (for "
        "a place), sooner (it ends sooner in software), unserved (no live worker served the queue).",
    ),
    Documented(
        "transcoder_reaped_jobs_total",
        "counter",
        (),
        "Jobs that this worker took back from workers that were not heard of any more.",
    ),
    Documented(
        "transcoder_slot_used_pixels_per_second",
        "gauge",
        ("device",),
        "What the running jobs of all workers take of this worker's device, or of the CPUs of its container. Absent "
        "while Redis is away.",
    ),
    Documented(
        "transcoder_slot_budget_pixels_per_second", "gauge", ("device",), "What the device, or the CPUs, may bear."
    ),
    Documented("transcoder_slot_waiting_jobs", "gauge", ("device",), "Running jobs that wait for a slot there."),
    Documented(
        "transcoder_slot_wait_seconds", "histogram", ("device",), "How long jobs waited for a slot; 0 for most of them."
    ),
    Documented(
        "transcoder_breaker_open",
        "gauge",
        ("device", "codec"),
        "1 while the device gets no jobs for the codec, because it failed; 0 otherwise.",
    ),
    Documented("transcoder_build_info", "gauge", ("version", "ffmpeg"), "Always 1; the labels tell the versions."),
)
_MEANING = {metric.name: metric for metric in _DOCUMENTED}
_RESULTS = ("published", "failed", "cancelled", "handed on")
_FPS = (1, 2, 5, 10, 15, 25, 30, 50, 60, 100, 150, 250, 500, 1000, 2000)
_RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
_WAITS = (0.01, 0.1, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)
_BYTES = tuple(float(1 << power) for power in range(24, 36))
_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)


def documented() -> tuple[Documented, ...]:
    """Every metric that a worker exports."""
    return _DOCUMENTED


def documentation() -> str:
    """docs/metrics.md, which a test keeps equal to this."""
    rows = "\n".join(
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in _DOCUMENTED
    )
    return f"{_INTRODUCTION}\n{rows}\n"


class Metrics:
    """The metrics of one worker.

    `fleet`, `devices` and `circuits` are asked at every scrape and may fail, but have to answer within seconds.
    """

    def __init__(
        self,
        version: str,
        ffmpeg: str,
        fleet: Callable[[], Fleet] | None = None,
        devices: Devices | None = None,
        circuits: Circuits | None = None,
    ) -> None:
        # a second series for each counter, which Prometheus does not need
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library types not all of itself
        self.registry = CollectorRegistry()
        self._jobs = self._counter("transcoder_jobs_total")
        self._fallbacks = self._counter("transcoder_fallbacks_total")
        self._frames = self._counter("transcoder_frames_total")
        self._output_seconds = self._counter("transcoder_output_seconds_total")
        self._output_bytes = self._counter("transcoder_output_bytes_total")
        self._fps = self._histogram("transcoder_encode_fps", _FPS)
        self._ratio = self._histogram("transcoder_realtime_ratio", _RATIOS)
        self._engines = self._counter("transcoder_gpu_engine_seconds_total")
        self._memory = self._histogram("transcoder_gpu_memory_bytes", _BYTES)
        self._seconds = self._histogram("transcoder_job_seconds", _SECONDS)
        self._waits = self._histogram("transcoder_slot_wait_seconds", _WAITS)
        self._hops = self._counter("transcoder_hops_total")
        self._reaped = self._counter("transcoder_reaped_jobs_total")
        self._active = self._gauge("transcoder_active_jobs")
        self._gauge("transcoder_build_info").labels(version, ffmpeg).set(1)
        self._begin_at_zero()
        if fleet:
            self.registry.register(_Asked(lambda: _fleet_figures(fleet())))
        if devices:
            self.registry.register(_Asked(lambda: _slot_figures(devices())))
        if circuits:
            self.registry.register(_Asked(lambda: _breaker_figures(circuits())))

    def _begin_at_zero(self) -> None:
        """Of a series that begins with 1 Prometheus sees no increase: alerts would miss the first of each kind."""
        for result in _RESULTS:
            self._seconds.labels(result)
        for queue in placement.HARDWARE:
            for reason in ("waited", "sooner", "unserved"):
                self._hops.labels(queue, reason)

    def listener(self, spec: JobSpec) -> Emit:
        """Counts one job, which is active from now until its Published or Failed."""
        return _Job(self, _codec(spec)).listen

    def hopped(self, queue: str, reason: str) -> None:
        """A job went from a hardware queue to software."""
        self._hops.labels(queue, reason).inc()

    def reaped(self) -> None:
        """A job was taken back from a worker that is gone."""
        self._reaped.inc()

    def waited(self, device: str, seconds: float) -> None:
        """A job got its slot on the device, or the CPUs, after that time."""
        self._waits.labels(device).observe(seconds)

    def active(self, change: int) -> None:
        """One job more, or one less."""
        self._active.inc(change)

    def fell_back(self, fault: FellBack, to: str) -> None:
        """A route failed and another was taken."""
        self._fallbacks.labels(fault.route.name, to, str(fault.kind)).inc()

    def published(self, event: Published, codec: str) -> None:
        """The outputs of a job stand under their names."""
        labels = (event.route.name, codec)
        self._frames.labels(*labels).inc(sum(output.frames or 0 for output in event.outputs))
        self._output_seconds.labels(*labels).inc(sum(output.duration for output in event.outputs))
        self._output_bytes.labels(*labels).inc(sum(output.bytes for output in event.outputs))
        if event.fps:
            self._fps.labels(*labels).observe(event.fps)
        if event.speed:
            self._ratio.labels(*labels).observe(event.speed)
        if event.gpu and event.route.device:
            for engine, seconds in event.gpu.engines:
                self._engines.labels(event.route.device, engine).inc(seconds)
            self._memory.labels(event.route.device).observe(event.gpu.memory)

    def ended(self, result: str, route: Route | None, codec: str, fault: str, seconds: float) -> None:
        """A job ended, one way or another."""
        name = route.name if route else "none"
        device = (route.device or "cpu") if route else "none"
        self._jobs.labels(result, name, codec, device, fault).inc()
        self._seconds.labels(result).observe(seconds)

    def _counter(self, name: str) -> Counter:
        return Counter(name, _MEANING[name].meaning, _MEANING[name].labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(name, _MEANING[name].meaning, _MEANING[name].labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, _MEANING[name].meaning, _MEANING[name].labels, buckets=buckets, registry=self.registry)


class _Job:
    """What one job has come to so far."""

    def __init__(self, metrics: Metrics, codec: str) -> None:
        self.metrics = metrics
        self.codec = codec
        self.began = time.monotonic()
        self.route: Route | None = None
        self.fault: FellBack | None = None
        self.unanswered: FellBack | None = None
        self.active = True
        metrics.active(+1)

    def listen(self, event: Event) -> None:
        match event:
            case Started(route):
                self._fall(to=route.name)
                self.route = route
            case FellBack():
                self.fault = self.unanswered = event
            case Published():
                self.metrics.published(event, self.codec)
                self._end("published", event.route, "none")
            case HandedOn():
                self._fall(to="another worker")
                self._end("handed on", self.route, "none")
            case Lost():
                self._fall(to="another worker")
                self._end("lost", self.route, "none")
            case PutOff(error):
                self._fall(to="none")
                self._end("put off", self.route, self._why(error))
            case Failed(error):
                self._fall(to="none")
                if isinstance(error, JobCancelled):
                    self._end("cancelled", self.route, "none")
                else:
                    ended = "quarantined" if isinstance(error, Quarantined) else "failed"
                    self._end(ended, self.route, self._why(error))
            case _:
                pass

    def _fall(self, to: str) -> None:
        if self.unanswered:
            self.metrics.fell_back(self.unanswered, to)
            self.unanswered = None

    def _why(self, error: TranscoderError) -> str:
        return str(self.fault.kind) if self.fault else type(error).__name__

    def _end(self, result: str, route: Route | None, fault: str) -> None:
        if not self.active:
            return
        self.active = False
        self.metrics.active(-1)
        self.metrics.ended(result, route, self.codec, fault, time.monotonic() - self.began)


class _Asked(Collector):
    """Figures that are asked for at the moment of the scrape."""

    def __init__(self, ask: Callable[[], list[GaugeMetricFamily]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        # a scrape that fails hides every other figure just when Redis is away
        with suppress(Exception):
            yield from self._ask()


def _fleet_figures(fleet: Fleet) -> list[GaugeMetricFamily]:
    queues = {(placement.short(name),): queue for name, queue in fleet.queues.items()}
    return [
        _family("transcoder_workers", {(): fleet.workers}),
        _family("transcoder_running_jobs", {(): fleet.running}),
        _family("transcoder_stuck_jobs", {(): fleet.stuck}),
        _family("transcoder_queue_depth", {name: queue.depth for name, queue in queues.items()}),
        _family("transcoder_queue_oldest_wait_seconds", {name: queue.oldest for name, queue in queues.items()}),
        _family("transcoder_queue_workers", {name: queue.workers for name, queue in queues.items()}),
    ]


def _slot_figures(devices: Mapping[str, Shared]) -> list[GaugeMetricFamily]:
    return [
        _family("transcoder_slot_used_pixels_per_second", {(name,): one.used for name, one in devices.items()}),
        _family("transcoder_slot_budget_pixels_per_second", {(name,): one.budget for name, one in devices.items()}),
        _family("transcoder_slot_waiting_jobs", {(name,): one.waiting for name, one in devices.items()}),
    ]


def _breaker_figures(circuits: Mapping[tuple[str, str], bool]) -> list[GaugeMetricFamily]:
    return [_family("transcoder_breaker_open", {where: float(is_open) for where, is_open in circuits.items()})]


def _family(name: str, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, _MEANING[name].meaning, labels=_MEANING[name].labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Requests(MetricsHandler):
    """Answers GET and HEAD of /metrics and /healthz."""

    timeout = 10  # seconds, so that a client that says nothing holds no thread
    unwell: Callable[[], str | None]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics" and self.command == "GET":
            super().do_GET()
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, "")
        elif path == "/healthz":
            why = self._why_unwell()
            self._answer(*((HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n") if why else (HTTPStatus.OK, "ok\n")))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz\n")

    do_HEAD = do_GET

    def _why_unwell(self) -> str | None:
        try:
            return type(self).unwell()
        except Exception as wrong:  # whatever stops the answer, it is not a healthy one
            return f"{type(wrong).__name__}: {wrong}"

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())


class Endpoint:
    """The open port; `port` is the real one where 0 was asked."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.port: int = server.server_address[1]
        Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def serve(metrics: Metrics, port: int, host: str, unwell: Callable[[], str | None]) -> Endpoint:
    """Answers /metrics and /healthz (200, or 503 with what `unwell` says) from threads of its own.

    Raises:
        SettingsError: the port cannot be opened.
    """
    handler = type("Requests", (_Requests,), {"registry": metrics.registry, "unwell": staticmethod(unwell)})
    server = type("Server", (_Server,), {"address_family": AF_INET6 if ":" in host else AF_INET})
    try:
        return Endpoint(server((host, port), handler))
    except OSError as refused:
        raise SettingsError(
            f"cannot open port {port} on {host} for the metrics: {refused.strerror}",
            "Set TRANSCODER_METRICS_PORT to a free port, or to 0 for none.",
        ) from None


def _codec(spec: JobSpec) -> str:
    video = {output.video.codec for output in spec.outputs if output.video}
    audio = {output.audio.codec for output in spec.outputs if output.audio}
    return "+".join(sorted(video or audio))


_INTRODUCTION = """\
# Metrics

A worker answers `/metrics` for Prometheus, and `/healthz` with 200 or 503, on the port `TRANSCODER_METRICS_PORT`
(9464). No label takes a value that a user chose. The figures of the queues, of all workers and of a device that several
use are the same on every worker: take their `max`, not their `sum`. `transcoder_job_seconds` and
`transcoder_hops_total` are there from the start of a worker; other counters with labels appear with their first event,
of which Prometheus' `increase` sees nothing. Alert rules and a dashboard come with [the containers](observe.md).

| Metric | Kind | Labels | Meaning |
| --- | --- | --- | --- |"""
