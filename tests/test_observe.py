"""What the overlay `observe` brings: alert rules and dashboard speak of metrics that there are, in the right way."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from transcoder import metrics

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "compose" / "observe"
DASHBOARD = json.loads((FILES / "grafana" / "dashboards" / "transcoder.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FILES / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
QUERIES = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in DRAWN
        for target in panel["targets"]
    ),
]
DOCUMENTED = {metric.name: metric for metric in metrics.documented()}
PARTS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
EXPORTED = {
    f"{metric.name}{part}": {*metric.labels, *(["le"] if part == "_bucket" else [])}
    for metric in DOCUMENTED.values()
    for part in PARTS[metric.kind]
}
EXPORTED |= {"up": set(), "ALERTS": {"alertname", "alertstate"}}
OF_PROMETHEUS = {"job", "instance"}
SAME_ON_EVERY_WORKER = {
    "transcoder_workers",
    "transcoder_running_jobs",
    "transcoder_stuck_jobs",
    "transcoder_queue_depth",
    "transcoder_queue_oldest_wait_seconds",
    "transcoder_queue_workers",
}


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:transcoder_\w+|up|ALERTS)\b", query))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: str) -> None:
    assert names(query) <= set(EXPORTED)
    assert names(query), "it asks for something"
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= EXPORTED[name] | OF_PROMETHEUS, name
    grouped = {label for labels in re.findall(r"\bby \(([^)]*)\)", query) for label in labels.split(", ")}
    assert grouped <= set.union(OF_PROMETHEUS, *(EXPORTED[name] for name in names(query)))


@pytest.mark.parametrize("query", QUERIES)
def test_what_every_worker_reports_alike_is_never_summed(query: str) -> None:
    for name in names(query) & SAME_ON_EVERY_WORKER:
        for before in (query[: found.start()] for found in re.finditer(rf"\b{name}\b", query)):
            assert re.search(r"(?:\bmax(?: by \([^)]*\))? ?\(|unless on \(instance\) )$", before), name


@pytest.mark.parametrize("query", QUERIES)
def test_a_counter_is_asked_for_what_it_counted_lately(query: str) -> None:
    ungrouped = re.sub(r"\bby \([^)]*\)", "", query)
    for name in names(query):
        metric = DOCUMENTED.get(re.sub("_(bucket|count|sum)$", "", name))
        if metric and metric.kind != "gauge":
            assert re.search(rf"\b(?:rate|increase)\({name}(?:\{{[^}}]*\}})?\[", ungrouped), name


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in RULES])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_look_at(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}
    for text in rule["annotations"].values():
        assert text.endswith(".")


def test_the_runbook_has_a_section_for_each_alert_with_its_severity_and_no_other() -> None:
    sections = re.findall(r"^### (\w+)\n\n(\w+)\.", (ROOT / "docs" / "observe.md").read_text(), re.MULTILINE)
    assert sections == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


def test_the_panels_have_numbers_of_their_own_and_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.parametrize("panel", [pytest.param(panel, id=panel["title"]) for panel in DRAWN])
def test_a_panel_tells_what_it_shows_in_which_unit_and_which_line_is_what(panel: dict[str, Any]) -> None:
    assert panel["type"] in {"stat", "table", "timeseries"}
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in {"bytes", "none", "percentunit", "s", "suffix:×"}
    seconds = any("_seconds" in name for target in panel["targets"] for name in names(target["expr"]))
    ratio = any(re.search(r"\) / (?:max|sum)", target["expr"]) for target in panel["targets"])
    if panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
        assert ratio
    if panel["fieldConfig"]["defaults"]["unit"] == "s":
        assert seconds
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["instant"] != target["range"]
        if panel["type"] == "timeseries":
            assert target["legendFormat"]
            last = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            labels = {label for group in last for label in group.split(", ")}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == labels - {"le"}


def test_the_dashboard_uses_the_variables_that_it_has() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used == variables == {"datasource", "device", "window"}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert asked
            assert asked[2] in EXPORTED[asked[1]]
            assert variable["query"]["query"] == variable["definition"]


def test_grafana_finds_prometheus_and_the_dashboard_where_the_overlay_puts_them() -> None:
    overlay = yaml.safe_load((ROOT / "compose" / "compose.observe.yaml").read_text())["services"]
    mounted = dict(volume.split(":")[:2] for volume in overlay["grafana"]["volumes"])
    assert (FILES.parent / "observe/grafana/dashboards").is_dir()
    assert mounted["./observe/grafana/datasource.yml"].startswith("/etc/grafana/provisioning/datasources/")
    assert mounted["./observe/grafana/dashboards.yml"].startswith("/etc/grafana/provisioning/dashboards/")
    [provider] = yaml.safe_load((FILES / "grafana" / "dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"] == mounted["./observe/grafana/dashboards"]
    home = overlay["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{mounted['./observe/grafana/dashboards']}/transcoder.json"
    [source] = yaml.safe_load((FILES / "grafana" / "datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    scraping = yaml.safe_load((FILES / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    assert {"prometheus", "grafana"} == set(overlay)


def test_prometheus_asks_every_worker_on_its_port() -> None:
    [job] = yaml.safe_load((FILES / "prometheus.yml").read_text())["scrape_configs"]
    [names_of_workers] = job["dns_sd_configs"]
    assert job["job_name"] == "transcoder"
    assert (names_of_workers["names"], names_of_workers["type"], names_of_workers["port"]) == (["workers"], "A", 9464)
