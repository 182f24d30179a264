"""What follows from a config, a checkpoint and a machine before anything is loaded: a plan of the start. No torch.

`boot.py` asks for the machine that it runs on, `octavo plan` for any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from octavo.core import resolve
from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.inject import injections
from octavo.core.kvspec import BLOCK_SIZE, DTYPE_BYTES, KV_DTYPES, group_layers
from octavo.core.resolve import Decision
from octavo.engine import buckets
from octavo.engine.memory import MemoryPlan, Needs, plan
from octavo.kernels.attention.work import ITEM_WORDS, SPAN, Cut, max_work
from octavo.kernels.cpu_facts import DtypeChoice
from octavo.kernels.gemm.format_table import FORMATS, head_format
from octavo.kernels.gemm.storage import packed_refusal
from octavo.kernels.gpu_facts import FP8_CAPABILITY
from octavo.layers.quant.asked import asked_format
from octavo.layers.quant.spec import kept_as
from octavo.models.facts import ModelFacts, read_facts
from octavo.models.shards import shard
from octavo.models.storage import WeightStorage, choose_dtype, head_case
from octavo.scheduler.limits import PREFILL_SHARE, Limits
from octavo.scheduler.policies.registry import POLICIES


class Machine(NamedTuple):
    """Where the engine is to run, as far as a plan must know."""

    device: str
    """cpu or cuda."""
    available: int
    """Bytes of the device's memory that could be used."""
    storage: Callable[[ModelFacts, str, str, str], WeightStorage]
    """How weights are kept there: of facts, dtype, device and quantization."""
    num_ranks: int = 1
    """Devices over which every layer is divided; the plan is that of one. More than one cannot be started yet."""
    why: str = "as given"
    """The device."""
    total: int | None = None
    """Bytes of a GPU's memory, with what others hold of it; None: not a GPU's, or as much as is available."""
    capability: tuple[int, int] | None = None
    """Compute capability; None: not a GPU's, or not known."""


class Resolved(NamedTuple):
    """All that is decided before loading."""

    config: EngineConfig
    facts: ModelFacts
    device: str
    dtype: str
    kv_dtype: str
    storage: WeightStorage
    limits: Limits
    memory: MemoryPlan
    decisions: tuple[Decision, ...]
    products: str = ""
    """What layers with plain weights, and attention, round their inputs to; empty: they do not."""
    runs_ahead: bool = False
    """Whether steps are planned and launched while the one before them runs."""


def resolve_start(config: EngineConfig, machine: Machine) -> Resolved:
    """Everything that follows from config, checkpoint and machine, before loading.

    Raises:
        OperatorError: it cannot work.
    """
    POLICIES.load(config.scheduling_policy)  # for its error: an unknown name
    injections(config.inject)  # likewise
    facts = shard(read_facts(model_folder(config.model), config.runner), machine.num_ranks)
    facts = facts.on_device(machine.capability)
    chunks = config.enable_chunked_prefill and not facts.sees_whole_prompts
    device = machine.device
    quantization = asked_format(facts.stored, config.quantization)
    dtype = choose_dtype(facts, config.dtype, device, quantization)
    kv_dtype = _kv_dtype(config.kv_cache_dtype, dtype.kv_dtype, machine)
    _check_deterministic(config, facts, dtype.dtype, machine)
    _check_products(facts, quantization, machine)
    storage = machine.storage(facts, dtype.dtype, device, quantization)
    asked_len = config.max_model_len
    if asked_len is not None:
        resolve.context_length(asked_len, model_limit=facts.max_context, fits=asked_len)
    model_len = facts.max_context
    if facts.pooling is not None and facts.pooling.max_tokens is not None:
        model_len = min(model_len, facts.pooling.max_tokens)
    wanted_len = asked_len or model_len
    tokens, tokens_decision = resolve.step_tokens(
        config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        device=device,
        whole_prompts_of=None if chunks else wanted_len,
    )
    memory = plan(
        Needs(
            weights=storage.num_bytes,
            activations=facts.activation_bytes(tokens, dtype.dtype, num_logits=config.max_num_seqs),
            groups=group_layers(facts.kv_specs(kv_dtype)),
            max_model_len=wanted_len,
            is_len_explicit=asked_len is not None,
            max_num_seqs=config.max_num_seqs,
            chunk=tokens,
            graphs=_graph_bytes(config, facts, dtype.dtype, machine, (tokens, wanted_len)),
        ),
        available=machine.available,
        total=machine.total,
        share=resolve.memory_share(config.gpu_memory_utilization, device),
        kv_bytes=config.kv_cache_memory_bytes,
    )
    length, length_decision = resolve.context_length(
        asked_len,
        model_limit=model_len if asked_len is None else facts.max_context,
        fits=memory.kv_tokens,
    )
    limits = _limits(config, tokens, length, chunks=chunks)
    runs_ahead, ahead_decision = resolve.steps_ahead(
        config.async_scheduling, device, _not_ahead(config, facts)
    )
    decisions = (
        Decision("device", device, machine.why),
        Decision("dtype", dtype.dtype, dtype.reason),
        *_quantization(facts, quantization, device, storage.dtype),
        Decision(
            "kv_cache_dtype",
            kv_dtype,
            _why_kv(config, dtype, kv_dtype),
        ),
        *_deterministic(config, device),
        length_decision,
        tokens_decision,
        ahead_decision,
        *_pooling(facts),
    )
    resolved = Resolved(
        config, facts, device, dtype.dtype, kv_dtype, storage, limits, memory, decisions
    )
    return resolved._replace(products=dtype.products, runs_ahead=runs_ahead)


