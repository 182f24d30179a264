"""Perplexity per token of a model under each quantization, through the engine itself.

    python benchmarks/perplexity.py --json benchmarks/results/perplexity-octavo-mini.json
    python benchmarks/perplexity.py --model FOLDER --quantization none int8 int4 --kv-cache-dtype auto int8

The text is read in windows of half the model's context that overlap by half; each token is scored once, with at least a
quarter of the context before it. Every log-probability comes from `prompt_logprobs`, so kernels, cache and chunks are
those that serve.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams

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
    options: dict[str, Any], text: str, size: int, limit: int
) -> tuple[float, int, float]:
    """(perplexity, tokens scored, MiB of weights)."""
    with LLM(enable_prefix_caching=False, **options) as llm:
        parts = windows(llm.tokenizer.encode(text)[:limit], min(size, llm.ready.max_model_len - 1))
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        answers = llm.generate([ids for ids, _ in parts], params, use_tqdm=False)
        weights = dict(llm.ready.memory)["weights"] / (1 << 20)
    total, count = 0.0, 0
    for (_, scored), answer in zip(parts, answers, strict=True):
        assert answer.prompt_logprobs is not None
        total -= sum(entry.logprobs[0] for entry in answer.prompt_logprobs[-scored:])
        count += scored
    return math.exp(total / count), count, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--quantization", nargs="+", default=["none", "int8", "int4"])
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=1 << 30, help="of the text")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    text, rows = asked.text.read_text("utf-8"), []
    for name in asked.quantization:
        options = {"model": asked.model} if asked.model else {}
        options |= {"quantization": name}
        value, count, weights = perplexity(options, text, asked.window, asked.max_tokens)
        rows.append(
            {"quantization": name, "perplexity": value, "tokens": count, "weights_mib": weights}
        )
        change = value / rows[0]["perplexity"] - 1
        print(
            f"{name:14} perplexity {value:9.4f} ({change:+.2%})  {count} tokens  weights {weights:.1f} MiB",
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
