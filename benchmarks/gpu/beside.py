"""What stands beside the engine: transformers, and a plain loop of torch calls over the same shapes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from card import Card
from torch import Tensor


def transformers_rate(folder: Path, card: Card, *, prompt: int, output: int) -> dict[str, Any]:
    """Tokens per second at batch 1 by `generate`, with the best of its attentions that is installed."""
    try:
        import transformers  # a peer; may not be there
    except ImportError as error:
        return {"refused": str(error)}
    config = transformers.AutoConfig.from_pretrained(folder)
    dtype = torch.float32 if card.is_dry else torch.bfloat16
    has_flash = not card.is_dry and transformers.utils.is_flash_attn_2_available()
    attention = "flash_attention_2" if has_flash else "sdpa"
    with torch.device(card.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        ).eval()
    ids = torch.ones(1, prompt, dtype=torch.int64, device=card.device)
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def generate(count: int) -> float:
        card.synchronize()
        begun = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)
        card.synchronize()
        return time.perf_counter() - begun

    with torch.inference_mode():
        generate(4)
        first, whole = generate(1), generate(output)
    rate = (output - 1) / (whole - first)
    return {"tokens_per_s": rate, "attention": attention, "version": transformers.__version__}


def vllm_throughput(folder: Path, work: list[tuple[int, int]], length: int) -> dict[str, Any]:
    """Output tokens per second of the same work by vLLM, on dummy weights of the same shape; the second of two runs."""
    try:
        import vllm  # a peer; may not be there
    except Exception as error:  # whatever a build for another torch throws
        return {"refused": f"{type(error).__name__}: {error}"[:300]}
    engine = vllm.LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=length,
        max_num_seqs=max(1, len(work)),
    )
    prompts = [
        {"prompt_token_ids": [(i * 7919 + j * 104729 + 1) % 32000 for j in range(count)]}
        for i, (count, _) in enumerate(work)
    ]
    params = [
        vllm.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count, detokenize=False)
        for _, count in work
    ]
    taken = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        taken = time.perf_counter() - begun
    count = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"output_tokens_per_s": count / taken, "seconds": taken, "version": vllm.__version__}


class PlainLoop:
    """A decoder of the shape, written down: static keys and values, torch's products and attention; no engine."""

    def __init__(self, folder: Path, card: Card, length: int) -> None:
        shape = json.loads((folder / "config.json").read_text())
        self.heads, self.kv = shape["num_attention_heads"], shape["num_key_value_heads"]
        self.dim, size, inner = shape["head_dim"], shape["hidden_size"], shape["intermediate_size"]
        self._card = card
        device = card.device
        self.dtype = torch.float32 if card.is_dry else torch.bfloat16

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
        self._card.synchronize()
        begun = time.perf_counter()
        for position in range(prompt, prompt + output):
            self.step(position)
        self._card.synchronize()
        return {"tokens_per_s": output / (time.perf_counter() - begun)}
