"""In which dtype a model computes and how its weights are kept, decided before anything is loaded. No torch."""

from __future__ import annotations

import math
from typing import NamedTuple

from octavo.core.errors import ConfigError
from octavo.core.kvspec import DTYPE_BYTES
from octavo.kernels.cpu import native
from octavo.kernels.cpu_facts import DtypeChoice, read_cpu_flags, resolve_dtype
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.format_table import head_format, weight_format
from octavo.kernels.gemm.storage import Stored, storage_of
from octavo.layers.quant.claim import Claim
from octavo.layers.quant.spec import kept_as
from octavo.models.facts import ModelFacts
from octavo.models.matrices import DENSE, products
from octavo.models.registry import TRUNK_OF

_KNOWN = (DENSE, TRUNK_OF[DENSE])


class WeightStorage(NamedTuple):
    """How weights are kept in memory."""

    dtype: str
    is_repacked: bool
    """Whether kernels keep weights in a layout of their own."""
    num_bytes: int
    """Of all weights, once they are loaded."""


def choose_dtype(facts: ModelFacts, asked: str, device: str, quantization: str = "") -> DtypeChoice:
    """The dtype `load_model` would use; for planning memory before it.

    Raises:
        ConfigError: `asked` is neither "auto" nor a dtype.
    """
    if asked != "auto" and asked not in DTYPE_BYTES:
        known = ", ".join(("auto", *DTYPE_BYTES))
        raise ConfigError(f"dtype is {asked!r}; expected one of {known}.", param="dtype")
    return resolve_dtype(
        asked,
        facts.dtype,
        device=device_type(device),
        cpu_flags=read_cpu_flags(),
        is_quantized=kept_as(facts.stored, quantization, device_type(device)) != "",
        has_kernels=native.missing() is None and native.isa() != "scalar",
    )


def device_type(device: str) -> str:
    """The kind of a device: cuda, of cuda:0."""
    return device.partition(":")[0]


def head_case(facts: ModelFacts, dtype: str, device: str, quantization: str) -> OpCase:
    """The product with the head, as linear kernels are told of it: what takes it decides how weights are kept."""
    sizes = (facts.vocab_size, facts.hidden_size)
    weights = head_format(quantization)
    return OpCase(device=device_type(device), dtype=dtype, weights=weights, sizes=sizes)


def weight_storage(
    facts: ModelFacts, stored: Stored, quantization: str, device: str
) -> WeightStorage:
    """The sum of all weights, kept as `stored` says but for those that are quantized.

    Raises:
        ConfigError: an unknown quantization.
    """
    head = head_format(quantization)
    linear = kept_as(facts.stored, quantization, device_type(device))
    linear_bits = weight_format(linear).bits_per_weight if linear else 0
    packing = None if facts.stored is None or quantization else facts.stored.packing
    if packing is not None and packing.bits == 4 and facts.dtype == "float32":
        linear_bits += 16 / packing.kept_group  # scales in 32 bits
    head_bits = weight_format(head).bits_per_weight if head else 0
    num_bytes = facts.weight_bytes(stored.dtype, linear_bits=linear_bits, head_bits=head_bits)
    if linear_bits and not quantization:
        plain_bits = 8 * DTYPE_BYTES[stored.dtype]
        num_bytes += math.ceil(_num_plain(facts) * (plain_bits - linear_bits) / 8)
    return WeightStorage(stored.dtype, stored.is_repacked, num_bytes)


def _num_plain(facts: ModelFacts) -> int:
    """Weights in matrices that a quantized checkpoint leaves in plain numbers."""
    if facts.stored is None or not facts.stored.ignored or facts.network not in _KNOWN:
        return 0
    claim = Claim(facts.stored)
    return sum(
        sum(product.num_outputs) * product.num_inputs
        for product in products(facts)
        if not claim(product.names)
    )


def plan_storage(
    facts: ModelFacts, dtype: str, device: str, quantization: str = ""
) -> WeightStorage:
    """How `load_model` would keep the weights; for planning memory before it.

    Raises:
        ConfigError: an unknown quantization.
    """
    case = head_case(facts, dtype, device, quantization)
    return weight_storage(facts, storage_of(case, facts.dtype), quantization, device)
