"""Tiny checkpoints of every pooling architecture, and what transformers makes of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from octavo.core.batch import ForwardBatch
from octavo.core.params import PoolingParams
from octavo.models.load import LoadedModel

VOCAB = 131
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": None,
}
BERT = {**BASE, "max_position_embeddings": 160, "pad_token_id": 0}
ROBERTA = {**BERT, "pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 162}
MODERN = {
    **BASE,
    "max_position_embeddings": 200,
    "local_attention": 20,
    "pad_token_id": 0,
    "cls_token_id": None,
    "sep_token_id": None,
}
DECODER = {
    **BASE,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
ONE = {"num_labels": 1}
THREE = {"num_labels": 3, "id2label": {0: "no", 1: "maybe", 2: "yes"}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "BertModel": {
        "plain": BERT,
        "tanh": {**BERT, "hidden_act": "gelu_new", "num_attention_heads": 3},
    },
    "BertForSequenceClassification": {
        "score": {**BERT, **ONE},
        "three": {**BERT, **THREE},
        "sigmoid": {**BERT, **THREE, "problem_type": "multi_label_classification"},
    },
    "RobertaModel": {"plain": {**ROBERTA, "hidden_act": "relu"}},
    "RobertaForSequenceClassification": {"three": {**ROBERTA, **THREE}},
    "XLMRobertaModel": {"plain": ROBERTA},
    "XLMRobertaForSequenceClassification": {"score": {**ROBERTA, **ONE}},
    "ModernBertModel": {
        "plain": MODERN,
        "biases": {**MODERN, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
        "theta": {**MODERN, "global_rope_theta": 500.0, "local_rope_theta": 50.0},
    },
    "ModernBertForSequenceClassification": {
        "mean": {**MODERN, **THREE, "classifier_pooling": "mean"},
        "cls": {**MODERN, **ONE, "classifier_bias": True, "classifier_activation": "silu"},
    },
    "LlamaModel": {"plain": DECODER},
    "LlamaForSequenceClassification": {"score": {**DECODER, **ONE}},
    "MistralModel": {"window": {**DECODER, "sliding_window": 11}},
    "MistralForSequenceClassification": {"three": {**DECODER, **THREE, "sliding_window": None}},
    "Qwen2Model": {"plain": DECODER},
    "Qwen2ForSequenceClassification": {"three": {**DECODER, **THREE}},
    "Qwen3Model": {"plain": {**DECODER, "tie_word_embeddings": True}},
    "Qwen3ForSequenceClassification": {"score": {**DECODER, **ONE}},
}
CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


@dataclass
class Pooling:
    """A saved pooling model, its oracle and ours."""

    folder: Path
    oracle: Any
    loaded: LoadedModel


def prompt(length: int, seed: int = 1) -> list[int]:
    """Ids that are no padding."""
    return random.Random(seed).choices(range(3, VOCAB), k=length)


def save(name: str, variant: str, folder: Path, **changes: Any) -> Any:
    """Write a checkpoint with random weights; the oracle."""
    oracle_type = getattr(transformers, name)
    config = oracle_type.config_class(**{**VARIANTS[name][variant], **changes})
    torch.manual_seed(7)
    oracle = oracle_type._from_config(config, attn_implementation="eager").eval()
    for parameter_name, parameter in oracle.named_parameters():
        if "norm" in parameter_name.lower() or "bias" in parameter_name:
            is_scale = "norm" in parameter_name.lower() and "bias" not in parameter_name
            torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.2)
    oracle.save_pretrained(folder, max_shard_size="40KB")
    return oracle


def expected(oracle: Any, ids: list[int], pair_start: int = 0) -> torch.Tensor:
    """Hidden states [T, D] of a trunk, or the logits [O] of a classifier."""
    inputs = {"input_ids": torch.tensor([ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if pair_start:
        inputs["token_type_ids"] = torch.tensor([[int(i >= pair_start) for i in range(len(ids))]])
    with torch.inference_mode():
        output = oracle(**inputs)
    return output.logits[0] if hasattr(output, "logits") else output.last_hidden_state[0]


def pack(prompts: list[list[int]], pair_starts: list[int]) -> ForwardBatch:
    """Whole prompts, one after the other, for a model that keeps nothing."""
    starts, positions, types = [0], [], []
    for ids, pair_start in zip(prompts, pair_starts, strict=True):
        starts.append(starts[-1] + len(ids))
        positions += range(len(ids))
        types += [int(0 < pair_start <= i) for i in range(len(ids))]
    return ForwardBatch(
        token_ids_T=torch.tensor([token for ids in prompts for token in ids]),
        positions_T=torch.tensor(positions),
        query_starts=tuple(starts),
        context_lens=tuple(len(ids) for ids in prompts),
        groups=(),
        logits_rows_N=torch.zeros(0, dtype=torch.int64),
        type_ids_T=torch.tensor(types) if any(pair_starts) else None,
    )


def pool(loaded: LoadedModel, hidden_TD: torch.Tensor, **params: Any) -> torch.Tensor:
    """What the pooler makes of one whole prompt's hidden states."""
    assert loaded.pooler is not None
    asked = PoolingParams(**{"task": loaded.pooler.facts.tasks[0], **params})
    gathered = loaded.pooler.gather(asked)
    gathered.add(hidden_TD, 0)
    return loaded.pooler.finish(gathered.result(len(hidden_TD)), asked)
