"""Held-out perplexity per token and bits per byte of an exported folder's bf16 weights.

    python training/evaluate.py src/octavo/assets/octavo-mini
    python training/evaluate.py src/octavo/assets/octavo-mini --text benchmarks/data/heldout.txt

Weights are bf16 as stored, arithmetic is float32. Every text starts after the document separator
and is read in windows of the model's full context that overlap by half; each token is scored once,
with at least half a context before it where the text has that much.
"""

from __future__ import annotations

import argparse
import json
import logging
import lzma
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from model import ModelShape, Qwen3
from prepare import DATA, END_OF_TEXT, special_ids
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger("evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over some texts. `nats` is the total negative log-likelihood."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.num_tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    def __add__(self, other: Score) -> Score:
        return Score(
            nats=self.nats + other.nats,
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
        )


EMPTY = Score(nats=0.0, num_tokens=0, num_bytes=0)


def load_model(folder: Path) -> Qwen3:
    """The exported model with its bf16 weights widened to float32."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shape = ModelShape(
        hidden=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        ffn=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    model = Qwen3(shape)
    stored = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return model.requires_grad_(False)


def token_losses(model: Qwen3, ids: list[int]) -> Tensor:
    """Loss in nats of ids[1:], each scored once."""
    length = model.shape.max_positions
    tokens, losses, scored = torch.tensor(ids), [], 0
    while scored < len(ids) - 1:
        start = max(0, scored - length // 2)
        window = tokens[start : start + length + 1]
        logits_TV = model(window[None, :-1])[0]
        loss_T = F.cross_entropy(logits_TV, window[1:], reduction="none")
        losses.append(loss_T[scored - start :])
        scored = start + len(window) - 1
    return torch.cat(losses)


def score_text(model: Qwen3, tokenizer: Tokenizer, text: str) -> Score:
    """Score one text from its first token."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    losses = token_losses(model, [special_ids(tokenizer)[END_OF_TEXT], *ids])
    return Score(nats=losses.double().sum().item(), num_tokens=len(ids),
                 num_bytes=len(text.encode()))  # fmt: skip


def evaluate(folder: Path, texts: dict[str, str]) -> dict[str, Score]:
    """Scores per kind of text (the part of a name before the first slash), and `all`."""
    model = load_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scores: dict[str, Score] = {"all": EMPTY}
    for name, text in texts.items():
        score, kind = score_text(model, tokenizer, text), name.partition("/")[0]
        scores[kind] = scores.get(kind, EMPTY) + score
        scores["all"] += score
    return scores


def heldout_texts() -> dict[str, str]:
    """Name -> text of the held-out files that `prepare.py` kept."""
    lines = (DATA / "heldout.jsonl").read_text("utf-8").splitlines()
    return {record["name"]: record["text"] for record in map(json.loads, lines)}


def xz_bits_per_byte(texts: list[str]) -> float:
    """What the xz compressor needs for the same texts together: a yardstick without a model."""
    raw = "".join(texts).encode()
    return 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)


def main() -> None:
    """Print one JSON line per kind of text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, help="score this file instead of the held-out files")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    path: Path | None = arguments.text
    texts = {path.name: path.read_text("utf-8")} if path else heldout_texts()
    for kind, score in evaluate(arguments.folder, texts).items():
        row = {"text": kind, **asdict(score)}
        row |= {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
        logger.info("%s", json.dumps(row))


if __name__ == "__main__":
    main()
