"""Writes octavo.json, the Grafana dashboard, from the table below: `python deploy/grafana/dashboard.py`.

A panel is a title, a unit, and queries with their legends; `{}` in a query stands for the chosen model and instance.
`tests/unit/meter/test_deploy.py` holds every metric and label against the catalogue.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

OUT = Path(__file__).parent / "octavo.json"
CHOSEN = 'model_name=~"$model", instance=~"$instance"'
WINDOW = "$__rate_interval"


class Panel(NamedTuple):
    """One picture."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """(query, legend)"""
    kind: str = "timeseries"
    width: int = 8
    about: str = ""


def rate(metric: str, by: str = "", where: str = "") -> str:
    """The sum over instances of what a counter grows by per second."""
    group = f" by ({by})" if by else ""
    extra = f", {where}" if where else ""
    return f"sum{group} (rate({metric}{{{CHOSEN}{extra}}}[{WINDOW}]))"


def gauge(metric: str, by: str = "") -> str:
    """The sum of a gauge."""
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{CHOSEN}}})"


def percentiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """Median, p90 and p99 of a histogram."""
    return tuple(
        (f"histogram_quantile({q}, {rate(f'{histogram}_bucket', 'le')})", name)
        for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    )


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel(
                "Running", "short", ((gauge("vllm:num_requests_running"), "running"),), "stat", 4
            ),
            Panel(
                "Waiting", "short", ((gauge("vllm:num_requests_waiting"), "waiting"),), "stat", 4
            ),
            Panel(
                "KV cache",
                "percentunit",
                ((f"max(vllm:kv_cache_usage_perc{{{CHOSEN}}})", "fullest"),),
                "gauge",
                4,
                "Share of blocks that requests hold. Cached blocks that nobody holds are free.",
            ),
            Panel(
                "p99 first token",
                "s",
                (percentiles("vllm:time_to_first_token_seconds")[2],),
                "stat",
                4,
            ),
            Panel(
                "p99 between tokens",
                "s",
                (percentiles("vllm:inter_token_latency_seconds")[2],),
                "stat",
                4,
            ),
            Panel(
                "Canary",
                "s",
                ((f"max(octavo:canary_age_seconds{{{CHOSEN}}})", "since its answer"),),
                "stat",
                4,
            ),
        ),
    ),
    (
        "Throughput",
        (
            Panel(
                "Tokens per second",
                "short",
                (
                    (rate("vllm:generation_tokens_total"), "to callers"),
                    (rate("vllm:prompt_tokens_total"), "prompts"),
                    (rate("octavo:computed_prompt_tokens_total"), "prompts computed"),
                ),
            ),
            Panel(
                "Requests ended per second",
                "reqps",
                ((rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),),
            ),
            Panel(
                "Tokens per step",
                "short",
                (
                    (
                        f"{rate('vllm:iteration_tokens_total_sum')} / {rate('vllm:iteration_tokens_total_count')}",
                        "mean",
                    ),
                ),
            ),
            Panel(
                "Prompt lengths",
                "short",
                percentiles("vllm:request_prompt_tokens"),
                about="Tokens.",
            ),
            Panel(
                "Answer lengths",
                "short",
                percentiles("vllm:request_generation_tokens"),
                about="Tokens.",
            ),
            Panel(
                "In flight by stage",
                "short",
                ((gauge("octavo:requests_by_stage", "stage"), "{{stage}}"),),
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel("First token", "s", percentiles("vllm:time_to_first_token_seconds")),
            Panel("Between tokens", "s", percentiles("vllm:inter_token_latency_seconds")),
            Panel("Whole request", "s", percentiles("vllm:e2e_request_latency_seconds")),
            Panel("Queue", "s", percentiles("vllm:request_queue_time_seconds")),
            Panel("Prefill", "s", percentiles("vllm:request_prefill_time_seconds")),
            Panel("Decode", "s", percentiles("vllm:request_decode_time_seconds")),
        ),
    ),
    (
        "Queue and KV cache",
        (
            Panel(
                "Waiting by reason",
                "short",
                ((gauge("vllm:num_requests_waiting_by_reason", "reason"), "{{reason}}"),),
                about="capacity: rows, blocks or their turn. deferred: their grammar is being built.",
            ),
            Panel(
                "KV cache in use",
                "percentunit",
                ((f"vllm:kv_cache_usage_perc{{{CHOSEN}}}", "{{instance}}"),),
            ),
            Panel(
                "Prefix cache hits",
                "percentunit",
                (
                    (
                        f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}",
                        "share of prompt tokens",
                    ),
                ),
            ),
            Panel(
                "Preemptions per second",
                "short",
                ((rate("vllm:num_preemptions_total"), "preemptions"),),
            ),
            Panel(
                "Tokens to compute",
                "short",
                (
                    (gauge("octavo:num_queued_tokens"), "of those who wait"),
                    (gauge("octavo:num_pending_tokens"), "of those who run"),
                ),
            ),
            Panel(
                "Refused per second",
                "reqps",
                ((rate("vllm:admission_rejections_total", "reason"), "{{reason}}"),),
            ),
        ),
    ),
    (
        "Cost and waste",
        (
            Panel(
                "Device time by account",
                "percentunit",
                ((rate("octavo:device_seconds_total", "account"), "{{account}}"),),
                about="Of one device; the accounts sum to all of it.",
            ),
            Panel(
                "Cost per million tokens",
                "short",
                ((f"octavo:cost_per_million_tokens{{{CHOSEN}}}", "{{kind}} {{instance}}"),),
                about="At --device-price, in its currency; nothing without it.",
            ),
            Panel(
                "Budgets used",
                "percentunit",
                ((f"octavo:budget_used_ratio{{{CHOSEN}}}", "{{budget}}"),),
            ),
            Panel(
                "Computed again after preemption",
                "short",
                ((rate("octavo:recomputed_tokens_total"), "tokens per second"),),
            ),
            Panel(
                "Lost with callers who left",
                "short",
                ((rate("octavo:aborted_tokens_total", "reason"), "{{reason}}, tokens per second"),),
            ),
            Panel(
                "Sampled for nobody",
                "short",
                (
                    (
                        f"{rate('octavo:sampled_tokens_total')} - {rate('vllm:generation_tokens_total')}",
                        "tokens per second",
                    ),
                ),
                about="The canary's, those past a stop string, and for callers who had gone.",
            ),
        ),
    ),
    (
        "Errors and health",
        (
            Panel(
                "Answers by status",
                "reqps",
                ((rate("octavo:http_responses_total", "status"), "{{status}}"),),
            ),
            Panel(
                "Requests that failed inside the engine",
                "reqps",
                ((rate("octavo:request_faults_total", "kind"), "{{kind}}"),),
            ),
            Panel(
                "Engine restarts",
                "short",
                (
                    (
                        f"sum by (reason) (increase(octavo:engine_restarts_total{{{CHOSEN}}}[{WINDOW}]))",
                        "{{reason}}",
                    ),
                ),
            ),
            Panel(
                "Canary",
                "short",
                (
                    (f"octavo:canary_tokens_matched{{{CHOSEN}}}", "{{instance}} tokens as known"),
                    (rate("octavo:canary_failures_total"), "failures per second"),
                ),
            ),
            Panel(
                "First tokens inside the interval told",
                "percentunit",
                ((f"octavo:ttft_interval_coverage{{{CHOSEN}}}", "{{instance}}"),),
                about="Calibrated is 80 %.",
            ),
            Panel(
                "Promises broken",
                "percentunit",
                (
                    (
                        f"{rate('octavo:promises_broken_total', 'kind')} / {rate('octavo:promises_total', 'kind')}",
                        "{{kind}}",
                    ),
                ),
            ),
        ),
    ),
)


def shown(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel as Grafana has it."""
    height = 4 if panel.kind != "timeseries" else 8
    source = {"type": "prometheus", "uid": "${datasource}"}
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.unit != "percentunit" or panel.kind == "gauge":
        defaults["min"] = 0
    if panel.kind == "gauge":
        steps = [("green", None), ("orange", 0.85), ("red", 0.9)]
        marks = [{"color": color, "value": value} for color, value in steps]
        defaults |= {"max": 1, "thresholds": {"mode": "absolute", "steps": marks}}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(65 + i), "expr": query, "legendFormat": legend, "datasource": source}
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def variable(name: str, label: str) -> dict[str, Any]:
    """A choice of values of a label."""
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values(vllm:num_requests_running, {label})",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """The whole."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        x, y = 0, y + 1
        height = 0
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, y + height
            panels.append(shown(panel, len(panels) + 1, x, y))
            height = panels[-1]["gridPos"]["h"]
            x += panel.width
        y += height
    chooser = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "octavo",
        "title": "Octavo",
        "tags": ["octavo", "llm"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [chooser, variable("model", "model_name"), variable("instance", "instance")]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=1) + "\n")
