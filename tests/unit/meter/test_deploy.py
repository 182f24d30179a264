"""Dashboards, alerts and runbooks name what there is; checked by promtool, too, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.meter.catalogue import ALIASES, ROWS

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "octavo.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "octavo.json"
RUNBOOKS = ROOT / "docs" / "runbooks"
COMMON = {"model_name", "engine", "instance", "job"}
METRIC = re.compile(r"\b((?:vllm|octavo):[a-z_0-9]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!=|!~|=)")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def samples() -> dict[str, set[str]]:
    """Every sample that a scrape has -> its labels."""
    found: dict[str, set[str]] = {}
    by_name = {row.name: row for row in ROWS}
    rows = [(row.name, row) for row in ROWS] + [(old, by_name[new]) for old, new in ALIASES.items()]
    for name, row in rows:
        labels = COMMON | set(row.labels)
        if row.kind == "counter":
            found[f"{name}_total"] = labels
        elif row.kind == "gauge":
            found[name] = labels
        else:
            found[f"{name}_bucket"] = labels | {"le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = labels
    return found


SAMPLES = samples()


def wrong(query: str) -> list[str]:
    """What a query names and no scrape has."""
    found = METRIC.findall(query)
    unknown = [name for name, _ in found if name not in SAMPLES]
    for name, selector in found:
        known = SAMPLES.get(name, set())
        unknown += [f"{name}{{{label}}}" for label in LABEL.findall(selector) if label not in known]
    labels = set().union(*(SAMPLES.get(name, set()) for name, _ in found)) if found else COMMON
    for group in GROUPED.findall(query):
        unknown += [f"by ({one})" for one in re.split(r",\s*", group) if one not in labels]
    return unknown


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [one for one in json.loads(DASHBOARD.read_text())["panels"] if one["type"] != "row"]


def test_the_check_bites() -> None:
    assert wrong("rate(vllm:nothing_total[5m])") == ["vllm:nothing_total"]
    assert wrong("rate(vllm:prompt_tokens[5m])") == ["vllm:prompt_tokens"], "a counter has _total"
    assert wrong('vllm:kv_cache_usage_perc{reason="x"}') == ["vllm:kv_cache_usage_perc{reason}"]
    assert wrong("sum by (route) (vllm:kv_cache_usage_perc)") == ["by (route)"]
    assert not wrong('sum by (le) (rate(vllm:inter_token_latency_seconds_bucket{le="0.5"}[5m]))')


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_names_what_there_is_and_has_a_page(rule: dict[str, Any]) -> None:
    assert not wrong(rule["expr"])
    assert METRIC.search(rule["expr"]) or rule["expr"].startswith("up{")
    assert rule["labels"]["severity"] in ("warning", "critical")
    url = rule["annotations"]["runbook_url"]
    assert url == f"docs/runbooks/{rule['alert']}.md"
    text = (ROOT / url).read_text()
    for part in ("## Cause", "## What to look at", "## What to change"):
        assert part in text


def test_no_page_is_left_over() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == {rule["alert"] for rule in alerts()}
    index = (RUNBOOKS / "README.md").read_text()
    assert all(f"({page}.md)" in index for page in pages)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_names_what_there_is(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert METRIC.search(target["expr"]) and not wrong(target["expr"])
        labels = set().union(*(SAMPLES[name] for name, _ in METRIC.findall(target["expr"])))
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert legend <= labels


def test_panels_do_not_overlap_and_the_file_is_what_the_table_makes() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", DASHBOARD.with_name("dashboard.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(DASHBOARD.read_text()) == module.dashboard(), (
        "run deploy/grafana/dashboard.py"
    )
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and all(x < 24 for x, _ in cells)
        taken |= cells


def test_compose_mounts_what_there_is() -> None:
    folder = ROOT / "deploy" / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    paths = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(paths) == 3 and all((folder / path).exists() for path in paths)


def test_promtool_finds_nothing_wrong_and_alerts_fire() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    for what in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", RULES.name],
        ["test", "rules", "octavo.rules.test.yml"],
    ):
        done = subprocess.run(
            [promtool, *what],
            cwd=RULES.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    tried = yaml.safe_load(RULES.with_name("octavo.rules.test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tried
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in alerts()}