def _limits(config: EngineConfig, tokens: int, length: int, *, chunks: bool) -> Limits:
    return Limits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=tokens,
        max_model_len=length,
        max_num_waiting=config.max_num_queued_reqs,
        enable_chunked_prefill=chunks,
        prefill_share=1.0 if config.performance_mode == "throughput" else PREFILL_SHARE,
        max_itl_s=None if config.max_itl_ms is None else config.max_itl_ms / 1e3,
    )


def _why_kv(config: EngineConfig, dtype: DtypeChoice, kv_dtype: str) -> str:
    if config.kv_cache_dtype != "auto":
        return "as given"
    if kv_dtype == dtype.dtype:
        return "the activations'"
    return "the checkpoint's own"


def _kv_dtype(asked: str, activations: str, machine: Machine) -> str:
    """What keys and values are kept in, by torch's name.

    Raises:
        ConfigError: it is e4m3, and the machine does not convert that.
    """
    if asked not in KV_DTYPES:
        return activations if asked == "auto" else asked
    has = machine.capability
    if machine.device == "cuda" and (has is None or has >= FP8_CAPABILITY):
        return KV_DTYPES[asked]
    where = (
        f"a GPU of compute capability {has[0]}.{has[1]}" if has else f"the device {machine.device}"
    )
    least = ".".join(map(str, FP8_CAPABILITY))
    raise ConfigError(
        f"--kv-cache-dtype {asked} needs a CUDA device of compute capability {least} or later, and this is {where}.",
        param="kv_cache_dtype",
        code="E-CFG-13",
        fix="Use --kv-cache-dtype int8, which takes the same bytes and runs here.",
    )


def _check_deterministic(
    config: EngineConfig, facts: ModelFacts, dtype: str, machine: Machine
) -> None:
    """Check that kernels exist that give a row the same bits in any batch.

    Raises:
        ConfigError: on this CPU, or in this dtype, they do not.
    """
    if not config.deterministic or machine.device != "cpu":
        return
    reason = packed_refusal(head_case(facts, dtype, machine.device, ""))
    if reason is None:
        return
    raise ConfigError(
        f"--deterministic is not to be had on a CPU in {dtype}: the compiled kernels, which alone promise it, say: {reason}.",
        param="deterministic",
        code="E-CFG-14",
        fix="Leave it out."
        if dtype == "float32"
        else "Use --dtype float32, which auto means where those kernels run.",
    )


def _check_products(facts: ModelFacts, quantization: str, machine: Machine) -> None:
    """Check that a GPU multiplies what the checkpoint has.

    Raises:
        ConfigError: it is fp8, and the GPU is too old.
    """
    has = machine.capability
    kept = kept_as(facts.stored, quantization, machine.device)
    is_fp8 = kept in FORMATS and FORMATS[kept].rows == "fp8"
    if not is_fp8 or has is None or has >= FP8_CAPABILITY:
        return
    least = ".".join(map(str, FP8_CAPABILITY))
    raise ConfigError(
        f"fp8 weights need a GPU of compute capability {least} or later, and this one has {has[0]}.{has[1]}.",
        param="quantization",
        code="E-CFG-08",
        fix="Use --quantization int8, which converts them at load.",
    )


