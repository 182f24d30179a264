"""What follows from a config, a checkpoint and a machine before anything is loaded: a plan of the start. No torch.

`boot.py` asks for the machine that it runs on, `octavo plan` for any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from octavo.core import resolve
from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.inject import injections
from octavo.core.kvspec import group_layers
from octavo.core.resolve import Decision
from octavo.engine import buckets
from octavo.engine.memory import MemoryPlan, Needs, plan
from octavo.kernels.gemm.format_table import head_format, quantized_as
from octavo.models.facts import ModelFacts, read_facts
from octavo.models.shards import shard
from octavo.models.storage import WeightStorage, choose_dtype
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
    chunks = config.enable_chunked_prefill and not facts.sees_whole_prompts
    device = machine.device
    quantization = quantized_as(config.quantization)
    dtype = choose_dtype(facts, config.dtype, device, quantization)
    kv_dtype = dtype.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
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
            graphs=_graph_bytes(config, facts, dtype.dtype, device),
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
    limits = Limits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=tokens,
        max_model_len=length,
        max_num_waiting=config.max_num_queued_reqs,
        enable_chunked_prefill=chunks,
        prefill_share=1.0 if config.performance_mode == "throughput" else PREFILL_SHARE,
        max_itl_s=None if config.max_itl_ms is None else config.max_itl_ms / 1e3,
    )
    runs_ahead, ahead_decision = resolve.steps_ahead(
        config.async_scheduling, device, _not_ahead(config, facts)
    )
    decisions = (
        Decision("device", device, machine.why),
        Decision("dtype", dtype.dtype, dtype.reason),
        *_quantization(config.quantization),
        Decision(
            "kv_cache_dtype",
            kv_dtype,
            "the activations'" if config.kv_cache_dtype == "auto" else "as given",
        ),
        length_decision,
        tokens_decision,
        ahead_decision,
        *_pooling(facts),
    )
    return Resolved(
        config, facts, device, dtype.dtype, kv_dtype, storage, limits, memory, decisions, runs_ahead
    )


def _not_ahead(config: EngineConfig, facts: ModelFacts) -> str | None:
    """Why steps cannot be one ahead; None where they can."""
    if facts.pooling is not None:
        return "prompts are pooled, in one step each"
    return "--inject orders faults by the step" if config.inject else None


def _graph_bytes(config: EngineConfig, facts: ModelFacts, dtype: str, device: str) -> int:
    """What captured steps may take of a GPU: one pool of temporaries, of the largest of them, and each its nodes."""
    if device == "cpu" or config.enforce_eager or facts.pooling is not None:
        return 0
    sizes = buckets.sizes(config.max_num_seqs)
    nodes = len(sizes) * facts.num_layers * buckets.LAYER_BYTES
    return facts.activation_bytes(sizes[-1], dtype, num_logits=0) + nodes


def _quantization(asked: str) -> tuple[Decision, ...]:
    name = quantized_as(asked)
    why = f"as given; head and tied embedding {head_format(name)}"
    return (Decision("quantization", name, why),) if name else ()


def _pooling(facts: ModelFacts) -> tuple[Decision, ...]:
    spec = facts.pooling
    return () if spec is None else (Decision("pooling", ", ".join(spec.tasks), spec.reason),)
