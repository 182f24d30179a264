"""A Qwen3 or Llama checkpoint as GGUF, with the public `gguf` package: `to_gguf.py FOLDER OUT KIND`.

All matrices, the embedding among them, are written as KIND (bf16, q8_0 or q4_0), vectors as float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

KINDS = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
ARCHITECTURES = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}
ORDINARY, UNUSED = gguf.TokenType.NORMAL, gguf.TokenType.UNUSED


def write_config(out: gguf.GGUFWriter, config: dict) -> None:
    """The architecture's numbers."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])


def write_tokenizer(out: gguf.GGUFWriter, tokenizer: dict, vocab_size: int) -> None:
    """A byte-level BPE; ids beyond it are filled up with unused tokens."""
    tokens = {index: text for text, index in tokenizer["model"]["vocab"].items()}
    tokens |= {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    merges = tokenizer["model"]["merges"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([tokens.get(index, f"<unused {index}>") for index in range(vocab_size)])
    out.add_token_types([ORDINARY if i in tokens else UNUSED for i in range(vocab_size)])
    out.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    out.add_eos_token_id(2)


def tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of a safetensors file in bfloat16, which numpy does not know: eight bytes of length, a
    JSON header, then the data.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", 8 + length)
    for name, entry in header.items():
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name} has dtype {entry['dtype']}, expected BF16")
        begin, end = entry["data_offsets"]
        halves = data[begin:end].view(np.uint16).astype(np.uint32)
        yield name, (halves << 16).view(np.float32).reshape(entry["shape"])


def main(folder: Path, target: Path, kind: str) -> None:
    """Write under another name first: a file by its own name is whole."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    partial = target.with_suffix(".partial")
    out = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture])
    write_config(out, config)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    write_tokenizer(out, tokenizer, config["vocab_size"])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for path in sorted(folder.glob("*.safetensors")):
        for name, values in tensors(path):
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if values.ndim == 1:
                out.add_tensor(new, values)
            else:
                out.add_tensor(new, quantize(values, KINDS[kind]), raw_dtype=KINDS[kind])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    partial.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
