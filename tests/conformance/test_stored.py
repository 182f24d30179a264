"""Checkpoints that are quantized already, against the same checkpoint written out in plain numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model_driver import Driver
from octavo.core.errors import ModelError
from octavo.models.load import load_model

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 61,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
PROJECTIONS = {
    "self_attn.q_proj": (64, 48),
    "self_attn.k_proj": (32, 48),
    "self_attn.v_proj": (32, 48),
    "self_attn.o_proj": (48, 64),
    "mlp.gate_proj": (80, 48),
    "mlp.up_proj": (80, 48),
    "mlp.down_proj": (48, 80),
}
ARGS = {"num_bits": 8, "type": "float", "symmetric": True}
INT_ARGS = ARGS | {"type": "int"}
CHANNEL, TOKEN = {"strategy": "channel"}, {"strategy": "token", "dynamic": True}


def compressed(form: str, weights: dict[str, Any], rows: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": rows}
    found = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    return found | {"config_groups": {"group_0": group}}


FP8 = {"quant_method": "fp8"}
STATIC = FP8 | {"activation_scheme": "static", "ignored_layers": ["lm_head"]}
BLOCKS = FP8 | {"weight_block_size": [32, 16]}
MANY = FP8 | {"modules_to_not_convert": ["lm_head", "model.layers.1", "o_proj"]}
FLOATS = compressed("float-quantized", ARGS | CHANNEL, ARGS | TOKEN)
INTEGERS = compressed("int-quantized", INT_ARGS | CHANNEL, INT_ARGS | TOKEN)
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "one-scale": (FP8, "number", "weight_scale"),
    "one-scale-of-one": (STATIC, "one", "weight_scale"),
    "inverse": (FP8, "number", "weight_scale_inv"),
    "blocks": (BLOCKS, "block", "weight_scale_inv"),
    "some-layers": (MANY, "channel", "weight_scale"),
    "channels": (FLOATS, "channel", "weight_scale"),
    "integers": (INTEGERS, "channel", "weight_scale"),
}


def is_plain(name: str, config: dict[str, Any]) -> bool:
    ignored = [*config.get("modules_to_not_convert", []), *config.get("ignore", [])]
    return any(f".{entry}." in f".{name}." for entry in ignored)


def quantized(
    weight_OD: torch.Tensor, scales: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels, scales as the file has them, and the numbers that they stand for."""
    largest = 448.0 if dtype is torch.float8_e4m3fn else 127.0
    outputs, inputs = weight_OD.shape
    tall, wide = {"block": (32, 16), "channel": (1, inputs)}.get(scales, (outputs, inputs))
    scales_BG = torch.empty(-(-outputs // tall), -(-inputs // wide))
    whole_OD = torch.empty_like(weight_OD)
    for i in range(scales_BG.shape[0]):
        for j in range(scales_BG.shape[1]):
            block = slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide)
            scales_BG[i, j] = weight_OD[block].abs().max() / largest
            whole_OD[block] = scales_BG[i, j]
    levels_OD = weight_OD / whole_OD
    levels_OD = levels_OD.round().to(dtype) if dtype is torch.int8 else levels_OD.to(dtype)
    shape = {"number": (), "one": (1,)}.get(scales, scales_BG.shape)
    shaped = scales_BG.reshape(shape)
    return levels_OD, shaped, levels_OD.float() * whole_OD


def write(folder: Path, case: str) -> tuple[Path, Path]:
    """A checkpoint as `case` says, and the same in bfloat16."""
    described, scales, scale_name = CASES[case]
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.12

    dtype = torch.int8 if described is INTEGERS else torch.float8_e4m3fn
    plain: dict[str, torch.Tensor] = {}
    stored: dict[str, torch.Tensor] = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        plain[name] = stored[name] = random(61, 48).bfloat16()
    sizes = {"input_layernorm": 48, "post_attention_layernorm": 48}
    sizes |= {"self_attn.q_norm": 16, "self_attn.k_norm": 16}
    for layer in range(2):
        for name, size in sizes.items():
            full = f"model.layers.{layer}.{name}.weight"
            plain[full] = stored[full] = (1 + random(size)).bfloat16()
        for name, (outputs, inputs) in PROJECTIONS.items():
            full = f"model.layers.{layer}.{name}"
            levels, shaped, numbers = quantized(random(outputs, inputs), scales, dtype)
            plain[f"{full}.weight"] = numbers.bfloat16()
            if is_plain(full, described):
                stored[f"{full}.weight"] = numbers.bfloat16()
                continue
            stored |= {f"{full}.weight": levels, f"{full}.{scale_name}": shaped}
            if described is STATIC:
                stored |= {f"{full}.input_scale": torch.tensor(0.5)}
        stored[f"model.layers.{layer}.self_attn.k_scale"] = torch.tensor(0.25)
    plain["model.norm.weight"] = stored["model.norm.weight"] = (1 + random(48)).bfloat16()
    folders = folder / "stored", folder / "plain"
    for place, tensors, more in zip(
        folders, (stored, plain), ({"quantization_config": described}, {}), strict=True
    ):
        place.mkdir()
        (place / "config.json").write_text(json.dumps(CONFIG | more))
        save_file(tensors, place / "model.safetensors")
    return folders


@pytest.mark.parametrize("case", CASES)
def test_a_stored_checkpoint_is_its_numbers(tmp_path: Path, case: str) -> None:
    """The same bits as the plain one, except for integers, which a CPU keeps as integers."""
    stored, plain = write(tmp_path, case)
    tokens = [(0, [5, 17, 60, 3, 3, 21, 8]), (1, [1, 2])]
    got, wanted = (
        Driver(load_model(place, dtype="float32")).step(tokens) for place in (stored, plain)
    )
    if case != "integers":
        assert torch.equal(got, wanted)
        return
    rounded = Driver(load_model(plain, dtype="float32", quantization="int8")).step(tokens)
    assert (got - wanted).abs().max() <= 2 * (rounded - wanted).abs().max() < 0.5


def test_rounded_again_at_load(tmp_path: Path) -> None:
    stored, plain = write(tmp_path, "channels")
    tokens = [(0, [5, 17, 60, 3])]
    got, wanted = (
        Driver(load_model(place, dtype="float32", quantization="int8")).step(tokens)
        for place in (stored, plain)
    )
    assert torch.equal(got, wanted)


def test_dummy_weights_of_a_stored_format(tmp_path: Path) -> None:
    stored, _ = write(tmp_path, "blocks")
    logits = Driver(load_model(stored, dtype="float32", load_format="dummy")).step([(0, [5, 17])])
    assert logits.isfinite().all() and logits.std() > 0


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    stored, plain = write(tmp_path, "channels")
    config = json.loads((stored / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"q_proj.weight: has dtype torch.bfloat16, expected .*e4m3"
    ):
        load_model(plain)
    (stored / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"weight: has dtype torch.float8_e4m3fn"):
        load_model(stored)
    config["quantization_config"]["ignore"] = ["q_proj"]
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"one product, and the checkpoint quantizes only some"):
        load_model(stored)
