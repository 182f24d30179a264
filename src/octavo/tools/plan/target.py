"""The machine that a plan is for: this one, or a named device. No torch."""

from __future__ import annotations

from typing import NamedTuple

from octavo.core import resolve
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.engine import machine
from octavo.engine.decide import Machine, Resolved, resolve_start
from octavo.engine.free_memory import available_bytes
from octavo.kernels import ceilings
from octavo.kernels.cpu import native
from octavo.layers.quant.asked import asked_format
from octavo.layers.quant.spec import kept_as
from octavo.models.storage import plan_storage
from octavo.tools import gpu
from octavo.tools.plan.devices import CONTEXT_BYTES, MIB, Device, device_row
from octavo.tools.plan.speed import (
    CPU_OVERHEAD,
    CPU_SHARES,
    GPU_OVERHEAD,
    GPU_SHARES,
    Measured,
    Network,
    Roofline,
    Speed,
)


class Given(NamedTuple):
    """What was said about the device beside its name; None: as its row, or the machine, says."""

    memory_bytes: int | None = None
    read_gb_s: float | None = None
    tflops: float | None = None


class Target(NamedTuple):
    """Where the model is to run."""

    name: str
    kind: str
    """cpu or cuda."""
    available: int
    """Bytes of one device that could be used."""
    row: Device | None
    """Peaks; None: to be measured here."""
    source: str
    num_ranks: int = 1

    def resolve(self, config: EngineConfig) -> Resolved:
        """All that would be decided by a start there.

        Raises:
            OperatorError: it cannot work; MemoryPlanError where it does not fit.
        """
        capability = None if self.row is None else self.row.capability
        machine = Machine(
            self.kind, self.available, plan_storage, self.num_ranks, capability=capability
        )
        return resolve_start(config, machine)


def find(name: str, given: Given, num_ranks: int = 1) -> Target:
    """The device called `name`; auto: this machine's GPU where it is a known one, else its CPU.

    Raises:
        ConfigError: an unknown name, or one of two rates alone.
    """
    if (given.read_gb_s is None) != (given.tflops is None):
        raise ConfigError(
            "--read-gb-s and --tflops go together.", code="E-CFG-01", fix="Give both, or none."
        )
    if name == "auto":
        name = gpu.known_here() or "cpu"
    if name == "cpu":
        if num_ranks > 1:
            raise ConfigError(
                "--tp divides a model over GPUs; --device is cpu.",
                code="E-PLAN-02",
                fix="Leave --tp out, or name a GPU.",
                param="tp",
            )
        available = given.memory_bytes or available_bytes()
        if given.read_gb_s is None or given.tflops is None:
            return Target("cpu", "cpu", available, None, "measured here, now")
        row = Device(0, given.read_gb_s, given.tflops, given.tflops, 0.0, "as given")
        return Target("cpu", "cpu", available, row, "as given")
    row = device_row(name)
    total = given.memory_bytes or row.memory_mib * MIB
    source = row.source
    if given.read_gb_s is not None and given.tflops is not None:
        source = "as given"
        row = row._replace(
            read_gb_s=given.read_gb_s, tflops=given.tflops, tflops_float32=given.tflops
        )
    return Target(name, "cuda", max(0, total - CONTEXT_BYTES), row, source, num_ranks)


def network_of(resolved: Resolved) -> Network:
    """What of the model its speed depends on."""
    asked = asked_format(resolved.facts.stored, resolved.config.quantization)
    return Network(
        facts=resolved.facts,
        dtype=resolved.dtype,
        weight_dtype=resolved.storage.dtype,
        quantization=kept_as(resolved.facts.stored, asked, resolved.device),
        kv=resolved.facts.kv_specs(resolved.kv_dtype),
        is_head_plain=not asked,
    )


def speed_of(target: Target, resolved: Resolved, network: Network) -> Speed:
    """How fast steps are there; measures for some seconds where the target is this CPU.

    Raises:
        ConfigError: the CPU cannot be measured for this plan.
    """
    if target.row is not None:
        is_cpu = target.kind == "cpu"
        shares, overhead = (CPU_SHARES, CPU_OVERHEAD) if is_cpu else (GPU_SHARES, GPU_OVERHEAD)
        return Roofline(network, target.row, shares, overhead, target.num_ranks)
    reason = native.missing()
    if reason is None and not resolved.storage.is_repacked:
        reason = f"in {resolved.dtype} products are torch's, which is not loaded for a plan"
    if reason is not None:
        raise ConfigError(
            f"this CPU's speed cannot be measured: {reason}.",
            code="E-PLAN-03",
            fix="Give --read-gb-s (10^9 bytes read per second) and --tflops, or leave --dtype out.",
        )
    threads, _ = resolve.cpu_threads(resolved.config.threads, machine.usable_cores())
    spec = network.kv[0] if network.kv else None
    native.round_products(resolved.products == "bfloat16")  # as a start does
    timing = ceilings.measure(
        network.layer(), network.head(), spec, resolved.facts.num_heads, threads
    )
    return Measured(network, timing, CPU_OVERHEAD)