def _not_ahead(config: EngineConfig, facts: ModelFacts) -> str | None:
    """Why steps cannot be one ahead; None where they can."""
    if facts.pooling is not None:
        return "prompts are pooled, in one step each"
    return "--inject orders faults by the step" if config.inject else None


def piece_tokens(facts: ModelFacts, most: int) -> int:
    """Most tokens of a mixed step whose layers are captured one by one, of at most `most` in a step."""
    return buckets.piece_tokens(facts.num_layers, facts.weight_bytes("bfloat16"), most)


def _graph_bytes(
    config: EngineConfig, facts: ModelFacts, dtype: str, machine: Machine, step: tuple[int, int]
) -> int:
    """What captured steps may take of a GPU: one pool of temporaries, of the largest of them; what they share; and each its
    nodes. `step`: most tokens of a step and of a sequence.
    """
    if machine.device == "cpu" or config.enforce_eager or facts.pooling is not None:
        return 0
    most, length = step
    sizes = buckets.sizes(config.max_num_seqs)
    pieces = buckets.token_sizes(piece_tokens(facts, most))
    nodes = (len(sizes) + len(pieces)) * facts.num_layers * buckets.LAYER_BYTES
    rows = max(sizes[-1], *pieces, 1)
    groups = group_layers(facts.kv_specs(dtype))
    tables = sizes[-1] * -(-length // BLOCK_SIZE) * 4 + rows * 8
    inputs = rows * 3 * 8 + len(groups) * tables
    bridges = 0
    if pieces:
        width = 2 * facts.num_heads * facts.head_dim + facts.hidden_size
        bridges = rows * width * DTYPE_BYTES[dtype]
    # Contexts that are split leave partial results; no more of them than the cache holds tokens.
    per_token = sum(group.bytes_per_block for group in groups) / BLOCK_SIZE
    tokens = int(machine.available / per_token)
    group = max(1, facts.num_heads // facts.num_kv_heads)
    cut = Cut(1, group, None, 0, SPAN if config.deterministic else 0)
    items, partials = max_work(sizes[-1], length, tokens, cut)
    scratch = partials * facts.num_kv_heads * (facts.head_dim + 2) + len(sizes) * items * ITEM_WORDS
    scratch *= len(groups) * 4
    temporaries = facts.activation_bytes(rows, dtype, num_logits=0)
    return temporaries + nodes + inputs + bridges + scratch


def _deterministic(config: EngineConfig, device: str) -> tuple[Decision, ...]:
    if not config.deterministic:
        return ()
    why = (
        "as on a CPU in float32 always"
        if device == "cpu"
        else "as given; one tile for any batch, slower"
    )
    return (Decision("deterministic", "on", why),)


def _quantization(facts: ModelFacts, asked: str, device: str, dtype: str) -> tuple[Decision, ...]:
    stored = facts.stored
    if asked:
        why = f"as given; head and tied embedding {head_format(asked)}"
        why += "" if stored is None else f"; rounded again from the checkpoint's {stored.text}"
        return (Decision("quantization", asked, why),)
    if stored is None:
        return ()
    kept = kept_as(stored, "", device)
    if not kept:
        why = f"the checkpoint's {stored.text} is widened at load, for want of products of it on {device}; "
        why += "--quantization int8 halves the memory"
        return (Decision("quantization", f"none ({dtype})", why),)
    why = f"the checkpoint's {stored.text}"
    if kept != stored.form:
        why += f", on {device} rounded to {kept} with scales of activations per group"
    elif stored.has_fixed_rows:
        why += "; activations get a scale per row instead of the checkpoint's fixed one"
    return (Decision("quantization", kept, why),)


def _pooling(facts: ModelFacts) -> tuple[Decision, ...]:
    spec = facts.pooling
    return () if spec is None else (Decision("pooling", ", ".join(spec.tasks), spec.reason),)
