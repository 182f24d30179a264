"""From a model folder to a model that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from octavo.core.kvspec import KVGroup, group_layers
from octavo.kernels.dispatch import Choice, Dispatcher, check_forced
from octavo.kernels.gemm.format_table import check_device
from octavo.kernels.gemm.registry import LINEAR
from octavo.kernels.gemm.storage import Stored
from octavo.kernels.registry import OPS
from octavo.layers.build import Build
from octavo.layers.pooler import Pooler
from octavo.models.base import Trunk
from octavo.models.facts import ModelFacts, read_facts
from octavo.models.pooling_config import Runner
from octavo.models.registry import NETWORKS
from octavo.models.storage import WeightStorage, choose_dtype, head_case, weight_storage
from octavo.models.weights import Filling, Spelling, fill_dummy, load_weights

LoadFormat = Literal["safetensors", "dummy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its weights in place, and how it came to be."""

    model: Trunk
    """A `Model` unless there is a pooler."""
    pooler: Pooler | None
    """Of a model that pools prompts and generates nothing."""
    facts: ModelFacts
    dtype: str
    dtype_reason: str
    groups: tuple[KVGroup, ...]
    """KV groups, `num_blocks` still 0."""
    choices: tuple[Choice, ...]
    """Which kernel computes what, and why."""


def choose_storage(
    facts: ModelFacts, dtype: str, device: str, quantization: str = ""
) -> WeightStorage:
    """How `load_model` keeps the weights, by the kernel that will take them.

    Raises:
        ConfigError: an unknown quantization, or one that does not fit the checkpoint.
    """
    return _storage(facts, Dispatcher(), dtype, device, quantization)


def _storage(
    facts: ModelFacts, dispatch: Dispatcher, dtype: str, device: str, quantization: str
) -> WeightStorage:
    check_device(quantization, torch.device(device).type)
    kernel = dispatch.choose(LINEAR, head_case(facts, dtype, device, quantization))
    return weight_storage(facts, Stored(kernel.stores(facts.dtype), kernel.repacks), quantization)


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    device: str = "cpu",
    load_format: LoadFormat = "safetensors",
    seed: int = 0,
    quantization: str = "",
    runner: Runner = "auto",
    kernels: Mapping[str, str] | None = None,
    filling: Filling = Filling(),
) -> LoadedModel:
    """Read `folder`, build its network and fill it.

    `kernels` forces candidates by op ({"attention": "reference"}). `load_format` "dummy" needs config.json alone and
    fills from `seed`. `quantization` names a format of `kernels/gemm/format_table.py`, "" none.
    `kv_dtype` is what keys and values are kept in; "auto" is the dtype of the activations.

    Raises:
        ModelError: the folder's config.json or weights.
        ConfigError: an unknown dtype or kernel, or a kernel that refuses.
    """
    facts = read_facts(folder, runner)
    chosen = choose_dtype(facts, dtype, device, quantization)
    check_forced(kernels or {}, OPS)
    dispatch = Dispatcher(kernels)
    torch_dtype: torch.dtype = getattr(torch, chosen.dtype)
    storage = _storage(facts, dispatch, chosen.dtype, device, quantization)
    ahead = filling.ahead
    if ahead is not None and (kernels or not storage.is_repacked or not ahead.is_current()):
        filling = filling._replace(ahead=None)
    build = Build(
        dtype=torch_dtype,
        device=torch.device(device),
        weight_dtype=getattr(torch, storage.dtype),
        kv_dtype=kv_dtype,
        dispatch=dispatch,
        quantization=quantization,
        ahead=filling.ahead,
    )
    model = NETWORKS.load(facts.network)(facts, build)
    pools = facts.pooling
    pooler = None if pools is None else Pooler(pools, facts.hidden_size, build)
    if load_format == "dummy":
        fill_dummy(model.weight_map(), seed, filling.progress, dtype=getattr(torch, facts.dtype))
    else:
        stages = () if pools is None else pools.stages
        spelling = Spelling(
            prefix=facts.weight_prefix if pools is not None else "",
            ignored=facts.ignored_weights,
            folders=tuple(stage.folder for stage in stages if stage.folder),
        )
        load_weights(folder, model.weight_map(), build.aliases, filling, spelling=spelling)
    _finish(build)
    return LoadedModel(
        model=model,
        pooler=pooler,
        facts=facts,
        dtype=chosen.dtype,
        dtype_reason=chosen.reason,
        groups=group_layers(model.kv_specs()),
        choices=tuple(dispatch.choices),
    )


def _finish(build: Build) -> None:
    """Let every layer repack its weights."""
    # Drop the map first and each finisher after its turn: a kernel that repacks then holds one weight twice, not all.
    build.weights.clear()
    while build.finishers:
        build.finishers.pop(0)()
