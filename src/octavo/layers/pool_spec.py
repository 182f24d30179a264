"""How a model's hidden states become its answer, as data. No torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.core.params import PoolingTask

PoolKind = Literal["cls", "last", "mean", "none"]
"""Which hidden state stands for the prompt: the first token's, the last one's, the mean of all; none: each for itself."""

StageActivation = Literal["none", "tanh", "gelu", "gelu_tanh", "relu", "silu", "sigmoid"]
OutputActivation = Literal["none", "sigmoid", "softmax"]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One projection after the pooling: norm(activation(x W^T + b))."""

    name: str
    """Of its weights in the checkpoint, without `.weight`."""
    num_inputs: int
    num_outputs: int
    has_bias: bool = True
    activation: StageActivation = "none"
    norm: str = ""
    """Name of the layer norm behind it; "" for none."""
    norm_eps: float = 1e-5
    norm_bias: bool = False
    folder: str = ""
    """Where its own safetensors file is, below the model's folder; "" for the model's own files."""

    @property
    def num_parameters(self) -> int:
        """Its weights."""
        norm = self.num_outputs * (1 + self.norm_bias) if self.norm else 0
        return self.num_outputs * (self.num_inputs + self.has_bias) + norm


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooler does, in this order: pick or average, project, then (unless told not to) normalize or activate."""

    tasks: tuple[PoolingTask, ...]
    kind: PoolKind
    stages: tuple[Stage, ...] = ()
    normalizes: bool = False
    """Embeddings are scaled to length 1."""
    output: OutputActivation = "none"
    """Of a classifier's logits."""
    labels: tuple[str, ...] = ()
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    max_tokens: int | None = None
    """Longest prompt that the model was made for, where its folder says so."""
    reason: str = ""
    """Where this was found."""

    @property
    def is_classifier(self) -> bool:
        """Whether the stages end in logits."""
        return "embed" not in self.tasks

    @property
    def num_parameters(self) -> int:
        """Of all stages."""
        return sum(stage.num_parameters for stage in self.stages)
