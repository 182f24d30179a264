"""Octavo: its engine process, asked through its client."""

from __future__ import annotations

import asyncio
import itertools
import time
from importlib import metadata

from workload import Generate, Job, Skipped, Stamps, run

from octavo.core.config import EngineConfig
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Failed, TokenOut
from octavo.engine.client import EngineClient
from octavo.kernels.cpu_facts import PAIR_FLAG, read_cpu_flags


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    """`auto` is the default of the machine; `float32` rounds nothing, `int8` and `int4` quantize while loading."""
    if job.precision == "float32" and PAIR_FLAG not in read_cpu_flags():
        raise Skipped(f"auto is the same on a CPU without {PAIR_FLAG}")
    named = "dtype" if job.precision == "float32" else "quantization"
    options = {} if job.precision == "auto" else {named: job.precision}
    for name in options:
        if name not in EngineConfig.__struct_fields__:
            raise Skipped(f"this version has no --{name}")
    config = EngineConfig(
        model=job.model,
        max_model_len=job.max_len,
        max_num_seqs=job.max_batch,
        threads=job.threads,
        enable_prefix_caching=False,
        performance_mode="throughput",
        **options,
    )
    loop = asyncio.new_event_loop()
    client = EngineClient(config)
    numbers = itertools.count()

    async def start() -> None:
        await client.start()
        await client.wait_ready()

    async def one(prompt: list[int], output_len: int) -> list[float]:
        request = Request(
            id=f"peer-{next(numbers)}",
            token_ids=tuple(prompt),
            params=SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output_len),
            max_tokens=output_len,
            seed=0,
            arrived=time.monotonic(),
        )
        stamps: list[float] = []
        async for event in client.generate(request):
            if isinstance(event, Failed):
                raise SystemExit(event.error.one_line())
            if isinstance(event, TokenOut):
                stamps += [time.perf_counter()] * len(event.token_ids)
        return stamps

    async def many(prompts: list[list[int]], output_len: int) -> Stamps:
        return await asyncio.gather(*(one(prompt, output_len) for prompt in prompts))

    loop.run_until_complete(start())
    kernels = {name: value for name, value, _ in client.ready.decisions if "kernel" in name}
    about = {"octavo": metadata.version("octavo"), "dtype": client.ready.dtype, **kernels}
    return lambda prompts, length: loop.run_until_complete(many(prompts, length)), about


if __name__ == "__main__":
    run(load)
