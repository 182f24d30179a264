"""Writers of int4 checkpoints, from the formats' own documentation, one number at a time. Slow and plain on purpose.

AWQ (https://github.com/casper-hansen/AutoAWQ, `WQLinear_GEMM`): word [i, c] of `qweight` has inputs' row i and outputs 8 c ..
8 c + 7, output 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[k] in bits 4 k .. 4 k + 3; `qzeros` likewise, a row per group.
GPTQ (https://github.com/ModelCloud/GPTQModel): word [r, o] of `qweight` has inputs 8 r + k of output o in bits 4 k .. 4 k + 3;
`qzeros` [g, c] has outputs 8 c + k of group g, 1 less than they are in checkpoint_format "gptq"; `g_idx` the group of each input.
compressed-tensors (`pack_to_int32`): word [o, c] of `weight_packed` has inputs 8 c + k of output o, plus 8; zero points, plus 8,
are packed along outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


class Int4(NamedTuple):
    """A matrix [O, D] of levels 0 .. 15; value = (level - zero of its group) * scale of its group."""

    levels_OD: Tensor
    zeros_OG: Tensor
    scales_OG: Tensor
    groups_D: Tensor
    """The group of each input."""

    def numbers(self) -> Tensor:
        """float32 [O, D]: the plain reference."""
        zeros_OD, scales_OD = self.zeros_OG[:, self.groups_D], self.scales_OG[:, self.groups_D]
        return (self.levels_OD - zeros_OD).float() * scales_OD.float()


class Kind(NamedTuple):
    """How a checkpoint is written."""

    layout: str
    group: int
    """-1: all inputs."""
    has_zeros: bool
    is_ordered: bool = False
    version: int = 1
    scale: torch.dtype = torch.float16

    def config(self) -> dict[str, Any]:
        """Its quantization_config."""
        if self.layout == "awq":
            found = {"quant_method": "awq", "bits": 4, "group_size": self.group}
            found |= {"zero_point": self.has_zeros, "version": "gemm"}
            return found | {"modules_to_not_convert": ["lm_head"]}
        if self.layout == "gptq":
            found = {"quant_method": "gptq", "bits": 4, "group_size": self.group}
            found |= {"sym": not self.has_zeros, "desc_act": self.is_ordered}
            return found | {"checkpoint_format": "gptq" if self.version == 1 else "gptq_v2"}
        weights = {"num_bits": 4, "type": "int", "symmetric": not self.has_zeros, "dynamic": False}
        weights |= {"strategy": "channel" if self.group == -1 else "group"}
        weights |= {"group_size": None if self.group == -1 else self.group}
        weights |= {"actorder": "group" if self.is_ordered else None}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        found = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        return found | {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def random_int4(
    kind: Kind, outputs: int, inputs: int, seed: int, groups_D: Tensor | None = None
) -> Int4:
    """Levels, zero points and scales that a quantizer might have made."""
    random = torch.Generator().manual_seed(seed)
    group = inputs if kind.group == -1 else kind.group
    shape = (outputs, inputs // group)
    levels_OD = torch.randint(0, 16, (outputs, inputs), generator=random)
    zeros_OG = torch.full(shape, 8)
    if kind.has_zeros:
        # The first version has no 0.
        low = 1 if kind.layout == "gptq" and kind.version == 1 else 0
        zeros_OG = torch.randint(low, 16, shape, generator=random)
    scales_OG = (torch.rand(shape, generator=random) * 0.04 + 0.01).to(kind.scale)
    if groups_D is None:
        groups_D = torch.arange(inputs) // group
    return Int4(levels_OD, zeros_OG, scales_OG, groups_D)


def shuffled_groups(inputs: int, group: int, seed: int) -> Tensor:
    """The group of each input, in no order."""
    order = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))
    return (torch.arange(inputs) // group)[order]


def write(kind: Kind, name: str, weight: Int4) -> dict[str, Tensor]:
    """The tensors of a matrix, as the checkpoint has them."""
    scales_OG, groups_D = weight.scales_OG, weight.groups_D
    (outputs, inputs), groups = weight.levels_OD.shape, weight.zeros_OG.shape[1]
    wide_OD = torch.nn.functional.pad(weight.levels_OD, (0, -inputs % 8)).tolist()
    tall_OG = torch.nn.functional.pad(weight.zeros_OG, (0, 0, 0, -outputs % 8)).tolist()
    if kind.layout == "awq":
        words = _words(inputs, outputs // 8, lambda i, c, k: wide_OD[8 * c + AWQ_PLACES[k]][i])
        zeros = _words(groups, outputs // 8, lambda g, c, k: tall_OG[8 * c + AWQ_PLACES[k]][g])
        found = {"qweight": words, "qzeros": zeros, "scales": scales_OG.T}
    elif kind.layout == "gptq":
        less = 1 if kind.version == 1 else 0
        words = _words(inputs // 8, outputs, lambda r, o, k: wide_OD[o][8 * r + k])
        zeros = _words(groups, outputs // 8, lambda g, c, k: tall_OG[8 * c + k][g] - less)
        found = {"qweight": words, "qzeros": zeros, "scales": scales_OG.T}
        found["g_idx"] = groups_D.int()
    else:
        words = _words(outputs, -(-inputs // 8), lambda o, c, k: wide_OD[o][8 * c + k])
        found = {"weight_packed": words, "weight_scale": scales_OG}
        found["weight_shape"] = torch.tensor([outputs, inputs])
        if kind.has_zeros:
            zeros = _words(-(-outputs // 8), groups, lambda r, g, k: tall_OG[8 * r + k][g])
            found["weight_zero_point"] = zeros
        if kind.is_ordered:
            found["weight_g_idx"] = groups_D.int()
    return {f"{name}.{local}": tensor.contiguous() for local, tensor in found.items()}


def _words(rows: int, columns: int, level: Any) -> Tensor:
    """int32 [rows, columns], field k of each word as `level` says."""
    found = []
    for row in range(rows):
        for column in range(columns):
            word = sum(int(level(row, column, k)) << 4 * k for k in range(8))
            found.append(word - (1 << 32) * (word >= 1 << 31))
    return torch.tensor(found, dtype=torch.int32).view(rows, columns)


CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
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
    "tie_word_embeddings": False,
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


def checkpoint(
    folder: Path, kind: Kind, *, is_llama: bool = False, **changes: Any
) -> tuple[Path, Path]:
    """A tiny model as `kind` says, and the same in plain float32; `changes` of its quantization_config."""
    random = torch.Generator().manual_seed(7)
    plain_ones: dict[str, Tensor] = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        plain_ones[name] = torch.randn(61, 64, generator=random).half()
    sizes = {"input_layernorm": 64, "post_attention_layernorm": 64}
    sizes |= {"self_attn.q_norm": 16, "self_attn.k_norm": 16}
    plain_ones["model.norm.weight"] = torch.ones(64).half()
    stored: dict[str, Tensor] = {}
    numbers: dict[str, Tensor] = {}
    config = dict(CONFIG)
    if is_llama:
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        del sizes["self_attn.q_norm"], sizes["self_attn.k_norm"]
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
        (place / "config.json").write_text(json.dumps(config | more))
        save_file(plain_ones | tensors, place / "model.safetensors")
    return places
