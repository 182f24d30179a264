"""Where Triton kernels can run, and the candidates that load them. Loads no triton itself.

The kernels are in the other modules of this folder, the only ones that import triton. They are loaded when a case was
taken: for a CUDA device, or for CPU tensors where Triton's interpreter was asked for (TRITON_INTERPRET=1, set before
the process starts), which is slow and exact and what tests without a device use.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from octavo.core import env
from octavo.kernels.dispatch import OpCase

P = ParamSpec("P")
R = TypeVar("R")

MIN_CAPABILITY = (8, 0)
"""Of devices: bfloat16 in matrix products and asynchronous copies begin there, and Triton's own support."""
DTYPES = ("bfloat16", "float16", "float32")


def is_interpreting() -> bool:
    """Whether kernels of this process run in Triton's interpreter, on CPU tensors."""
    return env.is_triton_interpreted()


def missing() -> str | None:
    """Why triton cannot be used; None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'octavo[gpu]')"
    return None


def refusal(
    device: str,
    dtype: str,
    dtypes: tuple[str, ...] = DTYPES,
    *,
    capability: tuple[int, int] = MIN_CAPABILITY,
) -> str | None:
    """Why a kernel for `dtypes` cannot take a case of this device type and dtype; None when it can.

    `capability` is the least compute capability of a device that it needs.
    """
    if device == "cpu" and not is_interpreting():
        return "runs on cuda and not on cpu, where it could only be interpreted"
    if device not in ("cpu", "cuda"):
        return f"runs on cuda and not on {device}"
    if dtype not in dtypes:
        return f"takes {' or '.join(dtypes)} and not {dtype}"
    reason = missing()
    if reason is None and device == "cuda":
        reason = _refusal_of_device(capability)
    return reason


def _refusal_of_device(capability: tuple[int, int]) -> str | None:
    if is_interpreting():
        return "is being interpreted (TRITON_INTERPRET=1), which is for cpu tensors"
    if torch.version.hip is not None:
        return "is written for NVIDIA devices and not for ROCm"
    if not torch.cuda.is_available():
        return "sees no CUDA device"
    has = torch.cuda.get_device_capability()
    if has < capability:
        wanted = f"{capability[0]}.{capability[1]}"
        return f"needs compute capability {wanted}; this device has {has[0]}.{has[1]}"
    return None


@dataclass(frozen=True, slots=True)
class TritonFunction(Generic[P, R]):
    """A candidate that is one function of a module of kernels, loaded when a case was taken."""

    target: str
    """`module:attribute`."""
    dtypes: tuple[str, ...] = DTYPES
    max_size: int | None = None
    """Largest first size of a case: what one program holds of a row. None: any."""

    def refuses(self, case: OpCase, /) -> str | None:
        """Refuses other devices and dtypes, older devices, longer rows, and a process without triton."""
        if self.max_size is not None and case.sizes and case.sizes[0] > self.max_size:
            return f"takes rows of at most {self.max_size} features and not {case.sizes[0]}"
        return refusal(case.device, case.dtype, self.dtypes)

    def __call__(self, case: OpCase, /) -> Callable[P, R]:
        """The function itself."""
        module, _, attribute = self.target.partition(":")
        loaded: Any = getattr(importlib.import_module(module), attribute)
        return loaded  # type: ignore[no-any-return]  # the target names a function of this signature
