"""Qwen3 architecture in plain PyTorch, for training and evaluation of the bundled models.

Parameter names and shapes equal those of Hugging Face's `Qwen3ForCausalLM` with tied embeddings, so
a state dict is exported unchanged. It knows nothing of caches, data or schedules.

Shape suffixes: B batch, T positions, D hidden, H query heads, K key-value heads, E head size,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Everything that fixes the parameter shapes and the forward pass."""

    hidden: int
    num_layers: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 64
    vocab: int = 4096
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6


SHAPES: dict[str, ModelShape] = {
    "octavo-mini": ModelShape(hidden=256, num_layers=4, ffn=768, num_heads=4, num_kv_heads=2),
    "octavo-mini-draft": ModelShape(hidden=128, num_layers=2, ffn=384, num_heads=2, num_kv_heads=1),
}


class Attention(nn.Module):
    """Causal grouped-query attention with RMS-normalised queries and keys."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        q_width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, q_width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.norm_eps)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        s = self.shape
        batch, length, _ = x_BTD.shape
        q_BTHE = self.q_norm(self.q_proj(x_BTD).view(batch, length, s.num_heads, s.head_dim))
        k_BTKE = self.k_norm(self.k_proj(x_BTD).view(batch, length, s.num_kv_heads, s.head_dim))
        v_BTKE = self.v_proj(x_BTD).view(batch, length, s.num_kv_heads, s.head_dim)
        group = s.num_heads // s.num_kv_heads
        q_BHTE = rotate(q_BTHE.transpose(1, 2), cos_TE, sin_TE)
        k_BHTE = rotate(k_BTKE.transpose(1, 2), cos_TE, sin_TE).repeat_interleave(group, dim=1)
        v_BHTE = v_BTKE.transpose(1, 2).repeat_interleave(group, dim=1)
        o_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
        out_BTD: Tensor = self.o_proj(o_BHTE.transpose(1, 2).reshape(batch, length, -1))
        return out_BTD


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out_BTD


class Layer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE)
        out_BTD: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return out_BTD


class Backbone(nn.Module):
    """Embedding, layers and final norm; named as Hugging Face names them."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)


class Qwen3(nn.Module):
    """Token ids to logits. The output matrix is the embedding."""

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        cos_TE, sin_TE = rope_table(shape)
        self.register_buffer("cos_TE", cos_TE, persistent=False)
        self.register_buffer("sin_TE", sin_TE, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal init; residual writers start at zero, so every block starts as the identity."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            std = 0.02 if "embed_tokens" in name else 0.5 / math.sqrt(parameter.shape[1])
            nn.init.normal_(parameter, std=std)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        cos_TE, sin_TE = self.cos_TE[:length], self.sin_TE[:length]
        x_BTD = self.model.embed_tokens(tokens_BT)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, cos_TE, sin_TE)
        return F.linear(self.model.norm(x_BTD), self.model.embed_tokens.weight)


def rope_table(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [max_positions, head_dim], halves repeated (RoFormer, 2104.09864)."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(shape.max_positions).float(), shape.rope_theta**-exponents)
    angles_TE = torch.cat([angles, angles], dim=-1)
    return angles_TE.cos(), angles_TE.sin()


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Apply rotary positions by halves, the Hugging Face convention."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat([-second, first], dim=-1) * sin_TE


def num_parameters(model: nn.Module) -> int:
    """Stored parameters; the tied output matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
