"""Qwen2 and Qwen2.5, dense (https://arxiv.org/abs/2407.10671). No torch."""

from __future__ import annotations

from msgspec.structs import replace

from octavo.models.config import Config
from octavo.models.dense_config import read_dense, switched_windows
from octavo.models.facts import ModelFacts


def read(config: Config) -> ModelFacts:
    """Biases on queries, keys and values always, nowhere else; windows by switch."""
    return replace(read_dense(config, switched_windows(config)), qkv_bias=True)
