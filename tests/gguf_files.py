"""GGUF files made of model folders, with the format's own package: what a converter would write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from safetensors.torch import save_file

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def stored_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, end = rest.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{end}"


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return config, {name: file.get_tensor(name) for name in list(file.keys())}


def interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Features i and i + half of each head side by side, as converters order them."""
    split = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1)
    return split.transpose(1, 2).reshape(tensor.shape)


def encoded(tensor: torch.Tensor, kind: Kind) -> tuple[np.ndarray, Kind]:
    if tensor.ndim < 2 or kind == Kind.F32:
        return tensor.float().numpy(), Kind.F32
    if kind == Kind.F16:
        return tensor.half().numpy(), kind
    return gguf.quantize(tensor.float().numpy(), kind), kind


class GgufFile:
    """A writer that knows what a config.json means; close it by `write`."""

    def __init__(self, path: Path, config: dict[str, Any], **metadata: Any) -> None:
        self.path, self.config = path, config
        self.arch = ARCHITECTURES[config["architectures"][0]]
        self.writer = gguf.GGUFWriter(str(path), self.arch)
        writer = self.writer
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        writer.add_vocab_size(config["vocab_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(config.get("num_key_value_heads", heads))
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
        writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
        writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
        if config["architectures"][0].startswith("Mistral") and config.get("sliding_window"):
            writer.add_sliding_window(config["sliding_window"])
        for key, value in metadata.items():
            getattr(writer, f"add_{key}")(value)

    def add(self, weights: dict[str, torch.Tensor], kind: Kind) -> None:
        heads = {
            "q_proj": self.config["num_attention_heads"],
            "k_proj": self.config["num_key_value_heads"],
        }
        for name, tensor in weights.items():
            if self.config.get("tie_word_embeddings") and name == "lm_head.weight":
                continue
            part = name.split(".")[-2]
            if self.arch == "llama" and part in heads:
                tensor = interleave(tensor, heads[part])
            values, used = encoded(tensor, kind)
            self.writer.add_tensor(stored_name(name), values, raw_dtype=used)

    def write(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, pre: str) -> None:
    """The byte-level tokenizer of a folder."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    tokens = dict(spec["model"]["vocab"])
    types = {}
    for row in spec["added_tokens"]:
        tokens[row["content"]] = row["id"]
        types[row["id"]] = gguf.TokenType.CONTROL if row["special"] else gguf.TokenType.USER_DEFINED
    ordered = sorted(tokens, key=lambda token: tokens[token])
    merges = [one if isinstance(one, str) else " ".join(one) for one in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(ordered)
    writer.add_token_types([types.get(i, gguf.TokenType.NORMAL) for i in range(len(ordered))])
    writer.add_token_merges(merges)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    if config.get("eos_token"):
        writer.add_eos_token_id(tokens[config["eos_token"]])
    if config.get("pad_token"):
        writer.add_pad_token_id(tokens[config["pad_token"]])
    if config.get("chat_template"):
        writer.add_chat_template(config["chat_template"])
    writer.add_add_bos_token(bool(config.get("add_bos_token")))


def from_folder(folder: Path, path: Path, kind: Kind = Kind.F32, *, pre: str = "qwen2") -> Path:
    config, weights = read_folder(folder)
    file = GgufFile(path, config)
    if (folder / "tokenizer.json").is_file():
        add_tokenizer(file.writer, folder, pre)
    file.add(weights, kind)
    return file.write()


def write_folder(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """A folder with random weights of the architecture, saved by transformers."""
    import transformers

    torch.manual_seed(seed)
    kind = getattr(transformers, config["architectures"][0].replace("ForCausalLM", "Config"))
    fields = {
        key: value for key, value in config.items() if key not in ("architectures", "model_type")
    }
    model = getattr(transformers, config["architectures"][0])(kind(**fields)).float()
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        # Norms and biases that are not all 1 or 0, so that a swap would show.
        weights[name] = (tensor + 0.1 * torch.randn_like(tensor)).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder
