"""Names of elementwise activations, as data. No torch."""

from __future__ import annotations

from typing import Literal

Curve = Literal["gelu", "gelu_tanh", "relu"]
"""gelu by the normal distribution, its approximation by tanh (both arXiv:1606.08415), relu."""
