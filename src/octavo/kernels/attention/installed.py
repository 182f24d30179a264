"""What attention by a library that may not be installed has in common: whether it can take a case, and its arguments.

Nothing here imports such a library before a case has passed all that can be said without it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from octavo.core.batch import ForwardBatch
from octavo.kernels.attention.base import AttentionCase

DTYPES = ("bfloat16", "float16")


def is_installed(module: str) -> bool:
    """Whether a module of the name could be imported; imports nothing."""
    return importlib.util.find_spec(module) is not None


def load(module: str) -> ModuleType | str:
    """The module, or why it cannot be loaded."""
    try:
        return importlib.import_module(module)
    except (
        Exception
    ) as error:  # edge of a library: whatever a broken build throws, others can compute
        return f"{module} is installed and cannot be loaded: {type(error).__name__}: {error}"


def refusal(case: AttentionCase, head_dims: Sequence[int]) -> str | None:
    """What none of them takes, whatever is installed."""
    if case.device != "cuda":
        return f"runs on cuda and not on {case.device}"
    if case.dtype not in DTYPES:
        return f"takes {' or '.join(DTYPES)} and not {case.dtype}"
    if case.cache_dtype != case.dtype:
        return f"is used for a cache in the queries' dtype and not {case.cache_dtype}"
    if case.ahead:
        return "is used for causal attention, and this looks ahead"
    if case.is_invariant:
        return "splits contexts by what else is in the batch, so that a row's bits depend on it"
    if case.head_dim not in head_dims:
        return f"takes heads of {', '.join(map(str, head_dims))} features and not {case.head_dim}"
    return None


def refusal_of_device(least: tuple[int, int], most: tuple[int, int] | None = None) -> str | None:
    """Why the device is not of those that a library's kernels are built for."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "sees no CUDA device"
    has = torch.cuda.get_device_capability()
    if has < least or (most is not None and has > most):
        wanted = f"{least[0]}.{least[1]}" + ("" if most is None else f" to {most[0]}.{most[1]}")
        return f"needs compute capability {wanted}; this device has {has[0]}.{has[1]}"
    return None


def window_left(case: AttentionCase) -> int:
    """Tokens before its own that each sees; -1: all. Both libraries count so."""
    return -1 if case.window is None else case.window - 1


def contexts(batch: ForwardBatch) -> torch.Tensor:
    """Context lengths, int32 [S], on the host."""
    return torch.tensor(batch.context_lens, dtype=torch.int32)


def starts(batch: ForwardBatch) -> torch.Tensor:
    """Where each slice's queries begin and the last end, int32 [S + 1], on the host."""
    return torch.tensor(batch.query_starts, dtype=torch.int32)


def pages(lens_S: torch.Tensor, width: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tables of `width` blocks: where each context's pages begin in a list of all, int32 [S + 1], and the places of
    those pages in the tables laid end to end, int64. On the host.
    """
    counts = -(-lens_S.numpy().astype(np.int64) // block_size)
    begins = np.concatenate(([0], np.cumsum(counts)))
    within = np.arange(begins[-1]) - np.repeat(begins[:-1], counts)
    places = np.repeat(np.arange(len(counts)) * width, counts) + within
    return torch.from_numpy(begins.astype(np.int32)), torch.from_numpy(places)


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, without waiting for it; torch keeps the pinned memory until it was read."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)
