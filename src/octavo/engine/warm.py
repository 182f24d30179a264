"""What a GPU's engine does once before it is ready, so that no request is the first of anything.

The largest step that limits allow is run with the cache in place, so that a plan that does not hold fails here; kernels of
prompts, of single tokens beside them and alone, and of sampling are compiled; what captured steps share is made.
"""

from __future__ import annotations

import torch

from octavo.cache.blocks import NULL_BLOCK
from octavo.core.errors import ConfigError
from octavo.decoding.state import greedy_batch, random_batch
from octavo.engine.captured import CapturedSteps
from octavo.engine.device import Device
from octavo.engine.measure import largest_step, null_step
from octavo.engine.memory import MemoryPlan
from octavo.engine.runner import Runner
from octavo.scheduler.limits import Limits

GIB = 1 << 30
MIXED_TOKENS = (16, 32, 64, 128, 512)
"""Of steps of a chunk beside a single token. Products have variants for up to so many rows (`kernels/triton/tiles.py`), and
attention has one for such steps, which serving is full of and the largest step is not."""


def settle(device: Device, memory: MemoryPlan) -> None:
    """Give back what measuring has left, and bind tensors to the plan from now on."""
    device.settle(memory.budget)


@torch.inference_mode()
def warm_up(runner: Runner, limits: Limits, memory: MemoryPlan, device: Device) -> int:
    """Run what requests will; bytes that captured steps have taken so far.

    Raises:
        ConfigError: the device has not the memory that was planned.
    """
    try:
        _run_all(runner, limits, device)
    except RuntimeError as error:
        if device.is_exceeded(error):
            raise exceeded(memory, error) from error
        raise
    graphs = runner.graphs
    return graphs.num_bytes if isinstance(graphs, CapturedSteps) else 0


def exceeded(memory: MemoryPlan, error: BaseException) -> ConfigError:
    """A step found less memory than was planned for it."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError(
        f"the GPU has not the memory for the largest step: {memory.budget / GIB:.2f} GiB were planned for weights, cache, "
        f"graphs and activations, and an allocation failed ({said}).",
        code="E-GPU-08",
        fix="Any of: a lower --gpu-memory-utilization, if others took memory meanwhile (nvidia-smi shows them); a smaller "
        "--max-num-batched-tokens; a smaller --max-num-seqs.",
    )


def _run_all(runner: Runner, limits: Limits, device: Device) -> None:
    where = device.torch_device
    batch = largest_step(limits, len(runner.pool.groups), where)
    hidden_TD = runner.forward(batch)
    logits_NV = runner.model.logits(hidden_TD[: limits.max_num_seqs]).float()
    chooser = runner.sampler.chooser_for(where)
    for sampling in (greedy_batch, random_batch):
        chooser.choose(logits_NV, sampling(len(logits_NV)))
    del hidden_TD, logits_NV
    for tokens in MIXED_TOKENS:
        if tokens < batch.num_tokens:
            counts = [min(tokens - 1, limits.max_model_len), 1][: limits.max_num_seqs]
            hidden_TD = runner.forward(null_step(counts, len(runner.pool.groups), where))
            runner.model.logits(hidden_TD[: limits.max_num_seqs])
            del hidden_TD
    if isinstance(runner.graphs, CapturedSteps):
        runner.graphs.prepare(runner)
    runner.probe()
    runner.pool.clear(NULL_BLOCK)
    device.mark().synchronize()
