"""Write a checkpoint as a Hugging Face folder with bf16 weights, replacing the old one at once.

    python training/export.py octavo-mini
    python training/export.py octavo-mini --weights average   # while the run goes on

The folder holds config.json, generation_config.json, tokenizer.json, tokenizer_config.json and
model.safetensors; a README.md that is already there is kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from model import SHAPES, ModelShape
from prepare import DATA, END_OF_TEXT, HERE, IM_END, IM_START, special_ids
from safetensors.torch import save_file
from tokenizers import Tokenizer

ASSETS = HERE.parent / "src" / "octavo" / "assets"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('Unknown role: ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

logger = logging.getLogger("export")


def model_config(shape: ModelShape, ids: dict[str, int]) -> dict[str, object]:
    """config.json, as Hugging Face's Qwen3 reads it (old and new field names for the dtype)."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[END_OF_TEXT],
        "dtype": "bfloat16",
        "eos_token_id": ids[IM_END],
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "max_window_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": ids[END_OF_TEXT],
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


def generation_config(ids: dict[str, int]) -> dict[str, object]:
    """generation_config.json; the sampling values were chosen by reading samples."""
    return {
        "bos_token_id": ids[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [ids[IM_END], ids[END_OF_TEXT]],
        "pad_token_id": ids[END_OF_TEXT],
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def tokenizer_config(shape: ModelShape, ids: dict[str, int]) -> dict[str, object]:
    """tokenizer_config.json with the chat template."""
    added = {
        str(number): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, number in ids.items()
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_max_length": shape.max_positions,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    """Indented by two, in the order given."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def replace_folder(staged: Path, final: Path) -> None:
    """Put `staged` where `final` is; a reader meets a whole folder but for one rename's time."""
    if (final / "README.md").exists() and not (staged / "README.md").exists():
        shutil.copy2(final / "README.md", staged / "README.md")
    retired = final.with_name(f".{final.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if final.exists():
        os.rename(final, retired)
    os.rename(staged, final)
    shutil.rmtree(retired, ignore_errors=True)


def export(name: str, weights: str, output: Path) -> None:
    """Write the folder `output` from the run's newest checkpoint."""
    shape = SHAPES[name]
    checkpoint = torch.load(HERE / "work" / name / "checkpoint.pt", weights_only=True)
    tensors = {key: value.to(torch.bfloat16).contiguous()
               for key, value in checkpoint[weights].items()}  # fmt: skip
    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer.json"))
    ids = special_ids(tokenizer)
    staged = output.with_name(f".{output.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
    (staged / "model.safetensors").chmod(0o644)
    write_json(staged / "config.json", model_config(shape, ids))
    write_json(staged / "generation_config.json", generation_config(ids))
    write_json(staged / "tokenizer_config.json", tokenizer_config(shape, ids))
    shutil.copyfile(DATA / "tokenizer.json", staged / "tokenizer.json")
    replace_folder(staged, output)
    progress = checkpoint["progress"]
    logger.info("%s: step %d, %d tokens", output, progress["step"], progress["tokens"])


def main() -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("--weights", choices=("model", "average"), default="model")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(arguments.name, arguments.weights, arguments.output or ASSETS / arguments.name)


if __name__ == "__main__":
    main()
