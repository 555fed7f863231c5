"""What a worker tells Prometheus."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.services import LOOPBACK
from transcoder import metrics, placement, usage
from transcoder.command import Route
from transcoder.errors import InputMissing, JobCancelled, NoRouteWorked, SettingsError
from transcoder.events import Failed, FellBack, HandedOn, Lost, OutputFacts, Probing, Published, Started, Timings
from transcoder.faults import FaultClass
from transcoder.ledger import Figures, QueueFigures
from transcoder.metrics import Endpoint, Fleet, Metrics
from transcoder.slots import Usage
from transcoder.spec import JobSpec

SPEC = JobSpec(source="/media/a.mp4", target="/media/b.mp4")
VAAPI = Route("vaapi", "vaapi", "/dev/dri/renderD128")
SOFTWARE = Route("software", "software")


def output(name: str = "main") -> OutputFacts:
    return OutputFacts(name, f"/media/{name}.mp4", "mp4", 1000, "00", 4.0, 100, "h264", 1280, 720, 8, ("aac",), ())


def published(route: Route) -> Published:
    gpu = usage.Usage((("video", 1.5), ("video-enhance", 0.25)), 50_000_000) if route.device else None
    return Published(route, (output(), output("small")), "/media/b.json", Timings(encode=2.0), gpu=gpu)


@pytest.fixture
def worker() -> Metrics:
    return Metrics(
        "0.1.0",
        "7.1.2",
        lambda: Figures(4, 1, 2, {"transcode.schema1.software": QueueFigures(3, 12.5, 1)}),
        lambda: {"cpu": Usage(62e6, 124e6, 2)},
        lambda: {("0000:00:02.0", "h264"): True, ("0000:00:02.0", "hevc"): False},
    )


def value(worker: Metrics, name: str, **labels: str) -> float | None:
    return worker.registry.get_sample_value(name, labels)


def test_a_published_job_counts_its_frames_seconds_and_bytes_by_route_and_codec(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    assert value(worker, "transcoder_active_jobs") == 1
    for event in (Probing("/media/a.mp4"), Started(VAAPI), published(VAAPI)):
        emit(event)
    labels = {"route": "vaapi", "codec": "h264"}
    assert value(worker, "transcoder_frames_total", **labels) == 200
    assert value(worker, "transcoder_output_seconds_total", **labels) == 8
    assert value(worker, "transcoder_output_bytes_total", **labels) == 2000
    assert value(worker, "transcoder_encode_fps_sum", **labels) == 50
    assert value(worker, "transcoder_realtime_ratio_sum", **labels) == 2
    assert value(worker, "transcoder_job_seconds_count", result="published") == 1
    assert value(worker, "transcoder_active_jobs") == 0
    ended = {"result": "published", "device": "/dev/dri/renderD128", "fault": "none"}
    assert value(worker, "transcoder_jobs_total", **labels, **ended) == 1


def test_what_a_gpus_engines_did_is_counted_by_device_and_engine(worker: Metrics) -> None:
    for route in (VAAPI, SOFTWARE, VAAPI):
        worker.listener(SPEC)(published(route))
    device = "/dev/dri/renderD128"
    assert value(worker, "transcoder_gpu_engine_seconds_total", device=device, engine="video") == 3
    assert value(worker, "transcoder_gpu_engine_seconds_total", device=device, engine="video-enhance") == 0.5
    assert value(worker, "transcoder_gpu_memory_bytes_sum", device=device) == 100_000_000
    assert value(worker, "transcoder_gpu_memory_bytes_count", device=device) == 2


def test_a_fallback_names_the_route_that_failed_the_one_taken_and_the_reason(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    for event in (
        Started(VAAPI),
        FellBack(VAAPI, FaultClass.CONFIG, "no", 0.1),
        Started(SOFTWARE),
        published(SOFTWARE),
    ):
        emit(event)
    assert value(worker, "transcoder_fallbacks_total", **{"from": "vaapi", "to": "software", "reason": "config"}) == 1
    ended = {"result": "published", "route": "software", "codec": "h264", "device": "cpu", "fault": "none"}
    assert value(worker, "transcoder_jobs_total", **ended) == 1


def test_a_job_that_no_route_could_do_counts_its_last_fault(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    emit(Started(SOFTWARE))
    emit(FellBack(SOFTWARE, FaultClass.CRASHED, "died", 0.1))
    emit(Failed(NoRouteWorked("all failed")))
    assert value(worker, "transcoder_fallbacks_total", **{"from": "software", "to": "none", "reason": "crashed"}) == 1
    ended = {"result": "failed", "route": "software", "codec": "h264", "device": "cpu", "fault": "crashed"}
    assert value(worker, "transcoder_jobs_total", **ended) == 1
    assert value(worker, "transcoder_active_jobs") == 0


@pytest.mark.parametrize(
    ("error", "result", "fault"),
    [
        pytest.param(InputMissing("gone"), "failed", "InputMissing", id="a missing input by the error's name"),
        pytest.param(JobCancelled("stopped"), "cancelled", "none", id="a cancelled job as no fault"),
    ],
)
def test_a_job_that_never_encoded_counts(worker: Metrics, error: InputMissing, result: str, fault: str) -> None:
    worker.listener(SPEC)(Failed(error))
    ended = {"result": result, "route": "none", "codec": "h264", "device": "none", "fault": fault}
    assert value(worker, "transcoder_jobs_total", **ended) == 1


def test_a_second_end_of_one_job_does_not_count(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    emit(Failed(InputMissing("gone")))
    emit(Failed(InputMissing("gone")))
    assert value(worker, "transcoder_active_jobs") == 0
    assert value(worker, "transcoder_job_seconds_count", result="failed") == 1


def test_a_job_that_was_lost_to_another_worker_counts_as_such_and_not_as_failed(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    for event in (Started(VAAPI), Lost("it is published, attempt 2")):
        emit(event)
    assert value(worker, "transcoder_job_seconds_count", result="lost") == 1
    assert value(worker, "transcoder_job_seconds_count", result="failed") == 0
    assert value(worker, "transcoder_active_jobs") == 0


def test_a_job_that_was_handed_on_counts_as_such_and_not_as_failed(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    for event in (Started(VAAPI), FellBack(VAAPI, FaultClass.HARDWARE, "no", 0.1), HandedOn("software", "why")):
        emit(event)
    away = {"from": "vaapi", "to": "another worker", "reason": "hardware"}
    assert value(worker, "transcoder_fallbacks_total", **away) == 1
    assert value(worker, "transcoder_job_seconds_count", result="handed on") == 1
    assert value(worker, "transcoder_job_seconds_count", result="failed") == 0
    assert value(worker, "transcoder_active_jobs") == 0


def test_the_use_of_devices_and_what_is_left_alone_are_asked_at_every_scrape(worker: Metrics) -> None:
    assert value(worker, "transcoder_slot_used_pixels_per_second", device="cpu") == 62e6
    assert value(worker, "transcoder_slot_budget_pixels_per_second", device="cpu") == 124e6
    assert value(worker, "transcoder_slot_waiting_jobs", device="cpu") == 2
    assert value(worker, "transcoder_breaker_open", device="0000:00:02.0", codec="h264") == 1
    assert value(worker, "transcoder_breaker_open", device="0000:00:02.0", codec="hevc") == 0


def exported(worker: Metrics) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name, kind and labels of what is really scraped."""
    with opened(worker) as endpoint:
        text = get(endpoint, "/metrics")[1]
    return {
        f"{family.name}{'_total' if family.type == 'counter' else ''}": (
            family.type,
            tuple(sorted({label for sample in family.samples for label in sample.labels} - {"le"})),
        )
        for family in text_string_to_metric_families(text)
    }


