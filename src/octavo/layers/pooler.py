"""From final hidden states to what a pooling request asked for: pick or average, project, normalize or activate.

A prompt may come in several chunks; a `Gathered` keeps of each what its pooling needs. From the projections on, prompts are
computed together only where that changes no bits, so that no answer depends on its batch mates. Shape letters: C tokens of
a chunk, T tokens of a prompt, D hidden, O features of the answer, N rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from octavo.core.errors import RequestError
from octavo.core.params import PoolingParams
from octavo.core.pooling import PER_TOKEN, PoolingFacts
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.layers.pool_spec import PoolKind, PoolSpec, Stage, StageActivation


class Gathered:
    """What is kept of one prompt until it is whole."""

    def __init__(self, kind: PoolKind) -> None:
        self.kind = kind
        self.num_tokens = 0
        self._kept: list[torch.Tensor] = []

    def copy(self) -> Gathered:
        """The same so far; what is added to one is not in the other."""
        made = Gathered(self.kind)
        made.num_tokens, made._kept = self.num_tokens, list(self._kept)
        return made

    def add(self, hidden_CD: torch.Tensor, start: int) -> None:
        """Take the hidden states of the tokens from position `start` on; `result` checks that none were left out."""
        if self.num_tokens == 0 and start > 0 and self.kind == "last":
            self.num_tokens = start  # what the cache had is not missed
        self.num_tokens += len(hidden_CD)
        match self.kind:
            case "cls":
                if not self._kept:
                    self._kept = [hidden_CD[0].float().clone()]
            case "last":
                self._kept = [hidden_CD[-1].float().clone()]
            case "mean":
                sum_D = hidden_CD.float().sum(0)
                self._kept = [self._kept[0] + sum_D if self._kept else sum_D]
            case "none":
                self._kept.append(hidden_CD.float().clone())

    def result(self, num_prompt: int) -> torch.Tensor:
        """float32 [1, D], or [T, D] without pooling.

        Raises:
            RequestError: some positions were never computed.
        """
        if self.num_tokens != num_prompt:
            raise RequestError(
                f"{self.num_tokens} of {num_prompt} hidden states were computed, and this pooling needs all.",
                fix="Set skip_reading_prefix_cache.",
            )
        if self.kind == "mean":
            return (self._kept[0] / num_prompt).unsqueeze(0)
        return torch.cat(self._kept) if self.kind == "none" else self._kept[0].unsqueeze(0)


class _Projection(NamedTuple):
    """A stage with its weights."""

    linear: Linear
    activation: StageActivation
    norm: LayerNorm | None


class Pooler:
    """The end of a pooling model."""

    def __init__(self, spec: PoolSpec, num_features: int, build: Build) -> None:
        self.spec = spec
        self.dtype = build.dtype
        # A head of few outputs is no place to save bytes by rounding.
        plain = replace(build, quantization="", quant=None, prefix="")
        self._stages = tuple(_projection(stage, plain) for stage in spec.stages)
        outputs = spec.stages[-1].num_outputs if spec.stages else num_features
        self.facts = PoolingFacts(
            tasks=spec.tasks,
            num_features=outputs,
            labels=spec.labels,
            is_matryoshka=spec.is_matryoshka,
            matryoshka_dimensions=spec.matryoshka_dimensions,
            reads_last_token=spec.kind == "last",
        )

    @property
    def finishes_together(self) -> bool:
        """Whether rows have the same bits finished together and one by one: torch's curves may not (docs/log.md)."""
        is_plain = all(activation == "none" for _, activation, _ in self._stages)
        return is_plain and not self.spec.is_classifier

    def gather(self, params: PoolingParams) -> Gathered:
        """What collects the hidden states of a request."""
        return Gathered("none" if params.task in PER_TOKEN else self.spec.kind)

    def finish(self, hidden_ND: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        """The answer: float32 [N, O]."""
        x_NO = hidden_ND.to(self.dtype)
        for linear, activation, norm in self._stages:
            x_NO = _activate(linear(x_NO), activation)
            x_NO = x_NO if norm is None else norm(x_NO)
        x_NO = x_NO.float()
        if params.dimensions is not None:
            x_NO = x_NO[:, : params.dimensions].contiguous()
        if params.use_activation is False:
            return x_NO
        if self.spec.is_classifier:
            return _probabilities(x_NO, self.spec.output)
        # A part of a vector of length 1 is made one again.
        return F.normalize(x_NO, dim=-1) if self.spec.normalizes else x_NO


def _projection(stage: Stage, build: Build) -> _Projection:
    name, size = stage.name, stage.num_outputs
    linear = Linear(build, ((name, size),), stage.num_inputs, has_bias=stage.has_bias)
    norm = None
    if stage.norm:
        norm = LayerNorm(build.at(stage.norm), size, stage.norm_eps, has_bias=stage.norm_bias)
    return _Projection(linear, stage.activation, norm)


def _activate(x_NO: torch.Tensor, activation: StageActivation) -> torch.Tensor:
    match activation:
        case "none":
            return x_NO
        case "gelu" | "gelu_tanh":
            return F.gelu(x_NO, approximate="tanh" if activation == "gelu_tanh" else "none")
        case "silu":
            return F.silu(x_NO)
        case "tanh" | "relu" | "sigmoid":
            curved: torch.Tensor = getattr(torch, activation)(x_NO)
            return curved


def _probabilities(logits_NO: torch.Tensor, output: str) -> torch.Tensor:
    if output == "sigmoid":
        return logits_NO.sigmoid()
    return logits_NO.softmax(-1) if output == "softmax" else logits_NO
