"""What a model's rotary embedding is, as data. No torch."""

from __future__ import annotations

from typing import Literal

import msgspec

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding parameters; fields that the kind does not use keep their default."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    """Positions the model was first trained for (yarn, llama3)."""
    attention_factor: float | None = None
    """yarn: factor on cos and sin; None: from `factor`."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