def test_every_metric_is_documented_and_every_documented_one_is_exported(worker: Metrics) -> None:
    emit = worker.listener(SPEC)
    for event in (
        Started(VAAPI),
        FellBack(VAAPI, FaultClass.CONFIG, "no", 0.1),
        Started(SOFTWARE),
        published(SOFTWARE),
    ):
        emit(event)
    worker.listener(SPEC)(published(VAAPI))
    worker.hopped("hw.h264", "waited")
    worker.waited("cpu", 0.5)
    assert exported(worker) == {
        metric.name: (metric.kind, tuple(sorted(metric.labels))) for metric in metrics.documented()
    }


def test_the_document_is_the_list() -> None:
    document = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
    regenerate = "python -c \"from transcoder.metrics import documentation as d; print(d(), end='')\" > docs/metrics.md"
    assert document.read_text() == metrics.documentation(), regenerate


def test_counters_and_only_counters_end_in_total() -> None:
    for metric in metrics.documented():
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name


def test_a_scrape_succeeds_without_queue_figures_while_redis_is_away() -> None:
    def away() -> Fleet:
        raise ConnectionError("refused")

    worker = Metrics("0.1.0", "7.1.2", away)
    worker.listener(SPEC)
    with opened(worker) as endpoint:
        status, text = get(endpoint, "/metrics")
    assert status == 200
    assert "transcoder_active_jobs 1.0" in text
    assert "transcoder_queue" not in text


