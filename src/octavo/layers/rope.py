"""Rotary position embedding: which angles. The rotation itself is the op `rope`.

Frequencies follow transformers 5.23 `modeling_rope_utils.py`, which itself follows the papers named below. Shape
letters: T tokens, K half of the head dim.
"""

from __future__ import annotations

import math

import torch

from octavo.kernels.recording import recompute
from octavo.layers.rope_spec import RopeSpec


class Rope:
    """Angles for one (spec, head dim); shared by all layers of a model."""

    def __init__(self, spec: RopeSpec, head_dim: int, device: torch.device) -> None:
        self.spec = spec
        self.attention_factor = _yarn_attention_factor(spec) if spec.kind == "yarn" else 1.0
        self._freq_K = inverse_frequencies(spec, head_dim).to(device)

    def __call__(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [T] -> (cos, sin), float32 [T, K]. Computed per step, so no table limits the position."""
        cos_TK, sin_TK = recompute(self._angles, positions_T)
        return cos_TK, sin_TK

    def _angles(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles_TK = positions_T.to(torch.float32).unsqueeze(1) * self._freq_K
        return angles_TK.cos() * self.attention_factor, angles_TK.sin() * self.attention_factor


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> torch.Tensor:
    """Radians per position of each feature pair: float32 [head_dim / 2].

    "dynamic" (NTK) changes the base only beyond max_position_embeddings; Octavo serves it up to there, because
    beyond it a key's angle would depend on how long the sequence later becomes.
    """
    exponents_K = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    powers_K = spec.theta**exponents_K
    match spec.kind:
        case "linear":
            return 1.0 / powers_K / spec.factor
        case "llama3":
            return _llama3(1.0 / powers_K, spec)
        case "yarn":
            return _yarn(powers_K, spec, head_dim)
        case "default" | "dynamic":
            return 1.0 / powers_K


def _llama3(freq_K: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between.

    Source: https://github.com/meta-llama/llama-models, models/llama3/model.py apply_scaling.
    """
    old = spec.original_max_position
    wavelength_K = 2 * math.pi / freq_K
    ramp_K = (old / wavelength_K - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    smooth_K = (1 - ramp_K) * freq_K / spec.factor + ramp_K * freq_K
    is_long_K = wavelength_K > old / spec.low_freq_factor
    is_short_K = wavelength_K < old / spec.high_freq_factor
    return torch.where(is_long_K, freq_K / spec.factor, torch.where(is_short_K, freq_K, smooth_K))


def _yarn(powers_K: torch.Tensor, spec: RopeSpec, head_dim: int) -> torch.Tensor:
    """Interpolate slow features, keep fast ones, a ramp between (https://arxiv.org/abs/2309.00071, section 3.2)."""

    def feature(num_rotations: float) -> float:
        turns = spec.original_max_position / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = feature(spec.beta_fast), feature(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp_K = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return (1.0 / (spec.factor * powers_K)) * ramp_K + (1.0 / powers_K) * (1 - ramp_K)


def _yarn_attention_factor(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.mscale and spec.mscale_all_dim:
        return _mscale(spec.factor, spec.mscale) / _mscale(spec.factor, spec.mscale_all_dim)
    return _mscale(spec.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    """https://arxiv.org/abs/2309.00071, equation 22."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
