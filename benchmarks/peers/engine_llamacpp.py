"""llama.cpp by the C interface that its Python binding exposes, batched as its server batches its slots."""

from __future__ import annotations

import time
from importlib import metadata

import llama_cpp as lib
import numpy as np
from workload import Generate, Job, Stamps, run

MOST = 2048
"""Tokens of one call."""


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    """`model` is a GGUF file."""
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(job.model.encode(), params)
    if not model:
        raise SystemExit(f"{job.model} cannot be loaded")
    settings = lib.llama_context_default_params()
    settings.n_ctx = -(-(job.max_tokens + 64) // 256) * 256
    settings.n_batch = MOST
    settings.n_ubatch = 512
    settings.n_seq_max = job.max_batch
    settings.n_threads = settings.n_threads_batch = job.threads
    settings.kv_unified = True  # one pool of cells, as a server with slots of unequal length has
    context = lib.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit("no context")
    memory = lib.llama_get_memory(context)
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(MOST, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, whether its logits are wanted)."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if lib.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def best(row: int) -> int:
        logits = lib.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    def generate(prompts: list[list[int]], output_len: int) -> Stamps:
        lib.llama_memory_clear(memory, True)
        last, stamps = [], []
        for sequence, prompt in enumerate(prompts):
            for at in range(0, len(prompt), MOST):
                part = prompt[at : at + MOST]
                end = len(prompt) - at - 1
                decode([(t, at + i, sequence, i == end) for i, t in enumerate(part)])
            last.append(best(len(part) - 1))
            stamps.append([time.perf_counter()])
        for step in range(output_len - 1):
            position = len(prompts[0]) + step
            decode([(token, position, sequence, True) for sequence, token in enumerate(last)])
            last = [best(row) for row in range(len(last))]
            now = time.perf_counter()
            for each in stamps:
                each.append(now)
        return stamps

    return generate, {"llama-cpp-python": metadata.version("llama-cpp-python")}


if __name__ == "__main__":
    run(load)
