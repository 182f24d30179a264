"""AWQ, GPTQ and compressed-tensors' packed checkpoints, against the numbers that their formats' documentation says they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_driver import Driver
from octavo.core.errors import ModelError
from octavo.kernels.dispatch import Dispatcher
from octavo.kernels.gemm.formats import plain
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.quant.packed import PackedLevels
from octavo.models.config import Config
from octavo.models.load import load_model
from octavo.models.storage import plan_storage
from octavo.models.stored_config import read_stored
from octavo.models.weights import load_weights
from packers import Int4, Kind, random_int4, shuffled_groups, write

KINDS = {
    "awq-32": Kind("awq", 32, True),
    "awq-64": Kind("awq", 64, True),
    "awq-symmetric": Kind("awq", 128, False),
    "awq-whole": Kind("awq", -1, True),
    "gptq-32": Kind("gptq", 32, False),
    "gptq-128-zeros": Kind("gptq", 128, True),
    "gptq-64-v2": Kind("gptq", 64, True, version=2),
    "gptq-whole": Kind("gptq", -1, False),
    "gptq-ordered": Kind("gptq", 32, True, is_ordered=True),
    "gptq-256": Kind("gptq", 256, False, scale=torch.bfloat16),
    "packed-32": Kind("packed", 32, False),
    "packed-128-zeros": Kind("packed", 128, True, scale=torch.bfloat16),
    "packed-float32": Kind("packed", 64, True, scale=torch.float32),
    "packed-whole": Kind("packed", -1, True),
    "packed-ordered": Kind("packed", 64, False, is_ordered=True),
}
SIZES = (40, 24)
INPUTS = 256


def build_of(kind: Kind, **changes: Any) -> Build:
    spec = read_stored(Config({"quantization_config": kind.config() | changes}, "config.json"))
    assert spec is not None
    return Build(
        dtype=torch.float32,
        device=torch.device("cpu"),
        weight_dtype=torch.float32,
        dispatch=Dispatcher(),
        quant=PackedLevels(spec, spec.form),
    )


def matrices(kind: Kind) -> dict[str, Int4]:
    groups_D = shuffled_groups(INPUTS, kind.group, 3) if kind.is_ordered else None
    return {
        name: random_int4(kind, size, INPUTS, seed, groups_D)
        for seed, (name, size) in enumerate(zip(("a", "b"), SIZES, strict=True))
    }


def fill(build: Build, folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    load_weights(folder, build.weights, {})
    for finish in build.finishers:
        finish()


@pytest.mark.parametrize("name", KINDS)
def test_levels_are_the_checkpoints(tmp_path: Path, name: str) -> None:
    """All numbers bit by bit, both as they are read and as the CPU's kernel keeps them, in one product of two matrices."""
    kind = KINDS[name]
    found = matrices(kind)
    tensors = {
        key: value for local, each in found.items() for key, value in write(kind, local, each).items()
    }
    build = build_of(kind)
    assert build.quant is not None
    read = build.quant.stored(build, tuple(zip(found, SIZES, strict=True)), INPUTS)
    fill(build, tmp_path, tensors)
    wanted_OD = torch.cat([each.numbers() for each in found.values()])
    assert torch.equal(plain(read(), torch.float32), wanted_OD)

    build = build_of(kind)
    layer = Linear(build, tuple(zip(found, SIZES, strict=True)), INPUTS)
    fill(build, tmp_path, tensors)
    kept_OD = layer._kernel.rows(layer._packed, torch.arange(sum(SIZES)))
    columns = torch.arange(INPUTS) if layer._order_D is None else layer._order_D
    assert torch.equal(kept_OD, wanted_OD[:, columns])
    assert (layer._order_D is not None) == kind.is_ordered

    x_ND = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(9))
    off = layer(x_ND) - x_ND @ wanted_OD.T
    assert off.norm() < 0.02 * (x_ND @ wanted_OD.T).norm()  # rows are rounded to int8


CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 61,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float16",
}
PROJECTIONS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}


def checkpoint(folder: Path, kind: Kind, **changes: Any) -> tuple[Path, Path]:
    """A tiny model as `kind` says, and the same in plain float32."""
    random = torch.Generator().manual_seed(7)
    plain_ones: dict[str, Tensor] = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        plain_ones[name] = torch.randn(61, 64, generator=random).half()
    sizes = {"input_layernorm": 64, "post_attention_layernorm": 64}
    sizes |= {"self_attn.q_norm": 16, "self_attn.k_norm": 16}
    plain_ones["model.norm.weight"] = torch.ones(64).half()
    stored: dict[str, Tensor] = {}
    numbers: dict[str, Tensor] = {}
    for layer in range(2):
        for name, size in sizes.items():
            norm = 1 + 0.1 * torch.randn(size, generator=random)
            plain_ones[f"model.layers.{layer}.{name}.weight"] = norm.half()
        for seed, (name, (outputs, inputs)) in enumerate(PROJECTIONS.items()):
            groups_D = shuffled_groups(inputs, kind.group, layer) if kind.is_ordered else None
            weight = random_int4(kind, outputs, inputs, 10 * layer + seed, groups_D)
            full = f"model.layers.{layer}.{name}"
            stored |= write(kind, full, weight)
            numbers[f"{full}.weight"] = weight.numbers()
    described = {"quantization_config": kind.config() | changes}
    places = folder / "stored", folder / "plain"
    for place, tensors, more in zip(places, (stored, numbers), (described, {}), strict=True):
        place.mkdir()
        (place / "config.json").write_text(json.dumps(CONFIG | more))
        save_file(plain_ones | tensors, place / "model.safetensors")
    return places


TOKENS = [(0, [5, 17, 60, 3, 3, 21, 8]), (1, [1, 2])]
