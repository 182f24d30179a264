"""The one typed config tree: source of the Python arguments, the command line, the YAML file and the docs.

Every field carries its help text; `tools/flags.py` turns fields into flags (`max_num_seqs` -> `--max-num-seqs`), YAML
keys are the field names, and `LLM(...)` takes the same names. None means "decide for me": `core/resolve.py` decides
and says why. Frozen: nothing changes a config after start.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

BUNDLED_MODEL = "octavo-mini"
"""Name of the model inside the package: served when no model is named."""

_Help = Meta
_Positive = Annotated[int, Meta(ge=1)]
_Share = Annotated[float, Meta(gt=0, le=1)]
_Milliseconds = Annotated[float, Meta(gt=0)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine process needs to start."""

    model: Annotated[str, _Help(description="Model folder or GGUF file, or a bundled name.")] = (
        BUNDLED_MODEL
    )
    tokenizer: Annotated[
        str | None, _Help(description="Tokenizer folder, when it is not the model's.")
    ] = None
    runner: Annotated[
        Literal["auto", "generate", "pooling"],
        _Help(
            description="What the model is used for; auto: embeddings, scores or classes where its folder "
            "says so, else text."
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _Help(
            description="Type of weights and activations; auto follows the model and the device."
        ),
    ] = "auto"
    quantization: Annotated[
        str,
        _Help(
            description="Round weights at load: none, int8 or int4 (or int4_g32, int4_g64, int4_g128, "
            "with zero points int4_g32_zp ...), on CUDA also int8_w8a8, fp8 or fp8_block. A checkpoint that is quantized says so "
            "itself; awq, gptq or compressed-tensors may be given beside it."
        ),
    ] = "none"
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8", "fp8_e4m3"],
        _Help(
            description="Type of keys and values in the cache; auto: the activations'. int8 and, on CUDA, fp8 (e4m3) have a scale "
            "per token and head."
        ),
    ] = "auto"
    load_format: Annotated[
        Literal["auto", "safetensors", "dummy"],
        _Help(description="dummy makes random weights from config.json alone."),
    ] = "auto"
    max_model_len: Annotated[
        _Positive | None,
        _Help(description="Longest prompt plus output, in tokens; default: the model's own."),
    ] = None
    max_num_seqs: Annotated[
        int, _Help(ge=1, le=4096, description="Most sequences in one step.")
    ] = 128
    max_num_batched_tokens: Annotated[
        _Positive | None, _Help(description="Token budget of one step; default by device.")
    ] = None
    gpu_memory_utilization: Annotated[
        _Share | None,
        _Help(
            description="Share of the memory to use: of a GPU's, and no more than others leave free; on CPU of the free RAM."
        ),
    ] = None
    kv_cache_memory_bytes: Annotated[
        _Positive | None, _Help(description="Size of the KV cache in bytes, instead of a share.")
    ] = None
    enable_prefix_caching: Annotated[
        bool, _Help(description="Share the KV blocks of equal prompt prefixes.")
    ] = True
    enable_chunked_prefill: Annotated[
        bool, _Help(description="Split long prompts over steps so that decodes never wait.")
    ] = True
    performance_mode: Annotated[
        Literal["auto", "balanced", "throughput"],
        _Help(
            description="balanced: bound the prompt tokens beside decodes; throughput: fill every step; "
            "auto: balanced for a server, throughput offline."
        ),
    ] = "auto"
    enforce_eager: Annotated[
        bool,
        _Help(
            description="Run every step from Python instead of replaying recorded ones; the output is the same."
        ),
    ] = False
    deterministic: Annotated[
        bool,
        _Help(
            description="Give a request the same bits whatever runs beside it, also on a GPU, where it costs speed: one "
            "tile and one order of sums for any batch. On a CPU in float32 it is so anyway."
        ),
    ] = False
    async_scheduling: Annotated[
        bool | None,
        _Help(
            description="Plan and launch a step while the one before it runs; the output is the same. Default: on a GPU, "
            "where the device would wait for the host otherwise."
        ),
    ] = None
    scheduling_policy: Annotated[
        str,
        _Help(
            description="Who runs next: fair (equal shares of the device's time between API keys, by weight), fcfs or "
            "priority."
        ),
    ] = "fair"
    max_itl_ms: Annotated[
        _Milliseconds | None,
        _Help(
            description="Milliseconds that a step may be predicted to take while some wait for their next token: bounds the "
            "prompts in it, and how many sequences run; default: a quarter of the step's tokens for prompts.",
        ),
    ] = None
    max_num_queued_reqs: Annotated[
        int, _Help(ge=1, description="Most requests in the queue; more are refused with 429.")
    ] = 4096
    max_engine_restarts: Annotated[
        int,
        _Help(
            ge=0,
            description="How often an engine process that ended is started again with nothing answered in between; "
            "0: never.",
        ),
    ] = 5
    log_format: Annotated[
        Literal["text", "json"],
        _Help(description="How log lines are written, to standard error; json: an object each."),
    ] = "text"
    step_log: Annotated[
        str | None,
        _Help(
            description="Folder for the step log, which says who was in each step and why others waited (never a text or "
            "a token); default: steps in --state-dir, else none."
        ),
    ] = None
    step_log_size: Annotated[
        int,
        _Help(
            ge=0,
            le=1 << 20,
            description="Most MiB that --step-log takes, the oldest steps going first; 0: no log.",
        ),
    ] = 64
    fault_dir: Annotated[
        str | None,
        _Help(
            description="Folder for files that reproduce what made a request fail inside the engine; they hold "
            "token ids. Default: a private temporary folder."
        ),
    ] = None
    inject: Annotated[
        tuple[str, ...],
        _Help(
            description="Faults to strike with, KIND[:WHOM][:COUNT]; refused unless OCTAVO_TEST_BUILD is 1."
        ),
    ] = ()
    seed: Annotated[
        int,
        _Help(ge=0, description="Seed of dummy weights."),
    ] = 0
    threads: Annotated[
        _Positive | None,
        _Help(description="CPU threads for the model; default: the cores there are."),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], _Help(description="Where the model runs.")
    ] = "auto"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the HTTP server needs beside the engine."""

    host: Annotated[str, _Help(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _Help(ge=0, le=65535, description="Port; 0 takes a free one.")] = 8000
    served_model_name: Annotated[
        tuple[str, ...], _Help(description="Names under which the model answers.")
    ] = ()
    api_key: Annotated[
        tuple[str, ...], _Help(description="Keys that may use the API; also OCTAVO_API_KEY.")
    ] = ()
    key_store: Annotated[
        str | None,
        _Help(
            description="File of API keys with roles and limits, made by `octavo keys`; default: keys.sqlite3 "
            "in --state-dir, if it is there."
        ),
    ] = None
    allow_open: Annotated[
        bool, _Help(description="Listen beyond this machine without asking for a key.")
    ] = False
    admin_socket: Annotated[
        str | None,
        _Help(
            description="Unix socket (mode 0600) whose callers are admins without a key; default: admin.sock "
            "in --state-dir, else none."
        ),
    ] = None
    ssl_keyfile: Annotated[
        str | None, _Help(description="File with the private key of --ssl-certfile, if not in it.")
    ] = None
    ssl_certfile: Annotated[
        str | None, _Help(description="File with a certificate (chain): answer https alone.")
    ] = None
    ssl_ca_certs: Annotated[
        str | None,
        _Help(description="File with CA certificates; callers must show a certificate of one."),
    ] = None
    chat_template: Annotated[
        str | None, _Help(description="File with a chat template, instead of the model's.")
    ] = None
    generation_config: Annotated[
        Literal["auto", "octavo"],
        _Help(description="auto: sampling defaults from the model folder; octavo: neutral ones."),
    ] = "auto"
    tool_call_parser: Annotated[
        str,
        _Help(
            description="How the model writes tool calls: auto (read off the chat template), none, or a format's name."
        ),
    ] = "auto"
    enable_auto_tool_choice: Annotated[
        bool, _Help(description="Let the model choose whether to call tools.")
    ] = True
    reasoning_parser: Annotated[
        str,
        _Help(description="How the model writes its reasoning: auto, none, or a format's name."),
    ] = "auto"
    state_dir: Annotated[
        str | None,
        _Help(
            description="Folder for kept responses, uploaded files and batch jobs, which are there again after a "
            "restart; without it responses last as long as the server, and /v1/files and /v1/batches are refused."
        ),
    ] = None
    device_price: Annotated[
        float | None,
        _Help(
            ge=0,
            description="What an hour of the device costs, in a currency of yours: costs are told in it.",
        ),
    ] = None
    ledger_url: Annotated[
        str | None,
        _Help(
            description="Where costs are kept: sqlite:///FILE or postgresql://USER@HOST/DATABASE; default: "
            "ledger.sqlite3 in --state-dir, else nowhere."
        ),
    ] = None
    lenient: Annotated[
        bool,
        _Help(
            description="Ignore request fields that are unknown or not honoured, and name them in the answer's "
            "`warnings`, instead of refusing them."
        ),
    ] = False
    max_num_queued_tokens: Annotated[
        int,
        _Help(
            ge=1,
            description="Most prompt tokens in the queue; a call that would exceed them is refused with 429 "
            "unless the queue is empty.",
        ),
    ] = 1 << 22
    shutdown_timeout: Annotated[
        float, _Help(ge=0, description="Seconds that running requests get to finish at shutdown.")
    ] = 30.0
    takeover: Annotated[
        bool,
        _Help(
            description="Take the port over from the server that has it, if there is one: it serves until this one is "
            "ready, then finishes its calls and ends. Both are in memory meanwhile."
        ),
    ] = False
    canary_interval: Annotated[
        float,
        _Help(
            ge=0,
            description="Seconds between requests of the server's own, of a few tokens and with a known answer, "
            "which show that the engine still says the same; 0: none.",
        ),
    ] = 30.0
    enable_log_requests: Annotated[
        bool,
        _Help(description="Log one line per request, without its text but for --max-log-len."),
    ] = False
    max_log_len: Annotated[
        int,
        _Help(ge=0, description="Characters of the prompt that --enable-log-requests may log."),
    ] = 0
    disable_access_log: Annotated[
        bool,
        _Help(
            description="No access log line per call; without it, probes have one when their answer changes."
        ),
    ] = False
    otlp_traces_endpoint: Annotated[
        str | None,
        _Help(
            description="Send OpenTelemetry traces there: grpc://HOST:4317 or http://HOST:4318/v1/traces; needs "
            "octavo[otel]."
        ),
    ] = None
