"""Every architecture of the registry against transformers: tiny random weights, the same numbers and tokens.

Run with `-s` to see the largest error of each case.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model_driver import Driver
from octavo.models.load import LoadedModel, load_model
from octavo.models.registry import FAMILIES
from pooling_cases import VARIANTS as POOLING

MAX_ERROR = 1e-4
NUM_GREEDY = 64
VOCAB = 131
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Larger than the usual 0.02, so that attention is far from uniform and an error shows in the tokens.
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LlamaForCausalLM": {
        "plain": {},
        "tied-biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "llama3-rope": {"rope_parameters": LLAMA3_ROPE},
        "linear-rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.5}},
        "dynamic-rope": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
        "yarn-rope": {"rope_parameters": YARN_ROPE},
        "yarn-mscale": {"rope_parameters": {**YARN_ROPE, "mscale": 0.7, "mscale_all_dim": 0.3}},
        "one-kv-head": {"num_key_value_heads": 1},
    },
    "MistralForCausalLM": {
        "window": {"sliding_window": 11},
        "no-window": {"sliding_window": None},
    },
    "Qwen2ForCausalLM": {
        "plain": {"tie_word_embeddings": True},
        "window": {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1},
        "mha": {"num_key_value_heads": 6},
    },
    "Qwen3ForCausalLM": {
        "plain": {"tie_word_embeddings": True},
        "bias-yarn": {"attention_bias": True, "rope_parameters": YARN_ROPE},
        "window": {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    },
}
CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


@dataclass
class Checkpoint:
    """A saved model, its oracle and ours."""

    folder: Path
    oracle: Any
    loaded: LoadedModel


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products on several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt(length: int, seed: int = 1) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    name, variant = request.param
    folder = tmp_path_factory.mktemp(f"{name}-{variant}")
    oracle_type = getattr(transformers, name)
    config = oracle_type.config_class(**{**BASE, **VARIANTS[name][variant]})
    torch.manual_seed(7)
    oracle = oracle_type._from_config(config, attn_implementation="eager").eval()
    for parameter_name, parameter in oracle.named_parameters():
        if "norm" in parameter_name or "bias" in parameter_name:
            torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.3)
    # Every second case is split over several files.
    size = "40KB" if CASES.index(request.param) % 2 else "1GB"
    oracle.save_pretrained(folder, max_shard_size=size)
    return Checkpoint(folder, oracle, load_model(folder, dtype="float32"))


def test_every_row_has_a_case() -> None:
    assert set(VARIANTS) | set(POOLING) == set(FAMILIES), "see also test_pooling_models.py"


def test_logits(checkpoint: Checkpoint) -> None:
    ids = prompt(75)
    with torch.inference_mode():
        expected_TV = checkpoint.oracle(torch.tensor([ids])).logits[0]
    error = (Driver(checkpoint.loaded).step([(2, ids)]) - expected_TV).abs().max().item()
    facts = checkpoint.loaded.facts
    size = expected_TV.std().item()
    print(f"\n{facts.architecture:20} {checkpoint.folder.name:34} error {error:.1e} std {size:.2f}")
    assert error < MAX_ERROR
    assert facts.num_parameters == sum(p.numel() for p in checkpoint.oracle.parameters())


def test_greedy_alone_together_and_chunked(checkpoint: Checkpoint) -> None:
    prompts = [prompt(length, seed=length) for length in (33, 5, 48)]
    kwargs = {"do_sample": False, "max_new_tokens": NUM_GREEDY}
    expected = []
    for ids in prompts:
        out = checkpoint.oracle.generate(torch.tensor([ids]), **kwargs)
        expected.append(out[0, len(ids) :].tolist())
    loaded = checkpoint.loaded
    assert Driver(loaded).greedy(prompts[:1], NUM_GREEDY) == expected[:1]
    assert Driver(loaded).greedy(prompts, NUM_GREEDY) == expected
    assert Driver(loaded).greedy(prompts, NUM_GREEDY, chunk=7) == expected


def test_other_dtypes_load(checkpoint: Checkpoint) -> None:
    ids = prompt(20)
    exact_TV = Driver(checkpoint.loaded).step([(0, ids)])
    for dtype in ("bfloat16", "float16"):
        logits_TV = Driver(load_model(checkpoint.folder, dtype=dtype)).step([(0, ids)])
        assert logits_TV.dtype == torch.float32
        assert (logits_TV - exact_TV).abs().mean() < 0.1 * exact_TV.std()
