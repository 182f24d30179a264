"""A checkpoint of a real shape with random bfloat16 weights: `make_model.py CONFIG_FOLDER OUT_FOLDER`.

Speed does not depend on the values; the tokenizer is the bundled model's, because every engine wants one, and prompts
are token ids. Dense families with Llama's names (Llama, Mistral, Qwen2, Qwen3).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo.core.assets import bundled

STD = 0.02
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    found = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def make(source: Path, out: Path) -> None:
    """Write the checkpoint into `out`, the weights last: a folder with weights is whole."""
    config = json.loads((source / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    folder = bundled()["octavo-mini"]
    for name in TOKENIZER_FILES:
        shutil.copyfile(folder / name, out / name)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes(config).items():
        values = torch.ones(shape)
        if len(shape) > 1:
            values.normal_(0.0, STD, generator=generator)
        tensors[name] = values.to(torch.bfloat16)
    partial = out / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(out / "model.safetensors")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
