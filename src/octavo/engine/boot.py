"""From a config to a running engine: decide, plan the memory, load, build. Times every phase.

Decisions are made before anything is loaded, so that what cannot work fails in a second with its cause.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import cast

import torch

from octavo.cache.groups import KVCache
from octavo.cache.pool import KVPool
from octavo.core import resolve
from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, MemoryPlanError
from octavo.core.inject import injections
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.log import get_logger
from octavo.core.resolve import Decision
from octavo.decoding.grammar.rows import GrammarRows
from octavo.decoding.state import SamplerState
from octavo.engine import inject, machine
from octavo.engine.captured import CapturedSteps
from octavo.engine.carrier import WeightCarrier
from octavo.engine.decide import Machine, Resolved, piece_tokens, resolve_start
from octavo.engine.device import Device, device_for, holders
from octavo.engine.device import choose as choose_device
from octavo.engine.early import Early
from octavo.engine.engine import Engine, Link
from octavo.engine.free_memory import available_bytes
from octavo.engine.grammars import GrammarDesk
from octavo.engine.graphs import RecordedSteps, StepGraphs
from octavo.engine.ipc import Loading, Phase, Ready
from octavo.engine.kept import Room
from octavo.engine.measure import activation_bytes, measured_text
from octavo.engine.memory import with_measured
from octavo.engine.pooling import PoolingRunner
from octavo.engine.prepare import Rows
from octavo.engine.pulse import Pulse
from octavo.engine.record import Recorder, machine_of
from octavo.engine.repro import Repros
from octavo.engine.runner import Runner
from octavo.engine.warm import settle, warm_up
from octavo.kernels import recording
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.cpu import extension
from octavo.kernels.dispatch import Choice
from octavo.kernels.gpu_facts import held_by_others
from octavo.layers.quant.asked import asked_format
from octavo.meter.stepfile import StepFile
from octavo.meter.steplog import StepLog
from octavo.meter.timeline import Timeline
from octavo.models.base import Model
from octavo.models.load import Exactness, LoadedModel, choose_storage, load_model
from octavo.models.weights import Filling
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler

MIB = 1 << 20
FULL_STEPS_FOUND = 8
"""For the keys and values of so many steps memory is found while a new engine on the CPU has nothing to do."""
logger = get_logger(__name__)
_REPLAYS = {"cpu": "one recording per batch size", "cuda": "a captured graph per bucket of sizes"}


def boot(
    config: EngineConfig,
    link: Link,
    *,
    asked_at: float,
    process_at: float,
    pulse: Pulse | None = None,
    early: Early | None = None,
) -> Engine:
    """Load the model and build the engine; sends `Loading` on the way and `Ready` at the end. `pulse` is where the
    engine shows that it gets on, `early` what was begun for this config before.

    Raises:
        OperatorError: what was asked for cannot be started.
    """
    timeline = Timeline(started=asked_at)
    imports = time.monotonic() - process_at
    timeline.explain([("process", process_at - asked_at), ("imports", imports)])

    def begin(phase: str, fraction: float) -> None:
        timeline.phase(phase)
        link.send(Loading(phase=phase, fraction=fraction))

    begin("config", 0.1)
    found = _machine(config)
    resolved = decide(config, None if early is None else early.available)
    device = device_for(resolved.device)
    if extension.missing() is None:
        extension.round_products(resolved.products == "bfloat16")
    begin("weights", 0.15)
    carrier = WeightCarrier(device) if resolved.device != "cpu" else None
    machine.free_large_at_once()
    loaded = load_model(
        model_folder(config.model),
        dtype=resolved.dtype,
        exactness=Exactness(resolved.kv_dtype, config.deterministic),
        device=resolved.device,
        load_format="dummy" if config.load_format == "dummy" else "safetensors",
        seed=config.seed,
        quantization=asked_format(resolved.facts.stored, config.quantization),
        runner=config.runner,
        filling=Filling(
            lambda done: link.send(Loading(phase="weights", fraction=0.15 + 0.75 * done)),
            carrier,
            None if early is None else early.ahead,
            resolved.facts,
        ),
    )
    machine.keep_freed()
    if carrier is not None:
        carrier.close()
    weights = device.allocated()
    details = {"imports": f"torch {torch.__version__}"}
    details["weights"] = measured_text(resolved.memory.weights, weights)
    if early is not None:
        details["weights"] += f", {early.ahead.share:.0%} packed during the imports"
    if device.torch_device.type != "cpu":
        begin("activations", 0.9)
        resolved, details["activations"] = _measure_activations(resolved, loaded, device)
        settle(device, resolved.memory)
    begin("kv cache", 0.95)
    if resolved.storage.is_repacked:
        extension.take_over()
    engine = _build(resolved, loaded, link, pulse or Pulse(), device)
    kv = measured_text(resolved.memory.kv, device.allocated() - weights if weights else 0)
    details["kv cache"] = f"{kv} of {resolved.kv_dtype}"
    if device.torch_device.type != "cpu" and isinstance(engine.runner, Runner):
        begin("graphs", 0.97)
        details["graphs"] = _warm_up(engine, engine.runner, resolved, device)
    timeline.stop()
    phases = tuple(
        Phase(name=part.name, seconds=part.seconds, detail=details.get(part.name, ""))
        for part in timeline.parts()
    )
    link.send(_ready(resolved, loaded, phases, found))
    return engine


def _measure_activations(
    resolved: Resolved, loaded: LoadedModel, device: Device
) -> tuple[Resolved, str]:
    """Run the largest step that limits allow, before the KV cache takes the rest. What it needs beyond the estimate comes
    off the cache, so that nothing runs out of memory once the engine is ready; and kernels are compiled by it.
    """
    limits, memory = resolved.limits, resolved.memory
    found = activation_bytes(loaded.model, memory.groups, limits, device)
    memory = with_measured(
        memory, found, max_model_len=limits.max_model_len, chunk=limits.max_num_batched_tokens
    )
    return resolved._replace(memory=memory), measured_text(resolved.memory.activations, found)


def _warm_up(engine: Engine, runner: Runner, resolved: Resolved, device: Device) -> str:
    """Run what requests will, and let later captures be made when there is nothing to do; memory of graphs, in words."""
    taken = warm_up(runner, resolved.limits, resolved.memory, device)
    engine.rest = runner.rest
    planned = resolved.memory.graphs
    if not planned:
        return "none"
    return f"{planned / MIB:.0f} MiB planned, {taken / MIB:.0f} taken by what captured steps share"


def _machine(config: EngineConfig) -> tuple[Decision, ...]:
    """Threads and memory nodes; before anything is computed or allocated. What costs speed is a warning, too."""
    threads, threads_decision = resolve.cpu_threads(config.threads, machine.usable_cores())
    torch.set_num_threads(threads)
    extension.set_num_threads(threads)
    found = [threads_decision]
    if config.threads is not None and threads < config.threads:
        logger.warning("%s; using %d.", threads_decision.reason, threads)
    nodes = machine.memory_nodes(os.sched_getaffinity(0))
    memory_decision = machine.spread_memory(nodes)
    if memory_decision is not None:
        found.append(memory_decision)
    if extension.missing() is None and extension.isa() == "scalar":
        logger.warning("%s", extension.slow_because())
    return tuple(found)


def decide(config: EngineConfig, available: int | None = None) -> Resolved:
    """Everything that follows from config, checkpoint and this machine, before loading. `available`: bytes of the host's
    memory, where they were read before something was begun; None: as it is now.

    Raises:
        OperatorError: it cannot work.
    """
    device, why, gpu = choose_device(config.device)
    if gpu is None:
        available = available_bytes() if available is None else available
        return resolve_start(config, Machine(device, available, choose_storage, why=why))
    try:
        found = Machine(
            device,
            gpu.free,
            choose_storage,
            why=why,
            total=gpu.total,
            capability=gpu.capability,
        )
        return resolve_start(config, found)
    except MemoryPlanError as error:
        raise held_by_others(error, gpu, holders(gpu)) from error


def _open_step_log(config: EngineConfig, scheduler: Scheduler) -> StepFile | None:
    if config.step_log is None or not config.step_log_size:
        return None
    machine = machine_of(scheduler, config.model, config.scheduling_policy)
    try:
        return StepFile(Path(config.step_log).expanduser(), config.step_log_size << 20, machine)
    except OSError as error:
        raise ConfigError(
            f"--step-log {config.step_log} cannot be written: {error.strerror}.",
            code="E-CFG-07",
            fix="Name a folder that may be written, or that can be made.",
        ) from error


def _build(
    resolved: Resolved, loaded: LoadedModel, link: Link, pulse: Pulse, order: Device
) -> Engine:
    limits, facts = resolved.limits, resolved.facts
    groups = resolved.memory.groups
    pool = KVPool(groups, len(loaded.model.kv_specs()), order.torch_device)
    rows = Rows(limits.max_num_seqs, limits.max_model_len, groups)
    runner: Runner | PoolingRunner
    if loaded.pooler is not None:
        runner = PoolingRunner(loaded.model, loaded.pooler, pool, rows, pulse)
        grammars = GrammarRows(limits.max_num_seqs, facts.vocab_size)
    else:
        state = SamplerState(limits.max_num_seqs, facts.vocab_size)
        graphs = _graphs(resolved, loaded, order)
        # A network without a pooler has a head.
        runner = Runner(cast(Model, loaded.model), pool, rows, state, graphs, pulse, order)
        grammars = state.grammars
    cache = KVCache(
        groups,
        enable_prefix_caching=resolved.config.enable_prefix_caching and bool(groups),
        revision=_revision(resolved),
    )
    policy = POLICIES.load(resolved.config.scheduling_policy)()
    scheduler = Scheduler(limits, cache, policy)
    inject.install(runner, injections(resolved.config.inject))
    repros = Repros(resolved.config)
    file = _open_step_log(resolved.config, scheduler)
    steps, desk = StepLog(sink=file), GrammarDesk(grammars)
    recorder = None if file is None else Recorder(scheduler, file, steps)
    engine = Engine(scheduler, runner, link, steps, desk, repros, pulse, recorder)
    if resolved.runs_ahead and isinstance(runner, Runner):
        engine.ahead = runner
    if pool.pages:
        # Of a step as large as one on a CPU is by itself, whatever was asked for.
        num_tokens = min(limits.max_num_batched_tokens, resolve.CPU_STEP_TOKENS)
        pool.expect(num_tokens)
        engine.rest = partial(pool.find_pages, FULL_STEPS_FOUND * num_tokens)
    return engine


def _graphs(resolved: Resolved, loaded: LoadedModel, device: Device) -> StepGraphs:
    """What replays steps: recordings on the CPU, captured graphs elsewhere."""
    refusal = _eager_because(resolved, loaded)
    if device.torch_device.type == "cpu":
        return RecordedSteps(refusal)
    limits, memory = resolved.limits, resolved.memory
    room = Room(
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        num_blocks=tuple(group.num_blocks for group in memory.groups),
        num_bytes=memory.graphs,
        piece_tokens=piece_tokens(resolved.facts, limits.max_num_batched_tokens),
    )
    return CapturedSteps(device, room, refusal)


def _eager_because(resolved: Resolved, loaded: LoadedModel) -> str | None:
    """Why no step is replayed; None where they are."""
    if resolved.config.enforce_eager:
        return "--enforce-eager"
    if resolved.config.inject:
        return "--inject"
    if resolved.facts.pooling is not None:
        return "prompts are pooled"
    if resolved.device == "cpu":
        return recording.refusal(resolved.device, resolved.dtype)
    return _uncapturable(loaded)


def _uncapturable(loaded: LoadedModel) -> str | None:
    """Which attention backend plans steps anew, so that a captured one would read the plan of another."""
    for choice in loaded.choices:
        if choice.op == ATTENTION.name:
            backend = ATTENTION.candidates.load(choice.winner)
            if not hasattr(backend, "reserve"):
                return f"attention by {choice.winner} cannot be captured"
    return None


def _revision(resolved: Resolved) -> str:
    """What cached keys and values depend on beside the tokens: prefix hashes of one revision mean nothing in another."""
    config = resolved.config
    computed = resolved.products or resolved.dtype
    parts = (config.model, computed, resolved.kv_dtype, config.quantization, str(config.seed))
    return ":".join(parts)


def _why(choice: Choice) -> str:
    refused = "; ".join(f"{name} refused: {reason}" for name, reason in choice.refusals)
    return refused or "preferred"


def _ready(
    resolved: Resolved,
    loaded: LoadedModel,
    phases: tuple[Phase, ...],
    found: tuple[Decision, ...],
) -> Ready:
    ops: dict[tuple[str, str], list[str]] = {}
    for choice in loaded.choices:
        alike = ops.setdefault((choice.winner, _why(choice)), [])
        if choice.op not in alike:
            alike.append(choice.op)
    chosen = tuple(
        Decision(f"kernel {name}", ", ".join(names), why) for (name, why), names in ops.items()
    )
    eager = _eager_because(resolved, loaded)
    steps = Decision("steps", "eager" if eager else "replayed", eager or _REPLAYS[resolved.device])
    limits, memory = resolved.limits, resolved.memory
    return Ready(
        model=resolved.config.model,
        max_model_len=limits.max_model_len,
        vocab_size=resolved.facts.vocab_size,
        device=resolved.device,
        dtype=resolved.dtype,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        num_blocks=sum(group.num_blocks - 1 for group in memory.groups),
        block_size=BLOCK_SIZE,
        kv_tokens=min(memory.kv_tokens, 1 << 62),
        memory=memory.parts(),
        decisions=tuple(
            (d.name, d.value, d.reason) for d in (*resolved.decisions, *found, *chosen, steps)
        ),
        phases=phases,
        pid=os.getpid(),
        pooling=None if loaded.pooler is None else loaded.pooler.facts,
    )
