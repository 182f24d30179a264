"""Perplexity per token of a model under each quantization, through the engine itself.

    python benchmarks/perplexity.py --json benchmarks/results/perplexity-octavo-mini.json
    python benchmarks/perplexity.py --structured --quantization none int8 int4
    python benchmarks/perplexity.py --model FOLDER --quantization none int8 int4 --kv-cache-dtype int8

`--structured` makes a larger model with random weights that have what trained ones have and a plain draw lacks: columns
of very different size, outliers and low-rank parts. It is scored on text that it wrote itself, so that the unquantized
perplexity is its own entropy and the excess is what rounding does to its distribution.

The text is read in windows of half the model's context that overlap by half; each token is scored once, with at least a
quarter of the context before it. Every log-probability comes from `prompt_logprobs`, so kernels, cache and chunks are
those that serve.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo import LLM, SamplingParams
from octavo.core.assets import bundled
from octavo.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from make_model import shapes as weight_shapes  # noqa: E402

HELD_OUT = Path(__file__).parent / "data" / "heldout.txt"


def windows(ids: list[int], size: int) -> list[tuple[list[int], int]]:
    """(token ids, how many at the end are scored): half of each, all but the first token of the first."""
    step = size // 2
    found = [(ids[:size], min(size, len(ids)) - 1)]
    for start in range(step, len(ids) - step, step):
        part = ids[start : start + size]
        found.append((part, len(part) - step))
    return found


def perplexity(
    options: dict[str, Any], parts: list[tuple[list[int], int]]
) -> tuple[float, int, float]:
    """(perplexity, tokens scored, MiB of weights) of (token ids, how many at the end are scored)."""
    with LLM(enable_prefix_caching=False, **options) as llm:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        answers = llm.generate([ids for ids, _ in parts], params, use_tqdm=False)
        weights = dict(llm.ready.memory)["weights"] / (1 << 20)
    total, count = 0.0, 0
    for (_, scored), answer in zip(parts, answers, strict=True):
        assert answer.prompt_logprobs is not None
        total -= sum(entry.logprobs[0] for entry in answer.prompt_logprobs[-scored:])
        count += scored
    return math.exp(total / count), count, weights


STRUCTURED = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 2048,
    "num_attention_heads": 16,
    "num_hidden_layers": 8,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 4096,
}


def structured_weight(outputs: int, inputs: int, generator: torch.Generator) -> torch.Tensor:
    """Low rank plus noise, columns of lognormal size, one weight in a thousand ten times as large. [O, D] bfloat16."""
    rank = 32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    weight = normal(outputs, rank) @ normal(rank, inputs) / rank**0.5 + normal(outputs, inputs)
    weight *= torch.exp(0.5 * normal(inputs))
    weight[torch.rand(weight.shape, generator=generator) < 1e-3] *= 10
    return (weight / weight.norm() * outputs**0.5).bfloat16()


def make_structured(folder: Path) -> None:
    """Write the structured model and the bundled tokenizer into `folder`."""
    (folder / "config.json").write_text(json.dumps(STRUCTURED))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bundled()["octavo-mini"] / name, folder / name)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in weight_shapes(STRUCTURED).items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            tensors[name] = structured_weight(*shape, generator)
    # Rows of norm 1 give logits of deviation 1: too flat to be like text.
    tensors["lm_head.weight"] *= 3
    save_file(tensors, folder / "model.safetensors")


def own_text(folder: Path, count: int, length: int) -> list[list[int]]:
    """What the model in `folder` writes after one random token each, at temperature 1."""
    with LLM(str(folder)) as llm:
        prompts = [[300 + 7 * i] for i in range(count)]
        params = [
            SamplingParams(max_tokens=length, ignore_eos=True, temperature=1.0, seed=i)
            for i in range(count)
        ]
        answers = llm.generate(prompts, params, use_tqdm=False)
    return [
        [*prompt, *answer.outputs[0].token_ids]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(bundled()["octavo-mini"]))
    parser.add_argument("--structured", action="store_true")
    parser.add_argument("--quantization", nargs="+", default=["none", "int8", "int4"])
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.structured:
            asked.model = folder
            make_structured(Path(folder))
            parts = [(ids, len(ids) - 1) for ids in own_text(Path(folder), count=16, length=256)]
        else:
            ids = Tokenizer.load(Path(asked.model)).encode(asked.text.read_text("utf-8"))
            parts = windows(ids, asked.window)
        report(asked, parts)


def report(asked: argparse.Namespace, parts: list[tuple[list[int], int]]) -> None:
    """Measure and print every row."""
    rows: list[dict[str, Any]] = []
    for name in asked.quantization:
        options = {
            "model": asked.model,
            "quantization": name,
            "kv_cache_dtype": asked.kv_cache_dtype,
        }
        value, count, weights = perplexity(options, parts)
        rows.append({"quantization": name, "kv_cache_dtype": asked.kv_cache_dtype})
        rows[-1] |= {"perplexity": value, "tokens": count, "weights_mib": weights}
        change = value / rows[0]["perplexity"] - 1
        print(
            f"{name:14} {value:9.4f} ({change:+.2%})  {count} tokens, {weights:.1f} MiB", flush=True
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
