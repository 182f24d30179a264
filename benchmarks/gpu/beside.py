"""What stands beside the engine: transformers, and a plain loop of torch calls over the same shapes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from clock import synchronize
from torch import Tensor


def transformers_rate(
    folder: Path, device: torch.device, *, prompt: int, output: int
) -> dict[str, Any]:
    """Tokens per second at batch 1 by `generate`, with its best attention that needs nothing installed."""
    try:
        import transformers  # a peer; may not be there
    except ImportError as error:
        return {"refused": str(error)}
    config = transformers.AutoConfig.from_pretrained(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    ids = torch.ones(1, prompt, dtype=torch.int64, device=device)
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def generate(count: int) -> float:
        synchronize(device)
        begun = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)
        synchronize(device)
        return time.perf_counter() - begun

    with torch.inference_mode():
        generate(4)
        first, whole = generate(1), generate(output)
    return {"tokens_per_s": (output - 1) / (whole - first), "version": transformers.__version__}


class PlainLoop:
    """A decoder of the shape, written down: static keys and values, torch's products and attention; no engine."""

    def __init__(self, folder: Path, device: torch.device, length: int) -> None:
        shape = json.loads((folder / "config.json").read_text())
        self.heads, self.kv = shape["num_attention_heads"], shape["num_key_value_heads"]
        self.dim, size, inner = shape["head_dim"], shape["hidden_size"], shape["intermediate_size"]
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, device=device, dtype=self.dtype) * 0.02

        width = (self.heads + 2 * self.kv) * self.dim
        self.layers = [
            (
                weight(width, size),
                weight(size, self.heads * self.dim),
                weight(2 * inner, size),
                weight(size, inner),
            )
            for _ in range(shape["num_hidden_layers"])
        ]
        self.table, self.head = weight(shape["vocab_size"], size), weight(shape["vocab_size"], size)
        cache = (2, len(self.layers), 1, self.kv, length, self.dim)
        self.k, self.v = torch.zeros(cache, device=device, dtype=self.dtype)
        self.token = torch.ones(1, dtype=torch.int64, device=device)

    def step(self, position: int) -> None:
        """One token from the one before."""
        x = self.table[self.token]
        norm = (x.shape[-1],)
        for i, (qkv, out, up, down) in enumerate(self.layers):
            parts = F.linear(F.rms_norm(x, norm), qkv).view(1, -1, 1, self.dim)
            q, k, v = parts.split((self.heads, self.kv, self.kv), dim=1)
            self.k[i, :, :, position], self.v[i, :, :, position] = k[:, :, 0], v[:, :, 0]
            past = slice(0, position + 1)
            seen = F.scaled_dot_product_attention(
                q, self.k[i, :, :, past], self.v[i, :, :, past], enable_gqa=self.heads != self.kv
            )
            x = x + F.linear(seen.reshape(1, -1), out)
            gate, value = F.linear(F.rms_norm(x, norm), up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * value, down)
        self.token = F.linear(F.rms_norm(x, norm), self.head).argmax(-1)

    @torch.inference_mode()
    def rate(self, prompt: int, output: int) -> dict[str, Any]:
        """Tokens per second from position `prompt` on."""
        for position in range(3):
            self.step(position)
        synchronize(self.device)
        begun = time.perf_counter()
        for position in range(prompt, prompt + output):
            self.step(position)
        synchronize(self.device)
        return {"tokens_per_s": output / (time.perf_counter() - begun)}
