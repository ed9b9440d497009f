"""Prometheus' configuration and rules, and Grafana's dashboard: valid, tried, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml

RECORDED = {
    "wherry:inference_failure_ratio:5m": {"model", "version"},
    "wherry:inference_duration_seconds:p95_5m": {"model", "version"},
}
PROMETHEUS_OWN = {"up"}
SCRAPED = {"job", "instance"}
NAME = re.compile(r"(?<![\w:.$\"'{-])[a-z_][\w:]*(?=\s*[\[{)]|\s|$)")
WORDS = {"and", "on", "by", "sum", "rate", "min", "max", "time", "increase", "histogram_quantile", "or", "without"}


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_of(expression):
    """Names of the series in a query, each with the labels that the query uses of it; and the labels it groups by."""
    labels = [set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) for inside in re.findall(r"\{([^}]*)\}", expression)]
    grouped = [
        set(re.split(r"[\s,]+", inside.strip())) for inside in re.findall(r"(?:by|on)\s*\(([^)]*)\)", expression)
    ]
    bare = re.sub(r"(?:by|on)\s*\([^)]*\)", " ", re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression))
    return set(NAME.findall(bare)) - WORDS, set().union(*labels, *grouped)


def check_query(expression, series):
    names, labels = metrics_of(expression)
    known = {**series, **RECORDED, **dict.fromkeys(PROMETHEUS_OWN, SCRAPED)}
    assert names, f"no metric in {expression!r}"
    assert names <= set(known), f"{names - set(known)} in {expression!r} is exposed by nobody"
    has = set().union(*(known[name] for name in names)) | SCRAPED
    assert labels <= has, f"{labels - has} in {expression!r} is no label of {names}"


def rules(deploy):
    return yaml.safe_load((deploy / "prometheus/wherry.rules.yml").read_text())["groups"][0]["rules"]


def dashboard(deploy):
    return json.loads((deploy / "grafana/dashboards/wherry.json").read_text())


def queries(deploy):
    return [target["expr"] for panel in dashboard(deploy)["panels"] for target in panel.get("targets", [])]


def test_prometheus_accepts_its_configuration(deploy):
    promtool("check", "config", "--syntax-only", str(deploy / "prometheus/prometheus.yml"))


def test_the_rules_do_what_their_own_tests_say(deploy):
    assert "SUCCESS" in promtool("check", "rules", str(deploy / "prometheus/wherry.rules.yml"))
    assert "SUCCESS" in promtool("test", "rules", str(deploy / "prometheus/wherry.rules.test.yml"))


def test_every_rule_asks_for_metrics_that_the_server_exposes(deploy, series):
    for rule in rules(deploy):
        check_query(rule["expr"], series)
    assert {rule["record"] for rule in rules(deploy) if "record" in rule} == set(RECORDED)


def test_every_alert_is_tried_both_ways(deploy):
    told = yaml.safe_load((deploy / "prometheus/wherry.rules.test.yml").read_text())["tests"]
    for alert in (rule["alert"] for rule in rules(deploy) if "alert" in rule):
        tried = [case for test in told for case in test["alert_rule_test"] if case["alertname"] == alert]
        assert {bool(case.get("exp_alerts")) for case in tried} == {True, False}, alert


def test_every_alert_says_what_and_what_to_do(deploy):
    for rule in rules(deploy):
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "warn", "info")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_the_dashboard_asks_for_metrics_that_the_server_exposes(deploy, series):
    assert len(queries(deploy)) > 15
    for query in queries(deploy):
        check_query(query, series)
    [variable] = dashboard(deploy)["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
    assert label in series[metric]


def test_prometheus_parses_every_query_of_the_dashboard(deploy, tmp_path):
    groups = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$model", ".*")}
        for number, query in enumerate(queries(deploy))
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": groups}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_the_dashboard_is_one_that_grafana_can_provision(deploy):
    board = dashboard(deploy)
    assert (board["uid"], board["title"], board["schemaVersion"]) == ("wherry-fleet", "Wherry fleet", 39)
    assert "id" not in board, "Grafana gives it one"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = yaml.safe_load((deploy / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    taken = set()
    for panel in panels:
        assert panel["type"] in ("row", "stat", "timeseries", "bargauge")
        assert panel["title"]
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == sources[0]["uid"]
    provider = yaml.safe_load((deploy / "grafana/provisioning/dashboards/wherry.yml").read_text())["providers"][0]
    assert provider["options"]["path"] == "/etc/wherry/dashboards"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sum(wherry_device)", "wherry_device"),
        ('wherry_devices{color="red"} > 0', "color"),
        ("sum by (version) (wherry_devices)", "version"),
        ("rate(wherry_telemetry_dropped[5m])", "wherry_telemetry_dropped"),
    ],
)
def test_a_query_for_what_is_not_there_is_found(series, query, words):
    with pytest.raises(AssertionError, match=words):
        check_query(query, series)
