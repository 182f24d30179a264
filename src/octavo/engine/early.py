"""What an engine's process begins before torch is there: the packing of weights, on the cores that imports leave idle. No torch.

Nothing is decided here. What memory was free is noted, because packing takes some of it, and the plan that the start will
make is made once to see whether it can be: weights that do not fit are not begun.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import OctavoError
from octavo.core.gguf import is_gguf
from octavo.core.resolve import cpu_threads
from octavo.engine import machine
from octavo.engine.decide import Machine, resolve_start
from octavo.engine.free_memory import available_bytes
from octavo.layers.quant.asked import asked_format
from octavo.models.ahead import PackedAhead, pack_ahead
from octavo.models.storage import plan_storage

DEVICE_FILES = ("nvidiactl", "nvidia0", "dxg")
"""In /dev where there may be a GPU that "auto" would take."""


class Early(NamedTuple):
    """What was begun, and for what."""

    config: EngineConfig
    available: int
    """Bytes that were free before."""
    ahead: PackedAhead


def is_on_cpu(config: EngineConfig, dev: Path = Path("/dev")) -> bool:
    """Whether the device is a CPU for certain; to know it of "auto" where there may be a GPU takes torch."""
    if config.device == "auto":
        return not any((dev / name).exists() for name in DEVICE_FILES)
    return config.device == "cpu"


def begin(config: EngineConfig) -> Early | None:
    """Begin what can be on a CPU; None where that is nothing, be it that the start will fail: then it says why."""
    if config.load_format == "dummy":
        return None
    available = available_bytes()
    try:
        if is_gguf(model_folder(config.model)):
            return None  # nothing of it is known ahead, and reading its header twice takes time
        resolved = resolve_start(config, Machine("cpu", available, plan_storage))
        threads, _ = cpu_threads(config.threads, machine.usable_cores())
        # As `boot` does, for the threads that are started here.
        machine.spread_memory(machine.memory_nodes(os.sched_getaffinity(0)))
        machine.free_large_at_once()
        ahead = pack_ahead(
            model_folder(config.model),
            resolved.facts,
            resolved.storage,
            asked_format(resolved.facts.stored, config.quantization),
            threads,
        )
    except (OctavoError, OSError):
        return None
    return None if ahead is None else Early(config, available, ahead)
