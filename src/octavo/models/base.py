"""What a model is, to everyone above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec
from octavo.layers.attention import LayerCaches, Parts
from octavo.layers.build import Weight


class Trunk(Protocol):
    """A network up to its hidden states. Shape letters: T tokens, N rows wanted, D hidden, V vocabulary."""

    def weight_map(self) -> Mapping[str, Weight]:
        """Checkpoint name -> where that tensor goes; empty once loaded, so that repacked weights are not held twice."""

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps, in layer order; `group_layers` of it is the order of `ForwardBatch.groups`.

        Empty of an encoder, which sees each prompt whole in one step and keeps nothing.
        """

    def forward(self, batch: ForwardBatch, kv: LayerCaches) -> torch.Tensor:
        """Final hidden states [T, D] after the last norm; writes the tokens' keys and values into `kv`."""


class Model(Trunk, Protocol):
    """A decoder over a paged cache."""

    def parts(self, batch: ForwardBatch, kv: LayerCaches) -> Parts:
        """As `forward`, stopping at each layer's look at other rows."""

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> float32 [N, V]."""
