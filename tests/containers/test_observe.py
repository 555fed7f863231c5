"""Prometheus on the stack: its rules in promtool, its scrapes, a forced fault, and the data of every query.

Prometheus is Debian's, under the name that the overlay pins. Grafana cannot be had here: what stands in for it holds
the overlay to what Grafana needs of it (its password, its files, its volume, its way to Prometheus, its port).
"""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.conftest import MakeClip
from tests.containers.stack import COMPOSE, Stack, docker, inspect, stack, stand_in, until, with_gpus
from tests.gpu import DEVICE_GROUP, DeviceMachine
from transcoder import Client, JobSpec

FILES = COMPOSE / "observe"
OVERLAY = yaml.safe_load((COMPOSE / "compose.observe.yaml").read_text())["services"]
RULES = [
    rule["alert"] for group in yaml.safe_load((FILES / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((FILES / "grafana" / "dashboards" / "transcoder.json").read_text())
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
VARIABLES = {"$window": "5m", "$device": ".*"}
WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# little to try, and a second for the clip: long enough to read the engines' counters
SIMPLE = {"rc": "CQP", "encode": "h264", "decode": "none", "vpp": False, "encode_rate": 320 * 180 * 25}

PROMETHEUS = """
FROM {base}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null \
 && rm /etc/prometheus/prometheus.yml \
 && install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["prometheus"]
"""
"""What the official image is to our Compose files: the programs, and a /prometheus of nobody's."""

OF_GRAFANA = """
import glob, json, os, urllib.request, http.server
assert len(open(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read()) >= 32
json.load(open(os.environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]))
[source] = glob.glob("/etc/grafana/provisioning/datasources/*.yml")
[provider] = glob.glob("/etc/grafana/provisioning/dashboards/*.yml")
open("/var/lib/grafana/grafana.db", "w").close()
[url] = [line.split()[1] for line in open(source) if line.strip().startswith("url:")]
urllib.request.urlopen(url + "/api/v1/status/buildinfo", timeout=5)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    do_HEAD = do_GET
http.server.HTTPServer(("", 3000), Health).serve_forever()
"""
GRAFANA = f"""
FROM {{base}}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 wget >/dev/null \
 && install -d -o 472 -g 0 /var/lib/grafana
ENTRYPOINT {json.dumps(["python3", "-c", OF_GRAFANA])}
"""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def prometheus_image() -> str:
    return stand_in(OVERLAY["prometheus"]["image"], PROMETHEUS)


@pytest.fixture(scope="module")
def grafana_image() -> str:
    return stand_in(OVERLAY["grafana"]["image"], GRAFANA)


def promtool(image: str, *words: str) -> str:
    mounts = ["--volume", f"{FILES}:/etc/prometheus:ro", "--volume", f"{Path(__file__).parent}:/tests:ro"]
    return docker("run", "--rm", "--network", "none", "--entrypoint", "promtool", *mounts, image, *words)


def test_promtool_finds_no_fault_in_the_configuration_and_the_rules(prometheus_image: str) -> None:
    said = promtool(prometheus_image, "check", "config", "/etc/prometheus/prometheus.yml")
    assert f"SUCCESS: {len(RULES)} rules found" in said


def test_each_alert_fires_when_it_shall_and_only_then(prometheus_image: str) -> None:
    assert "SUCCESS" in promtool(prometheus_image, "test", "rules", "/tests/alerts.yml")


def test_each_alert_has_a_situation_in_which_it_fires() -> None:
    situations = yaml.safe_load((Path(__file__).parent / "alerts.yml").read_text())["tests"]
    assert {name for name in RULES if f'alertname="{name}"' in json.dumps(situations).replace('\\"', '"')} == set(RULES)


class Observed:
    """A stack with a GPU, its Prometheus, and a client outside of the containers."""

    def __init__(self, running: Stack) -> None:
        self.stack = running
        self.client = Client(running.broker_url)
        networks = inspect(running.container("prometheus"))["NetworkSettings"]["Networks"]
        self.address = networks[f"{running.project}_queue"]["IPAddress"]

    def ask(self, path: str, **words: str) -> Any:
        with WITHOUT_PROXY.open(f"http://{self.address}:9090/api/v1/{path}?{urlencode(words)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def scraped(self) -> None:
        """Wait until Prometheus has asked the workers anew."""
        before = self.query("max(timestamp(up))")[0]["value"][1]
        until(lambda: self.query("max(timestamp(up))")[0]["value"][1] > before, "a scrape")

    def encode_until_its_growth_is_seen(self) -> None:
        """Of a series Prometheus needs two values to see that it grew, and not every short job's counters are read."""
        for number in range(10):
            assert self.do(f"gpu-{number}", acceleration={"policy": "require"}) == "published"
            self.scraped()
            if self.query("increase(transcoder_gpu_memory_bytes_count[5m]) > 0"):
                return
        raise AssertionError("no job's use of the GPU was counted")

    def do(self, name: str, source: str = "clip", **fields: Any) -> str:
        """The job's last state."""
        spec = JobSpec(source=f"/media/{source}.mp4", target=f"/media/{name}.mp4", **fields)
        *_, last = self.client.watch(self.client.submit(spec))
        return last.state


@pytest.fixture(scope="module")
def observed(
    vaapi_image: str,
    prometheus_image: str,
    grafana_image: str,
    simgpu_driver: Path,
    module_folder: Path,
    make_clip: MakeClip,
) -> Iterator[Observed]:
    """One that has published on the GPU, left it after a fault, and failed, each while Prometheus looked."""
    machine = DeviceMachine(module_folder / "machine", simgpu_driver)
    device = machine.add("renderD128", SIMPLE)
    brisk = module_folder / "prometheus.yml"
    brisk.write_text((FILES / "prometheus.yml").read_text().replace(" 15s", " 1s").replace(" 10s", " 1s"))
    override = with_gpus({"worker": [device]})
    override["services"]["prometheus"] = {"volumes": [f"{brisk}:/etc/prometheus/prometheus.yml:ro"]}
    variables = {
        "DRI": str(machine.nodes),
        "RENDER_NODE": "renderD128",
        "RENDER_GID": str(DEVICE_GROUP),
        "GRAFANA": "127.0.0.1:0",
    }
    with stack(module_folder, "gpu", "publish", "observe", variables=variables, override=override) as running:
        clip = make_clip("testsrc2=s=320x180:r=25:d=1", audio=False)
        docker("cp", str(clip), f"{running.container()}:/media/clip.mp4")
        docker("exec", running.container(), "sh", "-c", "echo no film >/media/broken.mp4")
        seen = Observed(running)
        until(lambda: seen.query('transcoder_queue_workers{queue="hw.h264"} > 0'), "the GPU tried, and a scrape", 60)
        seen.encode_until_its_growth_is_seen()
        for name in ("first", "second"):
            assert seen.do(f"{name}-broken", "broken") == "failed"
            seen.scraped()
        device.configure(SIMPLE, **{"fault.encode": "status 24"})
        for name in ("first", "second"):
            assert seen.do(f"{name}-fallback") == "published"
            seen.scraped()
        assert seen.do("third-broken", "broken") == "failed"
        yield seen


def test_prometheus_scrapes_the_worker_and_loads_every_rule(observed: Observed) -> None:
    [target] = observed.ask("targets", state="active")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    [group] = observed.ask("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == RULES
    until(lambda: {rule["health"] for rule in observed.ask("rules")["groups"][0]["rules"]} == {"ok"}, "an evaluation")


def test_jobs_that_fail_set_off_their_alert_and_no_critical_one(observed: Observed) -> None:
    until(lambda: firing(observed), "an alert")
    [alert] = firing(observed)
    assert alert["labels"] == {"alertname": "TranscoderJobsFail", "severity": "warning"}
    assert alert["annotations"]["summary"].endswith("% of the jobs fail.")
    assert float(alert["annotations"]["summary"].partition("%")[0]) > 20


def firing(observed: Observed) -> list[dict[str, Any]]:
    return [alert for alert in observed.ask("alerts")["alerts"] if alert["state"] == "firing"]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_dashboard_brings_data(observed: Observed, query: str) -> None:
    until(lambda: [one for one in observed.query(query) if one["value"][1] != "NaN"], query)


def test_the_figures_are_those_of_what_was_done(observed: Observed) -> None:
    titles = {panel["title"]: panel["targets"][0]["expr"] for panel in DASHBOARD["panels"] if "targets" in panel}

    def shown(title: str) -> dict[tuple[str, ...], float]:
        return {tuple(one["metric"].values()): float(one["value"][1]) for one in observed.query(titles[title])}

    until(lambda: shown("Failed jobs by fault") == {("InputUnreadable",): 3}, "three failed jobs")
    assert shown("Workers") == {(): 1}
    assert shown("Stuck jobs") == {(): 0}
    [(fell, times)] = shown("Fallbacks").items()
    assert {"software", "hardware"} < set(fell)
    assert times >= 2


def test_grafana_has_what_it_needs_on_a_port_of_this_host(observed: Observed) -> None:
    port = observed.stack.compose("port", "grafana", "3000").strip()
    assert port.startswith("127.0.0.1:")
    with WITHOUT_PROXY.open(f"http://{port}/api/health", timeout=5) as answer:
        assert answer.status == 200


def test_no_container_tells_the_password_of_grafana(observed: Observed) -> None:
    secret = (observed.stack.folder / "secrets" / "grafana_admin").read_text()
    for service in ("prometheus", "grafana", "worker"):
        assert secret not in json.dumps(inspect(observed.stack.container(service)))


def test_a_further_worker_is_found_by_itself_and_counts_no_job_twice(observed: Observed) -> None:
    try:
        observed.stack.compose("up", "--detach", "--no-build", "--scale", "worker=2", "worker")
        until(lambda: len(observed.query('up{job="transcoder"} == 1')) == 2, "a scrape of both")
        until(lambda: {one["value"][1] for one in observed.query("transcoder_workers")} == {"2"}, "both know of two")
        assert len(observed.query("transcoder_queue_depth")) == 2 * len(
            observed.query("max by (queue) (transcoder_queue_depth)")
        )
    finally:
        observed.stack.compose("up", "--detach", "--no-build", "--scale", "worker=1", "worker")
    until(lambda: len(observed.query('up{job="transcoder"}')) == 1, "one that is gone is forgotten")
    assert not [alert for alert in firing(observed) if alert["labels"]["severity"] == "critical"]
