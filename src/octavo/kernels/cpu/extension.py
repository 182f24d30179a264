"""The compiled CPU kernels (`octavo._cpu`, built from csrc/cpu) beside torch: threads, and tensors as addresses.

The modules beside this one wrap them with types. Nothing is copied; shape, dtype and contiguity are checked, in the
extension where arrays pass through DLPack and here where they pass as addresses. Nobody here knows models. Where the
extension was not built, `missing()` says so and the other functions must not be called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.cpu.native import (
    SCALAR_COST,
    features,
    isa,
    limit_isa,
    missing,
    native,
    refusal,
    round_products,
    runnable_isas,
    slow_because,
)

__all__ = [
    "SCALAR_COST",
    "address",
    "features",
    "isa",
    "limit_isa",
    "missing",
    "native",
    "num_threads",
    "refusal",
    "round_products",
    "runnable_isas",
    "set_num_threads",
    "slow_because",
    "take_over",
]
"""What the machine can do is asked in `native.py`, which needs no torch, and passed on here."""


class _Settings:
    """Of this process."""

    num_threads = 0


def set_num_threads(count: int) -> None:
    """How many threads the kernels of this process use. Their pool is apart from torch's."""
    _Settings.num_threads = count


def take_over() -> None:
    """The kernels do nearly all the work from now on: torch keeps to one thread, and idle threads watch for 50 us.

    Two pools on the same cores would only wait for each other (docs/log.md).
    """
    torch.set_num_threads(1)
    native.set_watch(50)


def num_threads() -> int:
    """As set, else torch's."""
    return _Settings.num_threads or torch.get_num_threads()


def address(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> int:
    """Where a tensor's data lie. DLPack would check this, too, at forty times the cost."""
    if (
        tensor.dtype is not dtype
        or tensor.shape != shape
        or not tensor.is_contiguous()
        or not tensor.is_cpu
    ):
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, contiguous on cpu; "
            f"given {tensor.dtype} {list(tensor.shape)} on {tensor.device}, strides {tensor.stride()}."
        )
    return tensor.data_ptr()
