"""The names that dashboards and autoscalers read: a snapshot, vLLM's own table, and the page of the docs.

Rewrite the snapshot and the page with `PYTHONPATH=src:tests python tests/unit/meter/test_catalogue.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.core.result import EngineStats
from octavo.meter.catalogue import ABSENT, ALIASES, ROWS, Row
from octavo.meter.metrics import Metrics

SNAPSHOT = Path(__file__).parent / "metrics.txt"
PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
BY_NAME = {row.name: row for row in ROWS}

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20)

# What vLLM documents: name -> (type, its own label, bounds that queries may name).
VLLM: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "num_requests_running": ("gauge", "", ()),
    "num_requests_waiting": ("gauge", "", ()),
    "num_requests_waiting_by_reason": ("gauge", "reason", ()),
    "num_requests_kv_fetch_by_stage": ("gauge", "stage", ()),
    "engine_sleep_state": ("gauge", "sleep_state", ()),
    "kv_cache_usage_perc": ("gauge", "", ()),
    "corrupted_requests": ("counter", "", ()),
    "watermark_requests": ("counter", "status", ()),
    "prefix_cache_queries": ("counter", "", ()),
    "prefix_cache_hits": ("counter", "", ()),
    "external_prefix_cache_queries": ("counter", "", ()),
    "external_prefix_cache_hits": ("counter", "", ()),
    "mm_cache_queries": ("counter", "", ()),
    "mm_cache_hits": ("counter", "", ()),
    "num_preemptions": ("counter", "", ()),
    "prompt_tokens": ("counter", "", ()),
    "prompt_tokens_by_source": ("counter", "source", ()),
    "prompt_tokens_cached": ("counter", "", ()),
    "prompt_tokens_cached_by_source": ("counter", "source", ()),
    "generation_tokens": ("counter", "", ()),
    "request_success": ("counter", "finished_reason", ()),
    "admission_rejections": ("counter", "reason", ()),
    "request_prompt_tokens": ("histogram", "", _TOKENS),
    "request_generation_tokens": ("histogram", "", _TOKENS),
    "iteration_tokens_total": ("histogram", "", (1, 8, 16, 32, 64, 128, 256, 512, 1024, 16384)),
    "request_max_num_generation_tokens": ("histogram", "", _TOKENS),
    "request_params_n": ("histogram", "", (1, 2, 5, 10, 20)),
    "request_params_max_tokens": ("histogram", "", _TOKENS),
    "time_to_first_token_seconds": ("histogram", "", (*_TTFT, 20, 40, 80, 160, 640, 2560)),
    "inter_token_latency_seconds": ("histogram", "", (*_ITL, 40, 80)),
    "request_time_per_output_token_seconds": ("histogram", "", (*_ITL, 40, 80)),
    "e2e_request_latency_seconds": ("histogram", "", (*_LATENCY, 1920, 7680)),
    "request_queue_time_seconds": ("histogram", "", (*_LATENCY, 1920, 7680)),
    "request_inference_time_seconds": ("histogram", "", (*_LATENCY, 1920, 7680)),
    "request_prefill_time_seconds": ("histogram", "", (*_LATENCY, 1920, 7680)),
    "request_decode_time_seconds": ("histogram", "", (*_LATENCY, 1920, 7680)),
    "request_num_preemptions": ("histogram", "", ()),
    "request_prefill_kv_computed_tokens": ("histogram", "", _TOKENS),
    "kv_block_lifetime_seconds": ("histogram", "", ()),
    "kv_block_idle_before_evict_seconds": ("histogram", "", ()),
    "kv_block_reuse_gap_seconds": ("histogram", "", ()),
    "lora_requests_info": ("gauge", "", ()),
    "spec_decode_num_drafts": ("counter", "", ()),
    "spec_decode_num_draft_tokens": ("counter", "", ()),
    "spec_decode_num_accepted_tokens": ("counter", "", ()),
    "spec_decode_num_accepted_tokens_per_pos": ("counter", "position", ()),
}

# Samples that the public vLLM dashboards and the usual autoscalers ask for.
READ = [
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:gpu_cache_usage_perc",
    "vllm:kv_cache_usage_perc",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_success_total",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_max_num_generation_tokens_sum",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:cache_config_info",
    "process_resident_memory_bytes",
    "http_requests_total",
    "http_request_duration_seconds_bucket",
]


def exposed() -> Metrics:
    metrics = Metrics("m")
    metrics.observe_config(block_size=16, num_blocks=7, num_tokens=112, cache_dtype="float32")
    metrics.observe_startup([("weights", 1.5)])
    metrics.observe_call("/v1/completions", "POST", 200, 0.4)
    return metrics


def snapshot() -> str:
    """Each name with its type and labels, old names and those of the process among them."""
    by_alias = {old: BY_NAME[new] for old, new in ALIASES.items()}
    lines = []
    for family in text_string_to_metric_families(exposed().render().decode()):
        row = BY_NAME.get(family.name) or by_alias.get(family.name)
        labels = "" if row is None else " ".join(("model_name", "engine", *row.labels))
        lines.append(f"{family.name} {family.type} {labels}".rstrip())
    return "\n".join(sorted(lines)) + "\n"


def test_names_types_and_labels_are_as_they_were() -> None:
    """Rows may be added; a name that dashboards read is not renamed, retyped or relabelled."""
    assert snapshot() == SNAPSHOT.read_text(), f"run `python {__file__}` if this was meant"


@pytest.mark.parametrize("name", VLLM)
def test_what_vllm_documents_is_here_or_has_a_reason(name: str) -> None:
    kind, label, bounds = VLLM[name]
    full = f"vllm:{name}"
    if full in ABSENT:
        assert full not in BY_NAME and ABSENT[full].endswith(".")
        return
    row = BY_NAME[full]
    assert row.kind == kind
    assert row.labels == ((label,) if label else ())
    assert set(bounds) <= set(row.buckets), "a query may name any of vLLM's bounds"
    assert list(row.buckets) == sorted(set(row.buckets))


def test_nothing_is_absent_and_present() -> None:
    assert not set(ABSENT) & set(BY_NAME) and len(BY_NAME) == len(ROWS)


def test_what_dashboards_ask_for_is_exposed_from_the_start() -> None:
    metrics = exposed()
    found = {
        line.partition("{")[0].partition(" ")[0] for line in metrics.render().decode().splitlines()
    }
    assert set(READ) <= found
    assert metrics.value("vllm:engine_sleep_state", [("sleep_state", "awake")]) == 1


def test_old_names_repeat_the_new_and_labels_are_everywhere() -> None:
    metrics = Metrics("m")
    metrics.observe_gap(0.3)
    metrics.observe_stats(EngineStats(num_blocks=4, num_free_blocks=1))
    text = metrics.render().decode()
    samples = [line for line in text.splitlines() if not line.startswith(("#", "process_"))]
    assert all('model_name="m"' in line and 'engine="0"' in line for line in samples)
    assert 'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.75' in text
    assert 'vllm:time_per_output_token_seconds_sum{engine="0",model_name="m"} 0.3' in text
    assert "_created" not in text


def test_who_waits_for_a_grammar_waits() -> None:
    metrics = Metrics("m")
    metrics.observe_stats(EngineStats(num_waiting=3, num_deferred=2))
    assert metrics.value("vllm:num_requests_waiting") == 5
    reasons = "vllm:num_requests_waiting_by_reason"
    assert metrics.value(reasons, [("reason", "capacity")]) == 3
    assert metrics.value(reasons, [("reason", "deferred")]) == 2


def test_restarts_are_counted_by_what_the_engine_ended_from() -> None:
    metrics = Metrics("m")
    metrics.observe_restarts([("signal", 2)])
    metrics.observe_restarts([("signal", 2), ("fatal", 1)])
    assert metrics.value("octavo:engine_restarts_total", [("reason", "signal")]) == 2
    assert metrics.value("octavo:engine_restarts_total", [("reason", "fatal")]) == 1


HEAD = """# Metrics

