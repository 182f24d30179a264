"""What a tuning is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from octavo.core.config import EngineConfig
from octavo.tools.plan.target import Target
from octavo.tools.tune.slo import Slo
from octavo.tools.tune.traffic import Job


class Task(NamedTuple):
    """What is asked for."""

    config: EngineConfig
    values: dict[str, object]
    """What the operator gave, as keys of `--config`."""
    jobs: Sequence[Job]
    slo: Slo
    target: Target | None
    """A device to tell times of; None: this machine, measured."""
    price: float | None
    calibration_s: float
    live_s: float
    """0: no live runs."""
    live_candidates: int
    tolerance: float
    seed: int
