"""What config.json says of a checkpoint that is quantized already, checked. No torch.

Two dialects: `quant_method` "fp8" (transformers' FP8Config, and what vLLM's own tools wrote before; "fbgemm_fp8" is its
sibling) and "compressed-tensors". What is not understood is refused here, before anything is loaded.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from octavo.core.errors import ModelError
from octavo.layers.quant.spec import StoredSpec
from octavo.models.config import Config

KEYS = ("quantization_config", "compression_config")
MAX_IGNORED = 4096
MAX_PATTERN = 512
MAX_BLOCK = 1 << 16
LINEAR = "Linear"


def read_stored(config: Config) -> StoredSpec | None:
    """The section of a config.json that says how weights are stored; None where there is none.

    Raises:
        ModelError: a method, or a variant of one, that is not read.
    """
    key = next((key for key in KEYS if config.has(key)), None)
    if key is None:
        return None
    section = config.section(key)
    read = _READERS.get(section.string("quant_method", _COMPRESSED))
    if read is None:
        _refuse(section, "quant_method", " or ".join(map(repr, _READERS)))
    return read(section)


def _fp8(section: Config) -> StoredSpec:
    if section.string("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        _refuse(section, "fmt", "'e4m3'")
    scheme = section.string("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        _refuse(section, "activation_scheme", "'dynamic' or 'static'")
    listed = "modules_to_not_convert" if section.has("modules_to_not_convert") else "ignored_layers"
    return StoredSpec(
        method="fp8",
        kind="fp8",
        block=_block(section, "weight_block_size"),
        has_fixed_rows=scheme == "static",
        ignored=_names(section, listed),
    )


def _fbgemm(section: Config) -> StoredSpec:
    ignored = _names(section, "modules_to_not_convert")
    return StoredSpec(method="fbgemm_fp8", kind="fp8", ignored=ignored)


def _compressed(section: Config) -> StoredSpec:
    form = section.string("format", "")
    if form not in ("float-quantized", "int-quantized", "naive-quantized"):
        _refuse(section, "format", "'float-quantized', 'int-quantized' or 'naive-quantized'")
    if section.section("sparsity_config").string("format", "dense") != "dense":
        _refuse(section, "sparsity_config", "none, or one of format 'dense'")
    groups = section.section("config_groups")
    found = {_scheme(groups.section(name)) for name in groups.data}
    if len(found) != 1:
        _refuse(section, "config_groups", "one scheme for all layers")
    scheme = found.pop()
    return StoredSpec(
        method=_COMPRESSED,
        kind=scheme.kind,
        block=scheme.block,
        rounds_rows=scheme.rounds_rows,
        has_fixed_rows=scheme.has_fixed_rows,
        ignored=_names(section, "ignore"),
    )


def _scheme(group: Config) -> StoredSpec:
    """The scheme of a group of layers, without its names."""
    if group.strings("targets") != (LINEAR,):
        _refuse(group, "targets", f"['{LINEAR}']")
    if group.data.get("output_activations") is not None:
        _refuse(group, "output_activations", "null")
    weights = group.section("weights")
    kind = _kind(weights)
    if weights.boolean("dynamic", default=False):
        _refuse(weights, "dynamic", "false")
    strategy = weights.string("strategy", "tensor")
    if strategy not in ("tensor", "channel", "block"):
        _refuse(weights, "strategy", "'tensor', 'channel' or 'block'")
    block = _block(weights, "block_structure") if strategy == "block" else None
    rounds_rows = group.has("input_activations")
    has_fixed_rows = False
    if rounds_rows:
        rows = group.section("input_activations")
        if _kind(rows) != kind:
            _refuse(rows, "type", "that of the weights")
        # Dynamic is also written "local".
        has_fixed_rows = rows.data.get("dynamic") is False
    return StoredSpec(
        method="", kind=kind, block=block, rounds_rows=rounds_rows, has_fixed_rows=has_fixed_rows
    )


def _kind(args: Config) -> Any:
    if args.integer("num_bits") != 8:
        _refuse(args, "num_bits", "8")
    if not args.boolean("symmetric", default=True):
        _refuse(args, "symmetric", "true")
    kinds = {"float": "fp8", "int": "int8"}
    if args.string("type") not in kinds:
        _refuse(args, "type", "'float' or 'int'")
    return kinds[args.string("type")]


def _block(section: Config, key: str) -> tuple[int, int] | None:
    sizes = section.data.get(key)
    if sizes is None and key == "weight_block_size":
        return None
    if isinstance(sizes, list) and len(sizes) == 2:
        tall, wide = sizes
        if all(type(size) is int and 0 < size <= MAX_BLOCK for size in (tall, wide)):
            return tall, wide
    return _refuse(section, key, f"two numbers from 1 to {MAX_BLOCK}")


def _names(section: Config, key: str) -> tuple[str, ...]:
    names = section.strings(key) if section.has(key) else ()
    if len(names) > MAX_IGNORED or not all(0 < len(name) <= MAX_PATTERN for name in names):
        _refuse(section, key, f"at most {MAX_IGNORED} names of at most {MAX_PATTERN} characters")
    for name in names:
        try:
            re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
        except re.error as error:
            _refuse(section, key, f"patterns that are regular expressions ({error} in {name!r})")
    return names


def _refuse(section: Config, key: str, expected: str) -> NoReturn:
    given = repr(section.data.get(key))
    shown = given if len(given) <= 200 else f"{given[:200]}..."
    raise ModelError(
        f"{section.where}: {key} is {shown}; of quantized checkpoints, {expected} is read.",
        code="E-MODEL-04",
        fix="Use a checkpoint in fp8 or int8 of those kinds, or the unquantized one with --quantization.",
        param=key,
    )


_COMPRESSED = "compressed-tensors"
_READERS = {"fp8": _fp8, "fbgemm_fp8": _fbgemm, _COMPRESSED: _compressed}
