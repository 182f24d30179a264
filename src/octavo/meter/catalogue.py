"""The table of metrics: names, types, help and labels. A tested API: rows are added, never renamed.

`vllm:` and `http_` names are those that dashboards and autoscalers already read; `octavo:` names are ours. Every metric carries
`model_name` and `engine`; `labels` are those beside them. Histograms have the bounds that vLLM gives them, so that a query
for one of its `le` finds it, and a few more where Octavo is faster than its smallest.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

FINISHED_REASONS = ("stop", "length", "abort", "error")

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6)
_N = (1, 2, 5, 10, 20)
_TIMES = (0, 1, 2, 5, 10, 20, 50, 100)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_BRIEF = (0.01, 0.025, 0.05, 0.1, 0.2)
_LONG = (
    *_BRIEF,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_ITL = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)


_RATIO = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10)


class Row(NamedTuple):
    """One metric."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    """Of the one label, what is exposed from the start: a series that appears with its first event has no rate before."""


ROWS: tuple[Row, ...] = (
    Row(
        "vllm:num_requests_running", "gauge", "Requests in the running batch, after the last step."
    ),
    Row("vllm:num_requests_waiting", "gauge", "Requests waiting to be run, for whatever reason."),
    Row(
        "vllm:num_requests_waiting_by_reason",
        "gauge",
        "The same by reason; capacity: for rows, blocks or their turn; deferred: for their grammar to be built.",
        ("reason",),
        values=("capacity", "deferred"),
    ),
    Row(
        "vllm:engine_sleep_state",
        "gauge",
        "awake is 1; an engine here does not sleep.",
        ("sleep_state",),
        values=("awake", "weights_offloaded", "discard_all"),
    ),
    Row("vllm:kv_cache_usage_perc", "gauge", "Share of KV cache blocks in use; 1 is all."),
    Row(
        "vllm:cache_config_info",
        "gauge",
        "The KV cache as configured.",
        ("block_size", "num_gpu_blocks", "cache_dtype", "kv_cache_size_tokens"),
    ),
    Row("vllm:prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache."),
    Row("vllm:prefix_cache_hits", "counter", "Prompt tokens found in the prefix cache."),
    Row(
        "vllm:external_prefix_cache_queries",
        "counter",
        "Prompt tokens looked up in a cache shared between engines: there is none.",
    ),
    Row("vllm:external_prefix_cache_hits", "counter", "Prompt tokens found there."),
    Row("vllm:mm_cache_queries", "counter", "Images and sounds looked up: models here read text."),
    Row("vllm:mm_cache_hits", "counter", "Images and sounds found."),
    Row(
        "vllm:corrupted_requests",
        "counter",
        "Requests that failed because their logits held what is no number.",
    ),
    Row("vllm:num_preemptions", "counter", "Requests put back to the queue."),
    Row(
        "vllm:prompt_tokens",
        "counter",
        "Prompt tokens of requests, from the cache or computed, when their answer begins.",
    ),
    Row(
        "vllm:prompt_tokens_by_source",
        "counter",
        "The same by where their keys and values came from.",
        ("source",),
        values=("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    Row(
        "octavo:computed_prompt_tokens",
        "counter",
        "Prompt tokens that went through the model, each once; also of requests that never answered.",
    ),
    Row("octavo:recomputed_tokens", "counter", "Tokens computed again after a preemption."),
    Row("octavo:recomputed_seconds", "counter", "Predicted device seconds that those took."),
    Row("octavo:num_queued_tokens", "gauge", "Tokens of waiting requests not in the prefix cache."),
    Row("octavo:num_pending_tokens", "gauge", "Known tokens of running requests still to compute."),
    Row("octavo:step_time_error_ratio", "gauge", "80 % of steps are predicted within this."),
    Row(
        "vllm:prompt_tokens_cached",
        "counter",
        "Of vllm:prompt_tokens, those that were found in the prefix cache.",
    ),
    Row(
        "vllm:prompt_tokens_cached_by_source",
        "counter",
        "The same by where the cache keeps them; device: with the model.",
        ("source",),
        values=("device", "host", "p2p", "disk", "external_unspecified"),
    ),
    Row(
        "vllm:generation_tokens",
        "counter",
        "Tokens of answers, as callers were told them in usage.",
    ),
    Row(
        "octavo:sampled_tokens",
        "counter",
        "Tokens that the engine chose; beyond vllm:generation_tokens are the canary's, and those past a stop string or for "
        "a caller who had gone.",
    ),
    Row(
        "vllm:request_success",
        "counter",
        "Requests ended, by reason.",
        ("finished_reason",),
        values=FINISHED_REASONS,
    ),
    Row(
        "vllm:admission_rejections",
        "counter",
        "Calls refused at a limit or by a budget; others of their reasons begin with key_: a limit of the caller's key.",
        ("reason",),
        values=(
            "queued_reqs",
            "queued_tokens",
            "would_miss_ttft_slo",
            "would_miss_deadline",
            "background",
            "budget",
        ),
    ),
    Row("vllm:request_prompt_tokens", "histogram", "Prompt tokens per request.", (), _TOKENS),
    Row("vllm:request_generation_tokens", "histogram", "Tokens out per request.", (), _TOKENS),
    Row("vllm:iteration_tokens_total", "histogram", "Tokens per engine step.", (), _STEP_TOKENS),
    Row(
        "vllm:request_max_num_generation_tokens",
        "histogram",
        "Most tokens that a request could have had.",
        (),
        _TOKENS,
    ),
    Row("vllm:request_params_n", "histogram", "The n of calls.", (), _N),
    Row("vllm:request_params_max_tokens", "histogram", "The max_tokens asked.", (), _TOKENS),
    Row("vllm:time_to_first_token_seconds", "histogram", "Arrival to first token.", (), _TTFT),
    Row("vllm:inter_token_latency_seconds", "histogram", "Between outputs.", (), _ITL),
    Row(
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        "Mean time per token after the first.",
        (),
        _ITL,
    ),
    Row("vllm:e2e_request_latency_seconds", "histogram", "Arrival to end.", (), _LONG),
    Row("vllm:request_queue_time_seconds", "histogram", "Arrival to first run.", (), _LONG),
    Row("vllm:request_inference_time_seconds", "histogram", "First run to last token.", (), _LONG),
    Row("vllm:request_prefill_time_seconds", "histogram", "First run to first token.", (), _LONG),
    Row("vllm:request_decode_time_seconds", "histogram", "First token to last.", (), _LONG),
    Row("vllm:request_num_preemptions", "histogram", "Preemptions per request.", (), _TIMES),
    Row(
        "vllm:request_prefill_kv_computed_tokens",
        "histogram",
        "Prompt tokens computed, less those found in the prefix cache.",
        (),
        _TOKENS,
    ),
    Row("octavo:build_info", "gauge", "What runs.", ("version", "device", "dtype")),
    Row("octavo:startup_seconds", "gauge", "Start-up time by phase.", ("phase",)),
    Row(
        "octavo:engine_restarts",
        "counter",
        "Engine processes started in place of one that ended, by what it ended from.",
        ("reason",),
        values=("asked", "fatal", "connection", "launch", "signal", "exit"),
    ),
    Row("octavo:requests_received", "counter", "Requests handed to the engine."),
    Row("octavo:requests_in_flight", "gauge", "Requests received and not yet ended."),
    Row(
        "octavo:requests_by_stage",
        "gauge",
        "The same, counted one by one where they stand; elsewhere: their grammar is compiled, or their end is on its way "
        "to the caller.",
        ("stage",),
        values=("waiting", "running", "elsewhere"),
    ),
    Row("octavo:tool_parse_errors", "counter", "Answers with tool calls that could not be parsed."),
    Row(
        "octavo:request_faults",
        "counter",
        "Requests that failed inside the engine, by where they threw or what was wrong.",
        ("kind",),
    ),
    Row(
        "octavo:kv_epoch_mismatches",
        "counter",
        "Requests that were about to read a KV block which was freed or never theirs.",
    ),
    Row("octavo:client_disconnects", "counter", "Calls whose client went away."),
    Row("octavo:canary_age_seconds", "gauge", "Since the canary's last answer."),
    Row("octavo:canary_tokens_matched", "gauge", "Its tokens that were as known."),
    Row("octavo:canary_latency_seconds", "gauge", "What it took."),
    Row("octavo:canary_failures", "counter", "Canary answers that were no good."),
    Row(
        "octavo:aborted_tokens",
        "counter",
        "Tokens of requests that ended early: all output, and prompts whose first token had come. "
        "reason: disconnect, deadline, api, budget, shutdown; kind: prompt, output.",
        ("reason", "kind"),
    ),
    Row(
        "octavo:aborted_computed_tokens",
        "counter",
        "Tokens that the engine computed for requests that were cancelled, prompts among them.",
    ),
    Row("octavo:predicted_ttft_seconds", "histogram", "Time to first token told.", (), _TTFT),
    Row(
        "octavo:ttft_prediction_ratio",
        "histogram",
        "Time to first token, as a multiple of the one told.",
        (),
        _RATIO,
    ),
    Row(
        "octavo:ttft_interval_coverage",
        "gauge",
        "Of the last 1000 calls: the share whose first token came inside the interval told, of 0.8.",
    ),
    Row("octavo:promises", "counter", "Calls taken with a limit of time, by kind.", ("kind",)),
    Row("octavo:promises_broken", "counter", "Of those, the ones that missed it.", ("kind",)),
    Row(
        "octavo:device_seconds",
        "counter",
        "Device time by account; accounts sum to wall time. kind: prefill, decode, of requests.",
        ("account", "kind"),
    ),
    Row(
        "octavo:wasted_device_seconds",
        "counter",
        "Of the time of requests: spent on those that were then aborted or failed.",
        ("account",),
    ),
    Row("octavo:charged_tokens", "counter", "Tokens that request time computed.", ("kind",)),
    Row(
        "octavo:cost_per_million_tokens",
        "gauge",
        "At --device-price, over five minutes: prompt tokens computed (prefill), output (decode).",
        ("kind",),
    ),
    Row("octavo:budget_used_ratio", "gauge", "Used of a budget; 1 is all.", ("budget",)),
    Row("octavo:ledger_up", "gauge", "Whether the ledger on disk has all.", ("database",)),
    Row(
        "http_requests",
        "counter",
        "Calls by route and class of status, 2xx to 5xx, as vLLM's dashboards read them.",
        ("handler", "method", "status"),
    ),
    Row(
        "http_request_duration_seconds",
        "histogram",
        "From a call's head to the end of its answer.",
        ("handler", "method"),
        _LONG,
    ),
    Row("octavo:http_responses", "counter", "Answers by route and status.", ("route", "status")),
)

ALIASES = {
    "vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "vllm:gpu_prefix_cache_queries": "vllm:prefix_cache_queries",
    "vllm:gpu_prefix_cache_hits": "vllm:prefix_cache_hits",
    "vllm:time_per_output_token_seconds": "vllm:inter_token_latency_seconds",
}
"""Old names that dashboards still read -> the metric whose samples they repeat."""

_NO_LORA = "Only with LoRA adapters (vLLM: --enable-lora), which Octavo does not have."
_NO_SPECULATION = (
    "Only with speculative decoding (vLLM: --speculative-config), which Octavo does not have yet."
)
_NO_RESIDENCY = (
    "Only with vLLM's --kv-cache-metrics, which samples single blocks; Octavo has no such flag."
)

ABSENT = {
    "vllm:num_requests_kv_fetch_by_stage": "Only with a KV connector (vLLM: --kv-transfer-config), which Octavo does not "
    "have.",
    "vllm:watermark_requests": "Only with a watermark config, which Octavo does not have.",
    "vllm:kv_block_lifetime_seconds": _NO_RESIDENCY,
    "vllm:kv_block_idle_before_evict_seconds": _NO_RESIDENCY,
    "vllm:kv_block_reuse_gap_seconds": _NO_RESIDENCY,
    "vllm:lora_requests_info": _NO_LORA,
    "vllm:spec_decode_num_drafts": _NO_SPECULATION,
    "vllm:spec_decode_num_draft_tokens": _NO_SPECULATION,
    "vllm:spec_decode_num_accepted_tokens": _NO_SPECULATION,
    "vllm:spec_decode_num_accepted_tokens_per_pos": _NO_SPECULATION,
}
"""Metrics of vLLM that are not exposed here, and why: vLLM does not expose them either without the feature."""
