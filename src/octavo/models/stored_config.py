"""What config.json says of a checkpoint that is quantized already, checked. No torch.

Dialects, by `quant_method`: "fp8" (transformers' FP8Config, and what vLLM's own tools wrote before; "fbgemm_fp8" is its
sibling), "compressed-tensors", and "awq" and "gptq" (`packed_config.py`). What is not understood is refused here, before
anything is loaded.
"""

from __future__ import annotations

from typing import Any

from octavo.layers.quant.spec import StoredSpec
from octavo.models.config import Config
from octavo.models.packed_config import read_awq, read_gptq, read_packed
from octavo.models.stored_checks import ignored_names, refuse_stored

KEYS = ("quantization_config", "compression_config")
MAX_BLOCK = 1 << 16
LINEAR = "Linear"


def read_stored(config: Config, beside: Config | None = None) -> StoredSpec | None:
    """The section of a config.json that says how weights are stored, or else the file `beside` it; None where there is none.

    Raises:
        ModelError: a method, or a variant of one, that is not read.
    """
    key = next((key for key in KEYS if config.has(key)), None)
    section = beside if key is None else config.section(key)
    if section is None:
        return None
    read = _READERS.get(section.string("quant_method", _COMPRESSED))
    if read is None:
        refuse_stored(section, "quant_method", " or ".join(map(repr, _READERS)))
    return read(section)


def _fp8(section: Config) -> StoredSpec:
    if section.string("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        refuse_stored(section, "fmt", "'e4m3'")
    scheme = section.string("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        refuse_stored(section, "activation_scheme", "'dynamic' or 'static'")
    listed = "modules_to_not_convert" if section.has("modules_to_not_convert") else "ignored_layers"
    return StoredSpec(
        method="fp8",
        kind="fp8",
        block=_block(section, "weight_block_size"),
        has_fixed_rows=scheme == "static",
        ignored=ignored_names(section, listed),
    )


def _fbgemm(section: Config) -> StoredSpec:
    ignored = ignored_names(section, "modules_to_not_convert")
    return StoredSpec(method="fbgemm_fp8", kind="fp8", ignored=ignored)


def _compressed(section: Config) -> StoredSpec:
    form = section.string("format", "")
    if form not in _FORMS:
        refuse_stored(section, "format", " or ".join(map(repr, _FORMS)))
    if section.section("sparsity_config").string("format", "dense") != "dense":
        refuse_stored(section, "sparsity_config", "none, or one of format 'dense'")
    groups = section.section("config_groups")
    found = {_scheme(section, groups.section(name)) for name in groups.data}
    if len(found) != 1:
        refuse_stored(section, "config_groups", "one scheme for all layers")
    scheme = found.pop()
    return StoredSpec(
        method=_COMPRESSED,
        kind=scheme.kind,
        block=scheme.block,
        packing=scheme.packing,
        rounds_rows=scheme.rounds_rows,
        has_fixed_rows=scheme.has_fixed_rows,
        ignored=ignored_names(section, "ignore"),
    )


def _scheme(section: Config, group: Config) -> StoredSpec:
    """The scheme of a group of layers, without its names."""
    form = section.string("format")
    if group.string("format", form) != form:
        refuse_stored(group, "format", f"that of all layers, {form!r},")
    if group.strings("targets") != (LINEAR,):
        refuse_stored(group, "targets", f"['{LINEAR}']")
    if group.data.get("output_activations") is not None:
        refuse_stored(group, "output_activations", "null")
    if form == _PACKED:
        return read_packed(group)
    weights = group.section("weights")
    kind = _kind(weights)
    if weights.boolean("dynamic", default=False):
        refuse_stored(weights, "dynamic", "false")
    strategy = weights.string("strategy", "tensor")
    if strategy not in ("tensor", "channel", "block"):
        refuse_stored(weights, "strategy", "'tensor', 'channel' or 'block'")
    block = _block(weights, "block_structure") if strategy == "block" else None
    rounds_rows = group.has("input_activations")
    has_fixed_rows = False
    if rounds_rows:
        rows = group.section("input_activations")
        if _kind(rows) != kind:
            refuse_stored(rows, "type", "that of the weights")
        # Dynamic is also written "local".
        has_fixed_rows = rows.data.get("dynamic") is False
    return StoredSpec(
        method="", kind=kind, block=block, rounds_rows=rounds_rows, has_fixed_rows=has_fixed_rows
    )


def _kind(args: Config) -> Any:
    if args.integer("num_bits") != 8:
        refuse_stored(args, "num_bits", "8")
    if not args.boolean("symmetric", default=True):
        refuse_stored(args, "symmetric", "true")
    kinds = {"float": "fp8", "int": "int8"}
    if args.string("type") not in kinds:
        refuse_stored(args, "type", "'float' or 'int'")
    return kinds[args.string("type")]


def _block(section: Config, key: str) -> tuple[int, int] | None:
    sizes = section.data.get(key)
    if sizes is None and key == "weight_block_size":
        return None
    if isinstance(sizes, list) and len(sizes) == 2:
        tall, wide = sizes
        if all(type(size) is int and 0 < size <= MAX_BLOCK for size in (tall, wide)):
            return tall, wide
    return refuse_stored(section, key, f"two numbers from 1 to {MAX_BLOCK}")


_COMPRESSED = "compressed-tensors"
_PACKED = "pack-quantized"
_FORMS = ("float-quantized", "int-quantized", "naive-quantized", _PACKED)
_READERS = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    _COMPRESSED: _compressed,
    "awq": read_awq,
    "gptq": read_gptq,
}