`GET /metrics` answers in Prometheus' text format; where keys are configured it needs the role `operator`. Every metric
carries the labels `model_name` and `engine` beside those listed. Names that begin with `vllm:` mean what they mean in vLLM,
so that its Grafana dashboards, and autoscalers that read it, work unchanged; `octavo:` names are Octavo's own. Counters end
in `_total` when they are scraped. Metrics of the server's process (`process_*`) are Prometheus' usual ones.

`deploy/grafana` has a dashboard, `deploy/prometheus` rules, `docs/runbooks` a page per alert, and `deploy/compose` starts
Prometheus and Grafana beside a server.

## Laws

At every scrape, tested over a mixed run (`tests/e2e/test_conservation.py`):

- `octavo:requests_received` = the sum of `vllm:request_success` over its reasons (stop, length, abort, error) +
  `octavo:requests_in_flight`, and `octavo:requests_in_flight` = the sum of `octavo:requests_by_stage`. The gauges
  `vllm:num_requests_running` and `vllm:num_requests_waiting` are the engine's own, of its last step, the canary's among them.
- `vllm:generation_tokens` = the sum of `usage.completion_tokens` of all answers, broken-off ones included.
- `vllm:prompt_tokens` = the prompts of all requests whose answer began, once per choice; its sources sum to it.
- The count of `vllm:e2e_request_latency_seconds` and of the token histograms = requests ended; of
  `vllm:time_to_first_token_seconds` and of the histograms of queue, prefill, decode and inference time = requests with a
  token; of `vllm:iteration_tokens_total` = steps of the engine.

A request is one choice: a call with `n` of 3 counts three times, as in vLLM. Histograms have vLLM's bounds and a few smaller
ones; those of tokens go to a million whatever the model's context is.
"""


def table(rows: list[Row]) -> list[str]:
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        if row.values:
            labels += ": " + ", ".join(row.values)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.help} |")
    return lines


def page() -> str:
    lines = [HEAD, "## vLLM's names", ""]
    lines += table([row for row in ROWS if not row.name.startswith("octavo:")])
    lines += ["", "## Octavo's own", ""]
    lines += table([row for row in ROWS if row.name.startswith("octavo:")])
    lines += ["", "## Old names", "", "Exposed beside the new ones, with the same samples.", ""]
    lines += ["| old | new |", "|---|---|", *(f"| `{a}` | `{b}` |" for a, b in ALIASES.items())]
    lines += ["", "## Absent", "", "What vLLM documents and Octavo does not expose, and why.", ""]
    lines += ["| name | why |", "|---|---|", *(f"| `{a}` | {why} |" for a, why in ABSENT.items())]
    return "\n".join(lines) + "\n"


def test_page() -> None:
    assert PAGE.read_text() == page(), f"run `python {__file__}` if this was meant"


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
    PAGE.write_text(page())
