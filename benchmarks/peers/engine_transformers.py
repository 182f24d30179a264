"""transformers' `generate` with its default cache; one batch at a time."""

from __future__ import annotations

import time
from importlib import metadata
from typing import Any

import torch
import transformers
from workload import Generate, Job, Stamps, run


class Clock(transformers.StoppingCriteria):
    """Asked after each token whether to stop: never, but it looks at the clock."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """No row is done."""
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    """In the dtype named by `precision`."""
    torch.set_num_threads(job.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.model, dtype=getattr(torch, job.precision), local_files_only=True
    ).eval()
    model.generation_config = transformers.GenerationConfig()

    def generate(prompts: list[list[int]], output_len: int) -> Stamps:
        ids, clock = torch.tensor(prompts), Clock()
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=output_len, pad_token_id=0
        )
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        return [clock.times] * len(prompts)

    return generate, {name: metadata.version(name) for name in ("transformers", "torch")}


if __name__ == "__main__":
    run(load)
