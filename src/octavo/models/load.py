"""From a model folder to a model that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from octavo.core.kvspec import KVGroup, group_layers
from octavo.kernels.dispatch import Choice, Dispatcher, check_forced
from octavo.kernels.gemm.format_table import check_device
from octavo.kernels.gemm.registry import LINEAR
from octavo.kernels.gemm.storage import Stored
from octavo.kernels.registry import OPS
from octavo.layers.build import Build
from octavo.layers.pooler import Pooler
from octavo.layers.quant.base import QuantFormat
from octavo.layers.quant.registry import QUANT_FORMATS
from octavo.layers.quant.spec import SCALE, kept_as
from octavo.models.base import Trunk
from octavo.models.facts import ModelFacts, read_facts
from octavo.models.pooling_config import Runner
from octavo.models.registry import NETWORKS
from octavo.models.storage import WeightStorage, choose_dtype, head_case, weight_storage
from octavo.models.weights import Filling, Spelling, fill_dummy, load_weights

UNUSED_SCALES = (
    ".input_scale",
    ".input_scale_ub",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".activation_scale_ub",
)
"""Of activations, keys and values: here each row, and each token's head, gets its own when it is there."""
SCALE_NAMES = ((".weight_scale_inv", f".{SCALE}"),)
"""The "inverse" is what levels are multiplied with, too."""
EMPTY = (".bias",)
"""Packers of GPTQ have written biases of 0 for layers that have none."""
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


class Exactness(NamedTuple):
    """What of results is asked for beside their dtype."""

    kv_dtype: str = "auto"
    """Of keys and values; "auto" is the dtype of the activations."""
    is_invariant: bool = False
    """Whether a row must have the same bits in any batch."""


def choose_storage(
    facts: ModelFacts, dtype: str, device: str, quantization: str = ""
) -> WeightStorage:
    """How `load_model` keeps the weights, by the kernel that will take them.

    Raises:
        ConfigError: an unknown quantization, or one that does not fit the checkpoint.
    """
    return _storage(facts, Dispatcher(), dtype, device, quantization)


def _storage(
    facts: ModelFacts,
    dispatch: Dispatcher,
    dtype: str,
    device: str,
    quantization: str,
    *,
    is_invariant: bool = False,
) -> WeightStorage:
    check_device(quantization, torch.device(device).type)
    case = replace(head_case(facts, dtype, device, quantization), is_invariant=is_invariant)
    kernel = dispatch.choose(LINEAR, case)
    stored = Stored(kernel.stores(facts.dtype), kernel.repacks)
    return weight_storage(facts, stored, quantization, device)


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    load_format: LoadFormat = "safetensors",
    seed: int = 0,
    quantization: str = "",
    runner: Runner = "auto",
    kernels: Mapping[str, str] | None = None,
    filling: Filling = Filling(),
    exactness: Exactness = Exactness(),
) -> LoadedModel:
    """Read `folder`, build its network and fill it.

    `kernels` forces candidates by op ({"attention": "reference"}). `load_format` "dummy" needs config.json alone and
    fills from `seed`. `quantization` names a format of `kernels/gemm/format_table.py`, "" none.

    Raises:
        ModelError: the folder's config.json or weights.
        ConfigError: an unknown dtype or kernel, or a kernel that refuses.
    """
    facts = read_facts(folder, runner) if filling.facts is None else filling.facts
    facts = facts.on_device(_capability(device))
    filling = filling._replace(facts=facts)
    chosen = choose_dtype(facts, dtype, device, quantization)
    check_forced(kernels or {}, OPS)
    dispatch = Dispatcher(kernels)
    torch_dtype: torch.dtype = getattr(torch, chosen.dtype)
    storage = _storage(
        facts, dispatch, chosen.dtype, device, quantization, is_invariant=exactness.is_invariant
    )
    ahead = filling.ahead
    if ahead is not None and (kernels or not storage.is_repacked or not ahead.is_current()):
        filling = filling._replace(ahead=None)
    build = Build(
        dtype=torch_dtype,
        device=torch.device(device),
        weight_dtype=getattr(torch, storage.dtype),
        kv_dtype=exactness.kv_dtype,
        is_invariant=exactness.is_invariant,
        dispatch=dispatch,
        quantization=quantization,
        quant=_stored_format(facts, quantization, device),
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
            unused=() if facts.stored is None else UNUSED_SCALES,
            renamed=() if facts.stored is None else SCALE_NAMES,
            empty=() if facts.stored is None or facts.stored.packing is None else EMPTY,
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


def _capability(device: str) -> tuple[int, int] | None:
    """Of a GPU."""
    is_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_capability(device) if is_gpu else None


def _stored_format(facts: ModelFacts, quantization: str, device: str) -> QuantFormat | None:
    """How to read the linear layers of a checkpoint that is quantized already."""
    if facts.stored is None:
        return None
    form = kept_as(facts.stored, quantization, torch.device(device).type)
    found = (QUANT_FORMATS.load(name) for name in QUANT_FORMATS)
    return next(kind(facts.stored, form) for kind in found if kind.reads(facts.stored))


def _finish(build: Build) -> None:
    """Let every layer repack its weights."""
    # Drop the map first and each finisher after its turn: a kernel that repacks then holds one weight twice, not all.
    build.weights.clear()
    while build.finishers:
        build.finishers.pop(0)()
