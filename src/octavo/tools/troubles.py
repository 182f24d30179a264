"""What goes wrong with a server under load: how it shows in its metrics, the cause, and the flag to change. Pure data.

`octavo doctor --url` looks for each row in live metrics; docs/troubleshooting.md is written from the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from octavo.tools.samples import Samples
from octavo.tools.tables import seconds_text

LEAST = 20
"""Requests below which latencies and shares say nothing."""
LEAST_TOKENS = 10_000

TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
QUEUE = "vllm:request_queue_time_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
KV = "vllm:kv_cache_usage_perc"

Symptom = Literal["first token slow", "stutter", "memory", "timeouts", "low hit rate", "faults"]
Look = Callable[[Samples], str | None]
"""What was found if the trouble is there, else None."""


class Trouble(NamedTuple):
    """One row."""

    name: str
    symptom: Symptom
    status: Literal["warn", "fail"]
    sign: str
    """How it shows, in words; `look` is the same as a program."""
    cause: str
    fix: str
    look: Look


def _slow_queue(m: Samples) -> str | None:
    return _slow_first(m, QUEUE, lambda m: m.total(KV) < 0.9)


def _slow_queue_memory(m: Samples) -> str | None:
    return _slow_first(m, QUEUE, lambda m: m.total(KV) >= 0.9)


def _slow_prefill(m: Samples) -> str | None:
    return _slow_first(m, PREFILL, lambda m: True)


def _slow_first(m: Samples, part: str, also: Callable[[Samples], bool]) -> str | None:
    """First tokens take over a second at p90, and most of the time is `part`."""
    if m.total(f"{TTFT}_count") < LEAST or not also(m):
        return None
    first, of_it = m.quantile(TTFT, 0.9), m.quantile(part, 0.9)
    total, sum_part = m.total(f"{TTFT}_sum"), m.total(f"{part}_sum")
    if first is None or of_it is None or first <= 1.0 or sum_part < 0.5 * total:
        return None
    share = sum_part / total
    return f"first token p90 {seconds_text(first)}, of which {seconds_text(of_it)} ({share:.0%} of all)"


def _stutter(m: Samples) -> str | None:
    if m.total(f"{ITL}_count") < 10 * LEAST:
        return None
    middle, slow = m.quantile(ITL, 0.5), m.quantile(ITL, 0.99)
    if middle is None or slow is None or slow < 0.1 or slow < 5 * middle or _preempted(m):
        return None
    return f"between tokens p50 {seconds_text(middle)}, p99 {seconds_text(slow)}"


def _slow_tokens(m: Samples) -> str | None:
    if m.total(f"{ITL}_count") < 10 * LEAST:
        return None
    middle = m.quantile(ITL, 0.5)
    if middle is None or middle < 0.2:
        return None
    return f"between tokens p50 {seconds_text(middle)}, {m.total('vllm:num_requests_running'):.0f} running"


def _preempted(m: Samples) -> str | None:
    ended, count = m.total("vllm:request_success_total"), m.total("vllm:num_preemptions_total")
    if ended < LEAST or count < 0.05 * ended:
        return None
    tokens = m.total("octavo:recomputed_tokens_total")
    return f"{count:.0f} preemptions in {ended:.0f} requests, {tokens:.0f} tokens computed twice"


def _full(m: Samples) -> str | None:
    usage, waiting = m.total(KV), m.total("vllm:num_requests_waiting")
    if usage < 0.95 or not waiting:
        return None
    return f"{usage:.0%} of the KV cache in use, {waiting:.0f} waiting"


def _rejected(m: Samples) -> str | None:
    name = "vllm:admission_rejections_total"
    refused = m.total(name) - m.total(name, reason="budget")
    received = m.total("octavo:requests_received_total") + refused
    if received < LEAST or refused < 0.01 * received:
        return None
    return f"{refused:.0f} of {received:.0f} requests refused"


def _promises(m: Samples) -> str | None:
    made, broken = m.total("octavo:promises_total"), m.total("octavo:promises_broken_total")
    if made < LEAST or broken < 0.1 * made:
        return None
    return f"{broken:.0f} of {made:.0f} calls with a limit of time missed it"


def _gone(m: Samples) -> str | None:
    ended, gone = m.total("vllm:request_success_total"), m.total("octavo:client_disconnects_total")
    if ended < LEAST or gone < 0.05 * ended:
        return None
    return f"{gone:.0f} clients hung up, {ended:.0f} requests ended"


def _few_hits(m: Samples) -> str | None:
    asked, hits = _lookups(m)
    if asked < LEAST_TOKENS or hits >= 0.1 * asked or m.total(KV) >= 0.9:
        return None
    return f"{hits:.0f} of {asked:.0f} prompt tokens found ({hits / asked:.1%})"


def _evicted_hits(m: Samples) -> str | None:
    asked, hits = _lookups(m)
    if asked < LEAST_TOKENS or hits >= 0.1 * asked or m.total(KV) < 0.9:
        return None
    return f"{hits / asked:.1%} of prompt tokens found, {m.total(KV):.0%} of the KV cache in use"


def _lookups(m: Samples) -> tuple[float, float]:
    return m.total("vllm:prefix_cache_queries_total"), m.total("vllm:prefix_cache_hits_total")


def _no_lookups(m: Samples) -> str | None:
    tokens = m.total("vllm:prompt_tokens_total")
    if tokens < LEAST_TOKENS or _lookups(m)[0]:
        return None
    return f"{tokens:.0f} prompt tokens, none looked up"


def _restarts(m: Samples) -> str | None:
    count = m.total("octavo:engine_restarts_total")
    return f"{count:.0f} engine processes ended and were replaced" if count else None


def _faults(m: Samples) -> str | None:
    count = m.total("octavo:request_faults_total")
    return f"{count:.0f} requests failed inside the engine" if count else None


def _epochs(m: Samples) -> str | None:
    count = m.total("octavo:kv_epoch_mismatches_total")
    return f"{count:.0f} requests were about to read a KV block not theirs" if count else None


def _canary(m: Samples) -> str | None:
    count = m.total("octavo:canary_failures_total")
    return f"{count:.0f} answers to the request with a known answer were no good" if count else None


def _ledger(m: Samples) -> str | None:
    name = "octavo:ledger_up"
    return f"{name} is 0" if m.has(name) and not m.total(name) else None


def _uneven(m: Samples) -> str | None:
    ratio = m.total("octavo:step_time_error_ratio")
    if ratio < 2 or m.total("vllm:iteration_tokens_total_count") < 10 * LEAST:
        return None
    return f"steps of one size differ by a factor of {ratio:.1f}"


TROUBLES: tuple[Trouble, ...] = (
    Trouble(
        "queue: places",
        "first token slow",
        "warn",
        "first tokens over 1 s at p90, more than half of it in the queue, KV cache below 90 %",
        "more requests than places in a step",
        "Raise --max-num-seqs while tokens come fast enough, or start another server; "
        "`octavo plan` shows what one can do.",
        _slow_queue,
    ),
    Trouble(
        "queue: memory",
        "first token slow",
        "warn",
        "first tokens over 1 s at p90, more than half of it in the queue, KV cache at 90 % or more",
        "requests wait for KV blocks",
        "Give the cache more: --gpu-memory-utilization, --kv-cache-dtype int8, --quantization int8; "
        "or bound what a request may take: --max-model-len.",
        _slow_queue_memory,
    ),
    Trouble(
        "long prompts",
        "first token slow",
        "warn",
        "first tokens over 1 s at p90, more than half of it computing the prompt",
        "prompts are long for this device, or computed in small pieces beside others' tokens",
        "Raise --max-num-batched-tokens, keep what prompts share at their beginning (the prefix cache), "
        "or --quantization int8; --performance-mode throughput lets prompts have more of a step.",
        _slow_prefill,
    ),
    Trouble(
        "prompts in between",
        "stutter",
        "warn",
        "tokens at p99 five times as far apart as at p50, and over 0.1 s, without preemptions",
        "prompts of others take long steps between two tokens",
        "Set --max-itl-ms to what is bearable, or lower --max-num-batched-tokens.",
        _stutter,
    ),
    Trouble(
        "slow steps",
        "stutter",
        "warn",
        "tokens at p50 over 0.2 s apart",
        "the device reads too much per token: weights, or contexts of many sequences",
        "--quantization int8 or int4, --kv-cache-dtype int8, a lower --max-num-seqs; "
        "`octavo plan` shows what to expect.",
        _slow_tokens,
    ),
    Trouble(
        "uneven steps",
        "stutter",
        "warn",
        "octavo:step_time_error_ratio at 2 or more",
        "others use the same cores or the same device, or --threads is more than there are",
        "Give the server cores of its own, and --threads as many.",
        _uneven,
    ),
    Trouble(
        "preemptions",
        "memory",
        "warn",
        "preemptions in more than 5 % of requests",
        "sequences grow beyond what the KV cache holds and are computed again",
        "Lower --max-num-seqs, or give the cache more: --gpu-memory-utilization, --kv-cache-dtype int8.",
        _preempted,
    ),
    Trouble(
        "full cache",
        "memory",
        "warn",
        "KV cache at 95 % or more while requests wait",
        "there is no room for those who wait",
        "--kv-cache-dtype int8, --gpu-memory-utilization, a shorter --max-model-len, or another server.",
        _full,
    ),
    Trouble(
        "refused",
        "timeouts",
        "warn",
        "more than 1 % of requests refused with 429",
        "more comes than is done, or limits of keys are low",
        "Start another server; raise --max-num-queued-reqs or --max-num-queued-tokens only if callers can wait; "
        "`vllm:admission_rejections_total` has the reasons.",
        _rejected,
    ),
    Trouble(
        "promises broken",
        "timeouts",
        "warn",
        "more than 10 % of calls with deadline_ms or ttft_slo_ms missed it",
        "the load changes faster than predictions follow, or outputs are longer than before",
        "Callers: a later deadline_ms. Server: --max-itl-ms, a lower --max-num-queued-reqs, another server.",
        _promises,
    ),
    Trouble(
        "clients hang up",
        "timeouts",
        "warn",
        "more than 5 % of clients hang up before their answer ends",
        "callers wait less long than answers take, or a proxy between cuts them off",
        "Stream, raise the timeouts of clients and proxies, and send deadline_ms so that hopeless calls are refused.",
        _gone,
    ),
    Trouble(
        "nothing shared",
        "low hit rate",
        "warn",
        "less than 10 % of prompt tokens found in the prefix cache, KV cache below 90 %",
        "prompts differ from their first tokens on, or callers have scopes of their own",
        "Put what is the same (system prompt, tools, documents) first and what changes (dates, ids) last.",
        _few_hits,
    ),
    Trouble(
        "evicted",
        "low hit rate",
        "warn",
        "less than 10 % of prompt tokens found, KV cache at 90 % or more",
        "what could be shared is given up for running requests",
        "Give the cache more: --gpu-memory-utilization, --kv-cache-dtype int8; or lower --max-num-seqs.",
        _evicted_hits,
    ),
    Trouble(
        "cache off",
        "low hit rate",
        "warn",
        "prompt tokens, and none of them looked up",
        "the server was started with --no-enable-prefix-caching",
        "Start it with --enable-prefix-caching.",
        _no_lookups,
    ),
    Trouble(
        "engine restarts",
        "faults",
        "fail",
        "octavo:engine_restarts_total is not 0",
        "an engine process ended: out of memory, killed, or by a fault",
        "Read the server's log for the cause; if the kernel killed it, lower --gpu-memory-utilization.",
        _restarts,
    ),
    Trouble(
        "failed requests",
        "faults",
        "fail",
        "octavo:request_faults_total is not 0",
        "requests made a step throw, or their logits were no numbers",
        "Files that reproduce them are in --fault-dir; their callers were told the code.",
        _faults,
    ),
    Trouble(
        "foreign blocks",
        "faults",
        "fail",
        "octavo:kv_epoch_mismatches_total is not 0",
        "a fault of the engine, caught before it was read",
        "Report it with the files of --fault-dir; --no-enable-prefix-caching may avoid it meanwhile.",
        _epochs,
    ),
    Trouble(
        "canary",
        "faults",
        "fail",
        "octavo:canary_failures_total is not 0",
        "the engine answered a known request differently: memory or device at fault, or other libraries",
        "See docs/health.md; restart, and test the device's memory if it comes back.",
        _canary,
    ),
    Trouble(
        "ledger",
        "faults",
        "fail",
        "octavo:ledger_up is 0",
        "the ledger's database is away or full: what is spent meanwhile waits in memory",
        "Bring it back; the server's log has its words, and docs/runbooks/OctavoLedgerDown.md the rest.",
        _ledger,
    ),
)
