"""OpenVINO GenAI's continuous batching pipeline, stepped by hand."""

from __future__ import annotations

import itertools
import time
from importlib import metadata

import numpy as np
import openvino
import openvino_genai as genai
from workload import Generate, Job, Stamps, run


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    """`model` is an exported folder. bfloat16 is a hint: without such arithmetic OpenVINO computes in float32."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 4  # GB
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = max(job.max_batch, 2)
    scheduler.enable_prefix_caching = False
    options = {"INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": "bf16"}
    pipe = genai.ContinuousBatchingPipeline(job.model, scheduler, "CPU", options)
    numbers = itertools.count()

    def generate(prompts: list[list[int]], output_len: int) -> Stamps:
        config = genai.GenerationConfig()
        config.max_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        handles = [
            pipe.add_request(next(numbers), openvino.Tensor(np.array([prompt], np.int64)), config)
            for prompt in prompts
        ]
        stamps: Stamps = [[] for _ in prompts]
        while pipe.has_non_finished_requests():
            pipe.step()
            now = time.perf_counter()
            for handle, came in zip(handles, stamps, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        came += [now] * len(output.generated_ids)
        return stamps

    return generate, {"openvino-genai": metadata.version("openvino-genai")}


if __name__ == "__main__":
    run(load)
