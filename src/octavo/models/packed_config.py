"""Descriptions of checkpoints that pack their levels in words: AWQ, GPTQ and compressed-tensors' "pack-quantized". No torch.

Sources: transformers' AwqConfig and GPTQConfig (https://huggingface.co/docs/transformers/main_classes/quantization), GPTQModel's
QuantizeConfig (https://github.com/ModelCloud/GPTQModel) and compressed-tensors' QuantizationArgs
(https://github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

import re
from typing import Literal

from octavo.layers.quant.spec import GROUPS, Packing, StoredSpec
from octavo.models.config import Config
from octavo.models.stored_checks import (
    MAX_IGNORED,
    MAX_PATTERN,
    check_pattern,
    ignored_names,
    refuse_stored,
)

MAX_GROUP = 1 << 20


def read_awq(section: Config) -> StoredSpec:
    """AWQ in its "gemm" layout."""
    if _bits(section, "w_bit" if section.has("w_bit") else "bits") != 4:
        refuse_stored(section, "bits", "4")
    for key in ("version", "format", "checkpoint_format"):
        if section.string(key, "gemm").lower() != "gemm":
            refuse_stored(section, key, "'gemm'")
    group = _group(section, "q_group_size" if section.has("q_group_size") else "group_size", 4)
    has_zeros = section.boolean("zero_point", default=True)
    # Its packer leaves out each layer whose name has an entry anywhere within.
    names = ignored_names(section, "modules_to_not_convert")
    return StoredSpec(
        method="awq",
        kind="int4",
        packing=Packing(layout="awq", bits=4, group=group, has_zeros=has_zeros),
        rounds_rows=False,
        ignored=tuple(f"re:.*{re.escape(name)}" for name in names),
    )


def read_gptq(section: Config) -> StoredSpec:
    """GPTQ of 4 or 8 bits, its zero points as the first or the second version of the format has them."""
    bits = _bits(section, "bits")
    form = _gptq_format(section)
    if section.string("pack_dtype", "int32") != "int32":
        refuse_stored(section, "pack_dtype", "'int32'")
    if section.boolean("lm_head", default=False):
        refuse_stored(section, "lm_head", "false")
    packing = Packing(
        layout="gptq",
        bits=bits,
        group=_group(section, "group_size", bits),
        has_zeros=not section.boolean("sym", default=True),
        zeros_less=1 if form == "gptq" else 0,
        is_ordered=section.boolean("desc_act", default=False),
    )
    return StoredSpec(
        method="gptq",
        kind="int4" if bits == 4 else "int8",
        packing=packing,
        rounds_rows=False,
        ignored=_left_out(section) + _not_listed(section),
    )


def read_packed(group: Config) -> StoredSpec:
    """The scheme of a group of layers of format "pack-quantized", without its names."""
    if group.has("input_activations"):
        refuse_stored(group, "input_activations", "null, with packed weights,")
    weights = group.section("weights")
    bits = _bits(weights, "num_bits")
    if weights.string("type", "int") != "int":
        refuse_stored(weights, "type", "'int'")
    if weights.boolean("dynamic", default=False):
        refuse_stored(weights, "dynamic", "false")
    strategy = weights.string("strategy", "group" if weights.has("group_size") else "tensor")
    if strategy not in ("group", "channel"):
        refuse_stored(weights, "strategy", "'group' or 'channel'")
    order = weights.data.get("actorder")
    if order not in (None, False, True, "group", "dynamic", "weight", "static"):
        refuse_stored(weights, "actorder", "'group', 'weight' or null")
    packing = Packing(
        layout="packed",
        bits=bits,
        group=_group(weights, "group_size", bits) if strategy == "group" else 0,
        has_zeros=not weights.boolean("symmetric", default=True),
        is_ordered=order in (True, "group", "dynamic"),
    )
    kind: Literal["int4", "int8"] = "int4" if bits == 4 else "int8"
    return StoredSpec(method="", kind=kind, packing=packing, rounds_rows=False)


def _bits(section: Config, key: str) -> Literal[4, 8]:
    bits = section.integer(key)
    if bits == 4:
        return 4
    if bits == 8:
        return 8
    return refuse_stored(section, key, "4 or 8")


def _group(section: Config, key: str, bits: int) -> int:
    """Inputs that share a scale; 0: all."""
    size = section.integer(key, 128, least=-1)
    least = GROUPS[-1] if bits == 4 else 1
    if size == -1:
        return 0
    if not 0 < size <= MAX_GROUP or size % least:
        refuse_stored(section, key, f"-1 or a multiple of {least} up to {MAX_GROUP}")
    return size


def _gptq_format(section: Config) -> str:
    keys = [key for key in ("checkpoint_format", "format") if section.has(key)]
    for key in keys:
        if section.string(key) not in ("gptq", "gptq_v2"):
            refuse_stored(section, key, "'gptq' or 'gptq_v2'")
    if section.boolean("is_marlin_format", default=False):
        refuse_stored(section, "is_marlin_format", "false")
    found = {section.string(key) for key in keys}
    if len(found) > 1:
        refuse_stored(section, "format", "what checkpoint_format says, too,")
    return found.pop() if found else "gptq"


def _left_out(section: Config) -> tuple[str, ...]:
    """Patterns of layers that `dynamic` leaves alone ("-:PATTERN"); it may not give others bits of their own."""
    names = section.section("dynamic").data
    if len(names) > MAX_IGNORED:
        refuse_stored(section, "dynamic", f"at most {MAX_IGNORED} patterns")
    for name in names:
        if not name.startswith("-:") or len(name) > MAX_PATTERN:
            expected = f"patterns of layers to leave alone (-:PATTERN, {MAX_PATTERN} characters)"
            refuse_stored(section, "dynamic", expected)
        check_pattern(section, "dynamic", name.removeprefix("-:"))
    return tuple(f"re:{name.removeprefix('-:')}" for name in names)


def _not_listed(section: Config) -> tuple[str, ...]:
    """A pattern of the layers that are not among those in lists that say which alone are quantized; null: all are."""
    key = "modules_in_block_to_quantize"
    if not section.has(key):
        return ()
    lists = section.data[key]
    flat = [name for names in lists for name in names] if _are_lists(lists) else []
    is_bounded = 0 < len(flat) <= MAX_IGNORED and all(0 < len(name) <= MAX_PATTERN for name in flat)
    if not is_bounded:
        refuse_stored(section, key, "lists of names")
    return (f"re:(?!.*(?:{'|'.join(map(re.escape, flat))})$)",)


def _are_lists(found: object) -> bool:
    return isinstance(found, list) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found
    )