@contextmanager
def opened(
    worker: Metrics, unwell: Callable[[], str | None] = lambda: None, host: str = LOOPBACK
) -> Iterator[Endpoint]:
    endpoint = metrics.serve(worker, 0, host, unwell)
    try:
        yield endpoint
    finally:
        endpoint.close()


def get(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{LOOPBACK}:{endpoint.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def broken() -> str | None:
    raise RuntimeError("cannot tell")


@pytest.mark.parametrize(
    ("unwell", "status", "words"),
    [
        pytest.param(lambda: None, 200, "ok\n", id="200 when well"),
        pytest.param(lambda: "it sleeps", 503, "it sleeps\n", id="503 and why when not"),
        pytest.param(broken, 503, "RuntimeError: cannot tell\n", id="503 when it cannot tell"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_healthz_answers(
    worker: Metrics, unwell: Callable[[], str | None], status: int, words: str, method: str
) -> None:
    with opened(worker, unwell) as endpoint:
        assert get(endpoint, "/healthz", method) == (status, words if method == "GET" else "")


def test_other_paths_are_not_found_and_a_head_of_the_metrics_is_answered(worker: Metrics) -> None:
    with opened(worker, host="::") as endpoint:  # which takes IPv4 as well
        assert get(endpoint, "/")[0] == 404
        assert get(endpoint, "/metrics", "HEAD") == (200, "")


def test_a_port_that_is_taken_is_an_error_of_the_setting(worker: Metrics) -> None:
    with opened(worker) as endpoint, pytest.raises(SettingsError, match="Address already in use") as refused:
        metrics.serve(worker, endpoint.port, LOOPBACK, lambda: None)
    assert "TRANSCODER_METRICS_PORT" in refused.value.next_step


def test_the_queue_is_asked_at_every_scrape() -> None:
    queues = {"transcode.schema1.software": QueueFigures(3, 12.5, 0)}
    worker = Metrics("0.1.0", "7.1.2", lambda: Figures(4, 1, 2, queues))
    assert value(worker, "transcoder_queue_depth", queue="software") == 3
    assert value(worker, "transcoder_queue_workers", queue="software") == 0
    queues["transcode.schema1.hw.av1"] = QueueFigures(1, 0.5, 2)
    assert value(worker, "transcoder_queue_oldest_wait_seconds", queue="hw.av1") == 0.5
    assert value(worker, "transcoder_queue_workers", queue="hw.av1") == 2


def test_the_figures_of_all_workers_are_told_by_each(worker: Metrics) -> None:
    assert value(worker, "transcoder_workers") == 2
    assert value(worker, "transcoder_running_jobs") == 4
    assert value(worker, "transcoder_stuck_jobs") == 1


def test_what_alerts_count_is_there_before_the_first_event(worker: Metrics) -> None:
    for result in ("published", "failed", "cancelled", "handed on"):
        assert value(worker, "transcoder_job_seconds_count", result=result) == 0
    for queue in placement.HARDWARE:
        assert value(worker, "transcoder_hops_total", queue=queue, reason="unserved") == 0
